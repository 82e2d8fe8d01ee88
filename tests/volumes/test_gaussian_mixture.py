import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aspire_mom.phantoms import gaussians_on_grid
from aspire_mom.volumes import GaussianMixture
from aspire_mom.volumes.base import FourierVolume
from aspire_mom.volumes.gaussian_mixture import RingSum
from aspire_mom.volumes.grid import volume_transform

DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)]
)


def random_points(n, largest=6.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    radii = largest * torch.rand(n, 1, generator=generator, dtype=torch.float64)
    return (radii * k / torch.linalg.norm(k, dim=1, keepdim=True)).to(dtype)


def mixture(n=5, dtype=torch.float64, **options):
    """Gaussians of different widths, not all alike as at the start."""
    model = GaussianMixture(n, **{"total": 3.0, "seed": 1} | options).to(dtype)
    widths = torch.linspace(0.6, 1.4, n).to(dtype)
    model.log_sigmas.data += widths.log()
    return model


def in_voxels(model, L):
    """Centres, widths and masses as NumPy arrays, lengths in voxels."""
    parts = (model.centres * L, model.sigmas * L, model.weights)
    return [part.detach().double().numpy() for part in parts]


@DTYPES
@pytest.mark.parametrize("signed", [False, True])
def test_values_are_the_closed_form(dtype, tolerance, signed):
    model = mixture(dtype=dtype, signed=signed)
    k = random_points(40, dtype=dtype)
    values = model(k)
    assert values.dtype == (torch.ones(1, dtype=dtype) * 1j).dtype
    expected = np.zeros(len(k), complex)
    for centre, sigma, weight in zip(*in_voxels(model, 1), strict=True):
        for i, point in enumerate(k.double().numpy()):
            decay = np.exp(-2 * np.pi**2 * sigma**2 * point @ point)
            expected[i] += weight * decay * np.exp(-2j * np.pi * point @ centre)
    assert np.abs(expected).max() > 0.3
    np.testing.assert_allclose(values.detach().numpy(), expected, atol=3 * tolerance)


@DTYPES
def test_rings_are_scattered_points(dtype, tolerance):
    model = mixture(dtype=dtype)
    directions = random_points(30, dtype=dtype)
    directions = directions / torch.linalg.norm(directions, dim=1, keepdim=True)
    for radii in (range(9), [0], [1, 2, 4], [3.0, 0.5]):
        radii = torch.tensor(list(radii)).to(dtype)
        expected = FourierVolume.on_rings(model, directions, radii)
        assert expected.abs().max() > 0.05
        actual = model.on_rings(directions, radii)
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=0, atol=5 * tolerance)


def test_gradients_of_rings_are_those_of_scattered_points():
    model = mixture()
    directions = random_points(20)
    directions = directions / torch.linalg.norm(directions, dim=1, keepdim=True)
    radii, generator = torch.arange(6).double(), torch.Generator().manual_seed(2)
    target = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    gradients = []
    for rings in (model.on_rings, lambda d, r: FourierVolume.on_rings(model, d, r)):
        values = rings(directions, radii)
        loss = (target * values.real + target.flip(0) * values.imag).sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for actual, expected in zip(*gradients, strict=True):
        assert expected.abs().min() > 1e-6
        torch.testing.assert_close(actual, expected)


def test_ring_sum_gradcheck():
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    phase = torch.randn(4, 3, **options).requires_grad_()
    amplitude = torch.randn(3, 5, **options).requires_grad_()
    assert torch.autograd.gradcheck(RingSum.apply, (phase, amplitude))
    expected = torch.einsum(
        "gr,rng->nr",
        amplitude + 0j,
        torch.exp(1j * torch.arange(5)[:, None, None] * phase),
    )
    torch.testing.assert_close(RingSum.apply(phase, amplitude), expected)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), n=st.integers(1, 20))
def test_bounds(seed, n):
    """Weights are positive, centres lie in the support, V(-k) = conj V(k) ≤ V(0)."""
    model = GaussianMixture(n, support_radius=0.3, total=7.0, seed=seed)
    assert len(model) == n
    assert (model.weights > 0).all()
    assert 3 < model.weights.sum() < 12
    model.centre_parameters.data *= 100
    assert (torch.linalg.norm(model.centres, dim=1) <= 0.3 * (1 + 1e-6)).all()
    k = random_points(20, dtype=torch.float32, seed=seed)
    torch.testing.assert_close(model(-k), model(k).conj())
    top = model(torch.zeros(1, 3))
    torch.testing.assert_close(top[0].real, model.weights.sum())
    assert (model(k).abs() <= top.abs() * (1 + 1e-6)).all()


def test_signed_weights_may_be_negative():
    model = mixture(signed=True)
    model.weight_parameters.data[0] = -1
    assert model.weights[0] < 0
    assert model.weights[1:].min() > 0


@pytest.mark.parametrize("L", [20, 21])
def test_volume_is_gaussians_on_the_grid(L):
    """
    Widths of 1.5 to 2.6 voxels: aliases, and what even sizes lack without Nyquist
    planes, are below exp(-2π² 1.5²/4) = 2e-5 of V(0); centres 3 widths within the box.
    """
    model = mixture(4, support_radius=0.18, sigma=0.1)
    model.log_sigmas.data = torch.linspace(1.5 / L, 2.6 / L, 4).double().log()
    centres, sigmas, weights = in_voxels(model, L)
    heights = weights / (2 * np.pi * sigmas**2) ** 1.5
    volume = model.to_volume(L, pixel_size=2.5)
    assert volume.pixel_size == 2.5
    voxels = volume.asnumpy()[0]
    # The phantom is scaled to unit norm, the model is not.
    expected = gaussians_on_grid(centres, sigmas, heights, L).asnumpy()[0]
    scale = weights.sum() / expected.sum(dtype=np.float64)
    assert np.abs(voxels - scale * expected).max() < 5e-4 * voxels.max()
    k = torch.tensor([[1.0, -2, 3], [0, 0, 0], [-4, 1, 0]]).double()
    x, y, z = (k.int() + L // 2).T.numpy()
    np.testing.assert_allclose(
        volume_transform(volume)[z, y, x], model(k).detach().numpy(), atol=1e-5
    )


@DTYPES
@pytest.mark.parametrize("n_more", [1, 3, 5])
def test_grown_is_nearly_the_same_volume(dtype, tolerance, n_more):
    model = mixture(dtype=dtype)
    larger = model.grown(n_more, seed=3)
    assert len(larger) == 5 + n_more
    assert all(p.dtype == dtype for p in larger.parameters())
    torch.testing.assert_close(larger.weights.sum(), model.weights.sum())
    assert (torch.linalg.norm(larger.centres, dim=1) <= model.support_radius).all()
    k = random_points(200, largest=3.0, dtype=dtype)
    change = (larger(k) - model(k)).abs().max() / model(k).abs().max()
    assert tolerance < change < 0.15
    # Those not split, narrow and light, stay as they were.
    split = torch.argsort(model.weights * model.sigmas, descending=True)[:n_more]
    kept = [i for i in range(5) if i not in split.tolist()]
    for name in ("weights", "sigmas", "centres"):
        before, after = (getattr(m, name)[kept] for m in (model, larger))
        torch.testing.assert_close(after, before)
    assert all((larger.weights[i] < 0.51 * model.weights[i]).all() for i in split)


def test_growth_depends_on_its_seed_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model = mixture(signed=True)
    model.weight_parameters.data[1] = -2
    grown = [model.grown(2, seed).state_dict() for seed in (1, 1, 2)]
    assert torch.equal(state, torch.get_rng_state())
    same, other = (
        [torch.equal(grown[0][name], values[name]) for name in values]
        for values in grown[1:]
    )
    assert all(same)
    assert not all(other)
    assert model.grown(2, 1).weights.min() < 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_gaussians": 0}, "n_gaussians is 0"),
        ({"support_radius": 0.0}, "support_radius is 0.0"),
        ({"support_radius": 0.6}, "support_radius is 0.6"),
        ({"n_gaussians": 2.5}, r"n_gaussians is 2\.5; .* an integer"),
        ({"sigma": 0.0}, "sigma is 0.0; it must be a positive number"),
        ({"total": float("nan")}, "total is nan; it must be a positive number"),
        ({"total": 0}, "total is 0;"),
        ({"total": -1}, "total is -1;"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**options)


@DTYPES
def test_finite_however_wide(dtype, tolerance):
    """Gaussians wider than the box are one value at k = 0, gradients included."""
    model = mixture(dtype=dtype)
    for log_sigma in (0.0, 50.0, 1e4):
        model.log_sigmas.data.fill_(log_sigma)
        model.zero_grad()
        directions = torch.eye(3, dtype=dtype)
        values = model.on_rings(directions, torch.arange(4).to(dtype))
        torch.testing.assert_close(values[:, 0].real, model.weights.sum().expand(3))
        assert (values[:, 1:].abs() < 1e-7).all()
        torch.testing.assert_close(model(torch.zeros(1, 3).to(dtype))[0], values[0, 0])
        values.abs().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
