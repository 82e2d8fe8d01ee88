"""Volumes on a grid of voxels: Fourier values, filter, mirror image and MRC files."""

from os import PathLike

import finufft
import mrcfile
import numpy as np
from aspire.numeric import fft
from aspire.volume import Volume

from aspire_mom.checks import check_volume

# Relative accuracy of the non-uniform transforms.
NUFFT_ACCURACY = 1e-10
# Width in shells over which the filter falls from one to zero, as in RELION.
SOFT_EDGE_WIDTH = 2


def volume_transform(volume: Volume) -> np.ndarray:
    """
    :param volume: One ASPIRE `Volume`.
    :return: V at integer frequencies, [kz, ky, kx] (L, L, L), complex128, zero
        frequency at L//2.
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
    points = [np.ascontiguousarray(axis.ravel()) for axis in (z, y, x)]
    values = finufft.nufft3d2(*points, voxels, eps=NUFFT_ACCURACY, isign=-1)
    return values.reshape(k.shape[:-1])


def check_resolution(resolution: float, L: int, pixel_size: float | None) -> None:
    """
    :param resolution: Resolution of a filter in Ångström.
    :param L: Voxels along an edge.
    :param pixel_size: Ångström per voxel.
    :raises ValueError: the pixel size is missing, or the resolution is not between two
        voxels and the box.
    """
    if pixel_size is None:
        raise ValueError(f"a low-pass filter at {resolution:g} Å needs a pixel size")
    if not 2 * pixel_size <= resolution <= L * pixel_size:
        raise ValueError(
            f"the low-pass filter is at {resolution:g} Å; it must lie between two"
            f" voxels, {2 * pixel_size:g} Å, and the box, {L * pixel_size:g} Å"
        )


def low_pass(volume: Volume, resolution: float) -> Volume:
    """
    Apply a low-pass filter with a raised-cosine edge: with s = box / resolution, it is
    1 up to shell s - 1 and 0 from shell s + 1 on.

    :param volume: One ASPIRE `Volume` with a pixel size.
    :param resolution: Resolution in Ångström, where the filter is one half.
    :return: ASPIRE `Volume` of the same shape, dtype and pixel size.
    """
    L, pixel_size = volume.resolution, volume.pixel_size
    check_resolution(resolution, L, pixel_size)
    k = np.fft.fftfreq(L, 1 / L)
    kz, ky, kx = np.ix_(k, k, np.fft.rfftfreq(L, 1 / L))
    shells = np.sqrt(kz**2 + ky**2 + kx**2)
    cutoff = L * pixel_size / resolution
    transition = np.clip((shells - cutoff) / SOFT_EDGE_WIDTH + 0.5, 0, 1)
    spectrum = np.fft.rfftn(volume.asnumpy()[0]) * (1 + np.cos(np.pi * transition)) / 2
    voxels = np.fft.irfftn(spectrum, s=(L, L, L), axes=(0, 1, 2))
    return Volume(voxels.astype(volume.dtype), pixel_size=pixel_size)


def mirror(volume: Volume) -> Volume:
    """
    :param volume: ASPIRE `Volume` or stack of volumes.
    :return: Its mirror image, z reversed about voxel L//2 (J of JRJ), of the same
        shape, dtype and pixel size. For even L the plane z = -L/2 stays in place.
    """
    flipped = volume.asnumpy()[..., ::-1, :, :]
    if volume.resolution % 2 == 0:
        flipped = np.roll(flipped, 1, axis=-3)
    return Volume(np.ascontiguousarray(flipped), pixel_size=volume.pixel_size)


def save_map(volume: Volume, path: str | PathLike, *, overwrite: bool = False) -> None:
    """
    Write a 3-D MRC file, as other programs expect one. ASPIRE's `Volume.save` writes a
    stack of one volume, a 4-D array with space group 401.

    :param volume: One ASPIRE `Volume`, written as float32.
    :param path: File to write.
    :param overwrite: Replace an existing file.
    :raises ValueError: The file exists and `overwrite` is False.
    """
    voxels = check_volume("volume", volume).astype(np.float32)
    with mrcfile.new(path, voxels, overwrite=overwrite) as mrc:
        mrc.set_volume()
        if volume.pixel_size is not None:
            mrc.voxel_size = volume.pixel_size
