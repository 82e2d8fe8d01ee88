"""Fourier shell correlation, and resolutions read from it."""

import numpy as np
from aspire.numeric import fft
from aspire.volume import Volume

from aspire_mom.checks import PIXEL_SIZE_TOLERANCE, check_volume


def check_pair(volume: Volume, reference: Volume) -> float | None:
    """
    Check that two volumes can be compared.

    :param volume: One ASPIRE `Volume`.
    :param reference: Another one.
    :return: The pixel size of either in Ångström, None if neither has one.
    :raises TypeError: one of them is no real ASPIRE `Volume`.
    :raises ValueError: one is a stack, smaller than 3³ voxels, constant, or holds NaN
        or infinity; or their sizes or pixel sizes differ.
    """
    for name, one in (("volume", volume), ("reference", reference)):
        voxels = check_volume(name, one)
        if len(voxels) < 3:
            raise ValueError(f"{name} has {len(voxels)}³ voxels; it needs at least 3³")
        if np.ptp(voxels) == 0:
            raise ValueError(f"{name} is {voxels.flat[0]} everywhere; it must vary")
    L, L_reference = volume.resolution, reference.resolution
    if L_reference != L:
        sizes = f"{L}³ voxels and reference {L_reference}³"
        raise ValueError(f"volume has {sizes}; they must be the same")
    found = [v.pixel_size for v in (volume, reference) if v.pixel_size is not None]
    if len(found) == 2 and not np.isclose(*found, rtol=PIXEL_SIZE_TOLERANCE, atol=0):
        sizes = f"a pixel size of {found[0]} Å and reference one of {found[1]} Å"
        raise ValueError(f"volume has {sizes}; they must be the same")
    return found[0] if found else None


def fourier_shell_correlation(a: Volume, b: Volume) -> np.ndarray:
    """
    Return the Fourier shell correlation of two volumes, without registration:
    FSC(s) = Re Σ A conj(B) / sqrt(Σ |A|² Σ |B|²) over the Fourier voxels k with
    round(|k|) = s cycles per box, without Nyquist planes, which ASPIRE zeroes.

    :param a: One ASPIRE `Volume`.
    :param b: One ASPIRE `Volume` of the same size L and pixel size.
    :return: FSC of shells 0 to (L - 1)//2, float64; 0 where a volume has no power.
    """
    check_pair(a, b)
    L = a.resolution
    # `Volume.fsc` centres the shells of even L half a voxel off the zero frequency.
    k = np.arange(L) - L // 2
    k_squared = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    shells = np.rint(np.sqrt(k_squared)).astype(int)
    if L % 2 == 0:
        shells[0] = shells[:, 0] = shells[:, :, 0] = L

    def shell_sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(shells.ravel(), values.ravel())[: (L + 1) // 2]

    A, B = (fft.centered_fftn(v.asnumpy()[0].astype(np.float64)) for v in (a, b))
    cross = shell_sums((A * B.conj()).real)
    power = np.sqrt(shell_sums(np.abs(A) ** 2) * shell_sums(np.abs(B) ** 2))
    return np.divide(cross, power, out=np.zeros_like(cross), where=power > 0)


def without_nyquist_planes(volume: Volume) -> np.ndarray:
    """
    :param volume: One ASPIRE `Volume`.
    :return: Its voxels [z, y, x], float64, without the Nyquist planes of even sizes, as
        `Volume.rotate` leaves them.
    """
    voxels = volume.asnumpy()[0].astype(np.float64)
    if volume.resolution % 2:
        return voxels
    spectrum = fft.centered_fftn(voxels)
    spectrum[0] = spectrum[:, 0] = spectrum[:, :, 0] = 0
    return fft.centered_ifftn(spectrum).real


def resolution_in_shells(fsc: np.ndarray, cutoff: float) -> float:
    """
    Find where an FSC curve first falls below a cutoff (section 5.2), with FSC(0) = 1.

    :param fsc: FSC of shells 0, 1, 2, …
    :param cutoff: Between 0 and 1, for example 0.5 or 0.143.
    :return: A fractional shell; the last one if the curve never falls below the cutoff.
    :raises ValueError: The cutoff does not lie between 0 and 1.
    """
    if not 0 < cutoff < 1:
        raise ValueError(f"cutoff must lie between 0 and 1, not {cutoff}")
    curve = np.concatenate(([1.0], fsc[1:]))
    below = np.flatnonzero(curve < cutoff)
    if not len(below):
        return float(len(curve) - 1)
    before, after = curve[below[0] - 1], curve[below[0]]
    return float(below[0] - 1 + (before - cutoff) / (before - after))
