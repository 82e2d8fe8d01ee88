"""The distance of model moments from estimated ones: eq. 28 and weighted forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from aspire_mom.bases import LEAST_SHARE, Basis
from aspire_mom.checks import check_choice, check_positive
from aspire_mom.moments import Moments
from aspire_mom.moments.report import NEGLIGIBLE, ring_rms

Weighting = Literal["noise", "rings", "none"]
# Assumed model error (quadrature, volume model) as a fraction of the RMS of an entry's
# rings. Its square is added to the variance of the entry, so that entries with tiny
# standard errors do not dominate the loss.
MODEL_ERROR = 0.003


@dataclass(frozen=True)
class LossOptions:
    """
    How to measure the distance of moments (see `MomentLoss`).

    :param weighting: "noise", "rings" or "none"; by default "none" (eq. 28) for
        networks, else "noise".
    :param lam: λ of eq. 28, the weight of the second moment.
    :raises ValueError: An option is out of range.
    """

    weighting: Weighting | None = None
    lam: float = 1.0

    def __post_init__(self):
        check_choice("weighting", self.weighting, get_args(Weighting))
        check_positive("lam", self.lam)


class MomentLoss(torch.nn.Module):
    """
    Distance of model moments from estimated ones.

    - "none": ‖M̂¹ - M¹‖ + λ ‖M̂² - M²‖, eq. 28, in the basis's norms and divided by those
      of the estimates.
    - "rings": the sum of both squared relative errors, ‖M̂¹ - M¹‖² + λ ‖M̂² - M²‖²,
      where each entry is divided by the RMS that the powers of its rings imply.
    - "noise": Σ |M̂ - M|² / variance, which is −2 log-likelihood if errors are
      independent. The variance is the squared standard error (0 for exact moments) plus
      the square of 0.3 % of the rings' RMS, an allowance for errors of the model.

    :param moments: The estimates.
    :param inner: The part of the basis in use, from `Basis.cut`; by default all of it.
    :param weighting: As above.
    :param lam: λ, weight of the second moment.
    :raises ValueError: An option is out of range, or the moments have no power.
    """

    def __init__(
        self,
        moments: Moments,
        inner: Basis | None = None,
        *,
        weighting: Weighting = "noise",
        lam: float = 1.0,
    ):
        super().__init__()
        check_choice("weighting", weighting, get_args(Weighting))
        self.weighting, self.lam = weighting, check_positive("lam", lam)
        basis = moments.basis
        inner = basis if inner is None else inner
        rms = ring_rms(moments)
        # Dividing by the data's scale keeps squares and weights within float32.
        self.unit = float(rms.max())
        if not self.unit > 0:
            raise ValueError(
                "the moments have no power on any ring: their second moment is zero, or"
                " less than the noise that was removed from it"
            )
        rms = np.maximum(rms / self.unit, NEGLIGIBLE)
        scales, information = basis.entry_scales(rms), relative_information(moments)
        for k, name in enumerate(("first", "second")):
            unit = self.unit ** (k + 1)
            weights = getattr(basis, f"{name}_weights")
            arrays = (getattr(moments, name), weights, scales[k], information[k])
            value, weights, scale, relative = (
                basis.cut_array(array, inner) for array in arrays
            )
            value = value / unit
            if weighting == "noise":
                variance = (MODEL_ERROR * scale) ** 2
                error = getattr(moments, f"{name}_error")
                if error is not None:
                    variance = variance + (basis.cut_array(error, inner) / unit) ** 2
                # An independent complex number adds 2 |difference|² / variance. Entries
                # of the first moment come in conjugate pairs, which share this, and
                # entries of the second moment in conjugate and transposed pairs.
                weights = (relative > 0) / variance / (k + 1)
                weights = getattr(inner, f"{name}_multiplicity") * weights
            else:
                if weighting == "rings":
                    weights = np.where(weights > 0, 1 / scale**2, 0)
                weights = weights * relative
                weights = weights / np.sum(weights * np.abs(value) ** 2)
            self.register_buffer(name, torch.from_numpy(value.astype(np.complex64)))
            weights = torch.tensor(weights, dtype=torch.float32)
            self.register_buffer(f"{name}_weights", weights)

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


def relative_information(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the information on each entry, divided by the largest: 1 without CTFs, 0 at
    the Nyquist row and column. It keeps the unweighted loss (eq. 28) from fitting noise
    near CTF zeros.

    :param moments: The moments.
    :return: Shares for the first and for the second moment, of their shapes.
    """
    basis = moments.basis
    n = basis.n_frequencies
    first, second = np.ones(n), np.ones((n, n))
    if moments.second_information is not None:
        least = LEAST_SHARE * moments.n_images
        first, second = (
            np.where(total > least, total / total.max(), 0)
            for total in (moments.first_information, moments.effective_images)
        )
    first = first * basis.off_nyquist
    second = second * np.outer(basis.off_nyquist, basis.off_nyquist)
    return (
        np.broadcast_to(first, basis.first_shape),
        np.broadcast_to(basis.expand(second[None]), basis.second_shape),
    )


def _square(values: Tensor) -> Tensor:
    return values.real**2 + values.imag**2
