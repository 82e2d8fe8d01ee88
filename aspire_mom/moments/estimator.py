"""One streaming pass from an ASPIRE source to moments."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from aspire.noise import NoiseEstimator
from aspire.operators import Filter
from aspire.source import ImageSource
from aspire.utils import grid_2d

from aspire_mom.checks import check_integer
from aspire_mom.moments.bases import Basis, CartesianBasis, PolarBasis, check_images
from aspire_mom.moments.fingerprint import fingerprint_source
from aspire_mom.moments.moments import Moments
from aspire_mom.moments.streaming import Sums, accumulate

logger = logging.getLogger(__name__)

# Power on the Nyquist row and column, relative to the next ones, below which they are
# empty. White noise has 2 by `_edge_power`; a ramp subtracted from images after
# downsampling leaves less than 1e-2.
EMPTY_NYQUIST = 0.1
# Spread of a filter's values, relative to the largest, below which it is flat.
FLAT_FILTER = 1e-4


class MomentEstimator:
    """
    First and second moments of the images of a source, noise bias removed (eq. 30).

    Images are read once, `batch_size` at a time; memory is that of two batches and of
    the result. The noise is white; images have no CTF and no shifts. Products of a
    batch are in the images' precision, integers counting as float32, sums over batches
    in double precision. Under `torchrun`, within `aspire_mom.processes.joined`, each
    process reads a part of the images and all get the same moments.

    :param source: ASPIRE `ImageSource`.
    :param basis: `CartesianBasis` or `PolarBasis` of the source's image size.
    :param noise_variance: Variance of the noise per pixel of the images as the source
        gives them (after `source.downsample`, say), or an ASPIRE `NoiseEstimator`,
        which reads them once more. By default the variance outside the inscribed disc,
        as ASPIRE's `WhiteNoiseEstimator` has it, from the same pass. Where even-sized
        images' Nyquist row and column are empty, as ASPIRE's downsampling leaves them,
        the noise is taken to lie within the other frequencies.
    :param batch_size: Images read and transformed at once.
    :param checkpoint: File that keeps the sums so far: a new estimator of the same
        images goes on from there. It stays when all is done;
        `aspire_mom.moments.discard_checkpoint` removes it.
    :param checkpoint_seconds: Time from one writing of the checkpoint to the next.
    :param ignore_ctf: Take images that have a CTF as if they had none.
    :param ignore_shifts: Take images that have shifts as if they had none.
    :raises TypeError: `source`, `basis` or `noise_variance` is of another type.
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
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float = 60.0,
        ignore_ctf: bool = False,
        ignore_shifts: bool = False,
    ):
        _check_match(source, basis)
        check_integer("batch_size", batch_size, 1)
        if noise_variance is not None and not isinstance(
            noise_variance, NoiseEstimator
        ):
            noise_variance = _checked_variance(noise_variance)
        if not ignore_ctf:
            _refuse_ctf(source)
        if not ignore_shifts:
            _refuse_shifts(source)
        _mention_amplitudes(source)
        self.source = source
        self.basis = basis
        self.noise_variance = noise_variance
        self.batch_size = batch_size
        self.checkpoint = checkpoint
        self.checkpoint_seconds = checkpoint_seconds

    def estimate(self) -> Moments:
        """
        Read the source and average.

        :return: The source's `Moments`. Standard errors are those of averaging images,
            None for a single one; the noise variance counts as known.
        :raises ValueError: an image with values that are not finite, or a checkpoint of
            other images or settings, or a damaged one.
        :raises OSError: the checkpoint cannot be written.
        """
        source, basis, n = self.source, self.basis, self.source.n
        variance = self.noise_variance
        if isinstance(variance, NoiseEstimator):
            variance = _checked_variance(variance.estimate())
        sums, corner_variance, nyquist = self._read()
        if variance is None:
            variance = corner_variance
        first, second, squares = basis.finish(sums)
        del sums
        for total in (first, second, squares):
            total /= n
        first_variance = basis.power(second) - np.abs(first) ** 2
        squares -= np.abs(second) ** 2
        second -= variance * basis.noise_second(nyquist)
        logger.info(
            f"Moments of {n} images, noise variance {variance:.6g} per pixel"
            f"{'' if nyquist else ' (Nyquist row and column empty)'}"
        )
        return Moments(
            first=first,
            second=second,
            basis=basis,
            n_images=n,
            noise_variance=variance,
            pixel_size=None if source.pixel_size is None else float(source.pixel_size),
            first_error=_standard_error(first_variance, n),
            second_error=_standard_error(squares, n),
            nyquist=nyquist,
        )

    def _read(self) -> tuple[list[np.ndarray], float, bool]:
        """
        The pass over the images: the basis's sums, the variance of pixels outside the
        inscribed disc, and whether the Nyquist row and column have any power.
        """
        L, n = self.basis.L, self.source.n
        outside = grid_2d(L, indexing="yx", dtype=np.float64)["r"] >= 1

        def read(start: int, stop: int) -> np.ndarray:
            images = self.source.images[start:stop].asnumpy()
            return check_images(images, L, start)

        def sums_of(images: np.ndarray, start: int) -> Sums:
            pixels = images[:, outside].astype(np.float64)
            corner = np.array([pixels.sum(), (pixels**2).sum()])
            parts = enumerate(self.basis.sums(images))
            return {
                "corner": corner,
                "edge": _edge_power(images),
                **{f"basis {i}": part for i, part in parts},
            }

        [sums] = accumulate(
            n,
            self.batch_size,
            read,
            sums_of,
            checkpoint=self.checkpoint,
            fingerprint=self._fingerprint(),
            every=self.checkpoint_seconds,
        )
        corner, edge = sums.pop("corner"), sums.pop("edge")
        mean, mean_square = corner / (n * np.count_nonzero(outside))
        nyquist = L % 2 == 1 or edge[0] > EMPTY_NYQUIST * edge[1]
        variance = max(float(mean_square - mean**2), 0.0)
        return list(sums.values()), variance, bool(nyquist)

    def _fingerprint(self) -> dict[str, str]:
        """What a checkpoint's sums depend on."""
        if self.checkpoint is None:
            return {}
        return {"basis": repr(self.basis), **fingerprint_source(self.source)}


def _standard_error(mean_square: np.ndarray, n: int) -> np.ndarray | None:
    """Of a mean of n values, from their mean square deviation from it."""
    return None if n < 2 else np.sqrt(np.maximum(mean_square, 0) / (n - 1))


def _edge_power(images: np.ndarray) -> np.ndarray:
    """Power on the Nyquist row and column of an even size, and on the next ones'
    cosines: (2,)."""
    L = images.shape[-1]
    k = np.array([[L // 2], [L // 2 - 1]])
    waves = np.cos(2 * np.pi / L * k * np.arange(L)).astype(images.dtype)
    rows, columns = waves @ images, images @ waves.T
    return (rows**2).sum((0, 2)) + (columns**2).sum((0, 1))


def _check_match(source: ImageSource, basis: Basis) -> None:
    if not isinstance(source, ImageSource):
        raise TypeError(
            f"source is a {type(source).__name__}; an ASPIRE ImageSource is needed"
        )
    if not isinstance(basis, CartesianBasis | PolarBasis):
        raise TypeError(
            f"basis is a {type(basis).__name__}; a CartesianBasis or a PolarBasis"
            " is needed"
        )
    if source.n < 1:
        raise ValueError("the source has 0 images; at least 1 is needed")
    if source.L != basis.L:
        raise ValueError(
            f"the source's images have {source.L} pixels along an edge, the basis"
            f" is for {basis.L}"
        )


def _checked_variance(variance: float) -> float:
    if not isinstance(variance, float | int | np.number):
        raise TypeError(
            f"noise_variance is a {type(variance).__name__}; a number or an ASPIRE"
            " NoiseEstimator is needed"
        )
    if not (np.isfinite(variance) and variance >= 0):
        raise ValueError(
            f"the noise variance is {variance}; it must be finite and 0 or more"
        )
    return float(variance)


def _refuse_ctf(source: ImageSource) -> None:
    filters = [f for f in source.unique_filters or [] if not _is_flat(f, source)]
    if filters:
        raise ValueError(
            f"the source has {len(filters)} CTF or other filter(s) that vary with"
            " frequency, which are not corrected for; pass ignore_ctf=True"
            " (--ignore-ctf) to take the images as they are"
        )


def _is_flat(image_filter: Filter, source: ImageSource) -> bool:
    """Whether a filter is the same for all frequencies, as after white whitening."""
    values = image_filter.evaluate_grid(source.L, pixel_size=source.pixel_size)
    return bool(np.ptp(values) <= FLAT_FILTER * np.abs(values).max())


def _refuse_shifts(source: ImageSource) -> None:
    shifts = np.abs(np.asarray(source.offsets, dtype=float))
    if not (shifts == 0).all():
        raise ValueError(
            f"the source has shifts of up to {shifts.max():.3g} pixels, which are not"
            " corrected for; pass ignore_shifts=True (--ignore-shifts) to take the"
            " images as they are"
        )


def _mention_amplitudes(source: ImageSource) -> None:
    amplitudes = source.amplitudes
    if np.ptp(amplitudes) > 0:
        logger.warning(
            f"The images' amplitudes vary from {amplitudes.min():.3g} to"
            f" {amplitudes.max():.3g}; moments are of the images as they are"
        )
