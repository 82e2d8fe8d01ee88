"""Moments of the union of two disjoint sets of images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from aspire_mom.bases import divide, multiply, solve_entries
from aspire_mom.checks import spread

if TYPE_CHECKING:
    from aspire_mom.moments.moments import Moments


def merged(a: Moments, b: Moments) -> dict:
    """
    :param a: Moments of images.
    :param b: Moments of other images in the same basis.
    :return: Fields of the union's moments that differ from those of `a`.
    :raises ValueError: as `Moments.merge`.
    """
    _check_mergeable(a, b)
    n = a.n_images + b.n_images
    fields = {
        "n_images": n,
        "corrections": a.corrections.merged(b.corrections, a.n_images, b.n_images),
    }
    if a.first_information is not None or b.first_information is not None:
        return fields | _weighted(a, b)
    noise = a.basis.noise_second(a.nyquist)
    # Entries of f f* scatter about their mean, noise included.
    raw = [m.second + m.noise_variance * noise for m in (a, b)]
    return fields | {
        "first": _mean(a, b, "first"),
        "second": _mean(a, b, "second"),
        "first_error": _error(a, b, "first_error", a.first - b.first),
        "second_error": _error(a, b, "second_error", raw[0] - raw[1]),
        "noise_power": _mean(a, b, "noise_power") if _noise_known(a, b) else None,
        **_third(a, b),
    }


def _mean(a: Moments, b: Moments, name: str) -> np.ndarray | float:
    n = a.n_images + b.n_images
    return (a.n_images * getattr(a, name) + b.n_images * getattr(b, name)) / n


def _noise_known(a: Moments, b: Moments) -> bool:
    return a.noise_power is not None and b.noise_power is not None


def _third(a: Moments, b: Moments) -> dict[str, np.ndarray]:
    """The fields `third` and `third_error` of the union."""
    if a.third is None:
        return {}
    # Its scatter, unlike the second's, is that with the noise's share removed.
    return {
        "third": _mean(a, b, "third"),
        "third_error": _error(a, b, "third_error", a.third - b.third),
    }


def _error(
    a: Moments, b: Moments, name: str, difference: np.ndarray
) -> np.ndarray | None:
    """Standard error of the mean of two sets from their scatter, the sum of squared
    deviations, about their own means and that of the means about each other."""
    scatter = _scatter(a, name), _scatter(b, name)
    if scatter[0] is None or scatter[1] is None:
        return None
    n = a.n_images + b.n_images
    between = a.n_images * b.n_images / n * np.abs(difference) ** 2
    return np.sqrt((scatter[0] + scatter[1] + between) / (n * (n - 1)))


def _scatter(moments: Moments, name: str) -> np.ndarray | float | None:
    """Σ |deviation from the mean|² of the images that an error is of."""
    n, error = moments.n_images, getattr(moments, name)
    if n == 1:
        return 0.0
    return None if error is None else n * (n - 1) * error**2


def _weighted(a: Moments, b: Moments) -> dict[str, np.ndarray]:
    """Both sets' normal equations together; errors as of independent sets."""
    basis, both = a.basis, (a, b)
    n = a.n_images + b.n_images
    first_parts = [_first_information(m) for m in both]
    second_parts = _equally_long([_second_information(m) for m in both])
    first_all, second_all = sum(first_parts), sum(second_parts)
    first = sum(i * m.first for i, m in zip(first_parts, both, strict=True))
    second = sum(
        basis.multiply(m.second, i) for i, m in zip(second_parts, both, strict=True)
    )
    power = None
    if _noise_known(a, b):
        own = [np.einsum("mrr->mr", i) for i in second_parts]
        parts = (multiply(m.noise_power, i) for i, m in zip(own, both, strict=True))
        power = divide(sum(parts), sum(own), n).real
    pairs = [basis.expand(i) for i in second_parts]
    return {
        "first": solve_entries(first, first_all, n),
        "second": basis.divide(second, second_all, n),
        "first_error": _weighted_error([m.first_error for m in both], first_parts, n),
        "second_error": _weighted_error([m.second_error for m in both], pairs, n),
        "first_information": first_all,
        "second_information": second_all,
        "noise_power": power,
    }


def _first_information(moments: Moments) -> np.ndarray:
    if moments.first_information is not None:
        return moments.first_information
    return np.full(moments.basis.n_frequencies, float(moments.n_images))


def _second_information(moments: Moments) -> np.ndarray:
    if moments.second_information is not None:
        return moments.second_information
    return moments.effective_images[None]


def _equally_long(information: list[np.ndarray]) -> list[np.ndarray]:
    """Information of different numbers of orders, the shorter continued by zeros."""
    n = max(map(len, information))
    return [np.pad(i, ((0, n - len(i)), (0, 0), (0, 0))) for i in information]


def _weighted_error(
    errors: list[np.ndarray | None], information: list[np.ndarray], n: int
) -> np.ndarray | None:
    """Of the weighted mean of two independent values."""
    if any(error is None for error in errors):
        return None
    squares = sum((i * e) ** 2 for i, e in zip(information, errors, strict=True))
    return solve_entries(np.sqrt(squares), sum(information), n)


def _check_mergeable(a: Moments, b: Moments) -> None:
    if not _same_pixel_size(a.pixel_size, b.pixel_size):
        raise ValueError(
            f"pixel sizes differ: {a.pixel_size} and {b.pixel_size} Å; only"
            " images of one pixel size can be averaged"
        )
    if a.nyquist != b.nyquist:
        raise ValueError(
            "only one of the two has images with an empty Nyquist row and column;"
            " prepare all images in the same way (source.downsample empties them)"
        )
    if a.n_images < 1 or b.n_images < 1:
        raise ValueError(
            f"n_images is {a.n_images} and {b.n_images}; only moments"
            " estimated from images can be merged"
        )
    if a.shift_std != b.shift_std:
        raise ValueError(
            f"residual shifts are of {spread(a.shift_std)} and of"
            f" {spread(b.shift_std)}; only images with the same can be averaged"
        )
    if a.third_basis != b.third_basis:
        raise ValueError(
            "third moments are of different numbers, or only one has them; estimate"
            " both with one ThirdMomentBasis"
        )
    if a.third is not None and (
        a.first_information is not None or b.first_information is not None
    ):
        raise ValueError(
            "third moments of images with CTFs cannot be merged, since their weights"
            " are not kept; estimate them from all images at once"
        )


def _same_pixel_size(a: float | None, b: float | None) -> bool:
    """To the accuracy that file headers keep."""
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-4)
