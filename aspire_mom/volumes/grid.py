"""Fourier values of a volume on a grid of voxels, at any frequency."""

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


def volume_at(volume: Volume, k: np.ndarray) -> np.ndarray:
    """
    Evaluate V(k) = Σ V[z, y, x] exp(-2πi k·(x, y, z)/L). The sum takes all voxels, also
    at even L, where ASPIRE's images lack the Nyquist row and column.

    :param volume: One ASPIRE `Volume`.
    :param k: Frequencies (..., 3), xyz order, cycles per box.
    :return: V(k) (...), complex128.
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
