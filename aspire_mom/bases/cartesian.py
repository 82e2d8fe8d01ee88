"""The paper's basis: all Fourier pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import scipy.fft
import torch
from aspire.numeric import fft

from aspire_mom.bases.base import MIN_SIZE, Basis
from aspire_mom.checks import check_images


@dataclass(frozen=True)
class CartesianBasis(Basis):
    """
    All L² Fourier pixels (the paper's K₂, eq. 13), for any density of rotations.

    Coefficients are `centered_fft2(image).ravel()`, scale 1: rows ky, columns kx, zero
    frequency at L//2. ASPIRE divides projections by L, so a coefficient of a clean
    image is V(R (kx, ky, 0)ᵀ) / L. First moment (L²,), second (L², L²) = E f f*.

    :param L: Pixels along an image's edge.
    """

    L: int

    frequency_name: ClassVar = "Fourier pixel"
    max_order: ClassVar = 0
    inplane_average: ClassVar = False
    corrects_astigmatism: ClassVar = True
    max_harmonics: ClassVar = 1

    def __post_init__(self):
        self._set_integers(L=MIN_SIZE)

    @property
    def n_rings(self) -> int:
        """Rings within Nyquist; pixels in the corners are nearest to rings beyond."""
        return (self.L + 1) // 2

    @property
    def first_shape(self) -> tuple[int, ...]:
        return (self.L**2,)

    @property
    def second_shape(self) -> tuple[int, ...]:
        return (self.L**2, self.L**2)

    @cached_property
    def frequencies(self) -> np.ndarray:
        """:return: In-plane frequencies (L², 2) as (kx, ky), cycles per box."""
        axis = np.arange(self.L) - self.L // 2
        ky, kx = np.meshgrid(axis, axis, indexing="ij")
        return np.stack((kx.ravel(), ky.ravel()), axis=1)

    @cached_property
    def rings(self) -> np.ndarray:
        return np.round(np.linalg.norm(self.frequencies, axis=1)).astype(int)

    @property
    def areas(self) -> np.ndarray:
        return np.ones(1)

    @property
    def off_nyquist(self) -> np.ndarray:
        return (self.frequencies > -self.L / 2).all(1)

    def image(self, first: np.ndarray) -> np.ndarray:
        return first.reshape(self.L, self.L)

    def equal_order_blocks(self, second: np.ndarray) -> np.ndarray:
        return second[None]

    def cut(
        self, n_rings: int | None = None, max_order: int | None = None
    ) -> CartesianBasis:
        return self

    def cut_array(self, array: np.ndarray, to: Basis) -> np.ndarray:
        return array

    def ring_power_error(self, error: np.ndarray) -> np.ndarray:
        # Pixels k and -k (a Friedel pair) have equal |f|², so their errors are fully
        # correlated: a pair adds (2σ)² to the variance of a sum, that is 2σ² per pixel.
        return np.sqrt(2) * super().ring_power_error(error)

    @property
    def order_support(self) -> np.ndarray:
        return np.ones((1, 1, 1), bool)

    def entry_scales(self, rms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        of_pixel = rms[self.rings]
        return of_pixel, np.outer(of_pixel, of_pixel)

    def coefficients(
        self, images: np.ndarray, H: np.ndarray | None = None
    ) -> np.ndarray:
        images = check_images(images, self.L)
        transforms = fft.centered_fft2(images)
        if H is not None:
            transforms *= H.astype(images.dtype)
        return transforms.reshape(len(images), -1)

    def sums(
        self,
        images: np.ndarray,
        H: np.ndarray | None = None,
        device: torch.device | None = None,
    ) -> tuple[np.ndarray, ...]:
        # Sum x xᵀ of the pixels x, which is real and needs no transform per batch, and
        # |f|² |f'|² for the half of the frequencies that rfft2 returns.
        images = check_images(images, self.L)
        if H is not None:
            filtered = fft.centered_fft2(images) * H.astype(images.dtype)
            images = fft.centered_ifft2(filtered).real
        pixels = images.reshape(len(images), -1)
        half_planes = scipy.fft.rfft2(images).reshape(len(images), -1)
        power = half_planes.real**2 + half_planes.imag**2
        return images.sum(0, dtype=np.float64), pixels.T @ pixels, power.T @ power

    def finish(self, sums: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        image, gram, power = sums
        L = self.L
        second = _transformed(gram.reshape(L, L, L, L))
        # Index in rfft2's output of (kx, ky) or (-kx, -ky).
        kx, ky = self.frequencies.T
        sign = np.where(kx < 0, -1, 1)
        half_plane = (sign * ky) % L * (L // 2 + 1) + sign * kx
        pairs = np.ix_(half_plane, half_plane)
        return fft.centered_fft2(image).ravel(), second, power[pairs]

    def noise_second(self, nyquist: bool = True) -> np.ndarray:
        # Eq. 30 has I, for a unitary transform.
        diagonal = np.full((self.L, self.L), float(self.L**2))
        if not nyquist:
            diagonal *= self.L**2 / (self.L - 1) ** 2
            diagonal[0], diagonal[:, 0] = 0, 0
        return np.diag(diagonal.ravel())

    def stationary_noise_second(
        self, spectrum: np.ndarray, nyquist: bool = True
    ) -> np.ndarray:
        covariance = fft.centered_ifft2(spectrum).real
        axis, period = np.arange(self.L), len(spectrum)
        apart = (axis[:, None] - axis + period // 2) % period
        pairs = covariance[apart[:, None, :, None], apart[None, :, None, :]]
        if not nyquist:
            a = (-1.0) ** axis / np.sqrt(self.L)
            kept = np.eye(self.L) - np.outer(a, a)
            for i in range(4):
                pairs = np.moveaxis(np.tensordot(kept, pairs, (1, i)), 0, i)
        return _transformed(pairs.astype(np.complex128))

    def filter_points(self, n_angles: int) -> np.ndarray:
        return 2 * np.pi / self.L * self.frequencies.T

    def filter_values(self, values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values.T).reshape(-1, self.L, self.L)

    def information_sums(
        self, H: np.ndarray, n_harmonics: int
    ) -> dict[str, np.ndarray]:
        H = H.reshape(len(H), -1)
        squares = H**2
        return {
            "first_information": squares.sum(0),
            "noise_information": (H.T @ H)[None],
            "second_information": (squares.T @ squares)[None],
        }


def _transformed(pairs: np.ndarray) -> np.ndarray:
    """Turn Σ x xᵀ of pixels (L, L, L, L) into Σ f f* of coefficients (L², L²)."""
    half = fft.centered_fft2(pairs)
    np.conjugate(half, out=half)
    n = pairs.shape[0] ** 2
    return fft.centered_fft2(half, axes=(0, 1)).reshape(n, n)
