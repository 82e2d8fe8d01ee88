import numpy as np
import pytest
import torch

from aspire_mom import PositiveGrid
from aspire_mom.volumes.grid import volume_transform


def grid(dtype=torch.float64, **options):
    """A grid whose gain is no straight line."""
    model = PositiveGrid(4, **{"seed": 1, "support_radius": 0.3} | options).to(dtype)
    model.log_gains.data += torch.linspace(-0.5, 0.5, 4) ** 2
    return model


def by_definition(model, k):
    beta = 0.999 / (1 + np.exp(-model.solvent[0].item()))
    width = 0.5 + 5 * 0.999 / (1 + np.exp(-model.solvent[1].item()))
    r = np.arange(4)
    log_gains = np.log(1 - beta * np.exp(-(r**2) / (2 * width**2)))
    log_gains += model.log_gains.detach().numpy()
    radii = np.linalg.norm(k, axis=-1)
    sigma = 0.6 / 7
    waves = np.exp(-2j * np.pi * k @ model.points.numpy().T)
    decay = np.exp(-2 * np.pi**2 * sigma**2 * radii**2)
    weights = model.roots.detach().numpy() ** 2
    return np.exp(np.interp(radii, r, log_gains)) * decay * (waves @ weights)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-6)]
)
def test_values_follow_the_equation(dtype, tolerance):
    model = grid(dtype)
    k = np.random.default_rng(0).uniform(-3, 3, (50, 3))
    expected = by_definition(model, k)
    values = model(torch.from_numpy(k).to(dtype)).detach().numpy()
    np.testing.assert_allclose(values, expected, atol=tolerance * abs(expected).max())


@pytest.mark.parametrize("n_rings", [3, 6])
def test_rings_are_values_on_rings(n_rings):
    model = grid()
    directions = torch.randn(20, 3).double()
    directions /= directions.norm(dim=1, keepdim=True)
    radii = torch.arange(n_rings).double()
    expected = model(radii[:, None] * directions[:, None])
    torch.testing.assert_close(model.on_rings(directions, radii), expected)
    torch.testing.assert_close(
        model.on_rings(directions, 1.5 * radii),
        model(1.5 * radii[:, None] * directions[:, None]),
    )


def test_without_a_gain_no_voxel_is_negative():
    model = grid()
    model.log_gains.data.zero_()
    model.solvent.data[0] = -100.0
    voxels = model.to_volume(21).asnumpy()
    assert voxels.min() > -1e-4 * voxels.max()


@pytest.mark.parametrize("L", [16, 17])
def test_the_volume_has_these_values(L):
    model = grid()
    values = volume_transform(model.to_volume(L))
    k = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 0.0], [-4.0, 0.0, 1.0]])
    x, y, z = (k.long() + L // 2).T
    expected = model(k.double()).detach().numpy()
    np.testing.assert_allclose(values[z, y, x], expected, atol=1e-3)


def test_points_lie_in_the_ball():
    model = grid(support_radius=0.25)
    assert model.points.norm(dim=1).max() <= 0.25
    assert len(model.points) == len(model.roots)


@pytest.mark.parametrize(
    "options", [{"n_rings": 1}, {"n_rings": 4, "support_radius": 0.6}]
)
def test_numbers_out_of_range(options):
    with pytest.raises(ValueError, match=r"n_rings is 1|support_radius is 0\.6 boxes"):
        PositiveGrid(**options)
