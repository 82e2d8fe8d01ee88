"""Volumes as NumPy arrays: their size, averages over shells, local filters."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from aspire.numeric import fft
from aspire.volume import Volume
from scipy.signal import wiener

from aspire_mom.evaluation.fsc import fourier_shell_correlation

# Radius in boxes of the ball that holds the volume.
SUPPORT_RADIUS = 0.45
# Voxels along an edge of the cube that local means and variances are of. Volumes are
# sampled no finer than their rings need, so it holds a few hundred independent values.
WINDOW = 7


def resized(u: np.ndarray, n: int) -> np.ndarray:
    """
    :param u: Voxels (m, m, m).
    :param n: Voxels wanted along an edge.
    :return: The same volume in the same box, low-pass filtered where n < m, float32.
        Fourier values keep their scale, so that voxels scale by (m/n)³.
    """
    m = len(u)
    spectrum, found = fft.centered_fftn(u), np.zeros((n, n, n), complex)
    # Even sizes have a Nyquist plane on one side only, which is left out.
    half = (min(m, n) - 1) // 2
    old, new = (slice(s // 2 - half, s // 2 + half + 1) for s in (m, n))
    found[new, new, new] = spectrum[old, old, old]
    return fft.centered_ifftn(found).real.astype(np.float32)


def shell_mean(values: np.ndarray) -> np.ndarray:
    """
    :param values: Values at Fourier voxels (n, n, n), zero frequency at n//2.
    :return: Their means on shells round(|k|) = 0 … (n - 1)//2.
    """
    n = len(values)
    axis = np.arange(n) - n // 2
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    shells = np.rint(radius).astype(int).ravel()
    sums = np.bincount(shells, values.ravel())
    return (sums / np.bincount(shells))[: (n + 1) // 2]


def half_fsc(halves: Iterable[np.ndarray]) -> np.ndarray:
    """
    :param halves: Voxels of two volumes, each (n, n, n).
    :return: Their Fourier shell correlation on shells 0 … (n - 1)//2, float64.
    """
    return fourier_shell_correlation(*(Volume(u) for u in halves))


def noise_variance(halves: np.ndarray) -> float:
    """
    :param halves: Voxels of two volumes (2, n, n, n).
    :return: Variance of the noise of either, in the ball that holds them.
    """
    n = halves.shape[-1]
    axis = np.arange(n) - n // 2
    squares = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    inside = squares <= (SUPPORT_RADIUS * n) ** 2
    return float((halves[0] - halves[1])[inside].var()) / 2


def locally_filtered(u: np.ndarray, noise: float) -> np.ndarray:
    """
    Draw voxels towards their local means m where their local variances v are little
    more than that of noise, as in the solvent: m + max(0, 1 - noise/v) (u - m) (Lee
    1980).

    :param u: Voxels (n, n, n).
    :param noise: Variance of their noise.
    :return: Voxels (n, n, n) of the same dtype.
    """
    # Where nothing varies, SciPy divides by 0, and then takes the mean.
    with np.errstate(divide="ignore", invalid="ignore"):
        return wiener(u, WINDOW, noise).astype(u.dtype)
