"""The value object that an estimator fills and an inversion reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from aspire_mom.bases import Basis, CartesianBasis, PolarBasis
from aspire_mom.checks import check_integer, check_positive
from aspire_mom.files import contents_of, load_arrays, save_arrays
from aspire_mom.moments.corrections import Corrections
from aspire_mom.moments.merging import merged
from aspire_mom.moments.third import ThirdMomentBasis

FORMAT = "aspire_mom.Moments.4"
BASES = {"CartesianBasis": CartesianBasis, "PolarBasis": PolarBasis}
ARRAYS = (
    "first",
    "second",
    "first_error",
    "second_error",
    "third",
    "third_error",
    "first_information",
    "second_information",
    "noise_power",
)


@dataclass(frozen=True, eq=False)
class Moments:
    """
    Low-order moments of images in a basis, with the noise's share removed (eq. 30).

    :param first: E f, `basis.first_shape`, complex128.
    :param second: E f f* less the noise bias, `basis.second_shape`, complex128.
    :param basis: The basis of the coefficients f.
    :param n_images: Number of images averaged (0 for exact moments).
    :param pixel_size: Ångström per pixel, None where unknown.
    :param third: Third moment less the noise bias, (third_basis.size,), complex128, or
        None.
    :param first_error: Standard error of each entry of `first` (the root of the
        variance of its complex value), float64, or None where unknown.
    :param second_error: The same for `second`.
    :param nyquist: False for even-sized images whose Nyquist row and column are zero,
        as ASPIRE's downsampling leaves them: noise is white in the other frequencies.
    :param first_information: How many images without a CTF would be worth as much for
        each of n frequencies, Σ H² over images: (n,), float64; None without a CTF.
    :param second_information: The same for pairs of frequencies, Σ H² H'²: (orders, n,
        n), where orders 0, 2, … are of the angle between them (see `Basis`) and order 0
        is the number of images.
    :param corrections: What the moments are corrected for, and of which images.
    :param third_basis: `ThirdMomentBasis` of `third`, None where there is none.
    :param third_error: The same for `third`, as :meth:`ThirdMomentBasis.finish` has it.
    :param noise_power: Power of the noise that was removed from each coefficient's own
        second moment, after all corrections: `basis.power_shape`,
        float64; None where it is not known.
    :raises TypeError: `basis` is no basis, or a moment or an error no array.
    :raises ValueError: shapes that are not the basis's, values that are not finite, or
        numbers out of range.
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
    noise_power: np.ndarray | None = None

    def __post_init__(self):
        if not isinstance(self.basis, Basis):
            raise TypeError(
                f"basis is a {type(self.basis).__name__}; it must be a CartesianBasis"
                " or a PolarBasis"
            )
        check_integer("n_images", self.n_images, 0)
        if not isinstance(self.corrections, Corrections):
            kind = type(self.corrections).__name__
            raise TypeError(f"corrections is a {kind}; it must be Corrections")
        if self.pixel_size is not None:
            check_positive("pixel_size", self.pixel_size)
        for name in ("first", "second", "first_error", "second_error"):
            if name.endswith("_error") and getattr(self, name) is None:
                continue
            expected = getattr(self.basis, name.split("_")[0] + "_shape")
            self._check_array(name, expected, self.basis)
        if self.noise_power is not None:
            self._check_array("noise_power", self.basis.power_shape, self.basis)
        self._check_information()
        self._check_third()

    def _check_information(self) -> None:
        if (self.first_information is None) != (self.second_information is None):
            raise ValueError("first_information and second_information belong together")
        if self.first_information is None:
            return
        n = self.basis.n_frequencies
        self._check_array("first_information", (n,), self.basis)
        orders = len(self.second_information)
        self._check_array("second_information", (orders, n, n), self.basis)

    def _check_third(self) -> None:
        kept = self.third_basis
        if kept is None:
            if self.third is not None or self.third_error is not None:
                raise ValueError(
                    "a third moment is given without the third_basis that it is in"
                )
            return
        if not isinstance(kept, ThirdMomentBasis):
            raise TypeError(
                f"third_basis is a {type(kept).__name__}; it must be a ThirdMomentBasis"
            )
        if kept.basis != self.basis:
            raise ValueError(
                f"third_basis is for {kept.basis}; the moments are in {self.basis}"
            )
        self._check_array("third", (kept.size,), kept)
        if self.third_error is not None:
            self._check_array("third_error", (kept.size,), kept)

    def _check_array(
        self, name: str, shape: tuple[int, ...], basis: Basis | ThirdMomentBasis
    ) -> None:
        value = getattr(self, name)
        if not isinstance(value, np.ndarray):
            raise TypeError(
                f"{name} is a {type(value).__name__}; it must be a NumPy array"
            )
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
        """
        Standard deviation along each axis, pixels, of shifts that the images still
        have, as the inversion models them; None where the inversion is to estimate it.
        """
        return self.corrections.shift_std

    def with_corrections(self, **changes) -> Moments:
        """
        :param changes: Fields of `corrections` and their new values.
        :return: The same moments with these.
        """
        return replace(self, corrections=replace(self.corrections, **changes))

    @property
    def effective_images(self) -> np.ndarray:
        """
        How many images without a CTF would determine an entry of the second moment as
        well, on average over the angle between frequencies: (n_rings, n_rings), or (L²,
        L²) of a Cartesian basis; all `n_images` without a CTF.
        """
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
        Relative errors ‖M - A‖ / ‖A‖ of the first and second moment, eq. 22, where A is
        `estimate` and norms are the basis's (polar rings weighted to equal Cartesian
        norms).

        :param estimate: Moments A in the same basis.
        :return: Errors of the first and of the second moment.
        :raises TypeError: no moments.
        :raises ValueError: moments of another basis.
        """
        self.check_same_basis(estimate)
        return tuple(
            weighted_norm(getattr(self, name) - getattr(estimate, name), weights)
            / weighted_norm(getattr(estimate, name), weights)
            for name, weights in (
                ("first", self.basis.first_weights),
                ("second", self.basis.second_weights),
            )
        )

    def merge(self, other: Moments) -> Moments:
        """
        Moments of the union of two disjoint sets of images, errors included: the same
        as if all had been averaged at once with the mean noise variance. The noise's
        share of third moments is the one that each had removed; with unlike noise
        variances that is nearer the truth than the mean one's.

        :param other: Moments in the same basis, with the same pixel size.
        :return: The moments of both.
        :raises TypeError: no moments.
        :raises ValueError: another basis, pixel size or state of the Nyquist row and
            column, other shifts, exact moments (n_images = 0), third moments of other
            numbers or of images with CTFs.
        """
        self.check_same_basis(other)
        return replace(self, **merged(self, other))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """
        Write to .npz, whole or not at all.

        :param path: File to write, its name ending in .npz.
        :param overwrite: Replace an existing file.
        :raises ValueError: the name does not end in .npz.
        :raises FileNotFoundError: no such folder.
        :raises FileExistsError: the file exists and `overwrite` is False.
        """
        arrays = {name: getattr(self, name) for name in ARRAYS}
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
        :raises ValueError: the file holds something else or moments of another version,
            or is damaged.
        """
        arrays, settings = load_arrays(path, FORMAT)
        with contents_of(path):
            kind = settings["basis"].pop("kind")
            if kind not in BASES:
                raise ValueError(f"its basis is {kind!r}; known are {', '.join(BASES)}")
            settings["basis"] = basis = BASES[kind](**settings["basis"])
            settings["corrections"] = Corrections.from_dict(settings["corrections"])
            if "third" in arrays:
                settings["third_basis"] = ThirdMomentBasis.from_arrays(basis, arrays)
            return cls(
                **{name: arrays[name] for name in ARRAYS if name in arrays}, **settings
            )

    def check_same_basis(self, other: Moments) -> None:
        """
        :param other: Moments.
        :raises TypeError: it is something else.
        :raises ValueError: they are in another basis.
        """
        if not isinstance(other, Moments):
            raise TypeError(f"a {type(other).__name__} was given, not Moments")
        if self.basis != other.basis:
            raise ValueError(
                f"moments are of different bases: {self.basis} and {other.basis}"
            )


def weighted_norm(values: np.ndarray, weights: np.ndarray) -> float:
    """√Σ weights |values|², in float64."""
    return float(np.sqrt(np.sum(weights * np.abs(values).astype(np.float64) ** 2)))
