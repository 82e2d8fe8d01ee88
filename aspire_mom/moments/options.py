"""What an estimator of moments can be told, in groups that belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from aspire.noise import NoiseEstimator
from aspire.operators import Filter

from aspire_mom.checks import check_integer


@dataclass(frozen=True, kw_only=True)
class Noise:
    """
    Model of the noise in the images, as the source gives them (after
    `source.downsample`, say). By default it is white, and its variance is that of the
    pixels outside the inscribed disc, as in ASPIRE's `WhiteNoiseEstimator`, taken in
    the same pass.

    :param variance: Variance per pixel of white noise, or an ASPIRE `NoiseEstimator`,
        which reads the images once more; None to estimate it in the pass.
    :param spectrum: Power spectrum of noise that is not white, variance per pixel and
        frequency, as an ASPIRE `Filter`; "corners" to estimate a radial one from the
        pixels outside the inscribed disc, in the same pass.
    :raises TypeError: a value of another type.
    :raises ValueError: both are given, another word, or a variance below 0.
    """

    variance: float | NoiseEstimator | None = None
    spectrum: Filter | Literal["corners"] | None = None

    def __post_init__(self):
        if not isinstance(self.variance, NoiseEstimator | None):
            object.__setattr__(self, "variance", checked_variance(self.variance))
        spectrum = self.spectrum
        if isinstance(spectrum, str) and spectrum != "corners":
            raise ValueError(
                f'spectrum is {spectrum!r}; an ASPIRE Filter or "corners" is needed'
            )
        if not isinstance(spectrum, Filter | str | None):
            raise TypeError(
                f"spectrum is a {type(spectrum).__name__}; an ASPIRE Filter or"
                ' "corners" is needed'
            )
        if spectrum is not None and self.variance is not None:
            raise ValueError(
                "both variance and spectrum of the noise are given; noise is either"
                " white or has a power spectrum"
            )


@dataclass(frozen=True, kw_only=True)
class CorrectionOptions:
    """
    What to correct images for.

    :param ignore_ctf: Take images that have a CTF as if they had none.
    :param phase_flipped: Whether the images' phases were flipped; None to see whether
        `source.phase_flip()` was called, which `source.cache()` hides.
    :param ignore_shifts: Take images that have known shifts as if they were centred.
    :param shift_std: Standard deviation along each axis, pixels, of shifts that the
        images still have, which the inversion models; None to have it estimate them.
    :param amplitude_std: Standard deviation of the images' amplitudes relative to their
        mean; None to estimate it from the images' sums.
    :raises ValueError: a standard deviation out of range.
    """

    ignore_ctf: bool = False
    phase_flipped: bool | None = None
    ignore_shifts: bool = False
    shift_std: float | None = 0.0
    amplitude_std: float | None = 0.0

    def __post_init__(self):
        for name, most in (("shift_std", np.inf), ("amplitude_std", 1.0)):
            value = getattr(self, name)
            check_std(name, value, most)
            if value is not None:
                object.__setattr__(self, name, float(value))


@dataclass(frozen=True, kw_only=True)
class StreamingOptions:
    """
    How to read and sum up images. Results depend on it by rounding errors alone.

    :param batch_size: Images read and transformed at once; fewer need less memory.
    :param checkpoint: File that keeps the sums so far: another pass over the same
        images goes on from there. It stays when all is done;
        `aspire_mom.files.discard_checkpoint` removes it.
    :param checkpoint_seconds: Time from one writing of the checkpoint to the next.
    :param device: torch device of the sums over a batch, "cpu" for NumPy on all cores;
        "cuda" is this process's GPU under `torchrun`. GPUs compute sums of polar bases
        averaged over in-plane angles, without astigmatic CTFs and third moments.
    :raises ValueError: `batch_size` is no positive integer.
    """

    batch_size: int = 512
    checkpoint: str | Path | None = None
    checkpoint_seconds: float = 60.0
    device: str | torch.device = "cpu"

    def __post_init__(self):
        check_integer("batch_size", self.batch_size, 1)


def checked_variance(variance: float) -> float:
    """
    :param variance: Variance of noise per pixel.
    :return: The same as a plain number.
    :raises TypeError: it is no number.
    :raises ValueError: it is not finite and 0 or more.
    """
    if not isinstance(variance, float | int | np.number):
        raise TypeError(
            f"the noise variance is a {type(variance).__name__}; a number or an ASPIRE"
            " NoiseEstimator is needed"
        )
    if not (np.isfinite(variance) and variance >= 0):
        raise ValueError(
            f"the noise variance is {variance}; it must be finite and 0 or more"
        )
    return float(variance)


def check_std(name: str, value: float | None, most: float) -> None:
    """
    :param name: The option's name.
    :param value: A standard deviation, None where it is not known.
    :param most: The largest one accepted.
    :raises ValueError: it is no number from 0 to `most`.
    """
    if value is None:
        return
    if not isinstance(value, float | int | np.number) or not 0 <= value <= most:
        raise ValueError(f"{name} is {value!r}; it must lie between 0 and {most:g}")
