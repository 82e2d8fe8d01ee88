"""Images before they are averaged: shifts, scale, background and outliers."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from aspire.source import ImageSource

from aspire_mom import processes
from aspire_mom.checks import check_images
from aspire_mom.moments.corners import outside
from aspire_mom.moments.streaming import Sums

logger = logging.getLogger(__name__)

# Images that tell what a source's images are like, spread evenly from the first to the
# last; the fewest that do; and how many of them are read at once.
SAMPLE, FEWEST, CHUNK = 256, 50, 32
# Standard deviations, as powers of two, that need no other scale: with these, sums of
# sixth powers of coefficients neither overflow nor vanish in single precision.
USUAL_EXPONENTS = range(-12, 5)
# Standard errors at which the mean background is not 0, and the ratio at which the
# variance of its mean between images is more than their noise explains. Either must
# also be a noticeable share of the signal's standard deviation.
SIGNIFICANT, VARIES, NOTICEABLE = 5.0, 4.0, 0.1
# Relative spread of the background's standard deviation that is worth mentioning.
UNEVEN = 0.3
# An outlier's largest pixel is more than 10 robust standard deviations (of its
# logarithm) and 4 times larger than usual, or its standard deviation is, by 2 times; or
# its standard deviation is next to nothing;
FAR, HOT, WILD, EMPTY = 10.0, 4.0, 2.0, 1e-3
# or its background is off by 6 of its standard deviations and half of the signal's.
FAR_MEAN, OFF = 6.0, 0.5
# Largest shares of outliers, of all images and of the sample.
MOST_LEFT_OUT, MOST_OF_SAMPLE = 0.05, 0.1
# Images left out that are named.
NAMED = 5
NORMALISE = (
    "Normalise images by ASPIRE's ImageSource.normalize_background or RELION's"
    " relion_preprocess --norm"
)
# What `statistics` are.
NAMES = "largest pixel", "standard deviation", "background"
# Powers of the images in sums over them; others do not depend on the images' scale.
POWERS = {
    "corner": np.array([1, 2]),
    **dict.fromkeys(("first", "third_first"), 1),
    **dict.fromkeys(("nyquist", "corner_power", "second", "third_zeroth"), 2),
    "third": 3,
    **dict.fromkeys(("squares", "third_cross"), 4),
    "third_squares": 6,
}
# Of normal values: standard deviation over median absolute deviation, and error of the
# median over that of the mean. Median over mean of χ² of three degrees of freedom.
MAD, MEDIAN_ERROR, CHI2_MEDIAN = 1.4826, 1.2533, 0.7887


@dataclass(frozen=True)
class Preparation:
    """
    What is done to every image of a source, from what a sample of them is like.

    :param exponent: Images are divided by 2 to the power of this number, which is not 0
        only where sums over them would not fit single precision.
    :param subtracts_mean: Whether each image's mean outside the inscribed disc is then
        subtracted from it.
    :param limits: Lowest and highest :func:`statistics` of images, (3, 2), beyond which
        they are left out; None to keep all.
    :param warnings: What users should know of the images.
    """

    exponent: int = 0
    subtracts_mean: bool = False
    limits: np.ndarray | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, source: ImageSource, offsets: np.ndarray | None, *, unchecked: bool = False
    ) -> Preparation:
        """
        Look at a few hundred images. Fewer than 50 only tell the scale.

        :param source: ASPIRE `ImageSource`.
        :param offsets: As for :func:`centred_images`.
        :param unchecked: Only look at the scale.
        :return: What to do to images; the same in all processes.
        :raises ValueError: an image is not finite, or too many are outliers.
        """
        rows = np.unique(np.linspace(0, source.n - 1, SAMPLE).astype(int))
        chunks = np.split(rows, range(CHUNK, len(rows), CHUNK))
        found = [_measured(centred_images(source, offsets, chunk)) for chunk in chunks]
        measured = np.concatenate(found, axis=1)
        exponent = _exponent(np.median(measured[1]))
        prepared = cls(exponent)
        if not unchecked and len(rows) >= FEWEST:
            prepared = _checked(np.ldexp(measured, -exponent), exponent)
        return processes.broadcast_object(prepared)

    def warn(self) -> None:
        """Log the warnings, in one process."""
        if processes.is_first():
            for warning in self.warnings:
                logger.warning(warning)

    def apply(self, images: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """
        :param images: Images (n, L, L), float32 or float64.
        :return: Those to be averaged, prepared; and what is wrong with the others, by
            their numbers among the n, in words.
        """
        if self.exponent:
            images = images * images.dtype.type(2.0**-self.exponent)
        if self.subtracts_mean:
            images = images - background(images).mean(1)[:, None, None]
        if self.limits is None:
            return images, {}
        with np.errstate(over="ignore", invalid="ignore"):
            values = statistics(images)
        sound = _within(values, self.limits)
        left_out = np.flatnonzero(~sound.all(0))
        if len(left_out) == 0:
            return images, {}
        faults = {}
        for i in left_out:
            # The first value that is out of its limits, in the images' own units.
            which = int(np.argmin(sound[:, i]))
            numbers = np.array([values[which, i], *self.limits[which]])
            value, low, high = np.ldexp(numbers, self.exponent)
            what = f"its {NAMES[which]} is {value:.3g}, not {low:.3g} to {high:.3g}"
            faults[int(i)] = what
        return np.delete(images, left_out, axis=0), faults

    def unscaled(self, sums: Sums) -> Sums:
        """
        :param sums: Sums over a batch of prepared images.
        :return: Those of images of their own scale, float64 or complex128.
        """
        if not self.exponent:
            return sums
        factor = np.float64(2) ** self.exponent
        return {name: v * factor ** POWERS.get(name, 0) for name, v in sums.items()}


def known_offsets(source: ImageSource) -> np.ndarray | None:
    """
    :param source: ASPIRE `ImageSource`.
    :return: Its shifts (n, 2) in pixels, None where there are none.
    :raises ValueError: a shift is not finite.
    """
    if source.pixel_size is None:
        return None
    offsets = np.asarray(source.offsets, dtype=float)
    if not np.isfinite(offsets).all():
        raise ValueError("the source has shifts that are NaN or infinite")
    return np.broadcast_to(offsets, (source.n, 2)) if offsets.any() else None


def centred_images(
    source: ImageSource, offsets: np.ndarray | None, rows: np.ndarray
) -> np.ndarray:
    """
    :param source: ASPIRE `ImageSource`.
    :param offsets: Shifts to undo, (source.n, 2) as x, y in pixels; None for none.
    :param rows: Numbers of the images to read, from 0, in order.
    :return: The images (n, L, L), float32 or float64.
    :raises ValueError: an image is not finite.
    """
    images = source.images[rows]
    if offsets is not None:
        images = images.shift(-offsets[rows])
    return check_images(images.asnumpy(), source.L, lambda i: describe(source, rows[i]))


def background(images: np.ndarray) -> np.ndarray:
    """
    :param images: Images (n, L, L).
    :return: Their pixels outside the inscribed disc, (n, pixels).
    """
    return images.reshape(len(images), -1)[:, outside(images.shape[-1])]


def statistics(images: np.ndarray) -> np.ndarray:
    """
    :param images: Images (n, L, L).
    :return: The largest difference from the mean outside the inscribed disc, the root
        of the mean squared difference from it, and this mean, (3, n).
    """
    pixels, mean = images.reshape(len(images), -1), background(images).mean(1)
    square = np.einsum("np,np->n", pixels, pixels) / pixels.shape[1]
    square -= mean * (2 * pixels.mean(1) - mean)
    largest = np.maximum(pixels.max(1) - mean, mean - pixels.min(1))
    return np.stack((largest, np.sqrt(np.maximum(square, 0)), mean))


def _measured(images: np.ndarray) -> np.ndarray:
    """`statistics` of images, the standard deviation outside the disc, and the means in
    four parts of what is outside, from top to bottom, (8, n), float64."""
    images = images.astype(np.float64)
    pixels = background(images)
    parts = [part.mean(1) for part in np.array_split(pixels, 4, axis=1)]
    return np.stack((*statistics(images), pixels.std(1), *parts))


def _exponent(deviation: float) -> int:
    """The power of two that images of a standard deviation are divided by."""
    exponent = math.frexp(deviation)[1]
    usual = deviation == 0 or exponent in USUAL_EXPONENTS
    return 0 if usual else int(np.clip(exponent, -126, 126))


def _checked(measured: np.ndarray, exponent: int) -> Preparation:
    """The preparation of images that a sample was `_measured` of, divided already."""
    (largest, rms, means, deviations), parts = measured[:4], measured[4:]
    level, spread = np.median(means), _spread(means)
    deviation = np.median(deviations)
    signal = math.sqrt(max(np.median(rms**2) - deviation**2, 0.0))
    # The variance of means between images, as that of parts within images has it.
    explained = np.median(parts.var(0, ddof=1)) / CHI2_MEDIAN / len(parts)
    error, least = MEDIAN_ERROR * spread / math.sqrt(len(means)), NOTICEABLE * signal
    off = abs(level) > max(SIGNIFICANT * error, least)
    varies = spread**2 > VARIES * explained and spread > least
    warnings = []
    if off or varies:
        typical = math.hypot(level, spread) / (deviation or signal or 1)
        warnings.append(
            "The background of the images, outside the inscribed disc, is not 0 but"
            f" typically {typical:.3g} of its standard deviations, so each image's own"
            f" mean there is subtracted. {NORMALISE}"
        )
    if _spread(deviations) > max(UNEVEN * deviation, least):
        warnings.append(
            "The standard deviation of the images' background varies by"
            f" {100 * _spread(deviations) / deviation:.0f} %. {NORMALISE}"
        )
    limits = None
    if np.median(rms) > 1e-6 * abs(level):  # or else images are constant
        far = math.inf if off or varies else max(FAR_MEAN * spread, OFF * signal)
        limits = [_range(largest, 0, HOT), _range(rms, EMPTY, WILD)]
        limits = np.array([*limits, (level - far, level + far)])
        count = int(np.count_nonzero(~_within(measured[:3], limits).all(0)))
        _check_count(count, len(means), MOST_OF_SAMPLE)
    return Preparation(exponent, bool(off or varies), limits, tuple(warnings))


def _within(values: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Whether `statistics` (3, n) are within limits (3, 2), (3, n); NaN is not."""
    low, high = limits.T[:, :, None]
    return (values >= low) & (values <= high)


def _range(sizes: np.ndarray, least: float, most: float) -> tuple[float, float]:
    """Lowest and highest sizes of sound images, least and most relative to usual."""
    usual = np.median(sizes)
    ratio = math.exp(FAR * _spread(np.log(sizes[sizes > 0] / usual)))
    return usual * min(least, 1 / ratio), usual * max(most, ratio)


def _check_count(count: int, n: int, most: float) -> None:
    """Raise ValueError if outliers are more than a share of the images."""
    if count > most * n:
        raise ValueError(
            f"{count:,} of {n:,} images differ from the others in their background, in"
            " their standard deviation or by a single pixel, which is too many to leave"
            f" out ({100 * most:g} % at most); normalise the images, or pass"
            " unchecked=True to take all as they are"
        )


def warn_of_outliers(source: ImageSource, faults: dict[int, str], count: int) -> None:
    """
    Say which images were left out, if any.

    :param source: ASPIRE `ImageSource`.
    :param faults: What is wrong with some of them, by their numbers in the source.
    :param count: Number of all of them.
    :raises ValueError: they are more than 5 % of the source.
    """
    _check_count(count, source.n, MOST_LEFT_OUT)
    if count and processes.is_first():
        named = [f"{describe(source, i)}: {faults[i]}" for i in sorted(faults)[:NAMED]]
        # Those that other processes, or earlier runs, left out are not known here.
        which = "; ".join([*named, "…"] if count > len(named) else named)
        which = f" ({which})" if named else ""
        logger.warning(
            f"{count:,} of {source.n:,} images are outliers, left out{which}"
        )


def describe(source: ImageSource, row: int) -> str:
    """
    :param source: ASPIRE `ImageSource`.
    :param row: Number of an image, from 0.
    :return: Its number from 1; or, where known, its number in its stack, and its row in
        the STAR file.
    """
    columns = ["__mrc_filepath", "__mrc_index"]
    if not source.has_metadata(columns):
        return f"image {row + 1}"
    path, number = (source.get_metadata(name, [row])[0] for name in columns)
    listed = source.get_metadata("__star_row", [row], default_value=0)[0]
    where = f" (row {listed})" if listed else ""
    return f"image {number} of {Path(path).name}{where}"


def _spread(values: np.ndarray) -> float:
    """Robust standard deviation."""
    return MAD * float(np.median(np.abs(values - np.median(values))))
