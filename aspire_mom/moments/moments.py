"""Moments: what an estimator returns and an inversion fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from aspire_mom.bases import (
    Basis,
    CartesianBasis,
    PolarBasis,
    divide,
    multiply,
    solve_entries,
)
from aspire_mom.checks import (
    PIXEL_SIZE_TOLERANCE,
    check_integer,
    check_kind,
    check_positive,
)
from aspire_mom.files import contents_of, load_arrays, save_arrays
from aspire_mom.moments.corrections import Corrections
from aspire_mom.moments.third import ThirdMomentBasis

FORMAT = "aspire_mom.Moments.4"
BASES = {"CartesianBasis": CartesianBasis, "PolarBasis": PolarBasis}


@dataclass(frozen=True, eq=False)
class Moments:
    """
    Low-order moments of images in a basis, with the noise's share removed (eq. 30).

    :param first: E f, `basis.first_shape`, complex128.
    :param second: E f f* less that of the noise, `basis.second_shape`, complex128.
    :param basis: The basis of the coefficients f.
    :param n_images: Number of images averaged; 0 for exact moments.
    :param pixel_size: Ångström per pixel, None where unknown.
    :param third: Third moment less the noise's share, (third_basis.size,), or None.
    :param first_error: Standard error of each entry of `first` (the root of the
        variance of its complex value), float64, or None where unknown.
    :param second_error: The same for `second`.
    :param nyquist: False for even-sized images whose Nyquist row and column are zero,
        as ASPIRE's downsampling leaves them: noise is white in the other frequencies.
    :param first_information: Σ H² over images (see `Basis`), (n,); None without CTFs.
    :param second_information: The same for pairs of frequencies, (orders, n, n).
    :param corrections: What the moments are corrected for, and of which images.
    :param third_basis: `ThirdMomentBasis` of `third`, None without one.
    :param third_error: Standard error of `third`, see :meth:`ThirdMomentBasis.finish`.
    :param third_information: Σ H²[r] H²[s] H²[t] over images on the rings of
        `third_basis`, (n_rings,)³; None without CTFs.
    :param noise_power: Power of the noise that was removed from E |f|², after all
        corrections: `basis.power_shape`, float64; None where it is not known.
    :raises TypeError: `basis` is no basis, or a moment or an error no array.
    :raises ValueError: wrong shapes, values that are not finite, numbers out of range.
    """

    first: np.ndarray
    second: np.ndarray
    basis: Basis
    n_images: int = 0
    pixel_size: float | None = None
    third: np.ndarray | None = None
    first_error: np.ndarray | None = None
    second_error: np.ndarray | None = None
    nyquist: bool = True
    first_information: np.ndarray | None = None
    second_information: np.ndarray | None = None
    corrections: Corrections = Corrections()
    third_basis: ThirdMomentBasis | None = None
    third_error: np.ndarray | None = None
    third_information: np.ndarray | None = None
    noise_power: np.ndarray | None = None

    def __post_init__(self):
        basis, third_basis = self.basis, self.third_basis
        check_kind("basis", basis, Basis)
        check_kind("corrections", self.corrections, Corrections)
        check_integer("n_images", self.n_images, 0)
        if self.pixel_size is not None:
            pixel_size = check_positive("pixel_size", self.pixel_size)
            object.__setattr__(self, "pixel_size", pixel_size)
        n = basis.n_frequencies
        shapes = {
            "first": basis.first_shape,
            "second": basis.second_shape,
            "first_error": basis.first_shape,
            "second_error": basis.second_shape,
            "noise_power": basis.power_shape,
            "first_information": (n,),
            "second_information": (*np.shape(self.second_information)[:1], n, n),
        }
        if (self.first_information is None) != (self.second_information is None):
            raise ValueError("first_information and second_information belong together")
        if (self.third is None) != (third_basis is None):
            raise ValueError("third and third_basis belong together")
        if third_basis is not None:
            check_kind("third_basis", third_basis, ThirdMomentBasis)
            if third_basis.basis != basis:
                raise ValueError(f"third_basis is for {third_basis.basis}, not {basis}")
            shapes["third"] = shapes["third_error"] = (third_basis.size,)
            shapes["third_information"] = 3 * (third_basis.n_rings,)
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is None and name not in ("first", "second"):
                continue
            check_kind(name, value, np.ndarray)
            if value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}; {basis} has {shape}")
            if not np.isfinite(value).all():
                raise ValueError(f"{name} has values that are NaN or infinite")

    @property
    def noise_variance(self) -> float:
        """Variance of the noise per pixel of the images as they were."""
        return self.corrections.noise_variance

    @property
    def shift_std(self) -> float | None:
        """Standard deviation of residual shifts, pixels; None if it is unknown."""
        return self.corrections.shift_std

    def with_corrections(self, **changes: object) -> Moments:
        """
        :param changes: Fields of `corrections` and their new values.
        :return: The same moments with these.
        """
        return replace(self, corrections=replace(self.corrections, **changes))

    @property
    def effective_images(self) -> np.ndarray:
        """Number of images without a CTF that would determine an entry of the second
        moment equally well, averaged over the angle between frequencies, (n, n)."""
        if self.second_information is not None:
            return self.second_information[0].real
        n = self.basis.n_frequencies
        return np.full((n, n), float(self.n_images))

    def __repr__(self):
        return (
            f"Moments of {self.n_images} images in {self.basis}, noise variance"
            f" {self.noise_variance:.6g}, pixel size {self.pixel_size} Å"
        )

    def relative_error(self, estimate: Moments) -> tuple[float, float]:
        """
        Relative errors ‖M - A‖ / ‖A‖ in the basis's norms, eq. 22.

        :param estimate: Moments A in the same basis.
        :return: Errors of the first and of the second moment.
        :raises TypeError: it is something else.
        :raises ValueError: it is in another basis.
        """
        self.check_same_basis(estimate)

        def error(ours: np.ndarray, a: np.ndarray, weights: np.ndarray) -> float:
            return weighted_norm(ours - a, weights) / weighted_norm(a, weights)

        return (
            error(self.first, estimate.first, self.basis.first_weights),
            error(self.second, estimate.second, self.basis.second_weights),
        )

    def merge(self, other: Moments) -> Moments:
        """
        Merge the moments of two disjoint sets of images, errors included: as if
        averaged at once with the mean noise variance. Third moments keep their own.

        :param other: Moments in the same basis, with the same pixel size.
        :return: The moments of both.
        :raises TypeError: `other` is something else.
        :raises ValueError: they do not fit, or are exact.
        """
        self.check_same_basis(other)
        _check_mergeable(self, other)
        parts, n = (self, other), self.n_images + other.n_images
        sizes = self.n_images, other.n_images
        corrections = self.corrections.merged(other.corrections, *sizes)
        if any(m.first_information is not None for m in parts):
            merged = _merged_with_ctf(parts)
        else:
            # The scatter of f f* is that before noise was subtracted.
            noise = self.basis.noise_second(self.nyquist)
            raw = [m.second + m.noise_variance * noise for m in parts]
            merged = {
                "first": _mean(parts, "first"),
                "second": _mean(parts, "second"),
                "noise_power": _mean(parts, "noise_power"),
                "first_error": _error(parts, "first_error", self.first - other.first),
                "second_error": _error(parts, "second_error", raw[0] - raw[1]),
            }
        if self.third is not None:
            merged |= _merged_third(parts)
        return replace(self, **merged, n_images=n, corrections=corrections)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """
        Write to .npz, whole or not at all.

        :param path: File to write, its name ending in .npz.
        :param overwrite: Replace an existing file.
        :raises ValueError: the name does not end in .npz.
        :raises FileExistsError: the file exists and `overwrite` is False.
        """
        arrays = {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        if self.third_basis is not None:
            arrays |= self.third_basis.to_arrays()
        settings = {
            "basis": {"kind": type(self.basis).__name__, **asdict(self.basis)},
            "n_images": int(self.n_images),
            "pixel_size": self.pixel_size,
            "nyquist": bool(self.nyquist),
            "corrections": asdict(self.corrections),
        }
        save_arrays(path, FORMAT, arrays, settings, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """
        Read what :meth:`save` wrote.

        :param path: An .npz file.
        :return: The moments.
        :raises FileNotFoundError: no such file.
        :raises ValueError: the file is damaged, or of something else.
        """
        arrays, settings = load_arrays(path, FORMAT)
        with contents_of(path):
            kind = settings["basis"].pop("kind")
            if kind not in BASES:
                raise ValueError(f"its basis is {kind!r}; known are {', '.join(BASES)}")
            settings["basis"] = basis = BASES[kind](**settings["basis"])
            settings["corrections"] = Corrections(**settings["corrections"])
            if "third" in arrays:
                settings["third_basis"] = ThirdMomentBasis.from_arrays(basis, arrays)
            names = {field.name for field in fields(cls)}
            return cls(**{k: v for k, v in arrays.items() if k in names}, **settings)

    def check_same_basis(self, other: Moments) -> None:
        """
        :param other: Moments.
        :raises TypeError: it is something else.
        :raises ValueError: they are in another basis.
        """
        check_kind("other", other, Moments)
        if self.basis != other.basis:
            raise ValueError(
                f"moments are of different bases: {self.basis} and {other.basis}"
            )


def weighted_norm(values: np.ndarray, weights: np.ndarray) -> float:
    """
    :param values: Values of any shape.
    :param weights: Their weights, of a shape that fits.
    :return: √Σ weights |values|², in float64.
    """
    return float(np.sqrt(np.sum(weights * np.abs(values).astype(np.float64) ** 2)))


def _check_mergeable(a: Moments, b: Moments) -> None:
    sizes = a.pixel_size, b.pixel_size
    same_size = sizes[0] is sizes[1]
    if None not in sizes:
        same_size = math.isclose(*sizes, rel_tol=PIXEL_SIZE_TOLERANCE)
    problem = None
    if not same_size:
        problem = f"pixel sizes differ: {a.pixel_size} and {b.pixel_size} Å"
    elif a.nyquist != b.nyquist:
        problem = "only one of the two has images with an empty Nyquist row and column"
    elif 0 in (a.n_images, b.n_images):
        problem = (
            f"n_images is {a.n_images} and {b.n_images}; only moments estimated from"
            " images can be merged"
        )
    elif a.shift_std != b.shift_std:
        problem = f"shift_std is {a.shift_std} for one and {b.shift_std} for the other"
    elif a.third_basis != b.third_basis:
        problem = "the two third moments are in different bases, or one is missing"
    elif a.third is not None and any(
        m.third_information is None and m.first_information is not None for m in (a, b)
    ):
        problem = "third moments of images with CTFs lack their third_information"
    if problem:
        raise ValueError(problem)


def _mean(parts: tuple[Moments, Moments], name: str) -> np.ndarray | None:
    """Mean over all images; None where one part does not know it."""
    values = [getattr(m, name) for m in parts]
    if any(value is None for value in values):
        return None
    return np.average(values, axis=0, weights=[m.n_images for m in parts])


def _error(
    parts: tuple[Moments, Moments], name: str, difference: np.ndarray
) -> np.ndarray | None:
    """Standard error of the mean over both, from scatter within and between sets."""
    counts = [m.n_images for m in parts]
    n = sum(counts)
    scatter = counts[0] * counts[1] / n * np.abs(difference) ** 2
    for count, moments in zip(counts, parts, strict=True):
        error = getattr(moments, name)
        if count > 1 and error is None:
            return None
        if count > 1:
            scatter = scatter + count * (count - 1) * error**2
    return np.sqrt(scatter / (n * (n - 1)))


def _merged_third(parts: tuple[Moments, Moments]) -> dict[str, np.ndarray | None]:
    """The same as of all images at once."""
    a, b = parts
    basis = a.third_basis
    if a.third_information is None and b.third_information is None:
        # Their scatter is that after noise was subtracted.
        error = _error(parts, "third_error", a.third - b.third)
        return {"third": _mean(parts, "third"), "third_error": error}
    information = [
        np.full(3 * (basis.n_rings,), float(m.n_images))
        if m.third_information is None
        else m.third_information
        for m in parts
    ]
    own, error = [basis.denominators(i) for i in information], None
    total = basis.denominators(sum(information))
    if a.third_error is not None and b.third_error is not None:
        error = np.hypot(own[0] * a.third_error, own[1] * b.third_error) / total
    return {
        "third": (own[0] * a.third + own[1] * b.third) / total,
        "third_error": error,
        "third_information": sum(information),
    }


def _merged_with_ctf(parts: tuple[Moments, Moments]) -> dict[str, np.ndarray | None]:
    """Solve both sets' normal equations together; their errors are independent."""
    basis, n = parts[0].basis, sum(m.n_images for m in parts)
    firsts, seconds = [], []
    for m in parts:
        has_ctf, counts = m.first_information is not None, m.effective_images
        firsts.append(m.first_information if has_ctf else counts.diagonal())
        seconds.append(m.second_information if has_ctf else counts[None])
    # Orders beyond the last are zero.
    most = max(map(len, seconds))
    seconds = [np.pad(i, ((0, most - len(i)), (0, 0), (0, 0))) for i in seconds]
    own = [np.einsum("mrr->mr", i) for i in seconds]

    def total(name: str, information: list, product: Callable = np.multiply):
        """Σ of a field times information; None where a part lacks the field."""
        values = [getattr(m, name) for m in parts]
        if any(value is None for value in values):
            return None
        return sum(map(product, values, information))

    def error(name: str, information: list) -> np.ndarray | None:
        squares = total(name, information, lambda e, i: (i * e) ** 2)
        if squares is None:
            return None
        return solve_entries(np.sqrt(squares), sum(information), n)

    noise = total("noise_power", own, multiply)
    second = total("second", seconds, basis.multiply)
    return {
        "first": solve_entries(total("first", firsts), sum(firsts), n),
        "second": basis.divide(second, sum(seconds), n),
        "first_error": error("first_error", firsts),
        "second_error": error("second_error", [basis.expand(i) for i in seconds]),
        "first_information": sum(firsts),
        "second_information": sum(seconds),
        "noise_power": None if noise is None else divide(noise, sum(own), n).real,
    }
