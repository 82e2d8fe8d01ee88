"""
Transfer functions of images: real factors of CTF, phase flips and whitening.

`source.downsample` of ASPIRE 0.14 wraps CTFs in a `ScaledFilter` *and* scales the pixel
size that they are evaluated at (its issue 1395): half of the signs are wrong after 64 →
32. A CTF is a function of physical frequency: here it is taken out of its wrapping and
evaluated with the images' present pixel size, which is right whatever ASPIRE does.
"""

from __future__ import annotations

import logging
import math
from functools import cached_property
from operator import attrgetter

import numpy as np
from aspire.image.xform import Downsample, IndexedXform
from aspire.operators import CTFFilter, Filter, IdentityFilter, MultiplicativeFilter
from aspire.source import ImageSource

from aspire_mom.bases import Basis, CartesianBasis
from aspire_mom.moments.aspire_internals import (
    factors,
    flipping_filter,
    is_cached,
    unscaled,
)

logger = logging.getLogger(__name__)

# Spread of a filter's values, relative to the largest, below which it is flat.
FLAT = 1e-4
# Astigmatism (phase on the last ring, radians) below which a CTF counts as radial.
ROUND = 1e-3
# Share of frequencies at which signs may differ by rounding.
SAME_SIGNS = 0.01
OF_ASPIRE = ("voltage", "Cs", "alpha", "defocus_u", "defocus_v", "defocus_ang", "B")
_of_aspire = attrgetter(*OF_ASPIRE)
# In radians, of those CTFs that have one.
PHASE_SHIFT = "phase_shift"
PARAMETERS = (*OF_ASPIRE, PHASE_SHIFT)
# RELION's columns of images whose phases were flipped, or that were multiplied by their
# CTFs.
PHASE_FLIPPED = "_rlnCtfDataArePhaseFlipped"
PREMULTIPLIED = "_rlnCtfDataAreCtfPremultiplied"
# Filters evaluated at once.
FILTERS_AT_ONCE = 256


class TransferFunctions:
    """
    Real factors between the Fourier transforms of projections and those of images.

    :param source: ASPIRE `ImageSource`.
    :param basis: Basis of its images.
    :param phase_flipped: Whether the images' phases are flipped, so that the modulus of
        the transfer function counts; None to ask the source's column `PHASE_FLIPPED`,
        and look for `source.phase_flip()`.
    :param premultiplied: Whether the images were multiplied by their transfer
        functions; None to ask the source's column `PREMULTIPLIED`.
    :raises ValueError: a CTF has parameters that are not finite.
    """

    def __init__(
        self,
        source: ImageSource,
        basis: Basis,
        phase_flipped: bool | None = None,
        premultiplied: bool | None = None,
    ):
        self.source, self.basis = source, basis
        self.pixel_size = source.pixel_size
        self.filters = list(source.unique_filters or [IdentityFilter()])
        indices = source.filter_indices if source.unique_filters else [0] * source.n
        self.indices = np.asarray(indices, dtype=int)
        self._parameters = ctf_parameters(self.filters)
        for i, j in np.argwhere(~np.isfinite(self._parameters)):
            raise ValueError(
                f"CTF {i} of the source has {PARAMETERS[j]} ="
                f" {self._parameters[i, j]}; finite numbers are needed"
            )
        self._phase_flipped, self._premultiplied = phase_flipped, premultiplied

    @cached_property
    def phase_flipped(self) -> bool:
        """
        :return: Whether the modulus of the transfer function counts.
        :raises ValueError: phases of some images were flipped, and of others not, or
            with wrong signs, as :func:`is_phase_flipped` says.
        """
        if self._phase_flipped is not None:
            return self._phase_flipped
        before = self._all_or_none(PHASE_FLIPPED, "phase-flipped")
        # A second flip undoes the first.
        return before != is_phase_flipped(self.source)

    @cached_property
    def premultiplied(self) -> bool:
        """
        :return: Whether the images were multiplied by their transfer functions.
        :raises ValueError: some were and others not, or their phases are flipped too.
        """
        multiplied, flipped = self._premultiplied, self.phase_flipped
        if multiplied is None:
            multiplied = self._all_or_none(PREMULTIPLIED, "multiplied by their CTF")
        if multiplied and flipped:
            raise ValueError(
                "images that were multiplied by their CTF and phase-flipped, too,"
                " cannot be corrected"
            )
        return multiplied

    def _all_or_none(self, column: str, done: str) -> bool:
        """Whether the images are marked in a column of the source."""
        marks = self.source.get_metadata(column, default_value=0)
        marked = np.atleast_1d(marks).astype(float) != 0
        if marked.any() and not marked.all():
            raise ValueError(
                f"{marked.sum()} of {len(marked)} images were {done}; only all or none"
                " can be corrected together"
            )
        return bool(marked.any())

    def factors(self, H: np.ndarray) -> np.ndarray | None:
        """
        :param H: Transfer functions of images, from :meth:`of_images`.
        :return: What is left to multiply the images by for least squares: H, or None
            if they were multiplied by it.
        """
        return None if self.premultiplied else H

    def mean_square(self, nyquist: bool) -> np.ndarray:
        """
        :param nyquist: Whether the images have a Nyquist row and column, if any.
        :return: Mean of squared transfer functions over images, (L, L), zero frequency
            at L // 2, over its own mean: the spectrum of noise of unit variance that
            was white before images were multiplied by them.
        """
        basis = CartesianBasis(self.basis.L)
        total = np.zeros((basis.L, basis.L))
        # Only squares count.
        on_pixels = TransferFunctions(self.source, basis, phase_flipped=False)
        _, rows, counts = np.unique(self.indices, return_index=True, return_counts=True)
        for start in range(0, len(rows), FILTERS_AT_ONCE):
            part = slice(start, start + FILTERS_AT_ONCE)
            total += np.tensordot(counts[part], on_pixels.of_images(rows[part]) ** 2, 1)
        if not nyquist:
            total = total * basis.off_nyquist.reshape(total.shape)
        return total / total.mean()

    @cached_property
    def flat(self) -> bool:
        """:return: Whether no filter varies with frequency, as after whitening."""
        pixels = _pixels(self.basis.L)
        for image_filter in self.filters:
            values = _evaluate(image_filter, pixels, self.pixel_size)
            if not np.any(values) or np.ptp(values) > FLAT * np.abs(values).max():
                return False
        return True

    @cached_property
    def radial(self) -> bool:
        """:return: Whether all filters depend on the radius only, or nearly so."""
        return self._largest_astigmatism < ROUND

    @cached_property
    def n_harmonics(self) -> int:
        """:return: Number of even orders of the filters' squares on the last ring."""
        # The squares vary as cos(2δ cos 2φ), with δ the largest astigmatic phase.
        most, reach = self.basis.max_harmonics, 2 * self._largest_astigmatism
        if self.radial or most == 1:
            return 1
        return most if reach > most else math.ceil(reach + 4 * reach ** (1 / 3) + 4)

    @property
    def n_angles(self) -> int:
        """Angles on half a ring, an odd number, for the filters and their squares."""
        # Filters with flipped phases have kinks, so all orders.
        kinks = self.phase_flipped and not self.radial
        n = max(self.n_harmonics, self.basis.max_harmonics if kinks else 1)
        return 2 * n - 1

    def of_images(self, rows: np.ndarray) -> np.ndarray:
        """
        :param rows: Numbers of images in the source.
        :return: Factors, float64, as `Basis.filter_values` has them.
        :raises ValueError: a filter lets nothing pass.
        """
        used, which = np.unique(self.indices[rows], return_inverse=True)
        if self._phases is None:
            values = np.empty((self._omega.shape[1], len(used)))
            for column, i in zip(values.T, used, strict=True):
                column[:] = _evaluate(self.filters[i], self._omega, self.pixel_size)
                _check_not_zero(i, column.any())
        else:
            values = np.sin(self._terms @ self._phases[:, used])
            B = self._parameters[used, PARAMETERS.index("B")]
            if B.any():
                values *= np.exp(-np.outer(self._terms[:, 1], B))
        if self.phase_flipped:
            np.abs(values, out=values)
        return self.basis.filter_values(values[:, which])

    @cached_property
    def _omega(self) -> np.ndarray:
        """Frequencies (2, n) to evaluate filters at, radians per pixel."""
        return self.basis.filter_points(self.n_angles)

    @cached_property
    def _terms(self) -> np.ndarray:
        """Terms of phases, (n, 5): s⁴, s², s² cos 2φ, s² sin 2φ and 1; s in 1/nm."""
        kx, ky = self._omega / (2 * np.pi) * (10 / self.pixel_size)
        squares = kx**2 + ky**2
        terms = squares**2, squares, kx**2 - ky**2, 2 * kx * ky, np.ones_like(kx)
        return np.stack(terms, axis=1)

    @cached_property
    def _phases(self) -> np.ndarray | None:
        """
        If all filters are CTFs, the coefficients (5, filters) of `_terms` in χ - arcsin
        α - p, where a CTF is √(1 - α²) sin χ - α cos χ = sin(χ - arcsin α), and sin(χ -
        arcsin α - p) behind a phase plate, with

            χ = π/2 Cs λ³ s⁴ - πλ s² ((u + v)/2 + (u - v)/2 cos 2(φ - a)),

        u and v the defocus, a the angle of u.
        """
        if len(self._parameters) < len(self.filters):
            return None
        voltage, Cs, alpha, u, v, angle, _, phase = self._parameters.T
        zero = (Cs == 0) & (alpha == 0) & (u == 0) & (v == 0) & (phase == 0)
        _check_not_zero(int(np.argmax(zero)), not zero.any())
        # Nanometres; defocus is in Å, Cs in mm.
        wavelength = 1.22639 / np.sqrt(voltage * 1000 + 0.97845 * voltage**2)
        half = np.pi * wavelength / 20
        spherical = np.pi / 2 * 1e6 * Cs * wavelength**3
        x, y = (half * (v - u) * wave(2 * angle) for wave in (np.cos, np.sin))
        return np.stack((spherical, -half * (u + v), x, y, -np.arcsin(alpha) - phase))

    @cached_property
    def _largest_astigmatism(self) -> float:
        """Largest phase in radians by which a CTF differs along the outermost ring from
        its mean; infinite for other filters that are not radial."""
        largest = np.hypot(*self.basis.filter_points(1)).max() / (2 * np.pi)
        astigmatism = max(map(_astigmatism, self.filters))
        if math.isinf(astigmatism):
            return math.inf
        return np.pi / 2 * (largest / self.pixel_size) ** 2 * astigmatism


def _check_not_zero(i: int, is_any: bool) -> None:
    if not is_any:
        raise ValueError(
            f"filter {i} of the source is zero at all frequencies; images behind it"
            " tell nothing"
        )


def _astigmatism(image_filter: Filter) -> float:
    """Wavelength times difference of defocus; infinite for other non-radial filters."""
    image_filter, _ = unscaled(image_filter)
    if isinstance(image_filter, MultiplicativeFilter):
        return max(map(_astigmatism, factors(image_filter)))
    if not isinstance(image_filter, CTFFilter):
        return 0.0 if image_filter.radial else math.inf
    u, v = image_filter.defocus_u, image_filter.defocus_v
    return image_filter.wavelength * abs(u - v)


def ctf_parameters(filters: list[Filter]) -> np.ndarray:
    """
    :param filters: Filters, perhaps wrapped by `source.downsample`.
    :return: `PARAMETERS` of those that are CTFs, (CTFs, 8), float64.
    """
    plain = (unscaled(f)[0] for f in filters)
    ctfs = (f for f in plain if isinstance(f, CTFFilter))
    values = [(*_of_aspire(f), getattr(f, PHASE_SHIFT, 0.0)) for f in ctfs]
    return np.array(values, dtype=float).reshape(-1, len(PARAMETERS))


def is_phase_flipped(source: ImageSource) -> bool:
    """
    :param source: ASPIRE `ImageSource`.
    :return: Whether `source.phase_flip()` is in its pipeline, or its parent source's.
    :raises ValueError: phases were flipped with wrong signs, after cached downsampling.
    """
    xforms = source.generation_pipeline.xforms
    downsampled = any(isinstance(xform, Downsample) for xform in xforms)
    n_flips = 0
    for xform in xforms:
        if not isinstance(xform, IndexedXform):
            continue
        filters = [flipping_filter(x) for x in xform.unique_xforms]
        if any(f is None for f in filters):
            continue
        n_flips += 1
        if not (downsampled or all(_signs_are_right(f, source) for f in filters)):
            raise ValueError(
                "phases were flipped after a downsampling that is cached, which ASPIRE"
                " does with wrong signs; flip them before downsampling"
            )
    if is_cached(source):
        logger.warning(
            "The source's images are cached, which hides whether phase_flip() was"
            " called; pass CorrectionOptions(phase_flipped=True) if phases are flipped"
        )
    inner, odd = getattr(source, "src", None), n_flips % 2 == 1
    return odd != is_phase_flipped(inner) if isinstance(inner, ImageSource) else odd


def radial_part(H: np.ndarray) -> np.ndarray:
    """
    Replace functions along rings by constants: the signed root of the mean of H², so
    that the mean of H² stays, by which a function's orders are multiplied on average.

    :param H: Values (n, n_rings, n_angles).
    :return: One value per ring (n, n_rings); H itself if it is radial.
    """
    return np.copysign(np.sqrt((H**2).mean(-1)), H.mean(-1))


def _signs_are_right(image_filter: Filter, source: ImageSource) -> bool:
    """Whether ASPIRE's signs of a filter are those at physical frequencies."""
    if unscaled(image_filter)[0] is image_filter:
        return True
    pixels, pixel_size = _pixels(source.L), source.pixel_size
    aspires = image_filter.evaluate(pixels, pixel_size=pixel_size)
    ours = _evaluate(image_filter, pixels, pixel_size)
    return np.mean(np.sign(aspires) != np.sign(ours)) < SAME_SIGNS


def _pixels(L: int) -> np.ndarray:
    """Fourier pixels of images (2, L²), radians per pixel."""
    return CartesianBasis(L).filter_points(1)


def _evaluate(
    image_filter: Filter, omega: np.ndarray, pixel_size: float, scale: float = 1.0
) -> np.ndarray:
    """Values (n,) at frequencies (2, n), CTFs at physical ones."""
    image_filter, own = unscaled(image_filter)
    scale *= own
    if isinstance(image_filter, MultiplicativeFilter):
        values = (_evaluate(f, omega, pixel_size, scale) for f in factors(image_filter))
        return np.prod(list(values), axis=0)
    if isinstance(image_filter, CTFFilter):
        scale = 1.0
    return image_filter.evaluate(omega / scale, pixel_size=pixel_size)
