import numpy as np
import pytest

from aspire_mom import SphericalDesign
from aspire_mom.phantoms import chain_phantom, gaussian_phantom
from aspire_mom.refinement.fourier import locally_filtered, noise_variance, resized
from aspire_mom.refinement.slices import slices


@pytest.mark.parametrize(("m", "n"), [(25, 31), (24, 25), (31, 25), (32, 20)])
def test_resized_keeps_fourier_values(m, n):
    volume = gaussian_phantom(m, seed=3).asnumpy()[0]
    found = resized(volume, n)
    directions = SphericalDesign(5).points
    a, b = slices(volume, directions, 8, m), slices(found, directions, 8, m)
    np.testing.assert_allclose(a, b, atol=3e-3 * abs(a).max())


def noisy_halves(n: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """A molecule, and twice the same with independent noise."""
    truth = chain_phantom(n, seed=0).asnumpy()[0]
    truth = truth / truth.std()
    rng = np.random.default_rng(1)
    return truth, truth + noise * rng.normal(size=(2, n, n, n)).astype(np.float32)


@pytest.mark.parametrize("n", [33, 32])
def test_halves_tell_the_variance_of_their_noise(n):
    _, halves = noisy_halves(n, 0.3)
    # Of some 10,000 voxels, the variance is known to 1.4 %.
    assert noise_variance(halves) == pytest.approx(0.09, rel=0.06)


@pytest.mark.parametrize("scale", [2.0**-30, 1.0, 2.0**30])
def test_noise_is_smoothed_in_the_solvent_and_stays_in_the_molecule(scale):
    truth, halves = (np.float32(scale) * u for u in noisy_halves(32, 0.3))
    found = locally_filtered(halves[0], noise_variance(halves))
    assert found.dtype == np.float32
    far = np.linalg.norm(np.indices(truth.shape) - 16, axis=0) > 16
    assert found[far].std() < 0.3 * halves[0][far].std()
    bright = truth > 0.5 * truth.max()
    np.testing.assert_allclose(found[bright], halves[0][bright], atol=0.3 * truth.max())
    before, after = (np.linalg.norm(u - truth) for u in (halves[0], found))
    assert after < 0.8 * before


def test_what_has_no_noise_stays():
    truth, _ = noisy_halves(25, 0.0)
    found = locally_filtered(truth, 0.0)
    np.testing.assert_allclose(found, truth, atol=1e-5 * abs(truth).max())
    np.testing.assert_array_equal(locally_filtered(0 * truth, 1.0), 0)
