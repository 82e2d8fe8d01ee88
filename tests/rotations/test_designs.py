from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import sph_harm_y

from aspire_mom.rotations import SphericalDesign, shipped_designs, sphere

# Measured: residuals of all shipped designs are below 1e-13, and at the next
# degree above 0.09.
EXACT, WRONG = 1e-12, 0.05


def harmonic_means(points, l):
    """√(4π) |mean of Y_lm| over points, for all m ≥ 0."""
    x, y, z = points.T
    m = np.arange(l + 1)[:, None]
    values = sph_harm_y(l, m, np.arccos(z), np.arctan2(y, x))
    return np.sqrt(4 * np.pi) * np.abs(values.mean(axis=1))


@pytest.mark.parametrize(("degree", "n_points"), shipped_designs())
def test_exact_to_its_degree_and_not_beyond(degree, n_points):
    design = SphericalDesign(degree, n_points=n_points)
    assert (design.degree, design.n_points, len(design)) == (degree, n_points, n_points)
    for l in range(1, degree + 1):
        assert harmonic_means(design.points, l).max() < EXACT
    assert harmonic_means(design.points, degree + 1).max() > WRONG


@pytest.mark.parametrize(("degree", "n_points"), shipped_designs())
def test_points_are_antipodal_distinct_unit_vectors(degree, n_points):
    design = SphericalDesign(degree, n_points=n_points)
    points = design.points
    assert points.shape == (n_points, 3)
    assert points.dtype == np.float64
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, rtol=1e-15)
    np.testing.assert_array_equal(points[n_points // 2 :], -points[: n_points // 2])
    cosines = points @ points.T - 2 * np.eye(n_points)
    # Half of the spacing of N points in a hexagonal lattice, at the least.
    spacing = np.sqrt(8 * np.pi / np.sqrt(3) / n_points)
    assert np.arccos(cosines.max()) > spacing / 2


@settings(max_examples=20)
@given(
    azimuth=st.floats(-np.pi, np.pi),
    z=st.floats(-1, 1),
    power=st.integers(0, 41),
)
def test_means_of_powers(azimuth, z, power):
    """The mean of (u·x)^p over the sphere is 1/(p + 1) for even p, 0 for odd."""
    r = np.sqrt(1 - z**2)
    u = np.array([r * np.cos(azimuth), r * np.sin(azimuth), z])
    mean = np.mean((SphericalDesign(power).points @ u) ** power)
    assert mean == pytest.approx((1 - power % 2) / (power + 1), abs=1e-13)


def test_the_papers_design():
    design = SphericalDesign(13, n_points=100)
    assert design.points.shape == (100, 3)
    assert design.degree == 13


def test_all_odd_degrees_are_shipped_and_small():
    shipped = shipped_designs()
    assert set(range(1, 42, 2)) <= {degree for degree, _ in shipped}
    for degree, n_points in set(shipped) - {(13, 100)}:
        assert n_points <= degree**2 / 2 + degree / 2 + 4
    assert sphere.DATA.stat().st_size < 1e6


def test_smallest_of_sufficient_degree():
    for degree in range(42):
        design = SphericalDesign(degree)
        assert design.degree == max(1, degree + 1 - degree % 2)
        assert len(design) == min(n for t, n in shipped_designs() if t >= degree)


@pytest.mark.parametrize(
    ("degree", "n_points", "message"),
    [
        (99, None, "no shipped spherical design has degree 99 or higher"),
        (99, None, r"available are \(degree: points\) .* 13: 94, 13: 100"),
        (13, 99, "no shipped spherical design of 99 points has degree 13 or higher"),
        (14, 100, "design of 100 points has degree 14 or higher; available"),
        (-1, None, "degree is -1; it must be an integer of at least 0"),
        (2.5, None, r"degree is 2\.5; it must be an integer"),
    ],
)
def test_refuses_what_is_not_shipped(degree, n_points, message):
    with pytest.raises(ValueError, match=message):
        SphericalDesign(degree, n_points=n_points)


def test_points_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        SphericalDesign(3).points[0] = 0
