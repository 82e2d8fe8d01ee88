"""Polar coefficients of images multiplied by functions that vary along rings."""

from __future__ import annotations

import numpy as np

from aspire_mom.bases.polar_transform import RINGS_PER_BLOCK, polar_transform
from aspire_mom.threads import locked_lru_cache, one_blas_thread


class RingFilter:
    """
    Compute coefficients of H F from the coefficients c[m, r] of images' transforms F.

    H are real functions of period π along rings, with orders 0, 2, …, K - 1, given at
    angles πj/K, K odd. Orders of H F up to M depend on orders of F up to M + K - 1. H
    and F are multiplied at n angles on half a ring. n is chosen for each block of rings
    such that aliases of the product fall above the orders that are returned.

    Since c[-m] = (-1)^m conj c[m], even orders make up the real part of F and odd
    orders its imaginary part, so real matrices suffice:

        Σ c[m] exp(imφ) = 2 Σ_{even} Re c cos mφ - Im c sin mφ   (m = 0 once)
                      + 2i Σ_{odd} Re c sin mφ + Im c cos mφ.

    :param L: Pixels along an image's edge.
    :param n_rings: Number of rings.
    :param max_order: Largest angular order M.
    :param n_samples: Number K of angles at which functions are given.
    :param dtype: float32 or float64, of the images.
    """

    def __init__(
        self, L: int, n_rings: int, max_order: int, n_samples: int, dtype: str
    ):
        self.n_rings, self.max_order, span = n_rings, max_order, n_samples - 1
        # An odd largest order, for as many even orders as odd ones.
        self.transform = polar_transform(L, n_rings, (max_order + span) | 1, dtype)
        self.reach = np.minimum(self.transform.reach + span, max_order)
        self.blocks = []
        for start in range(0, n_rings, RINGS_PER_BLOCK):
            rings = slice(start, min(start + RINGS_PER_BLOCK, n_rings))
            orders_in = int(self.transform.reach[rings][-1]) | 1
            orders_out = int(self.reach[rings][-1]) | 1
            n = (orders_in + orders_out + span) // 2 + 1
            angles = np.pi * np.arange(n) / n
            synthesis = 2 * _waves(angles, orders_in)
            synthesis[0, :, 0] = 1
            analysis = (_waves(angles, orders_out) / n).swapaxes(1, 2)
            matrices = (synthesis, analysis, _interpolation(angles, n_samples))
            self.blocks.append((rings, [m.astype(dtype)[:, None] for m in matrices]))

    @one_blas_thread()
    def __call__(self, images: np.ndarray, H: np.ndarray) -> np.ndarray:
        """
        :param images: Images (n, L, L) of the filter's type.
        :param H: Functions' values (n, n_rings, K).
        :return: Real and imaginary parts (2, max_order + 1, n_rings, n), of that type.
        """
        n, chunk = len(images), self.transform.chunk
        wide = self.transform(images)
        c = np.zeros((2, self.max_order + 1, self.n_rings, n), images.dtype)
        H = H.transpose(1, 2, 0).astype(images.dtype)
        for start in range(0, n, chunk):
            own = slice(start, start + chunk)
            for rings, (synthesis, analysis, interpolation) in self.blocks:
                orders = _by_parity(wide[:, : synthesis.shape[-1], rings, own])
                products = synthesis @ orders
                products *= interpolation @ H[rings, :, own]
                orders = _by_order(analysis @ products)[:, : self.max_order + 1]
                c[:, : orders.shape[1], rings, own] = orders
        return c


def _waves(angles: np.ndarray, last: int) -> np.ndarray:
    """Factors (2, n angles, last + 1) of Re c, then Im c: of even orders for the real
    part, of odd orders for the imaginary part; the last order is odd."""
    turns = np.outer(angles, np.arange(last + 1))
    cos, sin = np.cos(turns), np.sin(turns)
    even = np.concatenate((cos[:, ::2], -sin[:, ::2]), axis=1)
    odd = np.concatenate((sin[:, 1::2], cos[:, 1::2]), axis=1)
    return np.stack((even, odd))


def _by_parity(c: np.ndarray) -> np.ndarray:
    """From (2, orders, rings, n) to (even or odd, rings, 2 · orders / 2, n)."""
    _, n_orders, n_rings, n = c.shape
    c = c.reshape(2, n_orders // 2, 2, n_rings, n).transpose(2, 3, 0, 1, 4)
    return c.reshape(2, n_rings, n_orders, n)


def _by_order(c: np.ndarray) -> np.ndarray:
    """The inverse of :func:`_by_parity`."""
    _, n_rings, n_orders, n = c.shape
    c = c.reshape(2, n_rings, 2, n_orders // 2, n).transpose(2, 3, 0, 1, 4)
    return c.reshape(2, n_orders, n_rings, n)


def _interpolation(angles: np.ndarray, n_samples: int) -> np.ndarray:
    """Matrix (1, n, K) from values at πj/K to values at angles."""
    apart = angles[:, None] - np.pi * np.arange(n_samples) / n_samples
    orders = np.arange(2, n_samples, 2)[:, None, None]
    return (1 + 2 * np.cos(orders * apart).sum(0, keepdims=True)) / n_samples


#: Remembered filters of the same arguments as :class:`RingFilter`'s.
ring_filter = locked_lru_cache(RingFilter)
