"""Fourier values of a volume on a grid of voxels, at any frequency."""

from __future__ import annotations

import finufft
import numpy as np
from aspire.numeric import fft
from aspire.volume import Volume

from aspire_mom.checks import check_volume

# Relative accuracy of the non-uniform transforms.
NUFFT_ACCURACY = 1e-10


def volume_transform(volume: Volume) -> np.ndarray:
    """
    Fourier transform a volume to the integer frequencies: the inverse of
    :meth:`FourierVolume.to_volume`.

    :param volume: One ASPIRE `Volume`.
    :return: V [kz, ky, kx] (L, L, L), complex128, zero frequency at L//2.
    """
    return fft.centered_fftn(check_volume("volume", volume).astype(np.float64))


def volume_on_rings(
    volume: Volume, directions: np.ndarray, radii: np.ndarray
) -> np.ndarray:
    """
    Evaluate the Fourier transform of a volume on the points radius × direction, as
    :meth:`FourierVolume.on_rings` does for a model.

    :param volume: One ASPIRE `Volume`, of odd or even size.
    :param directions: Unit vectors (n, 3), xyz order.
    :param radii: Radii (n_rings,) in cycles per box.
    :return: V (n, n_rings), complex128.
    """
    return _volume_at(volume, radii[:, None] * directions[:, None, :])


def volume_slices(
    volume: Volume, rotations: np.ndarray, frequencies: np.ndarray
) -> np.ndarray:
    """
    Evaluate central slices of a volume, V(R (kx, ky, 0)ᵀ), as
    :meth:`FourierVolume.slices` does for a model: L times the Fourier transform of
    `Volume.project`.

    :param volume: One ASPIRE `Volume`, of odd or even size.
    :param rotations: Rotation matrices (n, 3, 3) as in ASPIRE: R acts, not Rᵀ.
    :param frequencies: In-plane frequencies (p, 2) as (kx, ky), cycles per box.
    :return: Slices (n, p), complex128.
    """
    k = np.einsum("nij,pj->npi", rotations[:, :, :2], frequencies)
    return _volume_at(volume, k)


def _volume_at(volume: Volume, k: np.ndarray) -> np.ndarray:
    """
    V(k) = Σ V[z, y, x] exp(-2πi k·(x, y, z)/L) over all voxels, at even L, too (where
    ASPIRE's images lack the Nyquist row and column).
    """
    voxels = check_volume("volume", volume).astype(np.complex128)
    x, y, z = np.moveaxis(k.astype(np.float64) * (2 * np.pi / len(voxels)), -1, 0)
    values = finufft.nufft3d2(
        *(np.ascontiguousarray(axis.ravel()) for axis in (z, y, x)),
        voxels,
        eps=NUFFT_ACCURACY,
        isign=-1,
    )
    return values.reshape(k.shape[:-1])
