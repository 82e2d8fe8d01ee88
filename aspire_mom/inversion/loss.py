"""How far model moments are from estimated ones: eq. 28 and its weighted forms."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from aspire_mom.bases import LEAST_SHARE
from aspire_mom.moments import Moments
from aspire_mom.moments.rings import NEGLIGIBLE, ring_rms

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
        basis = moments.basis
        inner = basis.cut(n_rings, max_order)
        rms = ring_rms(moments)
        # The data's own unit keeps squares and weights within float32.
        self.unit = float(rms.max())
        if not self.unit > 0:
            raise ValueError(
                "the moments have no power on any ring: their second moment is zero, or"
                " less than the noise that was removed from it"
            )
        rms = np.maximum(rms / self.unit, NEGLIGIBLE)
        scales, information = basis.entry_scales(rms), _information(moments)
        for k, name in enumerate(("first", "second")):
            unit = self.unit ** (k + 1)
            value, weights, multiplicity, scale, known = (
                basis.cut_array(array, inner)
                for array in (
                    getattr(moments, name),
                    getattr(basis, f"{name}_weights"),
                    getattr(basis, f"{name}_multiplicity"),
                    scales[k],
                    information[k],
                )
            )
            value = value / unit
            if weighting == "noise":
                variance = (RELATIVE_FLOOR * scale) ** 2
                error = getattr(moments, f"{name}_error")
                if error is not None:
                    variance = variance + (basis.cut_array(error, inner) / unit) ** 2
                # A complex number counts 2 |difference|² / variance in all. Orders m
                # and -m, or pixels k and -k, are one number, and so are a second
                # moment's entries and their transposes.
                weights = multiplicity / (k + 1) / variance * (known > 0)
            else:
                if weighting == "rings":
                    weights = np.where(weights > 0, 1 / scale**2, 0)
                weights = weights * known
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


def _information(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """
    How well entries of the first and the second moment are known, relative to the best:
    what CTFs leave of entries near their zeros is noise, which eq. 28 as it stands
    would fit. 0 on the Nyquist row and column, which carry no signal.
    """
    basis = moments.basis
    n = basis.n_frequencies
    first, second = np.ones(n), np.ones((n, n))
    if moments.second_information is not None:
        least = LEAST_SHARE * moments.n_images
        first, second = (
            np.where(known > least, known / known.max(), 0)
            for known in (moments.first_information, moments.effective_images)
        )
    first = first * basis.resolved
    second = second * np.outer(basis.resolved, basis.resolved)
    return (
        np.broadcast_to(first, basis.first_shape),
        np.broadcast_to(basis.expand(second[None]), basis.second_shape),
    )


def _square(values: Tensor) -> Tensor:
    return values.real**2 + values.imag**2
