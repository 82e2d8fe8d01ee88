"""Second moments of noise in polar bases, as weighted sums over given images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Images transformed at once.
CHUNK = 32

Chunk = tuple[np.ndarray, np.ndarray | float]


class NoiseTransforms:
    """
    Express second moments of noise as weighted sums Σ w f f* over fixed images. Each
    method yields, in chunks, the Fourier transforms of such images on half rings,
    (n, points), and their weights w, a number or (n,).

    :param L: Pixels along an image's edge.
    :param half_rings: kx and ky of the points, radians per pixel.
    """

    def __init__(self, L: int, half_rings: tuple[np.ndarray, np.ndarray]):
        self.L, self.half_rings = L, half_rings
        self.pixels = np.arange(L) - L // 2
        # The wave of the Nyquist frequency, of unit norm.
        self.alternating = (-1.0) ** self.pixels / np.sqrt(L)

    def white(self, averaged: bool) -> Iterator[Chunk]:
        """
        Yield images for white noise of unit variance.

        Without averaging, these are unit impulses in all pixels. Averaged over in-plane
        angles, the second moment Σ_x J_m(2πr|x|/L) J_m(2πr'|x|/L) sums an even function
        of |x| that is a polynomial up to rounding. So impulses at the positive
        Chebyshev nodes of (-D, D) suffice, D the largest |x|, with weights Σ_x ℓ_j(|x|)
        (ℓ_j: the even polynomial that is 1 at node j and 0 at the others).

        :param averaged: Whether the moments are averaged over in-plane angles.
        :yield: Chunks of transforms and their weights.
        """
        kx, ky = self.half_rings
        if not averaged:
            # An impulse at (x, y) has the transform exp(-i kx x) exp(-i ky y).
            across, down = (np.exp(-1j * np.outer(self.pixels, k)) for k in (kx, ky))
            for wave in down:
                yield across * wave, 1.0
            return
        squares = np.add.outer(self.pixels**2, self.pixels**2)
        squares, counts = np.unique(squares, return_counts=True)
        distances = np.sqrt(squares)
        largest = distances[-1]
        # Bessel functions, like exp(iz cos φ), have degrees up to z and a few more.
        reach = 2 * kx.max() * largest
        n = int(reach / 2 + 4 * reach ** (1 / 3)) + 10
        nodes = np.pi * (np.arange(n) + 0.5) / (2 * n)  # largest · cos(nodes)
        degrees = 2 * np.arange(n)
        sums = np.cos(np.outer(degrees, np.arccos(distances / largest))) @ counts
        sums[0] /= 2
        weights = 2 / n * np.cos(np.outer(nodes, degrees)) @ sums
        for j in range(0, n, CHUNK):
            points = largest * np.cos(nodes[j : j + CHUNK])
            yield np.exp(-1j * np.outer(points, kx)), weights[j : j + CHUNK]

    def nyquist(self) -> Iterator[Chunk]:
        """
        Yield images for the part of white noise that lies on the Nyquist row and
        column. Its covariance is I - P ⊗ P = I ⊗ a aᵀ + a aᵀ ⊗ P, where a is the wave
        of the Nyquist frequency and P = I - a aᵀ.

        :yield: Chunks of transforms and their weights.
        """
        kx, ky = self.half_rings
        a, pixels = self.alternating, self.pixels
        x, y = (
            sum(s * np.exp(-1j * k * p) for s, p in zip(a, pixels, strict=True))
            for k in (kx, ky)
        )
        for j in range(0, self.L, CHUNK):
            chunk = slice(j, j + CHUNK)
            yield np.exp(-1j * np.outer(pixels[chunk], ky)) * x, 1.0
            columns = np.exp(-1j * np.outer(pixels[chunk], kx)) - np.outer(a[chunk], x)
            yield columns * y, 1.0

    def stationary(self, spectrum: np.ndarray, nyquist: bool) -> Iterator[Chunk]:
        """
        Yield images for noise of a power spectrum: cos(ω·x) and sin(ω·x).

        :param spectrum: As for `Basis.stationary_noise_second`.
        :param nyquist: As for `Basis.stationary_noise_second`.
        :yield: Chunks of transforms and their weights.
        """
        kept = np.eye(self.L)
        if not nyquist:
            kept -= np.outer(self.alternating, self.alternating)
        period = len(spectrum)
        half = period // 2
        if period % 2 == 0:  # waves of the Nyquist frequency have both signs, half each
            spectrum = np.pad(spectrum, (0, 1), mode="wrap")
            spectrum[[0, -1]] /= 2
            spectrum[:, [0, -1]] /= 2
        omega = 2 * np.pi / period * np.arange(-half, half + 1)
        waves = (kept @ np.exp(1j * np.outer(self.pixels, omega))).T
        across, down = (
            waves @ np.exp(-1j * np.outer(self.pixels, k)) for k in self.half_rings
        )
        # Take ω and -ω together: rows ωy ≥ 0 hold one of each pair, row 0 both.
        power = (spectrum + spectrum[::-1, ::-1])[half:] / period**2
        power[0] /= 2
        for i in range(half + 1):
            for j in range(0, len(omega), CHUNK):
                chunk = slice(j, j + CHUNK)
                plus = across[chunk] * down[half + i]
                minus = across[::-1][chunk] * down[half - i]
                # The weights of small, estimated powers may be negative.
                weights = np.tile(power[i, chunk] / 4, 2)
                yield np.concatenate((plus + minus, -1j * (plus - minus))), weights
