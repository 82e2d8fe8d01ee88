"""One streaming pass from an ASPIRE source to moments."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from aspire.noise import NoiseEstimator
from aspire.operators import Filter
from aspire.source import ImageSource

from aspire_mom import processes
from aspire_mom.bases.bases import Basis
from aspire_mom.bases.ctf_weights import (
    divide,
    divide_power,
    expand,
    multiply,
    own_power,
    solve_entries,
    weight_sums,
)
from aspire_mom.bases.device import sums_on_device
from aspire_mom.bases.noise import filter_spectrum, stationary_noise_second
from aspire_mom.checks import check_images, check_integer, checked_device
from aspire_mom.moments.amplitudes import correct_amplitudes, estimate_amplitude_std
from aspire_mom.moments.checks import (
    check_astigmatism,
    check_covered,
    check_match,
    check_noise_filter,
    check_third,
    checked_std,
    checked_variance,
    known_offsets,
    mention_amplitudes,
)
from aspire_mom.moments.contrast import inverted, is_dark
from aspire_mom.moments.corners import (
    corner_power,
    corner_spectrum,
    corner_sums,
    corner_variance,
    has_nyquist,
)
from aspire_mom.moments.ctf import TransferFunctions
from aspire_mom.moments.fingerprint import digest, fingerprint_source
from aspire_mom.moments.moments import Moments
from aspire_mom.moments.streaming import Sums, accumulate
from aspire_mom.moments.third import ThirdMomentBasis
from aspire_mom.moments.treatment import treatment_of

logger = logging.getLogger(__name__)

# Bytes of results of batches computed at once, 24 for each entry of second moments.
RESULTS = 2**30


class MomentEstimator:
    """
    First and second moments of the images of a source as if they had no CTF, were
    centred and free of noise (eq. 30).

    Images are read once, `batch_size` at a time, and as many batches are computed at
    once as the process may use cores (OMP_NUM_THREADS limits that); memory is that of
    one batch more and of a result per core. Products of a batch are in the images'
    precision, integers counting as float32, sums over batches in double precision.
    Under `torchrun`, within `aspire_mom.processes.joined`, each process reads a part of
    the images and all get the same moments.

    - CTFs and other filters of the source, one for all images or one for each, are
      undone by least squares: every entry of a moment has its own normal equation (see
      `weights`), so no CTF is ever divided by. Molecules come out bright.
      `first_weight` and `second_weight` of the result tell how many images without a
      CTF would be worth as much.
    - Shifts that the source knows are undone by ASPIRE's `Image.shift`. What is left of
      them, `shift_std`, is handed on to the inversion, whose model is shifted likewise.
    - Amplitudes of relative spread s multiply the second moment by 1 + s², which is
      divided out; the first moment is that of the mean amplitude.
    - Noise is white, of a given power spectrum, or of the one seen in the images'
      corners.

    :param source: ASPIRE `ImageSource`.
    :param basis: `CartesianBasis` or `PolarBasis` of the source's image size.
    :param noise_variance: Variance of the noise per pixel of the images as the source
        gives them (after `source.downsample`, say), or an ASPIRE `NoiseEstimator`,
        which reads them once more. By default the variance outside the inscribed disc,
        as ASPIRE's `WhiteNoiseEstimator` has it, from the same pass. Where even-sized
        images' Nyquist row and column are empty, as ASPIRE's downsampling leaves them,
        the noise is taken to lie within the other frequencies.
    :param noise_filter: Power spectrum of noise that is not white, variance per pixel
        and frequency of the images as the source gives them, as an ASPIRE `Filter`; or
        "corners", the radial one of the pixels outside the inscribed disc, from the
        same pass (see `corners`). Instead of `noise_variance`.
    :param phase_flipped: Whether the images' phases were flipped; None to see whether
        `source.phase_flip()` was called, which `source.cache()` makes it forget.
    :param shift_std: Standard deviation of the residual shifts along each axis, pixels;
        None to have the inversion find it.
    :param amplitude_std: Standard deviation of the images' amplitudes relative to their
        mean; None to estimate it from the images' sums.
    :param third: Third moments to estimate too, in-plane averaged; those of images with
        CTFs cannot be compressed (`ThirdMomentBasis.rings`).
    :param batch_size: Images read and transformed at once; fewer need less memory.
    :param checkpoint: File that keeps the sums so far: a new estimator of the same
        images goes on from there. It stays when all is done;
        `aspire_mom.moments.discard_checkpoint` removes it.
    :param checkpoint_seconds: Time from one writing of the checkpoint to the next.
    :param ignore_ctf: Take images that have a CTF as if they had none.
    :param ignore_shifts: Take images that have shifts as if they had none.
    :param device: torch device of the sums over a batch, "cpu" for NumPy on all cores;
        "cuda" is this process's GPU under `torchrun`. GPUs compute those of polar bases
        averaged over in-plane angles, without astigmatic CTFs and third moments.
    :raises TypeError: `source`, `basis` or the noise is of another type.
    :raises ValueError: an empty source, a size that is not the basis's, numbers out of
        range, astigmatic CTFs with in-plane angles that are not averaged, or a device
        that is not here or does not compute these sums.
    """

    def __init__(
        self,
        source: ImageSource,
        basis: Basis,
        *,
        noise_variance: float | NoiseEstimator | None = None,
        noise_filter: Filter | Literal["corners"] | None = None,
        phase_flipped: bool | None = None,
        shift_std: float | None = 0.0,
        amplitude_std: float | None = 0.0,
        third: ThirdMomentBasis | None = None,
        batch_size: int = 512,
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float = 60.0,
        ignore_ctf: bool = False,
        ignore_shifts: bool = False,
        device: str | torch.device = "cpu",
    ):
        check_match(source, basis)
        check_integer("batch_size", batch_size, 1)
        if noise_variance is not None and not isinstance(
            noise_variance, NoiseEstimator
        ):
            noise_variance = checked_variance(noise_variance)
        check_noise_filter(noise_filter, noise_variance)
        self.source = source
        self.basis = basis
        self.noise_variance = noise_variance
        self.noise_seen = isinstance(noise_filter, str)
        self.noise_spectrum = None
        if isinstance(noise_filter, Filter):
            self.noise_spectrum = filter_spectrum(noise_filter, source)
        if shift_std is not None:
            shift_std = checked_std("shift_std", shift_std, source.L / 4)
        self.shift_std = shift_std
        if amplitude_std is not None:
            amplitude_std = checked_std("amplitude_std", amplitude_std, 1.0)
        self.amplitude_std = amplitude_std
        self.batch_size = batch_size
        self.checkpoint = checkpoint
        self.checkpoint_seconds = checkpoint_seconds
        transfer = TransferFunctions(source, basis, phase_flipped)
        self.transfer = None if ignore_ctf or transfer.flat else transfer
        check_astigmatism(self.transfer, basis)
        self.third = third
        check_third(third, basis, self.transfer)
        device = checked_device(processes.own_device(str(device)))
        check_covered(device, basis, self.transfer, third)
        # None for NumPy.
        self.device = None if device.type == "cpu" else device
        self.offsets = None if ignore_shifts else known_offsets(source)
        self.treatment = treatment_of(self, transfer)
        if amplitude_std == 0:
            mention_amplitudes(source)

    def estimate(self) -> Moments:
        """
        Read the source and average.

        :return: The source's `Moments`. Standard errors are those of averaging images,
            None for a single one; noise and transfer functions count as known, even
            noise whose spectrum was seen in the images' corners.
        :raises ValueError: an image with values that are not finite, or a checkpoint of
            other images or settings, or a damaged one.
        :raises OSError: the checkpoint cannot be written.
        """
        return self._estimates(1)[0]

    def estimate_with_halves(self) -> tuple[Moments, Moments, Moments]:
        """
        Moments of all images and of both halves of them, from one pass: reconstructions
        from the halves share no noise. Halves are of every other batch; batches are
        made smaller where that makes halves equal.

        :return: The moments of all and of either half.
        :raises ValueError: as :meth:`estimate`, or fewer than 4 images.
        """
        if self.source.n < 4:
            raise ValueError(
                f"the source has {self.source.n} image(s); two halves need 4 or more"
            )
        return tuple(self._estimates(2))

    def _estimates(self, n_groups: int) -> list[Moments]:
        """Moments of all images and, of more than one group, of each group."""
        variance = self.noise_variance
        if isinstance(variance, NoiseEstimator):
            variance = checked_variance(variance.estimate())
        groups = self._read(n_groups)
        whole = groups[0]
        if n_groups > 1:
            whole = {name: sum(sums[name] for sums in groups) for name in whole}
        noise, variance, nyquist = self._noise(whole, variance)
        if n_groups == 1:
            groups = []
        found = [self._moments(s, noise, variance, nyquist) for s in (whole, *groups)]
        # What all images tell of contrast and amplitudes holds for each group.
        if self.transfer is not None and is_dark(found[0]):
            found = [inverted(moments) for moments in found]
        std = self.amplitude_std
        if std is None:
            std = estimate_amplitude_std(found[0])
        return [correct_amplitudes(moments, std) for moments in found]

    def _noise(
        self, sums: Sums, variance: float | None
    ) -> tuple[np.ndarray, float, bool]:
        """
        Second moment of the noise in `_noise_basis`, its variance, and whether images
        have a Nyquist row and column.
        """
        basis, L = self._noise_basis, self.basis.L
        nyquist = has_nyquist(sums["edge"], L)
        spectrum = self.noise_spectrum
        if self.noise_seen:
            spectrum = corner_spectrum(
                sums["corner_power"], sums["corner_images"], L, nyquist
            )
        if spectrum is not None:
            second = stationary_noise_second(basis, spectrum, nyquist)
            return second, max(spectrum.mean(), 0.0), nyquist
        if variance is None:
            variance = corner_variance(sums["corner"], self.source.n, L)
        return variance * basis.noise_second(nyquist), variance, nyquist

    @property
    def _noise_basis(self) -> Basis:
        """The basis, with the orders that astigmatic CTFs carry into it."""
        if self.transfer is None or self.transfer.n_harmonics == 1:
            return self.basis
        orders = self.basis.max_order + 2 * self.transfer.n_harmonics
        return replace(self.basis, max_order=orders)

    def _moments(
        self, sums: Sums, noise: np.ndarray, variance: float, nyquist: bool
    ) -> Moments:
        """Moments from sums over images."""
        source, basis = self.source, self.basis
        n = round(float(sums["n_images"]))
        third = self._solve_third(sums, noise, n)
        if self.transfer is None:
            noise = n * noise
        else:
            noise = multiply(noise, sums["noise_weights"], self._noise_basis)
            noise = noise[: len(sums["second"])]
        logger.info(
            f"Moments of {n} images, noise variance {variance:.6g} per pixel"
            f"{'' if nyquist else ' (Nyquist row and column empty)'};"
            f" {self.treatment}"
        )
        return Moments(
            **self._solve(sums, noise, n),
            **third,
            basis=basis,
            n_images=n,
            noise_variance=float(variance),
            pixel_size=None if source.pixel_size is None else float(source.pixel_size),
            nyquist=nyquist,
            shift_std=self.shift_std,
            treatment=self.treatment,
        )

    def _solve_third(self, sums: Sums, noise: np.ndarray, n: int) -> dict:
        """The third moment and its standard errors."""
        if self.third is None:
            return {}
        sums = {k: v for k, v in sums.items() if k.startswith("third")}
        third, error = self.third.finish(sums, n, noise)
        return {"third": third, "third_error": error, "third_basis": self.third}

    def _solve(self, sums: Sums, noise: np.ndarray, n: int) -> dict:
        """Moments and their standard errors from sums over images, noise's included."""
        basis = self.basis
        first, second, squares = basis.finish(
            (sums["first"], sums["second"], sums["squares"])
        )
        # Deviations from the mean product, which CTFs that vary add a little to.
        first_variance = basis.power(second) - np.abs(first) ** 2 / n
        squares -= np.abs(second) ** 2 / n
        second -= noise
        power = own_power(noise, basis)
        weights = weights_2 = None
        if self.transfer is None:
            first, second, power = first / n, second / n, power / n
        else:
            weights, weights_2 = sums["weights"], sums["second_weights"]
            first = solve_entries(first, weights, n)
            second = divide(second, weights_2, basis, n)
            power = divide_power(power, weights_2, basis, n)
        return {
            "first": first,
            "second": second,
            "first_error": _standard_error(first_variance, weights, n),
            "second_error": _standard_error(
                squares, None if weights_2 is None else expand(weights_2, basis), n
            ),
            "first_weight": weights,
            "second_weight": weights_2,
            "noise_power": power,
        }

    def _read(self, n_groups: int) -> list[Sums]:
        """The pass over the images: sums of all that :meth:`_batch_sums` has."""
        n, batch_size = self.source.n, self.batch_size
        if n_groups > 1:
            rounds = math.ceil(n / (n_groups * batch_size))
            batch_size = math.ceil(n / (n_groups * rounds))
        return accumulate(
            n,
            batch_size,
            self._images,
            self._batch_sums,
            n_groups=n_groups,
            checkpoint=self.checkpoint,
            fingerprint=self._fingerprint(),
            every=self.checkpoint_seconds,
            most_workers=self._most_workers,
        )

    @property
    def _most_workers(self) -> int:
        """One batch's products fill a GPU; each batch has a result in memory."""
        if self.device is not None:
            return 1
        return max(1, RESULTS // (24 * math.prod(self.basis.second_shape)))

    def _images(self, start: int, stop: int) -> np.ndarray:
        """Images of the source, centred."""
        images = self.source.images[start:stop]
        if self.offsets is not None:
            images = images.shift(-self.offsets[start:stop])
        return check_images(images.asnumpy(), self.basis.L, start)

    def _fingerprint(self) -> dict[str, str]:
        """What a checkpoint's sums depend on."""
        if self.checkpoint is None:
            return {}
        transfer, centred = "none", self.offsets is not None
        if self.transfer is not None:
            transfer = "flipped" if self.transfer.phase_flipped else "corrected for"
        return {
            "basis": repr(self.basis),
            "CTFs": transfer,
            "known shifts": "undone" if centred else "none, or left",
            "corners": "spectrum" if self.noise_seen else "variance",
            "third": "" if self.third is None else digest(self.third.to_arrays()),
            **fingerprint_source(self.source),
        }

    def _batch_sums(self, images: np.ndarray, start: int) -> Sums:
        """
        Sums over a batch: the number of images; the basis's; what the pixels outside
        the inscribed disc tell of the noise; weights.
        """
        basis = self.basis
        sums = {"n_images": np.array(float(len(images))), **corner_sums(images)}
        if self.noise_seen:
            sums |= corner_power(images, start, self.source.n)
        H = None
        if self.transfer is not None:
            H = self.transfer.of_images(start, start + len(images))
            sums |= weight_sums(basis, H, self.transfer.n_harmonics)
        names = ("first", "second", "squares")
        if self.device is not None:
            found = sums_on_device(basis, images, H, self.device)
            return sums | dict(zip(names, found, strict=True))
        if self.third is None:
            return sums | dict(zip(names, basis.sums(images, H), strict=True))
        c = basis.coefficients(images, H)
        sums |= dict(zip(names, basis.coefficient_sums(c), strict=True))
        return sums | self.third.sums(c, H if H is None else H[..., 0], errors=True)


def _standard_error(
    squares: np.ndarray, weights: np.ndarray | None, n: int
) -> np.ndarray | None:
    """Of a sum of n values over their weights (n without), from the sum of their square
    deviations from the mean."""
    if n < 2:
        return None
    error = np.sqrt(np.maximum(squares, 0) * n / (n - 1))
    return error / n if weights is None else solve_entries(error, weights, n)
