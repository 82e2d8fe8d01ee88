"""
Transfer functions of a source's images: CTF, phase flips, whitening, all in one real
factor per frequency.

ASPIRE 0.14 wraps CTF filters in a `ScaledFilter` when a source is downsampled *and*
scales the pixel size that they are evaluated at (its issue 1395), so that half of the
signs are wrong after 64 → 32. A CTF is a function of physical frequency: here it is
always evaluated with the images' present pixel size and without that scale.
"""

from __future__ import annotations

import copy
import logging
import math
from functools import cached_property

import numpy as np
from aspire.image.xform import Downsample, FilterXform, IndexedXform
from aspire.operators import (
    CTFFilter,
    Filter,
    IdentityFilter,
    LambdaFilter,
    MultiplicativeFilter,
    ScaledFilter,
)
from aspire.source import ArrayImageSource, ImageSource

from aspire_mom.moments.bases import Basis, CartesianBasis

logger = logging.getLogger(__name__)

# Spread of a filter's values, relative to the largest, below which it is flat.
FLAT = 1e-4
# Astigmatism below which a CTF is a function of the radius alone: phase at the largest
# frequency in use, radians.
ROUND = 1e-3


class TransferFunctions:
    """
    Real factors by which images' Fourier transforms differ from projections'.

    :param source: ASPIRE `ImageSource`.
    :param basis: Basis of its images.
    :param phase_flipped: Whether the images' phases are flipped, so that the modulus of
        the transfer function counts; None to see from the source's pipeline.
    """

    def __init__(
        self, source: ImageSource, basis: Basis, phase_flipped: bool | None = None
    ):
        self.basis = basis
        self.pixel_size = source.pixel_size
        self.filters = list(source.unique_filters or [IdentityFilter()])
        self.indices = np.zeros(source.n, dtype=int)
        if source.unique_filters:
            self.indices = np.asarray(source.filter_indices, dtype=int)
        for i, image_filter in enumerate(self.filters):
            _check_finite(i, image_filter)
        if phase_flipped is None:
            phase_flipped = is_phase_flipped(source)
        self.phase_flipped = phase_flipped

    @cached_property
    def flat(self) -> bool:
        """
        Whether no filter varies with frequency, as after white whitening.

        :raises ValueError: a filter lets nothing pass.
        """
        for i, image_filter in enumerate(self.filters):
            values = self._evaluate([image_filter], self._pixels)[0]
            if not values.any():
                raise ValueError(
                    f"filter {i} of the source is zero at all frequencies; such images"
                    " tell nothing"
                )
            if np.ptp(values) > FLAT * np.abs(values).max():
                return False
        return True

    @cached_property
    def radial(self) -> bool:
        """Whether all filters are functions of the radius, or as good as."""
        return all(self._astigmatism(f) < ROUND for f in self.filters)

    @cached_property
    def n_harmonics(self) -> int:
        """Even angular orders that squares of the filters have on the outermost ring:
        those of cos(2δ cos 2φ), δ the largest astigmatic phase."""
        if self.radial or isinstance(self.basis, CartesianBasis):
            return 1
        reach = 2 * max(self._astigmatism(f) for f in self.filters)
        most = self.basis.n_angles // 2
        if reach > most:
            return most
        return min(math.ceil(reach + 4 * reach ** (1 / 3) + 4), most)

    def of_images(self, start: int, stop: int) -> np.ndarray:
        """
        :param start: First image.
        :param stop: One past the last.
        :return: Factors, float64: on the basis's half rings (n, n_rings, n_angles), or
            (n, n_rings, 1) where all filters are radial; on the Fourier pixels (n, L,
            L) of a Cartesian basis.
        """
        used, which = np.unique(self.indices[start:stop], return_inverse=True)
        values = self._evaluate([self.filters[i] for i in used], self._grid)
        if self.phase_flipped:
            values = np.abs(values)
        return values.reshape(len(used), *self._shape)[which]

    @cached_property
    def _shape(self) -> tuple[int, int]:
        if isinstance(self.basis, CartesianBasis):
            return self.basis.L, self.basis.L
        return self.basis.n_rings, 1 if self.radial else self.basis.n_angles

    @cached_property
    def _pixels(self) -> np.ndarray:
        """All Fourier pixels (2, n), radians per pixel."""
        L = self.basis.L
        return 2 * np.pi / L * CartesianBasis(L).frequencies.T

    @cached_property
    def _frequencies(self) -> np.ndarray:
        """The basis's frequencies (2, n) as (kx, ky), cycles per pixel."""
        if isinstance(self.basis, CartesianBasis):
            return self.basis.frequencies.T / self.basis.L
        return np.stack(self.basis.half_rings) / (2 * np.pi)

    @cached_property
    def _grid(self) -> np.ndarray:
        """Frequencies (2, n) to evaluate filters at, radians per pixel."""
        omega = 2 * np.pi * self._frequencies
        if isinstance(self.basis, CartesianBasis) or not self.radial:
            return omega
        return omega[:, :: self.basis.n_angles]

    def _astigmatism(self, image_filter: Filter) -> float:
        """
        Largest phase in radians by which a CTF differs along the outermost ring from
        its mean; infinite for other filters that are not radial.
        """
        image_filter, _ = _unscaled(image_filter)
        if isinstance(image_filter, MultiplicativeFilter):
            return max(self._astigmatism(f) for f in image_filter._components)
        if not isinstance(image_filter, CTFFilter):
            return 0.0 if image_filter.radial else math.inf
        difference = abs(image_filter.defocus_u - image_filter.defocus_v)
        largest = np.linalg.norm(self._frequencies, axis=0).max() / self.pixel_size
        return np.pi / 2 * image_filter.wavelength * difference * largest**2

    def _evaluate(self, filters: list[Filter], omega: np.ndarray) -> np.ndarray:
        """Values (filters, n) at frequencies (2, n)."""
        plain = [_unscaled(f)[0] for f in filters]
        ctfs = all(isinstance(f, CTFFilter) for f in plain)
        if ctfs and len(plain) > 1:
            values = _stacked(plain)._evaluate(omega, pixel_size=self.pixel_size)
            return values * _envelopes(plain, omega, self.pixel_size)
        values = [_evaluate(f, omega, self.pixel_size) for f in filters]
        return np.stack([np.broadcast_to(v, omega.shape[1]) for v in values])


def is_phase_flipped(source: ImageSource) -> bool:
    """
    :param source: ASPIRE `ImageSource`.
    :return: Whether `source.phase_flip()` is in its pipeline, or in that of the source
        that it is a selection of. `source.cache()` forgets the pipeline.
    :raises ValueError: phases were flipped after a cached downsampling.
    """
    flips = [
        xform
        for xform in source.generation_pipeline.xforms
        if isinstance(xform, IndexedXform)
        and all(_is_sign(x) for x in xform.unique_xforms)
    ]
    downsampled = any(
        isinstance(xform, Downsample) for xform in source.generation_pipeline.xforms
    )
    for flip in flips:
        scaled = [_unscaled(x.filter._filter)[1] != 1 for x in flip.unique_xforms]
        if any(scaled) and not downsampled:
            raise ValueError(
                "phases were flipped after a downsampling that is cached, which ASPIRE"
                " does with wrong signs; flip them before downsampling"
            )
    if source._cached_im is not None and not isinstance(source, ArrayImageSource):
        logger.warning(
            "The source's images are cached, which hides whether phases were flipped"
            " before; pass phase_flipped=True if they were"
        )
    inner = getattr(source, "src", None)
    odd = len(flips) % 2 == 1
    return odd != is_phase_flipped(inner) if isinstance(inner, ImageSource) else odd


def _check_finite(number: int, image_filter: Filter) -> None:
    image_filter, _ = _unscaled(image_filter)
    if not isinstance(image_filter, CTFFilter):
        return
    for name in [
        "voltage",
        "defocus_u",
        "defocus_v",
        "defocus_ang",
        "Cs",
        "alpha",
        "B",
    ]:
        value = getattr(image_filter, name)
        if not math.isfinite(value):
            raise ValueError(
                f"CTF {number} of the source has {name} = {value}; finite numbers are"
                " needed"
            )


def _is_sign(xform) -> bool:
    image_filter = xform.filter if isinstance(xform, FilterXform) else None
    return isinstance(image_filter, LambdaFilter) and image_filter._f is np.sign


def _unscaled(image_filter: Filter) -> tuple[Filter, float]:
    """A filter without what `downsample` has wrapped it in, and the scale of that."""
    scale = 1.0
    while isinstance(image_filter, ScaledFilter):
        scale *= image_filter._scale
        image_filter = image_filter._filter
    return image_filter, scale


def _evaluate(
    image_filter: Filter, omega: np.ndarray, pixel_size: float, scale: float = 1.0
) -> np.ndarray:
    """Values (n,) at frequencies (2, n), CTFs at physical ones."""
    image_filter, own = _unscaled(image_filter)
    scale *= own
    if isinstance(image_filter, MultiplicativeFilter):
        factors = [
            _evaluate(f, omega, pixel_size, scale) for f in image_filter._components
        ]
        return np.prod(factors, axis=0)
    if isinstance(image_filter, CTFFilter):
        scale = 1.0
    return image_filter.evaluate(omega / scale, pixel_size=pixel_size)


def _stacked(filters: list[CTFFilter]) -> CTFFilter:
    """
    All CTFs without their envelopes as one filter whose values at n frequencies are
    (filters, n): ASPIRE's formula with columns for what it reads, hundreds of times
    faster than one by one.
    """
    stacked = copy.copy(filters[0])
    stacked.B = 0  # of which ASPIRE asks whether it is 0: several cannot answer
    read = "voltage defocus_ang Cs alpha _defocus_mean_nm _defocus_diff_nm"
    for name in read.split():
        column = np.array([getattr(f, name) for f in filters], dtype=float)[:, None]
        setattr(stacked, name, column)
    return stacked


def _envelopes(
    filters: list[CTFFilter], omega: np.ndarray, pixel_size: float
) -> np.ndarray | float:
    """ASPIRE's exp(-B s²) of all CTFs, s in cycles per nanometre, (filters, n)."""
    B = np.array([f.B for f in filters], dtype=float)
    if not B.any():
        return 1.0
    squares = np.sum((omega / (2 * np.pi * pixel_size / 10)) ** 2, axis=0)
    return np.exp(-np.outer(B, squares))
