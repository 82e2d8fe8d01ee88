"""Options of a moment estimator, in groups that belong together."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from aspire.noise import NoiseEstimator
from aspire.operators import Filter

from aspire_mom.bases import Basis, PolarBasis
from aspire_mom.checks import check_integer
from aspire_mom.moments.third import ThirdMomentBasis

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """
    Noise of the images as the source gives them (after `source.downsample`, say). By
    default it is white and its variance is that of the pixels outside the inscribed
    disc, as in ASPIRE's `WhiteNoiseEstimator`, measured in the same pass. In images
    that were multiplied by their CTFs it is taken as white before that.

    :param variance: Variance per pixel of white noise; an ASPIRE `NoiseEstimator`,
        which reads the images once more, and with their background; or None to measure
        it.
    :param spectrum: Power spectrum of noise that is not white, variance per pixel and
        frequency, a `Filter`; "corners" to measure a radial one outside the disc.
    :raises ValueError: both are given, one is of another kind, or below 0.
    """

    variance: float | NoiseEstimator | None = None
    spectrum: Filter | Literal["corners"] | None = None

    def __post_init__(self):
        if not isinstance(self.variance, NoiseEstimator | None):
            variance = checked_number("the noise variance", self.variance)
            object.__setattr__(self, "variance", variance)
        spectrum = self.spectrum
        if not isinstance(spectrum, Filter | None) and spectrum != "corners":
            raise ValueError(
                f'spectrum is {spectrum!r}; an ASPIRE Filter or "corners" is needed'
            )
        if spectrum is not None and self.variance is not None:
            raise ValueError("both variance and spectrum of the noise are given")


@dataclass(frozen=True, kw_only=True)
class CorrectionOptions:
    """
    What to correct images for.

    :param ignore_ctf: Take images that have a CTF as if they had none.
    :param phase_flipped: Whether the images' phases are flipped; None to ask the
        source's column `_rlnCtfDataArePhaseFlipped` and look for `source.phase_flip()`,
        which `source.cache()` hides. Where both did it, they are not.
    :param premultiplied: Whether the images were multiplied by their CTFs; None where
        the source's column `_rlnCtfDataAreCtfPremultiplied` says so.
    :param ignore_shifts: Take images that have known shifts as if they were centred.
    :param shift_std: Standard deviation along each axis, pixels, of shifts that the
        images still have, which the inversion models; None if it is to estimate them.
    :param amplitude_std: Standard deviation of the images' amplitudes relative to their
        mean; None to estimate it from the images' pixel sums.
    :param unchecked: Take all images as they are: do not leave out outliers, subtract a
        background that is not 0, or invert the contrast where there are no CTFs.
    :raises ValueError: a standard deviation is out of range.
    """

    ignore_ctf: bool = False
    phase_flipped: bool | None = None
    premultiplied: bool | None = None
    ignore_shifts: bool = False
    shift_std: float | None = 0.0
    amplitude_std: float | None = 0.0
    unchecked: bool = False

    def __post_init__(self):
        for name, most in (("shift_std", math.inf), ("amplitude_std", 1.0)):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, checked_number(name, value, most))


@dataclass(frozen=True, kw_only=True)
class StreamingOptions:
    """
    How to read images and sum over them. Results change only by rounding, except that
    `batch_size` decides which images are in which half set.

    :param batch_size: Images read and transformed at once; fewer need less memory.
    :param checkpoint: File that keeps the sums so far: another pass over the same
        images continues from there. It stays at the end;
        `aspire_mom.checkpoints.discard_checkpoint` removes it.
    :param checkpoint_seconds: Time from one writing of the checkpoint to the next.
    :param device: torch device of the sums over a batch, "cpu" for NumPy on all cores;
        "cuda" is this process's GPU under `torchrun`. GPUs compute moments in polar
        bases averaged over in-plane angles, without astigmatic CTFs or third moments.
    :raises ValueError: `batch_size` is no positive integer.
    """

    batch_size: int = 512
    checkpoint: str | Path | None = None
    checkpoint_seconds: float = 60.0
    device: str | torch.device = "cpu"

    def __post_init__(self):
        check_integer("batch_size", self.batch_size, 1)


def default_third(basis: Basis, device: torch.device) -> ThirdMomentBasis | None:
    """
    :param basis: Basis of the moments.
    :param device: Device of the sums.
    :return: Third moments to estimate where nothing is said of them.
    """
    if not isinstance(basis, PolarBasis) or not basis.inplane_average:
        return None
    if device.type != "cpu":
        logger.warning("Third moments are left out; GPUs do not compute them.")
        return None
    return ThirdMomentBasis.rings(basis)


def check_averaging_device(
    device: torch.device, basis: Basis, *, limited: bool
) -> None:
    """
    :param device: Device of the sums.
    :param basis: Basis of the moments.
    :param limited: Whether there are astigmatic CTFs or third moments.
    :raises ValueError: these sums are computed on the CPU only.
    """
    on_gpu = device.type == "cuda" and basis.inplane_average and not limited
    if device.type != "cpu" and not on_gpu:
        raise ValueError(
            f"device is {device}; averages are computed on cpu or cuda, and on cuda"
            " only polar bases averaged over in-plane angles, without astigmatic"
            ' CTFs or third moments; pass device="cpu"'
        )


def checked_number(name: str, value: float, most: float = math.inf) -> float:
    """
    :param name: The option's name.
    :param value: Its value.
    :param most: The largest one accepted.
    :return: The value as a plain number.
    :raises ValueError: it is no finite number from 0 to `most`.
    """
    is_number = isinstance(value, float | int | np.number)
    if not (is_number and 0 <= value <= most and math.isfinite(value)):
        limit = "" if math.isinf(most) else f" and {most:g} at most"
        raise ValueError(f"{name} is {value!r}; it must be a number, 0 or more{limit}")
    return float(value)
