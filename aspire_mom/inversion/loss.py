"""How far model moments are from estimated ones: eq. 28 and its weighted forms."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from aspire_mom.bases import CartesianBasis
from aspire_mom.bases.ctf_weights import LEAST_SHARE
from aspire_mom.moments import Moments
from aspire_mom.moments.rings import (
    NEGLIGIBLE,
    order_multiplicity,
    pixel_rings,
    ring_rms,
)

Weighting = Literal["noise", "rings", "none"]
# What quadrature and model may miss of an entry, relative to its rings' RMS: errors
# below it count no more, however small the noise.
RELATIVE_FLOOR = 0.003


class MomentLoss(torch.nn.Module):
    """
    Distance between model moments and estimated ones.

    - "none": ‖M̂¹ - M¹‖ + λ ‖M̂² - M²‖, eq. 28, in the basis's norms and divided by those
      of the estimates.
    - "rings": the squares of relative errors after every stored entry is divided by the
      RMS that the powers of its rings alone would give it.
    - "noise": Σ |M̂ - M|² over its standard errors squared, with a floor of 0.3 % of the
      rings' RMS: minus twice the log-likelihood, if errors were independent. Exact
      moments have the floor alone.

    :param moments: The estimates.
    :param n_rings: Rings in use of a polar basis.
    :param max_order: Angular orders in use of a polar basis.
    :param weighting: As above.
    :param lam: λ, weight of the second moment.
    :raises ValueError: An unknown weighting, λ not positive, or moments with no power.
    """

    def __init__(
        self,
        moments: Moments,
        *,
        n_rings: int | None = None,
        max_order: int | None = None,
        weighting: Weighting = "noise",
        lam: float = 1.0,
    ):
        super().__init__()
        if weighting not in ("noise", "rings", "none"):
            raise ValueError(
                f'weighting is {weighting!r}; it must be "noise", "rings" or "none"'
            )
        if not lam > 0:
            raise ValueError(f"lam is {lam}; it must be positive")
        self.weighting, self.lam = weighting, lam
        self.cartesian = isinstance(moments.basis, CartesianBasis)
        cut = _cutter(moments.basis, n_rings, max_order)
        rms = ring_rms(moments)
        # The data's own unit keeps squares and weights within float32.
        self.unit = float(rms.max())
        if not self.unit > 0:
            raise ValueError(
                "the moments have no power on any ring: their second moment is zero, or"
                " less than the noise that was removed from it"
            )
        rms = np.maximum(rms / self.unit, NEGLIGIBLE)
        for name, unit in (("first", self.unit), ("second", self.unit**2)):
            value = cut(getattr(moments, name)) / unit
            weights = np.broadcast_to(
                cut(getattr(moments.basis, f"{name}_weights")), value.shape
            )
            error = getattr(moments, f"{name}_error")
            scale = cut(_entry_scale(moments, name, rms))
            if weighting == "noise":
                variance = (RELATIVE_FLOOR * scale) ** 2
                if error is not None:
                    variance = variance + (cut(error) / unit) ** 2
                # A complex number counts 2 |difference|² / variance in all. Orders m
                # and -m, or pixels k and -k, are one number, and so are a second
                # moment's entries and their transposes.
                weights = (1.0 if name == "first" else 0.5) / variance
                if not self.cartesian:
                    weights = weights * order_multiplicity(value, name)
            elif weighting == "rings":
                weights = np.where(weights > 0, 1 / scale**2, 0)
            if weighting != "noise":
                weights = weights * cut(_information(moments, name))
            weights = weights * cut(_usable(moments, name))
            if weighting != "noise":
                weights = weights / np.sum(weights * np.abs(value) ** 2)
            self.register_buffer(name, torch.from_numpy(value.astype(np.complex64)))
            weights = np.ascontiguousarray(weights, dtype=np.float32)
            self.register_buffer(f"{name}_weights", torch.from_numpy(weights))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """
        :param first: Model's first moment, of the cut basis's shape, complex.
        :param second: Model's second moment.
        :return: The loss, a real scalar.
        """
        first, second = first / self.unit, second / self.unit**2
        a = (self.first_weights * _square(first - self.first)).sum()
        b = (self.second_weights * _square(second - self.second)).sum()
        if self.weighting == "none":
            # The root's slope is infinite at an exact fit.
            tiny = torch.finfo(a.dtype).tiny
            a, b = (a + tiny).sqrt(), (b + tiny).sqrt()
        return a + self.lam * b


def _information(moments: Moments, name: str) -> np.ndarray:
    """
    How well entries are known, relative to the best: what CTFs leave of entries near
    their zeros is noise, which eq. 28 as it stands would fit.
    """
    shape = getattr(moments.basis, f"{name}_shape")
    if moments.second_weight is None:
        return np.ones(shape)
    if name == "first":
        known = moments.first_weight
    else:
        known = moments.effective_images
        if not isinstance(moments.basis, CartesianBasis):
            average = moments.basis.inplane_average
            known = known if average else known[None, :, None, :]
    known = np.where(known > LEAST_SHARE * moments.n_images, known / known.max(), 0)
    return np.broadcast_to(known, shape)


def _square(values: Tensor) -> Tensor:
    return values.real**2 + values.imag**2


def _entry_scale(moments: Moments, name: str, rms: np.ndarray) -> np.ndarray:
    """RMS of a moment's entries as ring powers alone would have it."""
    basis = moments.basis
    if isinstance(basis, CartesianBasis):
        pixel = rms[pixel_rings(basis)]
        return pixel if name == "first" else np.outer(pixel, pixel)
    # A ring's power spreads over the orders an object within 0.4 of the box has.
    orders = 2 * 0.8 * np.pi * np.arange(basis.n_rings) + 1
    if basis.inplane_average:
        shared = np.minimum(orders[:, None], orders)
        blocks = np.outer(rms, rms) / np.sqrt(shared)
        return rms if name == "first" else np.broadcast_to(blocks, basis.second_shape)
    one = rms / np.sqrt(orders)
    if name == "first":
        return np.broadcast_to(one, basis.first_shape)
    blocks = one[:, None, None] * one
    return np.broadcast_to(blocks, basis.second_shape)


def _usable(moments: Moments, name: str) -> np.ndarray:
    """
    False on the Nyquist row and column of even sizes, which carry no signal, and where
    CTFs let nothing pass.
    """
    basis = moments.basis
    usable = _information(moments, name) > 0
    if not isinstance(basis, CartesianBasis) or basis.L % 2:
        return usable
    inside = (basis.frequencies > -basis.L / 2).all(1)
    return usable & (inside if name == "first" else np.outer(inside, inside))


def _cutter(basis, n_rings: int | None, max_order: int | None):
    """A function that cuts arrays of a polar basis to the rings and orders in use."""
    if isinstance(basis, CartesianBasis):
        return lambda array: array
    R = basis.n_rings if n_rings is None else n_rings
    M = basis.max_order if max_order is None else max_order
    middle = basis.max_order

    def cut(array: np.ndarray) -> np.ndarray:
        if array.ndim == 1:
            return array[:R]
        if array.ndim == 2:
            return array[: M + 1, :R]
        if array.ndim == 3:
            return array[: M + 1, :R, :R]
        orders = slice(middle - M, middle + M + 1) if array.shape[2] > 1 else slice(1)
        return array[: M + 1, :R, orders, :R]

    return cut
