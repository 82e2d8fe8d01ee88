"""One streaming pass from an ASPIRE source to moments."""

from __future__ import annotations

import logging

import numpy as np
from aspire.noise import NoiseEstimator, WhiteNoiseEstimator
from aspire.operators import Filter
from aspire.source import ImageSource
from aspire.utils import trange

from aspire_mom.moments.bases import Basis, check_images
from aspire_mom.moments.moments import Moments

logger = logging.getLogger(__name__)

# Power on the Nyquist row and column, relative to the mean, below which it is empty.
EMPTY_NYQUIST = 1e-6


class MomentEstimator:
    """
    First and second moments of the images of a source, noise bias removed (eq. 30).

    Images are read once, `batch_size` at a time; memory is that of one batch and of the
    result. The noise is white; images have no CTF and no shifts.

    :param source: ASPIRE `ImageSource`.
    :param basis: `CartesianBasis` or `PolarBasis` of the source's image size.
    :param noise_variance: Variance of the noise per pixel, or an ASPIRE
        `NoiseEstimator`; by default ASPIRE's `WhiteNoiseEstimator` reads the source
        once more for it.
    :param batch_size: Images read and transformed at once.
    :param ignore_ctf: Take images that have a CTF as if they had none.
    :param ignore_shifts: Take images that have shifts as if they had none.
    :raises TypeError: `source` is not an ImageSource.
    :raises ValueError: an empty source, a size that is not the basis's, a negative
        noise variance, a batch size below 1, a CTF or shifts that are not ignored.
    """

    def __init__(
        self,
        source: ImageSource,
        basis: Basis,
        *,
        noise_variance: float | NoiseEstimator | None = None,
        batch_size: int = 512,
        ignore_ctf: bool = False,
        ignore_shifts: bool = False,
    ):
        if not isinstance(source, ImageSource):
            raise TypeError(
                f"source is a {type(source).__name__}; an ASPIRE ImageSource is needed"
            )
        if source.n < 1:
            raise ValueError("the source has 0 images; at least 1 is needed")
        if source.L != basis.L:
            raise ValueError(
                f"the source's images have {source.L} pixels along an edge, the basis"
                f" is for {basis.L}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be 1 or more")
        if not ignore_ctf:
            _refuse_ctf(source)
        if not ignore_shifts:
            _refuse_shifts(source)
        if isinstance(noise_variance, (int, float, np.number)):
            _check_variance(noise_variance)
        self.source = source
        self.basis = basis
        self.noise_variance = noise_variance
        self.batch_size = batch_size

    def estimate(self) -> Moments:
        """
        Read the source and average.

        :return: The source's `Moments`.
        :raises ValueError: an image with values that are not finite.
        """
        source, basis = self.source, self.basis
        variance = self._noise_variance()
        first = second = squares = 0
        nyquist = False
        for start in trange(0, source.n, self.batch_size, desc="moments"):
            batch = source.images[start : start + self.batch_size].asnumpy()
            try:
                images = check_images(batch, basis.L)
            except ValueError as error:
                raise ValueError(f"images from number {start} on: {error}") from error
            nyquist = nyquist or _has_nyquist(images)
            sums = basis.sums(images)
            first, second, squares = first + sums[0], second + sums[1], squares + sums[2]
        n = source.n
        first, second, squares = first / n, second / n, squares / n
        scatter = np.maximum(squares - np.abs(second) ** 2, 0)
        raw_power = _power(second, basis)
        if not nyquist:
            # The estimators average over all pixels, noise is in the others only.
            variance_inside = variance * (basis.L / (basis.L - 1)) ** 2
        else:
            variance_inside = variance
        second = second - variance_inside * basis.noise_second(nyquist)
        logger.info(
            f"Moments of {n} images, noise variance {variance:.6g} per pixel"
            f"{'' if nyquist else ' (Nyquist row and column empty)'}"
        )
        return Moments(
            first=first,
            second=second,
            basis=basis,
            n_images=n,
            noise_variance=float(variance_inside),
            pixel_size=None if source.pixel_size is None else float(source.pixel_size),
            first_error=np.sqrt(np.maximum(raw_power - np.abs(first) ** 2, 0) / n),
            second_error=np.sqrt(scatter / n),
            nyquist=nyquist,
        )

    def _noise_variance(self) -> float:
        given = self.noise_variance
        if given is None:
            given = WhiteNoiseEstimator(self.source, batch_size=self.batch_size)
        if isinstance(given, NoiseEstimator):
            given = given.estimate()
        _check_variance(given)
        return float(given)


def _power(second: np.ndarray, basis: Basis) -> np.ndarray:
    """E |f|² of the first moment's entries, from the second's diagonal."""
    if second.ndim == 2:
        return second.diagonal().real
    if second.ndim == 3:
        return second[0].diagonal().real
    M = basis.max_order
    own = second[:, :, M:]
    return np.einsum("mrmr->mr", own).real


def _has_nyquist(images: np.ndarray) -> bool:
    """Whether images have power on the Nyquist row or column of an even size."""
    L = images.shape[-1]
    if L % 2:
        return True
    alternating = (-1.0) ** np.arange(L)
    row = np.mean(np.abs(np.fft.rfft(np.einsum("y,nyx->nx", alternating, images))) ** 2)
    mean = L**2 * np.mean(images.astype(np.float64) ** 2)
    return bool(row > EMPTY_NYQUIST * mean)


def _check_variance(variance: float) -> None:
    if not (np.isfinite(variance) and variance >= 0):
        raise ValueError(
            f"the noise variance is {variance}; it must be finite and 0 or more"
        )


def _refuse_ctf(source: ImageSource) -> None:
    filters = [f for f in source.unique_filters or [] if not _passes_all(f, source.L)]
    if filters:
        raise ValueError(
            f"the source has {len(filters)} CTF filter(s), which are not corrected for;"
            " pass ignore_ctf=True (--ignore-ctf) to take the images as they are"
        )


def _passes_all(image_filter: Filter, L: int) -> bool:
    return bool(np.allclose(image_filter.evaluate_grid(L), 1))


def _refuse_shifts(source: ImageSource) -> None:
    offsets = np.abs(np.asarray(source.offsets, dtype=float))
    if offsets.max(initial=0) > 0:
        raise ValueError(
            f"the source has shifts of up to {offsets.max():.3g} pixels, which are not"
            " corrected for; pass ignore_shifts=True (--ignore-shifts) to take the"
            " images as they are"
        )
