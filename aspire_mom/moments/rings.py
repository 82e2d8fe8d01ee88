"""What moments say of single rings: their power, and whether there is signal."""

from __future__ import annotations

import numpy as np

from aspire_mom.bases.bases import CartesianBasis
from aspire_mom.bases.ctf_weights import own_power
from aspire_mom.moments.moments import Moments

# A ring carries signal where its second moments exceed their errors by this in square.
SIGNIFICANT = 1.5
# Rings weaker than this, relative to the strongest, count as empty in exact moments.
NEGLIGIBLE = 1e-4


def ring_rms(moments: Moments) -> np.ndarray:
    """
    Root of the signal power on each ring, Σ_m E|c[m, r]|² or the mean of E|f|² over the
    pixels nearest the ring.

    :param moments: Moments in any basis.
    :return: (n_rings,), float64; 0 where noise removal left a negative power.
    """
    return np.sqrt(np.maximum(ring_power(moments.basis, moments.second), 0))


def ring_power(basis, second: np.ndarray) -> np.ndarray:
    """
    Power on each ring, Σ_m E|c[m, r]|² or the mean of E|f|² over the pixels nearest it.

    :param basis: Any basis.
    :param second: A second moment in it.
    :return: (n_rings,), float64; as it is, where it is negative.
    """
    return over_rings(basis, own_power(second, basis))


def over_rings(basis, power: np.ndarray) -> np.ndarray:
    """
    :param basis: Any basis.
    :param power: Power of single coefficients: (max_order + 1, n_rings) or (L²,).
    :return: Its sum over each ring's orders, m and -m, or mean over the pixels nearest
        to it, (n_rings,).
    """
    if isinstance(basis, CartesianBasis):
        ring = pixel_rings(basis)
        return np.bincount(ring, power) / np.bincount(ring)
    return (order_multiplicity(power, "first") * power).sum(0)


def ring_power_error(basis, error: np.ndarray) -> np.ndarray:
    """
    Standard error of :func:`ring_power` if errors of different orders, or of pixels
    that are not each other's opposites, are independent, as those of noise are.

    :param basis: Any basis.
    :param error: Standard errors of the second moment's entries.
    :return: (n_rings,), float64.
    """
    if isinstance(basis, CartesianBasis):
        ring = pixel_rings(basis)
        squares = np.bincount(ring, 2 * error.diagonal() ** 2)
        return np.sqrt(squares) / np.bincount(ring)
    own = np.einsum("mrr->mr", order_blocks(basis, error))
    return np.sqrt(((order_multiplicity(own, "first") * own) ** 2).sum(0))


def ring_evidence(moments: Moments) -> np.ndarray | None:
    """
    Mean over each ring's second moments, with all rings, of their squares over their
    squared errors: 1 where there is noise alone.

    :param moments: Moments in any basis.
    :return: (n_rings,), float64; None where errors are unknown.
    """
    basis = moments.basis
    if moments.second_error is None:
        return None
    if isinstance(basis, CartesianBasis):
        seen = moments.second_error > 0
        ratio = _squared_ratio(moments.second, moments.second_error, seen)
        ring = pixel_rings(basis)
        count = np.bincount(ring, seen.sum(1))
        return np.bincount(ring, ratio.sum(1)) / np.maximum(count, 1)
    second = order_blocks(basis, moments.second)
    error = order_blocks(basis, moments.second_error)
    # Orders beyond 2πr · 0.4 are empty for an object within 0.4 of the box.
    order = np.arange(len(second))[:, None]
    reach = np.ceil(0.8 * np.pi * np.arange(basis.n_rings)) + 1
    reach[0] = 0  # higher ones of a single point are round-off
    within = order[:, :, None] <= np.minimum(reach[:, None], reach)
    seen = within & (error > 0)
    ratio = _squared_ratio(second, error, seen)
    return ratio.sum((0, 2)) / np.maximum(seen.sum((0, 2)), 1)


def informative_rings(moments: Moments) -> int:
    """
    How many rings, from the centre, the data support: up to two rings past the last one
    on which squared second moments exceed their squared errors by half (exact moments:
    all whose RMS is at least 1e-4 of the largest).

    :param moments: Moments in the polar basis.
    :return: A number of rings, at least 4 where the basis has them.
    """
    n_rings = moments.basis.n_rings
    rms = ring_rms(moments)
    if moments.second_error is None or not moments.basis.inplane_average:
        strong = np.flatnonzero(rms >= NEGLIGIBLE * rms.max())
        count = int(strong[-1]) + 1
    else:
        strong = np.flatnonzero(ring_evidence(moments) > SIGNIFICANT)
        count = (int(strong[-1]) if len(strong) else 0) + 3
    return int(np.clip(count, min(4, n_rings), n_rings))


def order_blocks(basis, second: np.ndarray) -> np.ndarray:
    """
    :param basis: A polar basis.
    :param second: Of its second moment's shape.
    :return: The blocks of one order with itself, (max_order + 1, n_rings, n_rings).
    """
    if basis.inplane_average:
        return second
    return np.einsum("mrmq->mrq", second[:, :, basis.max_order :])


def pixel_rings(basis: CartesianBasis) -> np.ndarray:
    """
    :param basis: A Cartesian basis.
    :return: The ring that each Fourier pixel is nearest to, (L²,).
    """
    return np.round(np.linalg.norm(basis.frequencies, axis=1)).astype(int)


def order_multiplicity(value: np.ndarray, name: str) -> np.ndarray:
    """
    :param value: A moment in a polar basis.
    :param name: "first" or "second".
    :return: 1 for angular order 0, 2 for those that stand for ±m, broadcast to `value`.
    """
    if name == "first" and value.ndim == 1:
        return np.ones(1)
    multiplicity = np.where(np.arange(len(value)) == 0, 1.0, 2.0)
    return multiplicity.reshape(-1, *[1] * (value.ndim - 1))


def _squared_ratio(value: np.ndarray, error: np.ndarray, where: np.ndarray):
    """|value|² / error² where it counts, 0 elsewhere."""
    square = value.real**2 + value.imag**2
    return np.divide(square, error**2, where=where, out=np.zeros_like(square))
