"""The value object that an estimator fills and an inversion reads."""

from __future__ import annotations

import os
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

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
    :param noise_variance: Variance per pixel that was removed.
    :param pixel_size: Ångström per pixel, None where unknown.
    :param third: E f f f in the basis's own form, or None.
    :param first_error: Standard error of each entry of `first` (the root of the
        variance of its complex value), float64, or None where unknown.
    :param second_error: The same for `second`.
    :param nyquist: False for even-sized images whose Nyquist row and column are zero,
        where white noise is so within the remaining frequencies only.
    :raises ValueError: shapes that are not the basis's, or values not finite.
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
        for name in ("first", "second", "first_error", "second_error"):
            value = getattr(self, name)
            if value is None:
                continue
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
        :raises ValueError: moments of another basis.
        """
        self._check_same_basis(estimate)
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
        as if all had been averaged at once.

        :param other: Moments in the same basis, with the same pixel size.
        :return: The moments of both.
        :raises ValueError: another basis or pixel size, exact moments (n_images = 0),
            or third moments.
        """
        self._check_same_basis(other)
        if self.pixel_size != other.pixel_size:
            raise ValueError(
                f"pixel sizes differ: {self.pixel_size} and {other.pixel_size} Å; only"
                " images of one pixel size can be averaged"
            )
        if self.n_images < 1 or other.n_images < 1:
            raise ValueError(
                f"n_images is {self.n_images} and {other.n_images}; only moments"
                " estimated from images can be merged"
            )
        if self.third is not None or other.third is not None:
            raise ValueError("moments with a third moment cannot be merged yet")
        n = self.n_images + other.n_images
        a, b = self.n_images / n, other.n_images / n
        noise = self.basis.noise_second(self.nyquist)

        def mean_and_error(name, bias):
            means = [getattr(part, name) + bias * part.noise_variance for part in pair]
            mean = a * means[0] + b * means[1]
            errors = [getattr(part, f"{name}_error") for part in pair]
            if errors[0] is None or errors[1] is None:
                return mean, None
            # An error e of n images stands for the mean square n e² + |mean|².
            squares = sum(
                share * (part.n_images * e**2 + np.abs(m) ** 2)
                for share, part, e, m in zip((a, b), pair, errors, means, strict=True)
            )
            variance = np.maximum(squares - np.abs(mean) ** 2, 0)
            return mean, np.sqrt(variance / n)

        pair = (self, other)
        first, first_error = mean_and_error("first", 0.0)
        raw_second, second_error = mean_and_error("second", noise)
        noise_variance = a * self.noise_variance + b * other.noise_variance
        return replace(
            self,
            first=first,
            second=raw_second - noise_variance * noise,
            n_images=n,
            noise_variance=noise_variance,
            first_error=first_error,
            second_error=second_error,
        )

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """
        Write to .npz, whole or not at all.

        :param path: File to write.
        :param overwrite: Replace an existing file.
        :raises FileExistsError: the file exists and `overwrite` is False.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; allow overwriting to replace it")
        fields = {name: getattr(self, name) for name in ARRAYS}
        fields = {name: value for name, value in fields.items() if value is not None}
        pixel_size = np.nan if self.pixel_size is None else self.pixel_size
        partial = path.with_name(path.name + ".part")
        with open(partial, "wb") as file:
            np.savez(
                file,
                format=FORMAT,
                basis=type(self.basis).__name__,
                n_images=self.n_images,
                noise_variance=self.noise_variance,
                pixel_size=pixel_size,
                nyquist=self.nyquist,
                **{f"basis_{k}": v for k, v in asdict(self.basis).items()},
                **fields,
            )
        os.replace(partial, path)

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
        try:
            with np.load(path, allow_pickle=False) as file:
                data = {name: file[name] for name in file.files}
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} cannot be read as saved moments: {error}"
            ) from error
        if str(data.get("format")) != FORMAT:
            raise ValueError(
                f"{path} does not hold moments (no format mark {FORMAT!r}); make such a"
                " file with Moments.save or `aspire-mom moments`"
            )
        try:
            settings = {
                k.removeprefix("basis_"): v.item()
                for k, v in data.items()
                if k.startswith("basis_")
            }
            basis = BASES[str(data["basis"])](**settings)
            pixel_size = float(data["pixel_size"])
            return cls(
                basis=basis,
                n_images=int(data["n_images"]),
                noise_variance=float(data["noise_variance"]),
                pixel_size=None if np.isnan(pixel_size) else pixel_size,
                nyquist=bool(data["nyquist"]),
                **{name: data[name] for name in ARRAYS if name in data},
            )
        except KeyError as error:
            raise ValueError(f"{path} lacks the field {error}") from error

    def _check_same_basis(self, other: Moments) -> None:
        if self.basis != other.basis:
            raise ValueError(
                f"moments are of different bases: {self.basis} and {other.basis}"
            )


def weighted_norm(values: np.ndarray, weights: np.ndarray) -> float:
    """√Σ weights |values|², in float64."""
    return float(np.sqrt(np.sum(weights * np.abs(values).astype(np.float64) ** 2)))
