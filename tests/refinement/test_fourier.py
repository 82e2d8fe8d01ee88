import numpy as np
import pytest

from aspire_mom import SphericalDesign
from aspire_mom.phantoms import chain_phantom, gaussian_phantom
from aspire_mom.refinement.fourier import local_agreement, locally_filtered, resized
from aspire_mom.refinement.slices import slices


@pytest.mark.parametrize(("m", "n"), [(25, 31), (24, 25), (31, 25), (32, 20)])
def test_resized_keeps_fourier_values(m, n):
    volume = gaussian_phantom(m, seed=3).asnumpy()[0]
    found = resized(volume, n)
    directions = SphericalDesign(5).points
    a, b = slices(volume, directions, 8, m), slices(found, directions, 8, m)
    np.testing.assert_allclose(a, b, atol=3e-3 * abs(a).max())


def noisy_halves(n: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """A molecule, and twice the same with independent noise everywhere."""
    truth = chain_phantom(n, seed=0).asnumpy()[0]
    truth = truth / truth.std()
    rng = np.random.default_rng(1)
    return truth, truth + noise * rng.normal(size=(2, n, n, n)).astype(np.float32)


@pytest.mark.parametrize("n", [33, 32])
def test_halves_agree_in_the_molecule_and_not_in_the_solvent(n):
    truth, halves = noisy_halves(n, 0.3)
    agreement = local_agreement(halves)
    bright = truth > 0.2 * truth.max()
    radius = np.linalg.norm(np.indices(truth.shape) - n // 2, axis=0)
    # Independent noise correlates to 0.04 where negative values count as 0.
    assert agreement[radius > 0.49 * n].mean() < 0.08
    assert agreement[bright].mean() > 0.7
    assert 0 <= agreement.min() <= agreement.max() <= 1 + 1e-6


@pytest.mark.parametrize("scale", [2.0**-30, 1.0, 2.0**30])
def test_a_local_filter_comes_closer_to_the_truth(scale):
    truth, halves = noisy_halves(32, 0.5)
    weights = local_agreement(np.float32(scale) * halves)
    filtered = locally_filtered(halves, weights)
    before, after = (np.linalg.norm(u - truth) for u in (halves, filtered))
    assert after < 0.6 * before


def test_a_local_filter_leaves_halves_that_agree_alike():
    truth, _ = noisy_halves(25, 0.0)
    halves = np.stack((truth, truth))
    found = locally_filtered(halves, local_agreement(halves))
    np.testing.assert_allclose(found, halves, atol=1e-5 * abs(truth).max())
