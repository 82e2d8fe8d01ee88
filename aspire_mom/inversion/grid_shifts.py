"""In-plane averaged moments of shifted images, from those of centred ones."""

import math
from itertools import permutations

import numpy as np
import torch
from torch import Tensor


class ShiftedMoment(torch.nn.Module):
    """
    The effect of Gaussian shifts on in-plane averaged moments of order d = 1, 2 or 3,

        M(m) = E c[m_1, r_1] … c[m_d, r_d],  m_1 + … + m_d = 0,

    of the angular orders c[m, r] of real images. Shifts of standard deviation std along
    each axis multiply the mean of f(k_1) … f(k_d) by exp(-a |k_1 + … + k_d|²), with
    a = 2π² (std/L)². With its Fourier coefficients κ in the angles from k_d to the
    other k_i, the moment of shifted images is, for each choice of rings,

        M'(m) = Σ_n κ(m - n) M(n).

    The sum runs over the entries that are given. Equal ones are taken once: M does not
    depend on the order of factors, and M(-m) = conj M(m). As κ is real and even, real
    and imaginary parts each have one real matrix per choice of rings.

    :param rings: Rings r of each entry, (n, d).
    :param orders: Angular orders ≥ 0 of each entry, (n, d). For d > 1 the last factor
        is conj c[m_d, r_d], and m_d is the sum of the others.
    :param std: Standard deviation of shifts along each axis, boxes.
    """

    signs: Tensor
    first: Tensor
    places: Tensor

    def __init__(self, rings: np.ndarray, orders: np.ndarray, std: float):
        super().__init__()
        d = rings.shape[1]
        # conj c[m] = (-1)^m c[-m]
        signed = np.concatenate((orders[:, :-1], -orders[:, -1:]), 1)
        entries, is_conjugate = _sorted_entries(rings, signed)
        unique, first, places = np.unique(
            entries, axis=0, return_index=True, return_inverse=True
        )
        parity = 1 - 2 * (orders[first, -1] % 2)
        starts = np.flatnonzero((np.diff(unique[:, :d], axis=0) != 0).any(1)) + 1
        groups = np.split(np.arange(len(unique)), starts)
        self.sizes = [len(group) for group in groups]
        for i, group in enumerate(groups):
            matrices = _matrices(unique[group[0], :d], unique[group, d:], std)
            matrices *= np.outer(parity[group], parity[group])
            # They multiply rows of entries.
            matrices = torch.from_numpy(matrices).mT.contiguous().float()
            self.register_buffer(f"matrices_{i}", matrices)
        imaginary = np.where(is_conjugate, -1.0, 1.0)
        signs = np.stack((np.ones_like(imaginary), imaginary))[:, None]
        self.register_buffer("signs", torch.from_numpy(signs).float())
        self.register_buffer("first", torch.from_numpy(first))
        self.register_buffer("places", torch.from_numpy(places.reshape(-1)))

    def forward(self, moments: Tensor) -> Tensor:
        """
        :param moments: Entries of moments of centred images, (n_starts, n), complex.
        :return: Those of shifted images.
        """
        parts = torch.stack((moments.real, moments.imag))
        entries = (parts * self.signs).index_select(2, self.first)
        shifted = torch.cat(
            [
                part @ getattr(self, f"matrices_{i}")
                for i, part in enumerate(entries.split(self.sizes, 2))
            ],
            2,
        )
        return torch.complex(*(shifted.index_select(2, self.places) * self.signs))


def _sorted_entries(rings: np.ndarray, orders: np.ndarray) -> tuple:
    """Rings and orders (n, 2d) of entries or of their conjugates, factors sorted, so
    that equal entries have equal rows; and whether it is the conjugate."""
    rows = []
    for sign in (1, -1):
        at = np.lexsort((sign * orders, rings))
        parts = (np.take_along_axis(a, at, 1) for a in (rings, sign * orders))
        rows.append(np.concatenate([*parts], 1))
    difference = rows[0] - rows[1]
    first = np.argmax(difference != 0, axis=1)[:, None]
    is_conjugate = np.take_along_axis(difference, first, 1)[:, 0] < 0
    return np.where(is_conjugate[:, None], rows[1], rows[0]), is_conjugate


def _matrices(rings: np.ndarray, orders: np.ndarray, std: float) -> np.ndarray:
    """Matrices (2, n, n) of real and imaginary parts of entries of orders (n, d)."""
    kappa = _factor(rings, 2 * abs(orders).max(), std)
    plus, minus = np.zeros((2, len(orders), len(orders)))
    n_equal = 0
    for p in permutations(range(len(rings))):
        if (rings[[*p]] != rings).any():
            continue
        others = orders[:, p]
        for sign in (1, -1):
            difference = orders[:, None, :-1] - sign * others[:, :-1]
            values = kappa[tuple(np.moveaxis(difference, -1, 0))]
            plus, minus = plus + values, minus + sign * values
            n_equal = n_equal + (sign * others == orders).all(1)
    return np.stack((plus, minus)) / n_equal


def _factor(rings: np.ndarray, max_order: int, std: float) -> np.ndarray:
    """Fourier coefficients κ of exp(-2π² std² |k_1 + … + k_d|²), by (d - 1) orders."""
    # The factor changes over angles of 1 / (2π std r) at least; all but 1e-10 of its
    # orders lie within these.
    reach = math.ceil(9 * 2 * math.pi * std * rings.max()) + 12
    n_angles = max_order + reach
    units = np.exp(2j * np.pi * np.arange(n_angles) / n_angles)
    total = rings[-1] + 0j
    for ring in rings[:-1]:
        total = np.add.outer(total, ring * units)
    factor = np.exp(-2 * (np.pi * std * abs(total)) ** 2)
    return np.fft.fftn(factor).real / factor.size if factor.ndim else factor
