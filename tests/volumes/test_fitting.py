import numpy as np
import pytest
import torch
from aspire.volume import Volume

from aspire_mom.phantoms import gaussian_phantom
from aspire_mom.volumes import FourierNet
from aspire_mom.volumes.base import (
    FourierVolume,
    _integer_frequencies,
    _shell_weights,
)
from tests.references.dft import volume_fourier_values


class Blob(FourierVolume):
    """One Gaussian with a free amplitude, position and width: a small model."""

    def __init__(self):
        super().__init__()
        self.amplitude = torch.nn.Parameter(torch.tensor(50.0))
        self.centre = torch.nn.Parameter(torch.zeros(3))
        self.sigma = torch.nn.Parameter(torch.tensor(0.12))

    def forward(self, k):
        decay = torch.exp(-2 * (torch.pi * self.sigma) ** 2 * k.square().sum(-1))
        phase = -2 * torch.pi * (k @ self.centre)
        return torch.polar(self.amplitude * decay, phase)


def gaussian(L, centre=(0.06, -0.04, 0.1), sigma=0.1):
    axis = (np.arange(L) - L // 2) / L
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    a, b, c = centre
    r2 = (x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2
    return Volume(np.exp(-r2 / (2 * sigma**2)).astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("L", [12, 13])
def test_small_model_is_fitted_closely(L, dtype):
    """x, y and z land where they belong; Adam alone would not get this close."""
    volume, model = gaussian(L), Blob().to(dtype)
    error = model.fit(volume, n_steps=200, learning_rate=0.01)
    assert error < 0.01  # the Gaussian itself is cut at the box and at L/2
    centre = model.centre.detach().numpy()
    np.testing.assert_allclose(centre, [0.06, -0.04, 0.1], atol=1e-3)
    k = np.array([[1, 0, 0], [0, 2, 1], [-1, 1, 2]])
    expected = volume_fourier_values(volume.asnumpy()[0], k)
    values = model(torch.tensor(k, dtype=dtype)).detach().numpy()
    np.testing.assert_allclose(values, expected, atol=0.01 * np.abs(expected).max())


def test_relative_error_is_eq_27_without_the_rotation():
    model, volume = Blob(), gaussian(11)
    voxels, truth = model.to_volume(11).asnumpy()[0], volume.asnumpy()[0]
    expected = np.sqrt(np.sum((voxels - truth) ** 2) / np.sum(truth**2))
    assert model.relative_error(volume) == pytest.approx(expected, rel=1e-6)
    assert model.relative_error(model.to_volume(11)) == 0


def test_callback_stops():
    steps = []
    Blob().fit(gaussian(9), callback=lambda step, loss: steps.append(loss) or step == 4)
    assert len(steps) == 5
    assert all(loss > 0 for loss in steps)


def test_zero_volume_is_refused():
    with pytest.raises(ValueError, match="zero at all frequencies"):
        Blob().fit(Volume(np.zeros((8, 8, 8), np.float32)))


class Cliff(Blob):
    """NaN where the amplitude is above 60, as where a model overflows."""

    def forward(self, k):
        return super().forward(k) + 0 * torch.sqrt(60 - self.amplitude)


def test_a_line_search_over_a_cliff_keeps_the_best_point():
    """The volume asks for an amplitude of 1000: no step of L-BFGS may get there."""
    volume = 20 * Blob().to_volume(11)
    model = Cliff()
    before = model.relative_error(volume)
    error = model.fit(volume, n_steps=400, learning_rate=1e-6)
    assert all(p.isfinite().all() for p in model.parameters())
    assert 50 < model.amplitude < 60
    assert error < before


def test_errors_count_by_the_rms_of_their_shells():
    """Of a shell 100 times weaker, squares count 100 times as much."""
    k = torch.tensor([[0.0, 0, 3], [0, 3, 0.1], [1, 0, 0], [0, 1, 0.1]])
    target = torch.tensor([3 + 4j, 5j, 500, 300 - 400j])
    weights = _shell_weights(k, target)
    ratio = float(weights[0] / weights[2])
    assert ratio == pytest.approx(100, rel=0.01)  # a little less: no shell is empty
    assert weights[0] == weights[1]
    assert weights[2] == weights[3]
    assert float((weights * target.abs().square()).sum()) == pytest.approx(1)


def test_outer_shells_are_learned():
    """Within steps in which errors as they are teach the network the inner ones."""
    volume = gaussian_phantom(15, seed=3)
    network = FourierNet(7.5, hidden=32, seed=0)
    network.fit(volume, n_steps=200, learning_rate=3e-3, batch_size=512)
    k, target = _integer_frequencies(volume, network.decay)
    outer = torch.linalg.norm(k, dim=1) > 3.5
    difference = (network(k) - target)[outer].detach()
    assert torch.linalg.norm(difference) < 0.1 * torch.linalg.norm(target[outer])
