"""Polar coefficients of small images by dense matrix products."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft

if TYPE_CHECKING:
    from aspire_mom.moments.bases import PolarBasis

# Images at once: enough for full speed, few enough to stay in the cache.
CHUNK = 256
# Orders whose matrix is one block: few, so that little of it is zero.
ORDERS_PER_BLOCK = 6


class DihedralTransform:
    """
    c[m, r] = (-i)^m Σ_x f(x) J_m(2πr|x|/L) exp(-imφ_x), the defining sum.

    Under the square's mirrorings and turns, cos mφ and sin mφ go over into plus or
    minus themselves or one another. So pixels are first added up with these signs, an
    eighth or a quarter of them being left, and matrices to m ≡ 0, 2 and 1, 3 (mod 4)
    are dense but small: an eighth of the work of multiplying by all of the matrix, and
    faster than a non-uniform FFT up to L of more than 100. Where the order is well
    above 2πr|x|/L, values are below rounding and left out.

    :param basis: The basis; the work grows as L⁴.
    :param dtype: float32 or float64, of the images.
    """

    def __init__(self, basis: PolarBasis, dtype: type):
        self.basis, self.half = basis, basis.L // 2
        y, x = np.divmod(np.arange((self.half + 1) ** 2), self.half + 1)
        by_radius = np.argsort(x**2 + y**2, kind="stable")
        y, x = y[by_radius], x[by_radius]
        eighth = x >= y
        self.quarter = _Pixels(x, y, self.half)
        self.eighth = _Pixels(x[eighth], y[eighth], self.half)
        self.twice = np.where(x == y, 0.5, 1).astype(dtype)[eighth]
        self.blocks = {
            (remainder, wave): _blocks(basis, pixels, remainder, wave, dtype)
            for remainder, wave, pixels in (
                (0, np.cos, self.eighth),
                (0, np.sin, self.eighth),
                (2, np.cos, self.eighth),
                (2, np.sin, self.eighth),
                (1, np.cos, self.quarter),
                (3, np.cos, self.quarter),
            )
        }
        squares = np.unique(self.quarter.squares)
        for ring in range(basis.n_rings):
            bessel = _bessel(basis, 2 * np.pi * ring / basis.L * np.sqrt(squares))
            for block in sum(self.blocks.values(), []):
                block.multiply_ring(ring, squares, bessel)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """
        :param images: Images (n, L, L) of the transform's type.
        :return: Coefficients (max_order + 1, n_rings, n), complex of that precision.
        """
        basis, n = self.basis, len(images)
        shape = basis.max_order + 1, basis.n_rings, n
        c = np.zeros(shape, np.result_type(images.dtype, np.complex64))
        for start in range(0, n, CHUNK):
            chunk = slice(start, start + CHUNK)
            self._transform(images[chunk], c[..., chunk])
        return c

    def _transform(self, images: np.ndarray, c: np.ndarray) -> None:
        even_even, odd_even, even_odd, odd_odd = self._folded(images)
        for pixels, remainder, wave, sign, part in (
            (self._eighth(even_even, 1), 0, np.cos, 1, c.real),
            (self._eighth(even_even, -1), 2, np.cos, -1, c.real),
            (self._eighth(odd_odd, -1), 0, np.sin, -1, c.imag),
            (self._eighth(odd_odd, 1), 2, np.sin, 1, c.imag),
        ):
            for block in self.blocks[remainder, wave]:
                np.multiply(block.times(pixels), sign, out=part[block.place])
        # Of odd orders, sines of the image are cosines of the image mirrored in x = y.
        cosines, sines = odd_even[self.quarter.here], even_odd[self.quarter.mirrored]
        for remainder, sign in ((1, -1), (3, 1)):
            for block in self.blocks[remainder, np.cos]:
                np.multiply(block.times(cosines), sign, out=c.imag[block.place])
                np.negative(block.times(sines), out=c.real[block.place])

    def _folded(self, images: np.ndarray) -> list[np.ndarray]:
        """
        Pixels at ±x and ±y added up, four quarters ((L//2 + 1)², n): even in x and y,
        odd in x only, odd in y only, odd in both. Images come last, so that everything
        here runs along them.
        """
        n, L, h = len(images), self.basis.L, self.half
        pixels = np.ascontiguousarray(images.reshape(n, -1).T).reshape(L, L, n)
        if L % 2 == 0:  # which have a row and a column at -L/2 and none at L/2
            pixels = np.pad(pixels, ((0, 1), (0, 1), (0, 0)))
        down, up = pixels[h:], pixels[h::-1]
        quarters = []
        for rows in (down + up, down - up):
            right, left = rows[:, h:], rows[:, h::-1]
            quarters += [right + left, right - left]
        for quarter in quarters[:2]:
            quarter[0] /= 2
        for quarter in quarters[::2]:
            quarter[:, 0] /= 2
        return [quarter.reshape(-1, n) for quarter in quarters]

    def _eighth(self, quarter: np.ndarray, sign: int) -> np.ndarray:
        """A quarter's pixels at (x, y) and (y, x) added up or subtracted."""
        here, mirrored = quarter[self.eighth.here], quarter[self.eighth.mirrored]
        if sign < 0:
            return np.subtract(here, mirrored, out=here)
        here += mirrored
        here *= self.twice[:, None]
        return here


class _Pixels:
    """Pixels of a quarter of an image, and their mirror images, ordered by radius."""

    def __init__(self, x: np.ndarray, y: np.ndarray, half: int):
        self.here = y * (half + 1) + x
        self.mirrored = x * (half + 1) + y
        self.squares, self.angles = x**2 + y**2, np.arctan2(y, x)


class _Block:
    """
    The matrix of some orders, from the pixels beyond a radius to the rings beyond one.

    :param orders: The orders, every fourth.
    :param rings: The rings.
    :param first: The first pixel.
    :param pixels: All pixels.
    :param wave: np.cos or np.sin.
    :param dtype: Type of the matrix.
    """

    def __init__(self, orders, rings, first, pixels, wave, dtype):
        self.orders, self.first, self.squares = orders, first, pixels.squares[first:]
        self.place = slice(orders[0], orders[-1] + 1, 4), rings
        waves = wave(orders[:, None, None] * pixels.angles[first:])
        shape = len(orders), rings.stop - rings.start, len(self.squares)
        self.matrix = np.broadcast_to(waves, shape).astype(dtype)

    def multiply_ring(self, ring: int, squares: np.ndarray, bessel: np.ndarray) -> None:
        """
        :param ring: A ring.
        :param squares: Squared radii of pixels, sorted.
        :param bessel: (max_order + 1, squares), Bessel functions there on that ring.
        """
        if ring >= self.place[1].start:
            of_pixels = np.searchsorted(squares, self.squares)
            factor = bessel[self.orders][:, of_pixels]
            self.matrix[:, ring - self.place[1].start] *= factor

    def times(self, pixels: np.ndarray) -> np.ndarray:
        """From pixels (all, n) to (orders, rings, n)."""
        orders, rings, own = self.matrix.shape
        values = self.matrix.reshape(-1, own) @ pixels[self.first :]
        return values.reshape(orders, rings, -1)


def _blocks(
    basis: PolarBasis, pixels: _Pixels, remainder: int, wave: np.ufunc, dtype: type
) -> list[_Block]:
    """Of orders m ≡ remainder (mod 4); Bessel functions are still to be multiplied."""
    radii = np.sqrt(pixels.squares)
    k = 2 * np.pi / basis.L * np.arange(basis.n_rings)
    orders, blocks = np.arange(remainder, basis.max_order + 1, 4), []
    for start in range(0, len(orders), ORDERS_PER_BLOCK):
        own = orders[start : start + ORDERS_PER_BLOCK]
        on_rings = _reaches(k * radii[-1], own[0], dtype)
        if on_rings.any():
            rings = slice(int(np.argmax(on_rings)), basis.n_rings)
            first = int(np.argmax(_reaches(k[-1] * radii, own[0], dtype)))
            blocks.append(_Block(own, rings, first, pixels, wave, dtype))
    return blocks


def _reaches(z: np.ndarray, order: int, dtype: type) -> np.ndarray:
    """Where J_m(z) is not below 1e-9 in single precision, or 1e-16 in double."""
    return order <= z + 4 + (7 if dtype == np.float32 else 12) * np.cbrt(z)


def _bessel(basis: PolarBasis, z: np.ndarray) -> np.ndarray:
    """J_m(z), (max_order + 1, z), the Fourier coefficients of exp(iz sin θ)."""
    n = 2 * math.ceil((z[-1] + basis.max_order + 30 + 12 * np.cbrt(z[-1])) / 2)
    waves = np.exp(1j * z[:, None] * np.sin(2 * np.pi / n * np.arange(n)))
    return scipy.fft.fft(waves, overwrite_x=True).real.T[: basis.max_order + 1] / n


@lru_cache(maxsize=2)
def dihedral_transform(basis: PolarBasis, dtype: str) -> DihedralTransform:
    """The transform of a basis, remembered."""
    return DihedralTransform(basis, np.dtype(dtype).type)
