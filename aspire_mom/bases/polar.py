"""Rings × angular orders, where in-plane rotations are phases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import ClassVar

import numpy as np
import scipy.fft
import torch

from aspire_mom.bases.base import MIN_SIZE, Basis
from aspire_mom.bases.information import correlation
from aspire_mom.bases.noise import Chunk, NoiseTransforms
from aspire_mom.bases.polar_transform import (
    Array,
    averaged_sums,
    full_precision,
    placed,
    polar_transform,
)
from aspire_mom.bases.ring_filter import ring_filter
from aspire_mom.checks import check_images

# Radius in boxes of the object, which decides how many angular orders a ring has.
OBJECT_RADIUS = 0.4


@dataclass(frozen=True)
class PolarBasis(Basis):
    """
    Rings × angular orders: c[m, r] is the m-th angular Fourier coefficient of an
    image's Fourier transform (`centered_fft2`, scale 1) on the ring of radius r cycles
    per box, r = 0, 1, …, n_rings - 1. Turning an image by α multiplies c[m, r] by
    exp(-imα). Images are real, c[-m, r] = (-1)^m conj c[m, r], so m ≥ 0 is stored.

    In-plane averaged moments (the default) are those of the images turned by every
    in-plane angle: E c[0, r], (n_rings,), and E c[m, r] conj c[m, r'], (max_order + 1,
    n_rings, n_rings). Otherwise the first moment is (max_order + 1, n_rings), the
    second (max_order + 1, n_rings, 2 max_order + 1, n_rings), with m' = -max_order …
    max_order along its third axis.

    Norms with its weights equal the Cartesian ones over the disc.

    :param L: Pixels along an image's edge.
    :param n_rings: Number of rings; by default all within Nyquist, (L + 1)//2.
    :param max_order: Largest angular order; by default ⌈π (n_rings - 1)⌉, the largest
        of an object within the inscribed disc.
    :param inplane_average: Average over in-plane angles.
    :raises ValueError: A number is out of range.
    """

    L: int
    n_rings: int | None = None
    max_order: int | None = None
    inplane_average: bool = True

    frequency_name: ClassVar = "ring"

    def __post_init__(self):
        self._set_integers(L=MIN_SIZE)
        most = (self.L + 1) // 2
        if self.n_rings is None:
            object.__setattr__(self, "n_rings", most)
        self._set_integers(n_rings=1)
        if self.n_rings > most:
            raise ValueError(
                f"n_rings is {self.n_rings}; at L = {self.L} there are 1 to {most}"
                " rings within Nyquist"
            )
        if self.max_order is None:
            order = math.ceil(math.pi * (self.n_rings - 1))
            object.__setattr__(self, "max_order", order)
        self._set_integers(max_order=0)

    @property
    def first_shape(self) -> tuple[int, ...]:
        return self.power_shape[1:] if self.inplane_average else self.power_shape

    @property
    def second_shape(self) -> tuple[int, ...]:
        M, R = self.max_order, self.n_rings
        return (M + 1, R, R) if self.inplane_average else (M + 1, R, 2 * M + 1, R)

    @property
    def rings(self) -> np.ndarray:
        return np.arange(self.n_rings)

    @cached_property
    def areas(self) -> np.ndarray:
        return 2 * np.pi * np.maximum(self.rings, 1 / 12)

    @property
    def off_nyquist(self) -> np.ndarray:
        return np.ones(self.n_rings, bool)

    # Parts of moments

    def equal_order_blocks(self, second: np.ndarray) -> np.ndarray:
        if self.inplane_average:
            return second
        return np.einsum("mrmq->mrq", second[:, :, self.max_order :])

    def cut(
        self, n_rings: int | None = None, max_order: int | None = None
    ) -> PolarBasis:
        R = self.n_rings if n_rings is None else min(n_rings, self.n_rings)
        M = self.max_order if max_order is None else min(max_order, self.max_order)
        return replace(self, n_rings=R, max_order=M)

    def cut_array(self, array: np.ndarray, to: Basis) -> np.ndarray:
        orders, rings = slice(to.max_order + 1), slice(to.n_rings)
        if array.ndim == 1:
            return array[rings]
        if array.ndim < 4:
            return array[(orders, rings, rings)[: array.ndim]]
        middle = array.shape[2] // 2
        start = max(middle - to.max_order, 0)
        signed = slice(start, middle + to.max_order + 1)
        return array[orders, rings, signed, rings]

    @property
    def order_support(self) -> np.ndarray:
        reach = np.ceil(2 * np.pi * OBJECT_RADIUS * self.rings) + 1
        reach[0] = 0  # higher orders of a single point are round-off
        orders = np.arange(self.max_order + 1)[:, None, None]
        return orders <= np.minimum(reach[:, None], reach)

    def entry_scales(self, rms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # A ring's power spreads over the orders that an object has.
        orders = 2 * (2 * np.pi * OBJECT_RADIUS) * self.rings + 1
        if self.inplane_average:
            shared = np.minimum(orders[:, None], orders)
            first, second = rms, np.outer(rms, rms) / np.sqrt(shared)
        else:
            first = rms / np.sqrt(orders)
            second = first[:, None, None] * first
        return (
            np.broadcast_to(first, self.first_shape),
            np.broadcast_to(second, self.second_shape),
        )

    @cached_property
    def n_angles(self) -> int:
        """:return: Number of samples on half a ring that keeps aliases below 1e-10."""
        # A pixel at a distance d from the centre has orders up to about 2πrd/L.
        corner = math.sqrt(2) * math.pi * (self.n_rings - 1)
        return math.ceil((self.max_order + corner + 4 + 7 * corner ** (1 / 3)) / 2)

    @property
    def half_rings(self) -> tuple[np.ndarray, np.ndarray]:
        """Frequencies kx and ky of all rings' samples, radians per pixel."""
        return tuple(self.filter_points(self.n_angles))

    def coefficients(
        self, images: np.ndarray, H: np.ndarray | None = None
    ) -> np.ndarray:
        parts, _ = self._parts(check_images(images, self.L), H)
        return _complex(parts)

    def _parts(
        self,
        images: np.ndarray,
        H: np.ndarray | None,
        device: torch.device | None = None,
    ) -> tuple[Array, np.ndarray]:
        """Parts of c, (2, max_order + 1, n_rings, n); largest order of each ring."""
        size, dtype = (self.L, self.n_rings, self.max_order), images.dtype
        if H is not None and H.shape[-1] > 1:
            multiply = ring_filter(*size, H.shape[-1], dtype.name)
            return multiply(images, H), multiply.reach
        transform = polar_transform(*size, dtype.name, device)
        c = transform(placed(images, device))
        if H is not None:
            c *= placed(H[:, :, 0].T.astype(dtype), device)
        return c, transform.reach

    def _orders(self, half: np.ndarray) -> np.ndarray:
        """Coefficients from half rings (n, n_rings, n_angles) / (2 n_angles)."""
        # Real images: opposite points of a ring have conjugate values.
        rings = np.concatenate((half, half.conj()), axis=-1)
        orders = scipy.fft.fft(rings, overwrite_x=True)
        return orders[..., : self.max_order + 1].transpose(0, 2, 1)

    # Sums over images

    def sums(
        self,
        images: np.ndarray,
        H: np.ndarray | None = None,
        device: torch.device | None = None,
    ) -> tuple[np.ndarray, ...]:
        if not self.inplane_average:
            c = self.coefficients(images, H)
            first = c.sum(0, dtype=np.complex128)
            left, right = self._factors(c)
            squares = self._product(*(f.real**2 + f.imag**2 for f in (left, right)))
            return first, self._product(left, right), squares
        if device is None:
            return averaged_sums(*self._parts(check_images(images, self.L), H))
        return self._sums_on(device, images, H)

    def _sums_on(self, device: torch.device, images: np.ndarray, H: np.ndarray | None):
        try:
            with full_precision():
                sums = averaged_sums(*self._parts(images, H, device))
            return tuple(s.cpu().numpy() for s in sums)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{device} has too little memory for {len(images)} images at once; pass"
                " a smaller batch_size"
            ) from error

    def sums_and_coefficients(
        self, images: np.ndarray, H: np.ndarray | None, max_order: int, n_rings: int
    ) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """
        Compute sums for moments averaged over in-plane angles, and low coefficients.

        :param images: As for :meth:`sums`.
        :param H: As there.
        :param max_order: Largest order of the coefficients to return.
        :param n_rings: Number of innermost rings of these.
        :return: What :meth:`sums` returns; coefficients (n, max_order + 1, n_rings).
        """
        parts, reach = self._parts(check_images(images, self.L), H)
        low = parts[:, : max_order + 1, :n_rings]
        return averaged_sums(parts, reach), _complex(low)

    def finish(self, sums: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return sums

    def _factors(self, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Factors (…, rows, n) and (…, columns, n) of coefficients' second moments."""
        if self.inplane_average:
            by_order = np.ascontiguousarray(c.transpose(1, 2, 0))
            return by_order, by_order
        n = len(c)
        return c.reshape(n, -1).T, _signed_orders(c).reshape(n, -1).T

    def _product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Sum over images of f f*, of the second moment's shape."""
        return (left @ right.conj().swapaxes(-1, -2)).reshape(self.second_shape)

    # Noise

    def noise_second(self, nyquist: bool = True) -> np.ndarray:
        return _white_noise_second(self, nyquist)

    def stationary_noise_second(
        self, spectrum: np.ndarray, nyquist: bool = True
    ) -> np.ndarray:
        transforms = NoiseTransforms(self.L, self.half_rings)
        return self._second_of_transforms(transforms.stationary(spectrum, nyquist))

    def _second_of_transforms(self, transforms: Iterator[Chunk]) -> np.ndarray:
        """Σ w f f* over chunks of transforms on `half_rings`, with weights w."""
        second = 0
        for values, weights in transforms:
            half = values.reshape(-1, self.n_rings, self.n_angles)
            left, right = self._factors(self._orders(half / (2 * self.n_angles)))
            second = second + self._product(weights * left, right)
        return second

    # Filters, CTFs

    @property
    def max_harmonics(self) -> int:
        return self.n_angles // 2

    @property
    def corrects_astigmatism(self) -> bool:
        return self.inplane_average

    def filter_points(self, n_angles: int) -> np.ndarray:
        angles = np.pi / n_angles * np.arange(n_angles)
        radii = 2 * np.pi / self.L * self.rings
        directions = np.stack((np.cos(angles), np.sin(angles)))
        return (radii[:, None] * directions[:, None]).reshape(2, -1)

    def filter_values(self, values: np.ndarray) -> np.ndarray:
        by_ring = values.reshape(self.n_rings, -1, values.shape[-1])
        return by_ring.transpose(2, 0, 1)

    def information_sums(
        self, H: np.ndarray, n_harmonics: int
    ) -> dict[str, np.ndarray]:
        squares = H**2
        return {
            "first_information": squares.mean(-1).sum(0),
            "noise_information": correlation(H, n_harmonics),
            "second_information": correlation(squares, n_harmonics),
        }

    def _aligned(self, information: np.ndarray) -> np.ndarray:
        if self.inplane_average:
            return information
        return information[:, None, :, None, :]


def _complex(parts: np.ndarray) -> np.ndarray:
    """Coefficients (n, orders, rings) from parts (2, orders, rings, n)."""
    c = np.empty(parts.shape[1:], np.result_type(parts, np.complex64))
    c.real, c.imag = parts
    return c.transpose(2, 0, 1)


def _signed_orders(c: np.ndarray) -> np.ndarray:
    """Coefficients (n, 2 max_order + 1, n_rings) of orders -max_order … max_order."""
    signs = (-1.0) ** np.arange(1, c.shape[1])
    negative = (signs[:, None] * c[:, 1:].conj()).astype(c.dtype)
    return np.concatenate((negative[:, ::-1], c), axis=1)


@lru_cache(maxsize=1)
def _white_noise_second(basis: PolarBasis, nyquist: bool) -> np.ndarray:
    transforms = NoiseTransforms(basis.L, basis.half_rings)
    second = basis._second_of_transforms(transforms.white(basis.inplane_average))
    if not nyquist:
        lost = basis._second_of_transforms(transforms.nyquist())
        second = (basis.L / (basis.L - 1)) ** 2 * (second - lost)
    second.setflags(write=False)
    return second
