"""Noise of images, measured in the pixels outside the inscribed disc."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.fft
from aspire.numeric import fft
from aspire.operators import Filter
from aspire.source import ImageSource
from aspire.utils import grid_2d

from aspire_mom.bases import Basis
from aspire_mom.moments.ctf import TransferFunctions

# Power on the Nyquist row and column, relative to that on the next ones (see
# `_nyquist_power`), below which they are empty. White noise has 2; a ramp subtracted
# from images after downsampling leaves less than 1e-2.
EMPTY_NYQUIST = 0.1
# Iterations that restore the covariance removed with empty Nyquist frequencies. Each
# reduces the residual to 0.9 of its value or less.
NYQUIST_ITERATIONS = 50
# The noise spectrum is estimated from every s-th of n images, s = n // 10,000, 1 … 8.
IMAGES_PER_STEP, MAX_STEP = 10_000, 8


def filter_spectrum(noise_filter: Filter, source: ImageSource) -> np.ndarray:
    """
    :param noise_filter: Power spectrum of noise, as an ASPIRE `Filter`.
    :param source: Source of the images that have it.
    :return: Its values on 2L - 1 frequencies along each axis, float64.
    :raises ValueError: values that no power spectrum has.
    """
    options = {"dtype": np.float64, "pixel_size": source.pixel_size}
    values = noise_filter.evaluate_grid(2 * source.L - 1, **options)
    if not (np.isfinite(values).all() and values.mean() >= 0):
        raise ValueError(
            f"the noise filter has values from {values.min():g} to {values.max():g}; a"
            " power spectrum is finite and its mean, a variance, 0 or more"
        )
    return values


def corner_sums(images: np.ndarray) -> dict[str, np.ndarray]:
    """
    :param images: Images (n, L, L), real.
    :return: Sums over them, (2,), float64: "corner", Σ and Σ² of the pixels outside the
        inscribed disc, and "nyquist", power on the Nyquist and the next row and column.
    """
    L = images.shape[-1]
    pixels = images.reshape(len(images), -1)[:, outside(L)]
    powers = np.einsum("np,np->n", pixels, pixels)
    return {
        "corner": np.array([v.sum(dtype=np.float64) for v in (pixels, powers)]),
        "nyquist": _nyquist_power(images) if L % 2 == 0 else np.zeros(2),
    }


def measure_noise(
    sums: dict[str, np.ndarray],
    basis: Basis,
    variance: float | None,
    spectrum: np.ndarray | None,
    own_mean: bool,
    premultiplied: TransferFunctions | None = None,
) -> tuple[np.ndarray, float, bool]:
    """
    :param sums: "n_images" and those of :func:`corner_sums`; with those of
        :func:`corner_power`, the spectrum is the one of the corners.
    :param basis: Basis of the moments.
    :param variance: Variance of white noise; None to take that of the corners.
    :param spectrum: Power spectrum as of :func:`filter_spectrum`; None for white noise.
    :param own_mean: Whether each image's mean outside the disc was subtracted from it.
    :param premultiplied: Transfer functions that images, and white noise with them,
        were multiplied by; None if they were not.
    :return: Second moment of the noise; its variance per pixel; and whether images have
        power on their Nyquist row and column, if any: True for odd sizes.
    """
    L, (last, next_to_last) = basis.L, sums["nyquist"]
    nyquist = L % 2 == 1 or bool(last > EMPTY_NYQUIST * next_to_last)
    if "corner_power" in sums:
        n_images = float(sums["corner_images"])
        spectrum = corner_spectrum(sums["corner_power"], n_images, L, nyquist)
    if spectrum is not None:
        variance = max(spectrum.mean(), 0.0)
    elif variance is None:
        n_pixels = len(outside(L))
        mean, square = sums["corner"] / (sums["n_images"] * n_pixels)
        # An own mean takes one degree of freedom of each image.
        square *= n_pixels / (n_pixels - 1) if own_mean else 1
        variance = max(float(square - mean**2), 0.0)
    if spectrum is None and premultiplied is not None:
        spectrum = variance * premultiplied.mean_square(nyquist)
    if spectrum is not None:
        second = basis.stationary_noise_second(spectrum, nyquist)
    else:
        second = variance * basis.noise_second(nyquist)
    if own_mean:
        second = second - _lost_to_own_mean(basis, variance, spectrum)
    return second, variance, nyquist


def _lost_to_own_mean(
    basis: Basis, variance: float, spectrum: np.ndarray | None
) -> np.ndarray:
    """
    Second moment that noise loses when the mean outside the disc is subtracted. With w
    the weights of this mean and C the covariance of pixels, C becomes

        C - 1 (Cw)ᵀ - (Cw) 1ᵀ + (wᵀCw) 1 1ᵀ = C - (1 uᵀ + u 1ᵀ),  u = Cw - 1 wᵀCw / 2.
    """
    L, w = basis.L, np.zeros(basis.L**2)
    w[outside(L)] = 1 / len(outside(L))
    w = w.reshape(L, L)
    u = variance * w
    if spectrum is not None:
        size = spectrum.shape
        filtered = scipy.fft.fft2(w, size) * scipy.fft.ifftshift(spectrum)
        u = scipy.fft.ifft2(filtered).real[:L, :L]
    u = u - np.sum(w * u) / 2
    scale = np.abs(u).max() or 1.0
    # 1 uᵀ + u 1ᵀ is half the difference of the products of 1 + u and of 1 - u.
    plus, minus = (
        basis.finish(basis.sums(1 + sign * u[None] / scale)[:3])[1] for sign in (1, -1)
    )
    return scale * (plus - minus) / 2


def corner_power(images: np.ndarray, rows: np.ndarray, n_images: int) -> dict:
    """
    Sum |FFT(mask · image)|² of images' corners, zero-padded so that its transform gives
    the covariances of pixels up to L/3 apart. Only every s-th image is used.

    :param images: Images (n, L, L), real, of a batch.
    :param rows: Their numbers in the source (n,).
    :param n_images: Number of images in all.
    :return: "corner_power", (p, p // 2 + 1), float64, and their number "corner_images".
    """
    step = min(max(n_images // IMAGES_PER_STEP, 1), MAX_STEP)
    mask = _background(images.shape[-1]).astype(images.dtype)
    used = images[rows % step == 0] * mask
    return {"corner_power": _power(used), "corner_images": np.array(float(len(used)))}


def corner_spectrum(
    power: np.ndarray, n_images: float, L: int, nyquist: bool
) -> np.ndarray:
    """
    Compute an isotropic power spectrum of noise: the transform of the mean product of
    two pixels as a function of their distance. The mean of the pixels is not
    subtracted, as in ASPIRE's `LegacyNoiseEstimator`; unlike there, pairs of pixels in
    all directions are used, not in one quadrant, and no window smears the spectrum.

    Where downsampling has left the Nyquist row and column empty, the covariances lack
    what these frequencies of a periodic image would add. The spectrum tells how much
    that is: it is added and the spectrum computed again until both agree.

    :param power: "corner_power".
    :param n_images: "corner_images".
    :param L: Pixels along an edge.
    :param nyquist: Whether there are a Nyquist row and column.
    :return: Variance per pixel and frequency, (2L - 1, 2L - 1), zero frequency in the
        middle. Some values may be negative, but not their mean, the variance.
    """
    reach = L // 3
    pairs = _covariances(_power(_background(L)[None]), reach)
    products = _covariances(power, reach) / n_images
    lags = np.arange(-reach, reach + 1)
    squares, which = np.unique(np.add.outer(lags**2, lags**2), return_inverse=True)
    counts = np.bincount(which.ravel(), pairs.ravel())
    distances = np.sqrt(squares[squares <= reach**2])

    def by_distance(products: np.ndarray) -> np.ndarray:
        sums = np.bincount(which.ravel(), products.ravel())
        return (sums / counts)[: len(distances)]

    # The transform of the covariances, taken as 0 beyond the largest distance.
    def spectrum_on(axis: np.ndarray) -> np.ndarray:
        apart = np.hypot(axis[:, None], axis)
        return fft.centered_fft2(np.interp(apart, distances, covariances, right=0))

    covariances, inner = by_distance(products), np.ix_(lags + L // 2, lags + L // 2)
    for _ in range(0 if nyquist else NYQUIST_ITERATIONS):
        spectrum = spectrum_on(np.arange(L) - L // 2)
        spectrum[1:, 1:] = 0  # keep only the Nyquist row and column
        missing = fft.centered_ifft2(spectrum).real[inner]
        covariances = by_distance(products + pairs * missing)
    return spectrum_on(np.arange(1 - L, L)).real


def _power(images: np.ndarray) -> np.ndarray:
    """Σ over images of their squared Fourier moduli, padded by a third."""
    L = images.shape[-1]
    size = scipy.fft.next_fast_len(L + L // 3, real=True)
    spectra = scipy.fft.rfft2(images, (size, size))
    squares = np.square(spectra.view(images.dtype))
    return (squares[..., ::2] + squares[..., 1::2]).sum(0, dtype=np.float64)


def _covariances(power: np.ndarray, reach: int) -> np.ndarray:
    """Sums of products of pixels at distances (dy, dx) = -reach … reach."""
    size = len(power)
    sums = scipy.fft.irfft2(power, (size, size))
    return np.roll(sums, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]


@lru_cache(maxsize=4)
def outside(L: int) -> np.ndarray:
    """
    :param L: Pixels along an edge.
    :return: Numbers of the pixels outside the inscribed disc.
    """
    return np.flatnonzero(grid_2d(L, indexing="yx", dtype=np.float64)["r"] >= 1)


@lru_cache(maxsize=4)
def _background(L: int) -> np.ndarray:
    """1 at pixels of `LegacyNoiseEstimator`: outside and on the disc's rim; else 0."""
    r = grid_2d(L, normalized=False, shifted=True)["r"]
    return (r >= L // 2 - 1).astype(np.float64)


def _nyquist_power(images: np.ndarray) -> np.ndarray:
    """Power (2,) on an even size's Nyquist row and column, and on the next cosines."""
    L = images.shape[-1]
    k = np.array([[L // 2], [L // 2 - 1]])
    waves = np.cos(2 * np.pi / L * k * np.arange(L)).astype(images.dtype)
    rows, columns = waves @ images, images @ waves.T
    return (rows**2).sum((0, 2)) + (columns**2).sum((0, 1))
