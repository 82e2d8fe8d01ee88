"""One streaming pass from an ASPIRE source to moments."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import cached_property
from typing import Literal

import numpy as np
from aspire.noise import NoiseEstimator
from aspire.operators import Filter
from aspire.source import ImageSource

from aspire_mom import processes
from aspire_mom.bases import Basis, divide, solve_entries, standard_error
from aspire_mom.checkpoints import digest
from aspire_mom.checks import check_choice, check_kind, checked_device
from aspire_mom.moments.amplitudes import (
    correct_amplitudes,
    estimate_amplitude_std,
    with_bright_molecules,
)
from aspire_mom.moments.corners import (
    corner_power,
    corner_sums,
    filter_spectrum,
    measure_noise,
)
from aspire_mom.moments.corrections import Corrections, source_identity
from aspire_mom.moments.ctf import TransferFunctions, radial_part
from aspire_mom.moments.moments import Moments
from aspire_mom.moments.options import (
    CorrectionOptions,
    Noise,
    StreamingOptions,
    check_averaging_device,
    checked_number,
    default_third,
)
from aspire_mom.moments.preparation import (
    NAMED,
    Preparation,
    centred_images,
    known_offsets,
    warn_of_outliers,
)
from aspire_mom.moments.streaming import Sums, accumulate
from aspire_mom.moments.third import ThirdMomentBasis

logger = logging.getLogger(__name__)

# Bytes of results of batches computed at once, 24 for each entry of second moments.
RESULTS = 2**30


class MomentEstimator:
    """
    Estimate moments of images as if without CTF, shifts and noise (eq. 30).

    Images are read once, in batches. Each core sums over one batch at a time;
    OMP_NUM_THREADS limits the number of cores. Sums over a batch are computed in the
    images' precision (float32 for integers) and added up in double precision. Under
    `torchrun`, within `aspire_mom.processes.joined`, each process reads a share of the
    images and all get the same moments.

    - CTFs and other filters are corrected for by least squares, one normal equation for
      each entry of a moment. Molecules come out bright. Third moments take astigmatic
      ones as radial: a relative error of 3e-5 at 0.05 µm, for 8 rings of 63 pixels of
      5.6 Å, which grows with the square.
    - Shifts that the source knows are undone by ASPIRE's `Image.shift`. The inversion
      models those that remain.
    - The second moment is divided by 1 + s², s the amplitudes' relative spread.
    - The second moment of the noise is subtracted, without the Nyquist row and column
      where ASPIRE's downsampling of even-sized images has left them empty.

    :param source: ASPIRE `ImageSource`.
    :param basis: `CartesianBasis` or `PolarBasis` of the source's image size.
    :param noise: Model of the noise.
    :param corrections: What to correct the images for.
    :param third: Third moments to estimate too, None for none. "auto" is
        `ThirdMomentBasis.rings(basis)` for an in-plane averaged polar basis on the CPU,
        else None. Those of images with CTFs cannot be compressed.
    :param streaming: How to read and sum up the images.
    :raises TypeError: `source`, `basis` or `third` is of another type.
    :raises ValueError: the source is empty or of another size than the basis, residual
        shifts exceed a quarter of the box, third moments or astigmatic CTFs do not fit
        the basis, or the device is absent or does not compute these sums.
    """

    def __init__(
        self,
        source: ImageSource,
        basis: Basis,
        *,
        noise: Noise = Noise(),
        corrections: CorrectionOptions = CorrectionOptions(),
        third: ThirdMomentBasis | Literal["auto"] | None = "auto",
        streaming: StreamingOptions = StreamingOptions(),
    ):
        check_kind("source", source, ImageSource)
        check_kind("basis", basis, Basis)
        if source.n < 1:
            raise ValueError("the source has 0 images; at least 1 is needed")
        if source.L != basis.L:
            raise ValueError(
                f"the images have {source.L} pixels along an edge, the basis {basis.L}"
            )
        if corrections.shift_std is not None:
            checked_number("shift_std", corrections.shift_std, source.L / 4)
        device = checked_device(processes.own_device(str(streaming.device)))
        if isinstance(third, str):
            check_choice("third", third, ("auto",))
            third = default_third(basis, device)
        self.source, self.basis, self.third = source, basis, third
        self.noise, self.corrections, self.streaming = noise, corrections, streaming
        self.noise_spectrum = None
        if isinstance(noise.spectrum, Filter):
            self.noise_spectrum = filter_spectrum(noise.spectrum, source)
        done = corrections.phase_flipped, corrections.premultiplied
        found = TransferFunctions(source, basis, *done)
        self.has_ctf = not found.flat
        self.transfer = found if self.has_ctf and not corrections.ignore_ctf else None
        self.astigmatic = self.transfer is not None and not self.transfer.radial
        self.premultiplied = self.transfer is not None and self.transfer.premultiplied
        # That of the noise, with the orders that astigmatic CTFs carry into the basis.
        self._noise_basis = basis
        if self.transfer is not None and self.transfer.n_harmonics > 1:
            orders = basis.max_order + 2 * self.transfer.n_harmonics
            self._noise_basis = replace(basis, max_order=orders)
        self._check_ctf_and_third()
        limited = self.astigmatic or self.third is not None
        check_averaging_device(device, basis, limited=limited)
        # None for NumPy.
        self.device = None if device.type == "cpu" else device
        known = known_offsets(source)
        self.has_shifts = known is not None
        self.offsets = None if corrections.ignore_shifts else known
        # What is wrong with the images that are left out, of as many as are named.
        self._faults: dict[int, str] = {}
        amplitudes = source.amplitudes
        if corrections.amplitude_std == 0 and np.ptp(amplitudes) > 0:
            logger.warning(
                f"The images' amplitudes vary from {amplitudes.min():.3g} to"
                f" {amplitudes.max():.3g}; pass CorrectionOptions(amplitude_std=…) to"
                " correct the second moment"
            )

    def _check_ctf_and_third(self) -> None:
        basis, third = self.basis, self.third
        if self.astigmatic and not basis.corrects_astigmatism:
            raise ValueError(
                "the source has astigmatic CTFs; to correct for them pass a polar basis"
                " with inplane_average=True or a CartesianBasis"
            )
        if third is None:
            return
        check_kind("third", third, ThirdMomentBasis)
        if third.basis != basis:
            raise ValueError(f"third moments are in {third.basis}, not in {basis}")
        if self.transfer is not None and third.ring_indices is None:
            raise ValueError(
                "third moments of images with CTFs cannot be compressed; pass"
                " third=ThirdMomentBasis.rings(basis, n_rings)"
            )

    @cached_property
    def _corrections(self) -> Corrections:
        """Corrections of the moments of all images, as far as known before the pass."""
        used, offsets = self.transfer, self.offsets
        kind, noise_given = "white", self.noise.variance
        if isinstance(noise_given, NoiseEstimator):
            noise_given = type(noise_given).__name__
        if self.noise.spectrum is not None:
            kind = "corners"
        if self.noise_spectrum is not None:
            kind, noise_given = "given spectrum", digest(self.noise_spectrum)
        shifts = "ignored" if self.has_shifts else "none"
        return Corrections(
            source=source_identity(self.source),
            ctf="corrected" if used else "ignored" if self.has_ctf else "none",
            n_filters=len(used.filters) if used else 0,
            astigmatic=self.astigmatic,
            phase_flipped=used is not None and bool(used.phase_flipped),
            premultiplied=self.premultiplied,
            shifts=shifts if offsets is None else "centred",
            largest_shift=0.0 if offsets is None else float(abs(offsets).max()),
            shift_std=self.corrections.shift_std,
            noise=kind,
            noise_given=noise_given,
            amplitude_std_given=self.corrections.amplitude_std,
            unchecked=self.corrections.unchecked,
        )

    @cached_property
    def _preparation(self) -> Preparation:
        unchecked = self.corrections.unchecked
        return Preparation.of(self.source, self.offsets, unchecked=unchecked)

    def _expected_corrections(self, half: int) -> Corrections:
        """What moments of all images (`half` 0) or of a half will be corrected for."""
        batch = self._half_batch if half else 0
        return replace(self._corrections, half=half, half_batch=batch)

    def check_compatible(self, moments: Moments, half: int = 0) -> None:
        """
        Check that moments are those that this estimator would return: of the same
        images in the same basis, with the same corrections.

        :param moments: Moments, from a file perhaps.
        :param half: 0 for those of all images, 1 or 2 for those of a half.
        :raises ValueError: they differ; the message says in what.
        """
        difference = moments.corrections.difference(self._expected_corrections(half))
        if moments.basis != self.basis:
            difference = f"the basis is {moments.basis}, not {self.basis}"
        elif moments.third_basis != self.third:
            difference = f"third moments: {moments.third_basis}, not {self.third}"
        if difference is not None:
            raise ValueError(
                "the moments were estimated with other settings or from other images"
                f" ({difference})"
            )

    def estimate(self) -> Moments:
        """
        Read the source and average.

        :return: The source's `Moments`. Standard errors are those of averaging images,
            None for one image; noise counts as known, even if it was measured.
        :raises ValueError: an image is not finite, too many are outliers, or the
            checkpoint does not fit.
        :raises OSError: the checkpoint cannot be written.
        """
        return self._estimates(1)[0]

    def estimate_with_halves(self) -> tuple[Moments, Moments, Moments]:
        """
        Estimate moments of all images and of both halves of them in one pass. Each half
        has every other batch; batches are made smaller where that makes halves equal.

        :return: The moments of all, of the first and of the second half.
        :raises ValueError: as :meth:`estimate`, or there are fewer than 4 images.
        """
        if self.source.n < 4:
            raise ValueError(
                f"the source has {self.source.n} image(s); two halves need 4 or more"
            )
        return tuple(self._estimates(2))

    def _estimates(self, n_groups: int) -> list[Moments]:
        """Moments of all images and, of more than one group, of each group."""
        noise = self.noise
        if isinstance(noise.variance, NoiseEstimator):
            noise = replace(noise, variance=noise.variance.estimate())
        streaming, third = self.streaming, self.third and self.third.to_arrays()
        self._preparation.warn()
        # What the sums depend on.
        fingerprint = {"basis": repr(self.basis), "third": third and digest(third)}
        fingerprint |= self._corrections.sum_settings()
        groups = accumulate(
            self.source.n,
            streaming.batch_size if n_groups == 1 else self._half_batch,
            self._images,
            self._batch_sums,
            n_groups=n_groups,
            checkpoint=streaming.checkpoint,
            fingerprint=fingerprint,
            every=streaming.checkpoint_seconds,
            most_workers=self._most_workers,
        )
        if n_groups > 1:
            names = groups[0]
            groups = [{k: sum(sums[k] for sums in groups) for k in names}, *groups]
        left_out = round(float(groups[0]["left_out"]))
        warn_of_outliers(self.source, self._faults, left_out)
        given = noise.variance, self.noise_spectrum, self._preparation.subtracts_mean
        premultiplied = self.transfer if self.premultiplied else None
        noise = measure_noise(groups[0], self._noise_basis, *given, premultiplied)
        found = [self._moments(sums, *noise, half) for half, sums in enumerate(groups)]
        # Contrast and amplitudes are estimated from all images, for each group too.
        if self.transfer is not None or not self.corrections.unchecked:
            found = with_bright_molecules(found)
        std = self.corrections.amplitude_std
        if std is None:
            std = estimate_amplitude_std(found[0])
        return [correct_amplitudes(moments, std) for moments in found]

    def _moments(
        self, sums: Sums, noise: np.ndarray, variance: float, nyquist: bool, half: int
    ) -> Moments:
        """Moments and their standard errors from sums over images."""
        basis, n = self.basis, round(float(sums["n_images"]))
        third = third_error = expanded = None
        information = sums.get("first_information")
        pairs = sums.get("second_information")
        if self.third is not None:
            before = noise
            if self.premultiplied:  # about as the CTFs let noise pass on two rings
                passed = np.sqrt(np.maximum(information / n, 1e-8))
                before = noise / np.outer(passed, passed)
            third, third_error = self.third.finish(sums, n, before)
        if pairs is None or self.premultiplied:
            noise = n * noise[: len(sums["second"])]
        else:
            noise = self._noise_basis.multiply(noise, sums["noise_information"])
            noise = noise[: len(sums["second"])]
        names = "first", "second", "squares"
        first, second, squares = basis.finish(tuple(sums[name] for name in names))
        # Squared deviations from the mean product, which varying CTFs add a little to.
        own = basis.diagonal_power(second).ravel()[: first.size].reshape(first.shape)
        first_squares = own - np.abs(first) ** 2 / n
        squares -= np.abs(second) ** 2 / n
        second -= noise
        power = basis.diagonal_power(noise)
        if pairs is None:
            first, second, power = first / n, second / n, power / n
        else:
            expanded = basis.expand(pairs)
            first = solve_entries(first, information, n)
            second = basis.divide(second, pairs, n)
            power = divide(power, np.einsum("mrr->mr", pairs), n).real
        corrections = replace(
            self._expected_corrections(half),
            noise_variance=float(variance),
            background_subtracted=self._preparation.subtracts_mean,
            left_out=round(float(sums["left_out"])),
        )
        moments = Moments(
            first,
            second,
            basis,
            n_images=n,
            pixel_size=self.source.pixel_size,
            third=third,
            first_error=standard_error(first_squares, information, n),
            second_error=standard_error(squares, expanded, n),
            nyquist=nyquist,
            first_information=information,
            second_information=pairs,
            corrections=corrections,
            third_basis=self.third,
            third_error=third_error,
            third_information=sums.get("third_information"),
            noise_power=power,
        )
        logger.info(f"{moments}; {moments.corrections}")
        return moments

    @property
    def _half_batch(self) -> int:
        """Images per batch of halves, which are equal where that can be."""
        half = self.source.n / 2
        return math.ceil(half / math.ceil(half / self.streaming.batch_size))

    @property
    def _most_workers(self) -> int:
        """Batches at once: one fills a GPU; on the CPU each has a result in memory."""
        most = RESULTS // (24 * math.prod(self.basis.second_shape))
        return max(1, most) if self.device is None else 1

    def _images(self, start: int, stop: int) -> np.ndarray:
        return centred_images(self.source, self.offsets, np.arange(start, stop))

    def _batch_sums(self, images: np.ndarray, start: int) -> Sums:
        basis, rows = self.basis, np.arange(start, start + len(images))
        images, faults = self._preparation.apply(images)
        rows, none = np.delete(rows, list(faults)), len(faults) == len(rows)
        if len(self._faults) < NAMED:
            self._faults |= {start + i: fault for i, fault in faults.items()}
        counts = {
            "n_images": np.array(float(len(rows))),
            "left_out": np.array(float(len(faults))),
        }
        if none:  # all batches have the same sums
            images = np.zeros_like(images, shape=(1, *images.shape[1:]))
            rows = np.array([start])
        sums = corner_sums(images)
        if self.noise.spectrum == "corners":
            sums |= corner_power(images, rows, self.source.n)
        H = factors = None
        if self.transfer is not None:
            H = self.transfer.of_images(rows)
            factors = self.transfer.factors(H)
            sums |= basis.information_sums(H, self.transfer.n_harmonics)
        if self.third is None:
            found = basis.sums(images, factors, self.device)
        else:
            orders, n_rings = self.third.max_order, self.third.n_rings
            found, c = basis.sums_and_coefficients(images, factors, orders, n_rings)
            H = H if H is None else radial_part(H[:, :n_rings])
            sums |= self.third.sums(c, H)
        sums |= dict(zip(("first", "second", "squares"), found, strict=True))
        if none:
            sums = {name: np.zeros_like(value) for name, value in sums.items()}
        return self._preparation.unscaled(sums) | counts
