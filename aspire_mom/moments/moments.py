"""The value object that an estimator fills and an inversion reads."""

from __future__ import annotations

import math
import os
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from aspire_mom.checks import check_integer, check_new, check_positive
from aspire_mom.moments.bases import Basis, CartesianBasis, PolarBasis

FORMAT = "aspire_mom.Moments.1"
BASES = {"CartesianBasis": CartesianBasis, "PolarBasis": PolarBasis}
ARRAYS = ("first", "second", "third", "first_error", "second_error")


@dataclass(frozen=True, eq=False)
class Moments:
    """
    Low-order moments of images in a basis, with the noise's share removed (eq. 30).

    :param first: E f, `basis.first_shape`, complex128.
    :param second: E f f* less the noise bias, `basis.second_shape`, complex128.
    :param basis: The basis of the coefficients f.
    :param n_images: Number of images averaged (0 for exact moments).
    :param noise_variance: Variance of the noise per pixel of the images as they were,
        whose share `noise_variance * basis.noise_second(nyquist)` was removed.
    :param pixel_size: Ångström per pixel, None where unknown.
    :param third: E f f f in the basis's own form, or None.
    :param first_error: Standard error of each entry of `first` (the root of the
        variance of its complex value), float64, or None where unknown.
    :param second_error: The same for `second`.
    :param nyquist: False for even-sized images whose Nyquist row and column are zero,
        as ASPIRE's downsampling leaves them: noise is white in the other frequencies.
    :raises TypeError: `basis` is no basis, or a moment or an error no array.
    :raises ValueError: shapes that are not the basis's, values that are not finite, or
        numbers out of range.
    """

    first: np.ndarray
    second: np.ndarray
    basis: Basis
    n_images: int = 0
    noise_variance: float = 0.0
    pixel_size: float | None = None
    third: np.ndarray | None = None
    first_error: np.ndarray | None = None
    second_error: np.ndarray | None = None
    nyquist: bool = True

    def __post_init__(self):
        if not isinstance(self.basis, Basis):
            raise TypeError(
                f"basis is a {type(self.basis).__name__}; it must be a CartesianBasis"
                " or a PolarBasis"
            )
        check_integer("n_images", self.n_images, 0)
        if self.noise_variance != 0:
            check_positive("noise_variance", self.noise_variance)
        if self.pixel_size is not None:
            check_positive("pixel_size", self.pixel_size)
        for name in ("first", "second", "first_error", "second_error"):
            value = getattr(self, name)
            if value is None and name.endswith("_error"):
                continue
            if not isinstance(value, np.ndarray):
                raise TypeError(
                    f"{name} is a {type(value).__name__}; it must be a NumPy array"
                )
            expected = getattr(self.basis, name.split("_")[0] + "_shape")
            if value.shape != expected:
                raise ValueError(
                    f"{name} has shape {value.shape}; {self.basis} has {expected}"
                )
            if not np.isfinite(value).all():
                raise ValueError(f"{name} has values that are NaN or infinite")

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
        as if all had been averaged at once with the mean noise variance.

        :param other: Moments in the same basis, with the same pixel size.
        :return: The moments of both.
        :raises TypeError: no moments.
        :raises ValueError: another basis, pixel size or state of the Nyquist row and
            column, exact moments (n_images = 0), or third moments.
        """
        self._check_mergeable(other)
        n = self.n_images + other.n_images
        a, b = self.n_images / n, other.n_images / n
        noise = self.basis.noise_second(self.nyquist)
        # Entries of f f* scatter about their mean, noise included.
        raw = [m.second + m.noise_variance * noise for m in (self, other)]
        return replace(
            self,
            first=a * self.first + b * other.first,
            second=a * self.second + b * other.second,
            n_images=n,
            noise_variance=a * self.noise_variance + b * other.noise_variance,
            first_error=self._merged_error(
                other, "first_error", self.first - other.first
            ),
            second_error=self._merged_error(other, "second_error", raw[0] - raw[1]),
        )

    def _merged_error(
        self, other: Moments, name: str, difference: np.ndarray
    ) -> np.ndarray | None:
        """Standard error of the mean of two sets from their scatter, the sum of squared
        deviations, about their own means and that of the means about each other."""
        scatter = self._scatter(name), other._scatter(name)
        if scatter[0] is None or scatter[1] is None:
            return None
        n = self.n_images + other.n_images
        between = self.n_images * other.n_images / n * np.abs(difference) ** 2
        return np.sqrt((scatter[0] + scatter[1] + between) / (n * (n - 1)))

    def _scatter(self, name: str) -> np.ndarray | float | None:
        """Σ |deviation from the mean|² of the images that an error is of."""
        n, error = self.n_images, getattr(self, name)
        if n == 1:
            return 0.0
        return None if error is None else n * (n - 1) * error**2

    def _check_mergeable(self, other: Moments) -> None:
        self.check_same_basis(other)
        if not _same_pixel_size(self.pixel_size, other.pixel_size):
            raise ValueError(
                f"pixel sizes differ: {self.pixel_size} and {other.pixel_size} Å; only"
                " images of one pixel size can be averaged"
            )
        if self.nyquist != other.nyquist:
            raise ValueError(
                "only one of the two has images with an empty Nyquist row and column;"
                " prepare all images in the same way (source.downsample empties them)"
            )
        if self.n_images < 1 or other.n_images < 1:
            raise ValueError(
                f"n_images is {self.n_images} and {other.n_images}; only moments"
                " estimated from images can be merged"
            )
        if self.third is not None or other.third is not None:
            raise ValueError("moments with a third moment cannot be merged yet")

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """
        Write to .npz, whole or not at all.

        :param path: File to write, its name ending in .npz.
        :param overwrite: Replace an existing file.
        :raises ValueError: the name does not end in .npz.
        :raises FileNotFoundError: no such folder.
        :raises FileExistsError: the file exists and `overwrite` is False.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"{path}: the file's name must end in .npz")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent}: no such folder to write to")
        check_new(path, overwrite)
        arrays = {name: getattr(self, name) for name in ARRAYS}
        partial = path.with_name(path.name + ".part")
        try:
            with open(partial, "wb") as file:
                np.savez(
                    file,
                    format=FORMAT,
                    basis=type(self.basis).__name__,
                    n_images=self.n_images,
                    noise_variance=self.noise_variance,
                    pixel_size=np.nan if self.pixel_size is None else self.pixel_size,
                    nyquist=self.nyquist,
                    **{f"basis_{k}": v for k, v in asdict(self.basis).items()},
                    **{k: v for k, v in arrays.items() if v is not None},
                )
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """
        Read what :meth:`save` wrote.

        :param path: An .npz file.
        :return: The moments.
        :raises FileNotFoundError: no such file.
        :raises ValueError: the file is not one of saved moments, or is damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is not an .npz file, or not a whole one")
        try:
            with np.load(path, allow_pickle=False) as file:
                if "format" not in file or str(file["format"]) != FORMAT:
                    raise ValueError(
                        f"no format mark {FORMAT!r}; make such a file with Moments.save"
                        " or `aspire-mom moments`"
                    )
                return cls._from_fields({name: file[name] for name in file.files})
        except KeyError as error:
            raise ValueError(f"{path} lacks the field {error}") from error
        except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} does not hold moments: {error}") from error

    @classmethod
    def _from_fields(cls, fields: dict[str, np.ndarray]) -> Moments:
        prefix = "basis_"
        settings = {
            key.removeprefix(prefix): value.item()
            for key, value in fields.items()
            if key.startswith(prefix)
        }
        name = str(fields["basis"])
        if name not in BASES:
            raise ValueError(f"its basis is {name!r}; known are {', '.join(BASES)}")
        pixel_size = float(fields["pixel_size"])
        return cls(
            basis=BASES[name](**settings),
            n_images=int(fields["n_images"]),
            noise_variance=float(fields["noise_variance"]),
            pixel_size=None if np.isnan(pixel_size) else pixel_size,
            nyquist=bool(fields["nyquist"]),
            first=fields["first"],
            second=fields["second"],
            **{name: fields[name] for name in ARRAYS[2:] if name in fields},
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


def _same_pixel_size(a: float | None, b: float | None) -> bool:
    """To the accuracy that file headers keep."""
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-4)
