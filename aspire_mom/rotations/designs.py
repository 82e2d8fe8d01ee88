"""Spherical designs: equal-weight quadrature on the sphere of viewing directions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.special import sph_harm_y_all

from aspire_mom.checks import check_integer

DATA = Path(__file__).with_name("data") / "spherical_designs.npz"
# Shipped designs have residuals of about 1e-15; a wrong point gives 1e-3 or more.
RESIDUAL_TOLERANCE = 1e-12


@dataclass(frozen=True, eq=False)
class SphericalDesign:
    """
    Spherical t-design on S²: N points over which the plain mean of any polynomial of
    degree t or less is its mean over the sphere (section 5.2).

    All shipped designs are symmetric, which makes every odd degree exact for free, so
    their degrees t are odd and N is about t²/2 + t/2. They were computed by
    ``benchmarks/make_spherical_designs.py`` as zeros of the spherical harmonic sums,
    after R. S. Womersley, "Efficient spherical designs with good geometric
    properties", in Contemporary Computational Mathematics, Springer 2018. A design
    of the paper's size (100 points, degree 13; its points are not published) is
    ``SphericalDesign(13, n_points=100)``.

    :param degree: Degree wanted. The smallest shipped design of this degree or higher
        is taken, and the attribute `degree` is then that design's own.
    :param n_points: Number of points N, where a particular one is wanted.
    :raises ValueError: no shipped design has this degree and number of points, or
        the data file does not hold the design it should.
    """

    degree: int
    n_points: int | None = None
    #: Unit vectors (N, 3), xyz order, float64, read-only; point j + N/2 is -(point j).
    points: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        degree, n_points = _choose(self.degree, self.n_points)
        with np.load(DATA, allow_pickle=False) as designs:
            half = designs[f"{degree}_{n_points}"]
        points = np.concatenate((half, -half))
        residual = harmonic_residual(points, degree)
        if len(points) != n_points or not residual < RESIDUAL_TOLERANCE:
            raise ValueError(
                f"{DATA} is corrupt: its {n_points}-point {degree}-design has "
                f"{len(points)} points and residual {residual:.1e}"
            )
        points.setflags(write=False)
        object.__setattr__(self, "degree", degree)
        object.__setattr__(self, "n_points", n_points)
        object.__setattr__(self, "points", points)

    def __len__(self) -> int:
        return len(self.points)

    @property
    def antipodal(self) -> bool:
        """Whether point j + N/2 is exactly -(point j) for all j < N/2."""
        half, opposite = np.array_split(self.points, 2)
        return np.array_equal(half, -opposite)


def shipped_designs() -> list[tuple[int, int]]:
    """
    List the designs that come with the package.

    :return: Pairs (degree, number of points), ascending.
    """
    with np.load(DATA, allow_pickle=False) as designs:
        pairs = [name.split("_") for name in designs.files]
    return sorted((int(degree), int(n_points)) for degree, n_points in pairs)


def harmonic_residual(points: np.ndarray, degree: int) -> float:
    """
    Measure how far points are from a spherical design: by the largest of their Weyl
    sums, which is zero for a design and for nothing else (Womersley 2018).

    :param points: Unit vectors (N, 3), xyz order.
    :param degree: Degree t.
    :return: max over 1 ≤ l ≤ t and m of √(4π) |(1/N) Σ_j Y_lm(x_j)|.
    """
    x, y, z = points.T
    polar, azimuth = np.arctan2(np.hypot(x, y), z), np.arctan2(y, x)
    # Y_l(-m) is ±conj Y_lm, so m ≥ 0 is enough; m > l is zero.
    sums = sph_harm_y_all(degree, degree, polar, azimuth)[1:, : degree + 1].mean(-1)
    return float(np.sqrt(4 * np.pi) * np.abs(sums).max(initial=0))


def _choose(degree: int, n_points: int | None) -> tuple[int, int]:
    """Degree and number of points of the smallest shipped design that will do."""
    check_integer("degree", degree, 0)
    shipped = shipped_designs()
    fitting = [(n, t) for t, n in shipped if t >= degree and n_points in (None, n)]
    if not fitting:
        points = "" if n_points is None else f" of {n_points!r} points"
        listing = ", ".join(f"{t}: {n}" for t, n in shipped)
        raise ValueError(
            f"no shipped spherical design{points} has degree {degree} or higher; "
            f"available are (degree: points) {listing}"
        )
    n, t = min(fitting)
    return t, n
