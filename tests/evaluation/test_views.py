import numpy as np
import pytest

from aspire_mom.evaluation import fourier_coverage, sampling_compensation_factor
from aspire_mom.rotations import SphericalDesign

UNIFORM = SphericalDesign(27).points


def test_uniform_views_cover_all():
    probabilities = np.full(len(UNIFORM), 3.0)
    np.testing.assert_allclose(fourier_coverage(UNIFORM, probabilities), 1, atol=0.05)
    factor = sampling_compensation_factor(UNIFORM, probabilities)
    assert factor == pytest.approx(1, abs=0.01)


def test_side_views():
    """Direction k is seen in proportion to 1 / sin θ, of which the harmonic mean over
    the arithmetic one is 8 / π² = 0.81."""
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    ring = np.stack((np.cos(angles), np.sin(angles), 0 * angles), -1)
    factor = sampling_compensation_factor(ring, np.ones(720))
    assert factor == pytest.approx(8 / np.pi**2, abs=0.02)


def test_one_view_leaves_directions_unseen():
    one = np.array([[0.0, 0.6, 0.8]])
    coverage = fourier_coverage(one, np.ones(1))
    assert coverage.min() < 1e-6
    assert coverage.mean() == pytest.approx(1)
    assert sampling_compensation_factor(one, np.ones(1)) < 0.01
