"""Second moments of white noise in a polar basis."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from aspire_mom.moments.bases import PolarBasis

# Images transformed at once.
CHUNK = 32


@lru_cache(maxsize=1)
def white_noise_second(basis: PolarBasis, nyquist: bool) -> np.ndarray:
    """
    :param basis: The basis.
    :param nyquist: As in :meth:`PolarBasis.noise_second`.
    :return: Array of the second moment's shape, complex128, read-only.
    """
    second = _by_distance(basis) if basis.inplane_average else _by_pixel(basis)
    if not nyquist:
        L = basis.L
        second = (L / (L - 1)) ** 2 * (second - _of_nyquist(basis))
    second.setflags(write=False)
    return second


def _by_distance(basis: PolarBasis) -> np.ndarray:
    """
    Averaged in-plane, Σ_x J_m(2πr|x|/L) J_m(2πr'|x|/L): a sum over pixels of an even
    function of their distances from the centre, to rounding a polynomial. So a few
    distances do, the positive Chebyshev nodes of (-D, D), D the largest distance, with
    weights Σ_x ℓ_j(|x|), ℓ_j the even polynomial that is 1 at node j and 0 at others.
    """
    axis = np.arange(basis.L) - basis.L // 2
    squares, counts = np.unique(np.add.outer(axis**2, axis**2), return_counts=True)
    distances = np.sqrt(squares)
    largest = distances[-1]
    # Bessel functions, as exp(iz cos φ), have degrees up to z and few more.
    reach = 4 * np.pi * (basis.n_rings - 1) / basis.L * largest
    n = int(reach / 2 + 4 * reach ** (1 / 3)) + 10
    nodes = np.pi * (np.arange(n) + 0.5) / (2 * n)  # largest · cos(nodes)
    degrees = 2 * np.arange(n)
    sums = np.cos(np.outer(degrees, np.arccos(distances / largest))) @ counts
    sums[0] /= 2
    weights = 2 / n * np.cos(np.outer(nodes, degrees)) @ sums
    half_turns = 1j ** np.arange(basis.max_order + 1)[:, None]
    second = 0
    for j in range(0, n, CHUNK):
        chunk = slice(j, j + CHUNK)
        points = largest * np.cos(nodes[chunk])
        c = _coefficients(basis, np.exp(-1j * np.outer(points, basis.half_rings[0])))
        J = (half_turns * c).real.transpose(1, 2, 0)
        second = second + (weights[chunk] * J) @ J.swapaxes(1, 2)
    return second.astype(np.complex128)


def _by_pixel(basis: PolarBasis) -> np.ndarray:
    """Σ A A* over unit impulses in all pixels, row by row."""
    pixels = np.arange(basis.L) - basis.L // 2
    # An impulse at (x, y) has the transform exp(-i kx x) exp(-i ky y).
    across, down = (np.exp(-1j * np.outer(pixels, k)) for k in basis.half_rings)
    return sum(_second(basis, across * wave) for wave in down)


def _of_nyquist(basis: PolarBasis) -> np.ndarray:
    """
    The share of the Nyquist row and column in the noise, of covariance I - P ⊗ P, where
    P = I - a aᵀ/L removes the alternating vector a: (I ⊗ a aᵀ + a aᵀ ⊗ P) / L.
    """
    L = basis.L
    pixels = np.arange(L) - L // 2
    a = (-1.0) ** pixels / np.sqrt(L)
    kx, ky = basis.half_rings
    x, y = (
        sum(s * np.exp(-1j * k * p) for s, p in zip(a, pixels, strict=True))
        for k in (kx, ky)
    )
    second = 0
    for j in range(0, L, CHUNK):
        chunk = slice(j, j + CHUNK)
        rows = np.exp(-1j * np.outer(pixels[chunk], ky)) * x
        columns = np.exp(-1j * np.outer(pixels[chunk], kx)) - np.outer(a[chunk], x)
        second = second + _second(basis, rows) + _second(basis, columns * y)
    return second


def _second(basis: PolarBasis, waves: np.ndarray) -> np.ndarray:
    """Σ f f* of images with transforms (n, n_rings · n_angles) on half rings."""
    return basis.product(*basis.factors(_coefficients(basis, waves)))


def _coefficients(basis: PolarBasis, waves: np.ndarray) -> np.ndarray:
    half = waves.reshape(-1, basis.n_rings, basis.n_angles) / (2 * basis.n_angles)
    return basis.orders(half)
