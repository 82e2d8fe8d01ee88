"""Volumes as NumPy arrays: their size, averages over shells, local filters."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from aspire.numeric import fft
from aspire.volume import Volume
from scipy.ndimage import gaussian_filter

from aspire_mom.evaluation.fsc import fourier_shell_correlation

# Standard deviation of the Gaussian window of local averages, in voxels of volumes that
# are sampled no finer than their rings need. Independent noise correlates to about 0.1
# in it.
WINDOW = 2.0


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


def local_agreement(halves: np.ndarray) -> np.ndarray:
    """
    :param halves: Voxels of two volumes (2, n, n, n).
    :return: Correlation of their high frequencies around each voxel (n, n, n), from 0
        to 1: low in the solvent, and wherever the molecule is not the same in all
        images.
    """
    high = halves - _local_mean(halves)
    power = _local_mean((high**2).mean(0))
    product = _local_mean(high[0] * high[1])
    return np.clip(product / np.maximum(power, np.finfo(power.dtype).tiny), 0, 1)


def locally_filtered(u: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    Weigh high frequencies voxel by voxel, those that local averages leave out (compare
    Ramlaul, Palmer & Aylett 2019; Punjani, Zhang & Fleet 2020).

    :param u: Voxels (..., n, n, n).
    :param weights: Weights (n, n, n).
    :return: Voxels (..., n, n, n).
    """
    low = _local_mean(u)
    return low + weights * (u - low)


def _local_mean(u: np.ndarray) -> np.ndarray:
    return gaussian_filter(u, WINDOW, mode="wrap", axes=(-3, -2, -1))
