"""Sums over images of products of polar coefficients, by NumPy or torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

Array = np.ndarray | torch.Tensor

# Orders multiplied in one call, on the rings where any of them is not 0.
ORDERS_PER_BLOCK = 12


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    """
    :param shape: A shape.
    :param like: An array.
    :return: Zeros of the array's type, on its device.
    """
    if isinstance(like, np.ndarray):
        return np.zeros(shape, like.dtype)
    return like.new_zeros(shape)


def averaged_sums(parts: Array, reach: np.ndarray) -> tuple[Array, ...]:
    """
    Sum products of coefficients c[m, r], averaged over in-plane angles.

    :param parts: Real and imaginary parts of c, (2, orders, rings, n).
    :param reach: Largest order that is not 0 on each ring, growing with the ring.
    :return: Sums over images of c[0, r], complex128; of c[m, r] conj c[m, s], (orders,
        rings, rings), complex of the parts' precision; and of its squared modulus.
    """
    xp = np if isinstance(parts, np.ndarray) else torch
    zeroth = parts[:, 0].sum(-1, dtype=xp.float64)
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


@contextmanager
def full_precision() -> Iterator[None]:
    """
    Multiply float32 on a GPU in float32, not in TF32, whose errors of 1e-3 are similar
    for all images and would not average out.

    :yield: Nothing.
    """
    matmul, name, full = torch.backends.cuda.matmul, "fp32_precision", "ieee"
    if not hasattr(matmul, name):  # before torch 2.9
        name, full = "allow_tf32", False
    before = getattr(matmul, name)
    setattr(matmul, name, full)
    try:
        yield
    finally:
        setattr(matmul, name, before)
