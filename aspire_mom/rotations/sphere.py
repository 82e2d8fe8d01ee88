"""Spherical designs and spherical harmonics."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aspire_mom.checks import check_integer

DATA = Path(__file__).with_name("data") / "spherical_designs.npz"


class SphericalDesign:
    """
    Spherical t-design: N points over which the plain mean of any polynomial of degree
    t or less is its mean over the sphere (section 5.2).

    All shipped designs are antipodal: -x is a point if x is. Therefore odd polynomials
    sum to zero exactly, and t is odd. N is about t²/2 + t/2.
    ``benchmarks/make_spherical_designs.py`` computed them as zeros of the spherical
    harmonic sums, after R. S. Womersley, "Efficient spherical designs with good
    geometric properties", in Contemporary Computational Mathematics, Springer 2018. The
    paper does not publish its 100 points of degree 13;
    ``SphericalDesign(13, n_points=100)`` is a design of that size.

    The attribute `points` (N, 3) holds unit vectors, xyz order, float64, read-only;
    point j + N/2 is -(point j). `degree` is t, which may exceed the argument.

    :param degree: Least t; the shipped design with the fewest points is selected.
    :param n_points: Number of points N; any if None.
    :raises ValueError: no shipped design has this degree and number of points.
    """

    def __init__(self, degree: int, n_points: int | None = None):
        check_integer("degree", degree, 0)
        shipped = shipped_designs()
        fitting = [(n, t) for t, n in shipped if t >= degree and n_points in (None, n)]
        if not fitting:
            points = "" if n_points is None else f" of {n_points!r} points"
            known = ", ".join(f"{t}: {n}" for t, n in shipped)
            raise ValueError(
                f"no shipped spherical design{points} has degree {degree} or higher;"
                f" available are (degree: points) {known}"
            )
        self.n_points, self.degree = min(fitting)
        with np.load(DATA) as designs:
            half = designs[f"{self.degree}_{self.n_points}"]
        self.points = np.concatenate((half, -half))
        self.points.setflags(write=False)

    def __len__(self) -> int:
        return len(self.points)


def shipped_designs() -> list[tuple[int, int]]:
    """:return: Degree and number of points of each shipped design, ascending."""
    with np.load(DATA) as designs:
        pairs = [name.split("_") for name in designs.files]
    return sorted((int(degree), int(n_points)) for degree, n_points in pairs)


def real_spherical_harmonics(directions: Tensor, degree: int) -> Iterator[Tensor]:
    """
    Evaluate orthonormal real spherical harmonics, degree by degree, by the three-term
    recurrence of the associated Legendre functions in float64. No Condon-Shortley
    sign: Y_1 = √(3/4π) (y, z, x).

    :param directions: Unit vectors (..., 3), xyz order.
    :param degree: Largest degree.
    :yield: Y_l (..., 2l + 1), l = 0 … degree, m from -l (sines) to l (cosines).
    """
    x, y, z = directions.double()[..., None, :].unbind(-1)
    powers = torch.complex(x, y).expand(*x.shape[:-1], degree).cumprod(-1)
    azimuthal = np.sqrt(2) * powers
    cosines, sines = azimuthal.real.contiguous(), azimuthal.imag.contiguous()
    # Normalised Legendre functions over sin^m θ, of degrees l - 2 and l - 1.
    legendre_2 = torch.zeros_like(z[..., :0])
    legendre = torch.full_like(z, np.sqrt(1 / (4 * np.pi)))
    for l in range(degree + 1):
        if l:
            m = torch.arange(l, dtype=z.dtype, device=z.device)
            a = ((4 * l**2 - 1) / (l**2 - m**2)).sqrt()
            b = (((l - 1) ** 2 - m**2).clamp(min=0) / (4 * (l - 1) ** 2 - 1)).sqrt()
            diagonal = legendre[..., -1:] * np.sqrt((2 * l + 1) / (2 * l))
            previous = torch.nn.functional.pad(legendre_2, (0, 1))
            legendre_2, legendre = legendre, a * (z * legendre - b * previous)
            legendre = torch.cat((legendre, diagonal), -1)
        zonal, tesseral = legendre[..., :1], legendre[..., 1:]
        negative = (tesseral * sines[..., :l]).flip(-1)
        yield torch.cat((negative, zonal, tesseral * cosines[..., :l]), -1)
