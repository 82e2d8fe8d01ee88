"""Reduction of rings for third moments: a few of them, or leading eigenvectors."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np

from aspire_mom.bases import Basis, PolarBasis
from aspire_mom.checks import check_integer, check_kind

BYTES = np.dtype(np.complex128).itemsize
# Rings of third moments, and of the grid fitted to them, by default. What ab initio
# models resolve lies within about 8 rings, which take 0.26 MB; that, and the grid's
# matrix, grow with about the sixth power of their number.
N_RINGS = 8
# Share of the largest eigenvalue below which others are rounding.
ROUNDING = 1e-10

# Vectors U[m], (n_rings, q[m]), that orders m = 0, 1, … are reduced by: a = U* c.
Vectors = tuple[np.ndarray, ...]


def check_basis(basis: Basis) -> None:
    """
    :param basis: What should be an in-plane averaged polar basis.
    :raises ValueError: it is another one.
    """
    check_kind("basis", basis, Basis)
    if not basis.inplane_average:
        raise ValueError(
            f"basis is {basis}; third moments are averaged over in-plane angles, of a"
            " PolarBasis with inplane_average=True"
        )


def order_pairs(counts: np.ndarray) -> tuple[tuple[int, int], ...]:
    """
    :param counts: Numbers q kept per order.
    :return: Orders m1 ≤ m2 with something kept of m1, m2 and m1 + m2.
    """
    M = len(counts) - 1
    return tuple(
        (m1, m2)
        for m1 in range(M // 2 + 1)
        for m2 in range(m1, M - m1 + 1)
        if counts[m1] and counts[m2] and counts[m1 + m2]
    )


def third_size(counts: np.ndarray) -> int:
    """
    :param counts: Numbers q kept per order.
    :return: Number of entries of their third moment.
    """
    q = [int(count) for count in counts]
    return sum(q[m1] * q[m2] * q[m1 + m2] for m1, m2 in order_pairs(counts))


def ring_vectors(
    basis: PolarBasis, n_rings: int | None, max_order: int | None
) -> Vectors:
    """
    :param basis: As for `ThirdMomentBasis.rings`.
    :param n_rings: As there.
    :param max_order: As there.
    :return: Vectors that select the innermost rings, times the roots of their areas.
    :raises ValueError: more rings or orders than there are.
    """
    limit = basis.max_order if max_order is None else max_order
    check_integer("max_order", limit, 0)
    if n_rings is None:
        n_rings = min(N_RINGS, basis.n_rings)
    check_integer("n_rings", n_rings, 1)
    if n_rings > basis.n_rings or limit > basis.max_order:
        raise ValueError(
            f"{n_rings} rings and orders up to {limit} are asked for; {basis} has fewer"
        )
    highest = np.ceil(np.pi * np.arange(n_rings)).astype(int)
    orders = np.arange(min(limit, highest[-1]) + 1)
    counts = np.count_nonzero(highest >= orders[:, None], axis=1)  # rings per order
    roots = np.diag(np.sqrt(basis.areas))
    return tuple(roots[:, n_rings - q : n_rings] for q in counts)


def leading_eigenvectors(moments: Any, budget_bytes: int) -> Vectors:
    """
    :param moments: As for `ThirdMomentBasis.from_moments`.
    :param budget_bytes: Largest size of the third moment.
    :return: Eigenvectors of its second moment, as many as fit.
    :raises ValueError: a budget too small for one entry, or only noise.
    """
    check_integer("budget_bytes", budget_bytes, BYTES)
    basis, n = moments.basis, moments.n_images
    roots = np.sqrt(basis.areas)
    scaled = roots[:, None] * moments.second * roots
    scaled = (scaled + scaled.conj().swapaxes(1, 2)) / 2
    values, vectors = np.linalg.eigh(scaled)
    # Coefficients of order 0 are real.
    values[0], vectors[0] = np.linalg.eigh(scaled[0].real)
    values, vectors = values[:, ::-1], roots[:, None] * vectors[:, :, ::-1]
    least = ROUNDING * values.max()
    if n:
        noise = estimated_noise_second(moments)
        level = (vectors.conj() * (noise @ vectors)).sum(1).real
        least = np.maximum(least, _largest_excess(basis.n_rings, n) * level)
    orders, ranks = np.nonzero(values > least)
    orders = orders[np.argsort(-values[orders, ranks], kind="stable")]
    fits = bisect_right(
        range(1, len(orders) + 1),
        budget_bytes,
        key=lambda n: BYTES * third_size(np.bincount(orders[:n])),
    )
    counts = np.bincount(orders[:fits], minlength=1)
    if third_size(counts) == 0:
        raise ValueError(
            "the second moment has no eigenvalues above its noise of which a third"
            f" moment of {budget_bytes} bytes could be made; take more images"
        )
    return tuple(U[:, :q] for U, q in zip(vectors, counts, strict=False))


def estimated_noise_second(moments: Any) -> np.ndarray:
    """
    Scale the second moment of white noise so that its diagonal is `noise_power`. This
    is accurate for smooth spectra, since noise correlates neighbouring rings only.

    :param moments: In-plane averaged polar `Moments`.
    :return: Second moment of their noise.
    """
    white = moments.basis.noise_second(moments.nyquist)
    if moments.noise_power is None:
        return moments.noise_variance * white
    own = moments.basis.diagonal_power(white)
    ratio = np.divide(moments.noise_power, own, where=own > 0, out=np.zeros_like(own))
    roots = np.sqrt(np.maximum(ratio, 0))
    return roots[:, :, None] * white * roots[:, None]


def _largest_excess(n_rings: int, n_images: int) -> float:
    """
    Bound on λ - 1, λ the largest eigenvalue of the sample covariance of N vectors of R
    values of variance 1: (1 + √γ)² - 1 with γ = R/N (Marchenko and Pastur), plus twice
    the scale of its scatter (Tracy and Widom). Noise exceeds it once in 10⁴ orders.
    """
    root = np.sqrt(n_rings / n_images)
    scatter = n_images ** (-2 / 3) * root ** (-1 / 3) * (1 + root) ** (4 / 3)
    return 2 * root + root**2 + 2 * scatter
