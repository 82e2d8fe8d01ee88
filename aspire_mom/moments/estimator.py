"""One streaming pass from an ASPIRE source to moments."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import cached_property

import numpy as np
from aspire.noise import NoiseEstimator
from aspire.operators import Filter
from aspire.source import ImageSource

from aspire_mom import processes
from aspire_mom.bases import Basis, divide, solve_entries
from aspire_mom.checks import check_images, checked_device
from aspire_mom.files import digest
from aspire_mom.moments.amplitudes import correct_amplitudes, estimate_amplitude_std
from aspire_mom.moments.checks import (
    check_astigmatism,
    check_covered,
    check_match,
    check_third,
    known_offsets,
    mention_amplitudes,
)
from aspire_mom.moments.contrast import inverted, is_dark
from aspire_mom.moments.corners import (
    corner_power,
    corner_spectrum,
    corner_sums,
    corner_variance,
    filter_spectrum,
    has_nyquist,
)
from aspire_mom.moments.corrections import Corrections
from aspire_mom.moments.ctf import TransferFunctions
from aspire_mom.moments.identity import SourceIdentity
from aspire_mom.moments.moments import Moments
from aspire_mom.moments.options import (
    CorrectionOptions,
    Noise,
    StreamingOptions,
    check_std,
    checked_variance,
)
from aspire_mom.moments.streaming import Sums, accumulate
from aspire_mom.moments.third import ThirdMomentBasis

logger = logging.getLogger(__name__)

# Bytes of results of batches computed at once, 24 for each entry of second moments.
RESULTS = 2**30


class MomentEstimator:
    """
    First and second moments of the images of a source as if they had no CTF, were
    centred and free of noise (eq. 30).

    Images are read once, a batch at a time, and as many batches are computed at once as
    the process may use cores (OMP_NUM_THREADS limits that); memory is that of one batch
    more and of a result per core. Products of a batch are in the images' precision,
    integers counting as float32, sums over batches in double precision. Under
    `torchrun`, within `aspire_mom.processes.joined`, each process reads a part of the
    images and all get the same moments.

    - CTFs and other filters of the source, one for all images or one for each, are
      undone by least squares: every entry of a moment has its own normal equation, so
      no CTF is ever divided by. Molecules come out bright. `first_information`
      and `second_information` tell how many images without a CTF would be worth as
      much.
    - Shifts that the source knows are undone by ASPIRE's `Image.shift`. Shifts that
      remain are modelled by the inversion.
    - Amplitudes of relative spread s multiply the second moment by 1 + s², which is
      divided out; the first moment is that of the mean amplitude.
    - The second moment of the noise is subtracted. Where even-sized images' Nyquist row
      and column are empty, as ASPIRE's downsampling leaves them, noise is taken to lie
      within the other frequencies.

    :param source: ASPIRE `ImageSource`.
    :param basis: `CartesianBasis` or `PolarBasis` of the source's image size.
    :param noise: Model of the noise.
    :param corrections: What to correct the images for.
    :param third: Third moments to estimate too, in-plane averaged; those of images with
        CTFs cannot be compressed (`ThirdMomentBasis.rings`).
    :param streaming: How to read and sum up the images.
    :raises TypeError: `source` or `basis` is of another type.
    :raises ValueError: an empty source, a size that is not the basis's, residual shifts
        of more than a quarter of the box, astigmatic CTFs with in-plane angles that are
        not averaged, or a device that is not here or does not compute these sums.
    """

    def __init__(
        self,
        source: ImageSource,
        basis: Basis,
        *,
        noise: Noise = Noise(),
        corrections: CorrectionOptions = CorrectionOptions(),
        third: ThirdMomentBasis | None = None,
        streaming: StreamingOptions = StreamingOptions(),
    ):
        check_match(source, basis)
        check_std("shift_std", corrections.shift_std, source.L / 4)
        self.source = source
        self.basis = basis
        self.noise = noise
        self.corrections = corrections
        self.third = third
        self.streaming = streaming
        self.noise_spectrum = None
        if isinstance(noise.spectrum, Filter):
            self.noise_spectrum = filter_spectrum(noise.spectrum, source)
        found = TransferFunctions(source, basis, corrections.phase_flipped)
        self.has_ctf = not found.flat
        self.transfer = None if corrections.ignore_ctf or found.flat else found
        check_astigmatism(self.transfer, basis)
        check_third(third, basis, self.transfer)
        device = checked_device(processes.own_device(str(streaming.device)))
        check_covered(device, basis, self.transfer, third)
        # None for NumPy.
        self.device = None if device.type == "cpu" else device
        known = known_offsets(source)
        self.has_shifts = known is not None
        self.offsets = None if corrections.ignore_shifts else known
        if corrections.amplitude_std == 0:
            mention_amplitudes(source)

    def request(self, half: int = 0) -> Corrections:
        """
        What the moments will be corrected for, and the images that they will be of.

        :param half: 0 for all images, 1 or 2 for a half of them.
        :return: The `Corrections` of the moments, without what only the pass tells. Of
            the images, 16 are read.
        """
        return replace(
            self._request, half=half, half_batch=self._half_batch if half else 0
        )

    @cached_property
    def _request(self) -> Corrections:
        used, offsets, noise = self.transfer, self.offsets, self.noise
        left = "ignored" if self.has_shifts else "none"
        kind, noise_given = "white", noise.variance
        if isinstance(noise_given, NoiseEstimator):
            noise_given = type(noise_given).__name__
        if noise.spectrum == "corners":
            kind = "corners"
        elif self.noise_spectrum is not None:
            kind, noise_given = "given spectrum", digest(self.noise_spectrum)
        return Corrections(
            source=SourceIdentity.of(self.source),
            ctf="corrected" if used else "ignored" if self.has_ctf else "none",
            n_filters=len(used.filters) if used else 0,
            astigmatic=used is not None and not used.radial,
            phase_flipped=used is not None and bool(used.phase_flipped),
            shifts="centred" if offsets is not None else left,
            largest_shift=0.0 if offsets is None else float(abs(offsets).max()),
            shift_std=self.corrections.shift_std,
            noise=kind,
            noise_given=noise_given,
            amplitude_std_given=self.corrections.amplitude_std,
        )

    def check_answer(self, moments: Moments, half: int = 0) -> None:
        """
        Check that moments, from a file perhaps, are those that this estimator would
        return: of the same images in the same basis, corrected for the same.

        :param moments: The moments.
        :param half: 0 for those of all images, 1 or 2 for those of a half.
        :raises ValueError: they are others; says what differs.
        """
        difference = moments.corrections.difference(self.request(half))
        if moments.basis != self.basis:
            difference = f"the basis is {moments.basis}, not {self.basis}"
        elif moments.third_basis != self.third:
            difference = f"third moments: {moments.third_basis}, not {self.third}"
        if difference is not None:
            raise ValueError(f"the moments are of another request ({difference})")

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
        variance = self.noise.variance
        if isinstance(variance, NoiseEstimator):
            variance = checked_variance(variance.estimate())
        groups = self._read(n_groups)
        whole = groups[0]
        if n_groups > 1:
            whole = {name: sum(sums[name] for sums in groups) for name in whole}
        noise, variance, nyquist = self._noise(whole, variance)
        if n_groups == 1:
            groups = []
        found = [
            self._moments(sums, noise, variance, nyquist, half)
            for half, sums in enumerate((whole, *groups))
        ]
        # What all images tell of contrast and amplitudes holds for each group.
        if self.transfer is not None and is_dark(found[0]):
            found = [inverted(moments) for moments in found]
        std = self.corrections.amplitude_std
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
        if self.noise.spectrum == "corners":
            spectrum = corner_spectrum(
                sums["corner_power"], sums["corner_images"], L, nyquist
            )
        if spectrum is not None:
            second = basis.stationary_noise_second(spectrum, nyquist)
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
        self, sums: Sums, noise: np.ndarray, variance: float, nyquist: bool, half: int
    ) -> Moments:
        """Moments from sums over images."""
        source, basis = self.source, self.basis
        n = round(float(sums["n_images"]))
        third = self._solve_third(sums, noise, n)
        if self.transfer is None:
            noise = n * noise
        else:
            noise = self._noise_basis.multiply(noise, sums["noise_information"])
            noise = noise[: len(sums["second"])]
        corrections = replace(self.request(half), noise_variance=float(variance))
        logger.info(
            f"Moments of {n} images, noise variance {variance:.6g} per pixel"
            f"{'' if nyquist else ' (Nyquist row and column empty)'}; {corrections}"
        )
        return Moments(
            **self._solve(sums, noise, n),
            **third,
            basis=basis,
            n_images=n,
            pixel_size=None if source.pixel_size is None else float(source.pixel_size),
            nyquist=nyquist,
            corrections=corrections,
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
        first_variance = basis.first_power(second) - np.abs(first) ** 2 / n
        squares -= np.abs(second) ** 2 / n
        second -= noise
        power = basis.own_power(noise)
        information = pairs = None
        if self.transfer is None:
            first, second, power = first / n, second / n, power / n
        else:
            information = sums["first_information"]
            pairs = sums["second_information"]
            first = solve_entries(first, information, n)
            second = basis.divide(second, pairs, n)
            power = divide(power, np.einsum("mrr->mr", pairs), n).real
        return {
            "first": first,
            "second": second,
            "first_error": _standard_error(first_variance, information, n),
            "second_error": _standard_error(
                squares, None if pairs is None else basis.expand(pairs), n
            ),
            "first_information": information,
            "second_information": pairs,
            "noise_power": power,
        }

    def _read(self, n_groups: int) -> list[Sums]:
        """The pass over the images: sums of all that :meth:`_batch_sums` has."""
        streaming = self.streaming
        return accumulate(
            self.source.n,
            streaming.batch_size if n_groups == 1 else self._half_batch,
            self._images,
            self._batch_sums,
            n_groups=n_groups,
            checkpoint=streaming.checkpoint,
            fingerprint=self._fingerprint(),
            every=streaming.checkpoint_seconds,
            most_workers=self._most_workers,
        )

    @property
    def _half_batch(self) -> int:
        """Images per batch of halves, which are equal where that can be."""
        n = self.source.n
        rounds = math.ceil(n / (2 * self.streaming.batch_size))
        return math.ceil(n / (2 * rounds))

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

    def _fingerprint(self) -> dict[str, object]:
        """What a checkpoint's sums depend on."""
        return {
            "basis": repr(self.basis),
            "third": None if self.third is None else digest(self.third.to_arrays()),
            **self._request.of_sums(),
        }

    def _batch_sums(self, images: np.ndarray, start: int) -> Sums:
        """
        Sums over a batch: the number of images; the basis's; what the pixels outside
        the inscribed disc tell of the noise; information.
        """
        basis = self.basis
        sums = {"n_images": np.array(float(len(images))), **corner_sums(images)}
        if self.noise.spectrum == "corners":
            sums |= corner_power(images, start, self.source.n)
        H = None
        if self.transfer is not None:
            H = self.transfer.of_images(start, start + len(images))
            sums |= basis.information_sums(H, self.transfer.n_harmonics)
        names = ("first", "second", "squares")
        if self.third is None:
            found = basis.sums(images, H, self.device)
            return sums | dict(zip(names, found, strict=True))
        c = basis.coefficients(images, H)
        sums |= dict(zip(names, basis.coefficient_sums(c), strict=True))
        return sums | self.third.sums(c, H if H is None else H[..., 0], errors=True)


def _standard_error(
    squares: np.ndarray, information: np.ndarray | None, n: int
) -> np.ndarray | None:
    """Of a sum of n values over their information (n without), from the sum of their
    squared deviations from the mean."""
    if n < 2:
        return None
    error = np.sqrt(np.maximum(squares, 0) * n / (n - 1))
    if information is None:
        return error / n
    return solve_entries(error, information, n)
