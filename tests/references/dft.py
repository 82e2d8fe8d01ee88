"""Fourier transforms of volumes by the defining sum, one frequency at a time."""

import numpy as np


def volume_fourier_values(voxels, k):
    """V(k) = Σ V[z, y, x] exp(-2πi k·(x, y, z)/L), positions counted from L//2."""
    L = len(voxels)
    axis = np.arange(L) - L // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    voxels = voxels.astype(np.float64)
    return np.array(
        [
            np.sum(voxels * np.exp(-2j * np.pi * (kx * x + ky * y + kz * z) / L))
            for kx, ky, kz in np.asarray(k, dtype=np.float64)
        ]
    )
