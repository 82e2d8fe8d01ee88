"""Sums over images of products of polar coefficients."""

from __future__ import annotations

import numpy as np

from aspire_mom.bases.arrays import Array, namespace, zeros

# Orders whose products are made at once, on the rings where any of them is not 0.
ORDERS_PER_BLOCK = 12


def averaged_sums(parts: Array, reach: np.ndarray) -> tuple[Array, ...]:
    """
    Of coefficients c[m, r] of images, averaged over in-plane angles.

    :param parts: Real and imaginary parts of c, (2, orders, rings, n), of NumPy or of
        torch, as the sums then are.
    :param reach: Largest order that is not 0, for each ring; it grows with the ring.
    :return: Sums over images of c[0, r], complex128; of c[m, r] conj c[m, s], (orders,
        rings, rings), complex of the parts' precision; and of its squared modulus.
    """
    zeroth = parts[:, 0].sum(-1, dtype=namespace(parts).float64)
    n_orders, n_rings = parts.shape[1:3]
    second, mixed, squares = zeros((3, n_orders, n_rings, n_rings), parts)
    for start in range(0, n_orders, ORDERS_PER_BLOCK):
        orders = slice(start, start + ORDERS_PER_BLOCK)
        rings = slice(int(np.searchsorted(reach, start)), n_rings)
        re, im = parts[:, orders, rings]
        power = re**2
        power += im**2
        place = orders, rings, rings
        second[place] = _products(re, re)
        second[place] += _products(im, im)
        mixed[place] = _products(im, re)
        squares[place] = _products(power, power)
    return (
        zeroth[0] + 1j * zeroth[1],
        second + 1j * (mixed - mixed.swapaxes(1, 2)),
        squares,
    )


def _products(left: Array, right: Array) -> Array:
    """Σ left[m, r] right[m, s] over the last axis."""
    return left @ right.swapaxes(1, 2)
