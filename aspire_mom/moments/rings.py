"""Power of single rings, and whether they carry signal."""

from __future__ import annotations

import numpy as np

from aspire_mom.moments.moments import Moments

# Reduced χ² (see `ring_chi2`) above which a ring carries signal.
SIGNIFICANT = 1.5
# Rings weaker than this, relative to the strongest, count as empty in exact moments.
NEGLIGIBLE = 1e-4


def ring_power(moments: Moments) -> np.ndarray:
    """
    :param moments: Moments in any basis.
    :return: Signal power on each ring as `Basis.ring_power` has it, float64; negative
        where noise removal left it so.
    """
    basis = moments.basis
    return basis.ring_power(basis.diagonal_power(moments.second))


def ring_rms(moments: Moments) -> np.ndarray:
    """
    :param moments: Moments in any basis.
    :return: Root of the signal power on each ring, float64; 0 where it is negative.
    """
    return np.sqrt(np.maximum(ring_power(moments), 0))


def ring_chi2(moments: Moments) -> np.ndarray | None:
    """
    Return each ring's reduced χ², the mean of |second moment|² / (standard error)² over
    its entries with all rings: about 1 for pure noise.

    :param moments: Moments in any basis.
    :return: One value per ring, float64; None where errors are unknown.
    """
    basis = moments.basis
    if moments.second_error is None:
        return None
    value, error = (
        basis.equal_order_blocks(moments.second),
        basis.equal_order_blocks(moments.second_error),
    )
    seen = basis.order_support & (error > 0)
    square = value.real**2 + value.imag**2
    ratio = np.divide(square, error**2, where=seen, out=np.zeros_like(square))
    total, count = (basis.ring_sum(a.sum((0, 2))) for a in (ratio, seen))
    return total / np.maximum(count, 1)


def informative_rings(moments: Moments) -> int:
    """
    Number of rings, from the centre, that the data support: up to two beyond the last
    ring of reduced χ² above 1.5 (for exact moments, up to the last ring whose RMS is at
    least 1e-4 of the largest).

    :param moments: Moments in any basis.
    :return: A number of rings, at least 4 where the basis has them; all of a basis that
        cannot be cut to fewer.
    """
    basis, chi2 = moments.basis, ring_chi2(moments)
    if chi2 is None:
        rms = ring_rms(moments)
        strong, beyond = np.flatnonzero(rms >= NEGLIGIBLE * rms.max()), 1
    else:
        strong, beyond = np.flatnonzero(chi2 > SIGNIFICANT), 3
    last = int(strong[-1]) if len(strong) else 0
    return basis.cut(n_rings=max(last + beyond, 4)).n_rings
