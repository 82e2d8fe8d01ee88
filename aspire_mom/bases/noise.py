"""Second moments of noise, white or of any power spectrum."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from aspire.numeric import fft
from aspire.operators import Filter
from aspire.source import ImageSource

if TYPE_CHECKING:
    from aspire_mom.bases.bases import Basis, PolarBasis

# Images transformed at once.
CHUNK = 32


@lru_cache(maxsize=1)
def white_noise_second(basis: PolarBasis, nyquist: bool) -> np.ndarray:
    """
    :param basis: The basis.
    :param nyquist: As in :meth:`PolarBasis.noise_second`.
    :return: Array of the second moment's shape, complex128, read-only.
    """
    second = _by_distance(basis) if basis.inplane_average else _by_pixel(basis)
    if not nyquist:
        L = basis.L
        second = (L / (L - 1)) ** 2 * (second - _of_nyquist(basis))
    second.setflags(write=False)
    return second


def stationary_noise_second(
    basis: Basis, spectrum: np.ndarray, nyquist: bool
) -> np.ndarray:
    """
    Second moment of stationary noise: waves exp(iω·x) of random amplitude, cut to the
    image, E A A* = Σ_ω S(ω) a(ω) a(ω)* / (2L - 1)², a(ω) the coefficients of a wave.

    :param basis: The basis.
    :param spectrum: Power spectrum S (2L - 1, 2L - 1), [ωy, ωx], zero frequency in the
        middle: so many frequencies that covariances of all pixels of an image are
        their own. S = 1 is white noise of unit variance.
    :param nyquist: False for even-sized images whose Nyquist row and column are 0.
    :return: Array of the second moment's shape, complex128.
    """
    if not hasattr(basis, "n_rings"):
        return _of_covariances(basis.L, spectrum, nyquist)
    L = basis.L
    pixels = np.arange(L) - L // 2
    kept = np.eye(L)
    if not nyquist:
        a = (-1.0) ** pixels / np.sqrt(L)
        kept -= np.outer(a, a)
    omega = 2 * np.pi / (2 * L - 1) * np.arange(1 - L, L)
    waves = kept @ np.exp(1j * np.outer(pixels, omega))
    across, down = (
        waves.T @ np.exp(-1j * np.outer(pixels, k)) for k in basis.half_rings
    )
    # Frequencies ω and -ω together: the real waves cos(ω·x) and sin(ω·x). Rows ωy ≥ 0
    # have one of each pair, row 0 both.
    power = (spectrum + spectrum[::-1, ::-1])[L - 1 :] / (2 * L - 1) ** 2
    power[0] /= 2
    # Estimated spectra may be negative where they are small.
    amplitudes, signs = np.sqrt(np.abs(power)), np.sign(power)
    second = 0
    for i in range(L):
        for j in range(0, 2 * L - 1, CHUNK):
            chunk = slice(j, j + CHUNK)
            plus = across[chunk] * down[L - 1 + i]
            minus = across[::-1][chunk] * down[L - 1 - i]
            scale = amplitudes[i, chunk, None] / 2
            both = np.concatenate(
                (scale * (plus + minus), -1j * scale * (plus - minus))
            )
            left, right = basis.factors(_coefficients(basis, both))
            left = left * np.tile(signs[i, chunk], 2)
            second = second + basis.product(left, right)
    return second


def _of_covariances(L: int, spectrum: np.ndarray, nyquist: bool) -> np.ndarray:
    """Of all Fourier pixels: covariances of image pixels, transformed on both sides."""
    covariance = fft.centered_ifft2(spectrum).real
    axis = np.arange(L)
    apart = axis[:, None] - axis + L - 1
    pairs = covariance[apart[:, None, :, None], apart[None, :, None, :]]
    if not nyquist:
        a = (-1.0) ** axis / np.sqrt(L)
        kept = np.eye(L) - np.outer(a, a)
        for i in range(4):
            pairs = np.moveaxis(np.tensordot(kept, pairs, (1, i)), 0, i)
    half = fft.centered_fft2(pairs.astype(np.complex128)).conj()
    return fft.centered_fft2(half, axes=(0, 1)).reshape(L**2, L**2)


def _by_distance(basis: PolarBasis) -> np.ndarray:
    """
    Averaged in-plane, Σ_x J_m(2πr|x|/L) J_m(2πr'|x|/L): a sum over pixels of an even
    function of their distances from the centre, to rounding a polynomial. So a few
    distances do, the positive Chebyshev nodes of (-D, D), D the largest distance, with
    weights Σ_x ℓ_j(|x|), ℓ_j the even polynomial that is 1 at node j and 0 at others.
    """
    axis = np.arange(basis.L) - basis.L // 2
    squares, counts = np.unique(np.add.outer(axis**2, axis**2), return_counts=True)
    distances = np.sqrt(squares)
    largest = distances[-1]
    # Bessel functions, as exp(iz cos φ), have degrees up to z and few more.
    reach = 4 * np.pi * (basis.n_rings - 1) / basis.L * largest
    n = int(reach / 2 + 4 * reach ** (1 / 3)) + 10
    nodes = np.pi * (np.arange(n) + 0.5) / (2 * n)  # largest · cos(nodes)
    degrees = 2 * np.arange(n)
    sums = np.cos(np.outer(degrees, np.arccos(distances / largest))) @ counts
    sums[0] /= 2
    weights = 2 / n * np.cos(np.outer(nodes, degrees)) @ sums
    half_turns = 1j ** np.arange(basis.max_order + 1)[:, None]
    second = 0
    for j in range(0, n, CHUNK):
        chunk = slice(j, j + CHUNK)
        points = largest * np.cos(nodes[chunk])
        c = _coefficients(basis, np.exp(-1j * np.outer(points, basis.half_rings[0])))
        J = (half_turns * c).real.transpose(1, 2, 0)
        second = second + (weights[chunk] * J) @ J.swapaxes(1, 2)
    return second.astype(np.complex128)


def _by_pixel(basis: PolarBasis) -> np.ndarray:
    """Σ A A* over unit impulses in all pixels, row by row."""
    pixels = np.arange(basis.L) - basis.L // 2
    # An impulse at (x, y) has the transform exp(-i kx x) exp(-i ky y).
    across, down = (np.exp(-1j * np.outer(pixels, k)) for k in basis.half_rings)
    return sum(_second(basis, across * wave) for wave in down)


def _of_nyquist(basis: PolarBasis) -> np.ndarray:
    """
    The share of the Nyquist row and column in the noise, of covariance I - P ⊗ P, where
    P = I - a aᵀ/L removes the alternating vector a: (I ⊗ a aᵀ + a aᵀ ⊗ P) / L.
    """
    L = basis.L
    pixels = np.arange(L) - L // 2
    a = (-1.0) ** pixels / np.sqrt(L)
    kx, ky = basis.half_rings
    x, y = (
        sum(s * np.exp(-1j * k * p) for s, p in zip(a, pixels, strict=True))
        for k in (kx, ky)
    )
    second = 0
    for j in range(0, L, CHUNK):
        chunk = slice(j, j + CHUNK)
        rows = np.exp(-1j * np.outer(pixels[chunk], ky)) * x
        columns = np.exp(-1j * np.outer(pixels[chunk], kx)) - np.outer(a[chunk], x)
        second = second + _second(basis, rows) + _second(basis, columns * y)
    return second


def _second(basis: PolarBasis, waves: np.ndarray) -> np.ndarray:
    """Σ f f* of images with transforms (n, n_rings · n_angles) on half rings."""
    return basis.product(*basis.factors(_coefficients(basis, waves)))


def _coefficients(basis: PolarBasis, waves: np.ndarray) -> np.ndarray:
    half = waves.reshape(-1, basis.n_rings, basis.n_angles) / (2 * basis.n_angles)
    return basis.orders(half)


def filter_spectrum(noise_filter: Filter, source: ImageSource) -> np.ndarray:
    """
    :param noise_filter: Power spectrum of noise, as an ASPIRE `Filter`.
    :param source: Source of the images that have it.
    :return: Its values on 2L - 1 frequencies along each axis, float64.
    :raises ValueError: values that no power spectrum has.
    """
    size = 2 * source.L - 1
    values = noise_filter.evaluate_grid(
        size, dtype=np.float64, pixel_size=source.pixel_size
    )
    if not (np.isfinite(values).all() and values.mean() >= 0):
        raise ValueError(
            f"the noise filter has values from {values.min():g} to {values.max():g}; a"
            " power spectrum is finite and its mean, a variance, 0 or more"
        )
    return values
