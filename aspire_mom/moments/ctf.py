"""
Transfer functions of a source's images: CTF, phase flips, whitening, all in one real
factor per frequency.

ASPIRE 0.14 wraps CTF filters in a `ScaledFilter` when a source is downsampled *and*
scales the pixel size that they are evaluated at (its issue 1395), so that half of the
signs are wrong after 64 → 32. A CTF is a function of physical frequency: here it is
always evaluated with the images' present pixel size and without that scale.
"""

from __future__ import annotations

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

from aspire_mom.bases import Basis, CartesianBasis

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
        L = self.basis.L
        pixels = 2 * np.pi / L * CartesianBasis(L).frequencies.T
        for i, image_filter in enumerate(self.filters):
            values = _evaluate(image_filter, pixels, self.pixel_size)
            if not np.any(values):
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
        return self._largest_astigmatism < ROUND

    @cached_property
    def n_harmonics(self) -> int:
        """Even angular orders that squares of the filters have on the outermost ring:
        those of cos(2δ cos 2φ), δ the largest astigmatic phase."""
        most = self.basis.max_harmonics
        if self.radial or most == 1:
            return 1
        reach = 2 * self._largest_astigmatism
        if reach > most:
            return most
        return math.ceil(reach + 4 * reach ** (1 / 3) + 4)

    @property
    def n_angles(self) -> int:
        """Angles on half a ring, an odd number, that hold the even orders of filters
        and their squares; flipped phases leave kinks, of all orders."""
        n = self.n_harmonics
        if self.phase_flipped and not self.radial:
            n = max(n, self.basis.max_harmonics)
        return 2 * n - 1

    def of_images(self, start: int, stop: int) -> np.ndarray:
        """
        :param start: First image.
        :param stop: One past the last.
        :return: Factors, float64: at angles πj/n_angles on the basis's rings (n,
            n_rings, n_angles), images next to one another in memory; on the Fourier
            pixels (n, L, L) of a Cartesian basis.
        """
        used, which = np.unique(self.indices[start:stop], return_inverse=True)
        if self._phases is None:
            filters = [self.filters[i] for i in used]
            values = np.empty((self._omega.shape[1], len(used)))
            for i, image_filter in enumerate(filters):
                values[:, i] = _evaluate(image_filter, self._omega, self.pixel_size)
        else:
            values = np.sin(self._terms @ self._phases[:, used])
            if self._envelopes.any():
                values *= np.exp(-np.outer(self._terms[:, 1], self._envelopes[used]))
        if self.phase_flipped:
            np.abs(values, out=values)
        return self.basis.filter_values(values[:, which])

    @cached_property
    def _omega(self) -> np.ndarray:
        """Frequencies (2, n) to evaluate filters at, radians per pixel."""
        return self.basis.filter_points(self.n_angles)

    @cached_property
    def _terms(self) -> np.ndarray:
        """What phases are linear in, (n, 5): s⁴, s², its even and odd cos and sin
        parts s² cos 2φ and s² sin 2φ, and 1, s in cycles per nanometre."""
        kx, ky = self._omega / (2 * np.pi) * (10 / self.pixel_size)
        squares = kx**2 + ky**2
        terms = squares**2, squares, kx**2 - ky**2, 2 * kx * ky, np.ones_like(kx)
        return np.stack(terms, axis=1)

    @cached_property
    def _phases(self) -> np.ndarray | None:
        """
        Of filters that are all CTFs, the coefficients (5, filters) of `_terms` in χ -
        arcsin α, where a CTF is √(1 - α²) sin χ - α cos χ = sin(χ - arcsin α) with

            χ = π/2 Cs λ³ s⁴ - πλ s² ((u + v)/2 + (u - v)/2 cos 2(φ - a)),

        u and v the defocus, a the angle of u.
        """
        plain = [_unscaled(f)[0] for f in self.filters]
        if not all(isinstance(f, CTFFilter) for f in plain):
            return None
        names = ["voltage", "Cs", "alpha", "defocus_u", "defocus_v", "defocus_ang"]
        voltage, Cs, alpha, u, v, angle = (
            np.array([getattr(f, name) for f in plain], dtype=float) for name in names
        )
        # Nanometres; defocus is in Å, Cs in mm.
        wavelength = 1.22639 / np.sqrt(voltage * 1000 + 0.97845 * voltage**2)
        mean, half = (
            np.pi * wavelength / 20 * (u + v),
            np.pi * wavelength / 20 * (u - v),
        )
        return np.stack(
            (
                np.pi / 2 * 1e6 * Cs * wavelength**3,
                -mean,
                -half * np.cos(2 * angle),
                -half * np.sin(2 * angle),
                -np.arcsin(alpha),
            )
        )

    @cached_property
    def _envelopes(self) -> np.ndarray:
        """B of CTFs, (filters,), as ASPIRE takes it."""
        return np.array([_unscaled(f)[0].B for f in self.filters], dtype=float)

    @cached_property
    def _largest_astigmatism(self) -> float:
        return max(self._astigmatism(f) for f in self.filters)

    @cached_property
    def _largest_frequency(self) -> float:
        """The largest in use, cycles per Å."""
        return self.basis.largest_frequency / self.basis.L / self.pixel_size

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
        largest = self._largest_frequency
        return np.pi / 2 * image_filter.wavelength * difference * largest**2


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
            " before; pass CorrectionOptions(phase_flipped=True) if they"
            " were"
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
