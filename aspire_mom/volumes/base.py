"""The one interface that every volume model has."""

from __future__ import annotations

import numpy as np
import torch
from aspire.numeric import fft
from aspire.volume import Volume
from torch import Tensor

from aspire_mom.checks import check_integer, check_positive, check_volume

# Frequencies evaluated at once when a whole grid is asked for.
GRID_CHUNK = 2**13


class FourierVolume(torch.nn.Module):
    """
    A volume known by its Fourier transform, which any point of frequency space can be
    asked of (the paper's v̂_φ, section 4.2).

    Units are those of the box: positions x in [-1/2, 1/2)³ with 0 at voxel L//2,
    frequencies k in cycles per box (integers are the L-point DFT's), xyz order, and
    V(k) = Σ V[z, y, x] exp(-2πi k·(x, y, z)/L), voxel coordinates counted from L//2.
    A subclass defines :meth:`forward`; real volumes need V(-k) = conj V(k).
    """

    #: Whether :meth:`on_rings` keeps little enough per point for its gradient that all
    #: points are asked for at once. What a network keeps would not fit in memory.
    rings_at_once = False

    def forward(self, k: Tensor) -> Tensor:
        """
        Fourier values.

        :param k: Frequencies (..., 3), xyz order, cycles per box, real dtype.
        :return: V(k), shape (...), complex dtype of the same precision.
        """
        raise NotImplementedError

    def variables(self) -> list[Tensor]:
        """
        :return: All that Fourier values may be differentiated by, other than k.
        """
        return list(self.parameters())

    def on_rings(self, directions: Tensor, radii: Tensor) -> Tensor:
        """
        Fourier values on the points radius × direction. A subclass for which this
        product structure is cheaper than scattered points overrides it.

        :param directions: Unit vectors (n, 3), xyz order.
        :param radii: Non-negative integer radii (n_rings,) in cycles per box, of
            the directions' dtype.
        :return: V (n, n_rings), complex.
        """
        return self(radii[None, :, None] * directions[:, None, :])

    def slices(self, rotations: Tensor, frequencies: Tensor) -> Tensor:
        """
        Central slices, V(R (kx, ky, 0)ᵀ): the Fourier slice theorem, eq. 11 to 13.

        :param rotations: Rotation matrices (n, 3, 3) as in ASPIRE: R acts, not Rᵀ.
        :param frequencies: In-plane frequencies (p, 2) as (kx, ky), cycles per box.
        :return: Slices (n, p), complex.
        """
        return self(torch.einsum("nij,pj->npi", rotations[:, :, :2], frequencies))

    @torch.no_grad()
    def to_volume(self, L: int, pixel_size: float | None = None) -> Volume:
        """
        The volume on a grid: Fourier values at integer frequencies, transformed back.
        For even L the Nyquist planes are zero, as ASPIRE has them.

        :param L: Voxels along an edge.
        :param pixel_size: Ångström per voxel.
        :return: ASPIRE `Volume`, [z, y, x], float32.
        :raises ValueError: `L` is no integer above 0, or the pixel size not positive.
        """
        check_integer("L", L, 1)
        if pixel_size is not None:
            check_positive("pixel_size", pixel_size)
        reference = next(self.parameters())
        n = L - 1 + L % 2  # without the Nyquist planes: as many k > 0 as k < 0
        axis = torch.arange(n) - n // 2
        k = torch.cartesian_prod(axis, axis, axis).flip(-1)[: n**3 // 2 + 1]
        half = torch.cat(
            [
                self(chunk.to(reference.device, reference.dtype)).cpu()
                for chunk in k.split(GRID_CHUNK)
            ]
        )
        half = half.numpy().astype(np.complex128)
        values = np.zeros((L, L, L), np.complex128)
        values[-n:, -n:, -n:] = np.concatenate((half, half[-2::-1].conj())).reshape(
            n, n, n
        )
        grid = fft.centered_ifftn(values).real
        return Volume(grid.astype(np.float32), pixel_size=pixel_size)

    def fit(self, volume: Volume, **options) -> float:
        """
        Fit to a given volume, as for the "neural ground truth" of the paper's section
        5.2, by :func:`aspire_mom.volumes.fitting.fit_volume`.

        :param volume: One ASPIRE `Volume`.
        :param options: Options of `fit_volume`.
        :return: ‖to_volume(L) - v‖/‖v‖, eq. 27 without the rotation.
        :raises TypeError: `volume` is no real `Volume`.
        :raises ValueError: it is a stack, not finite, or zero where it is fitted.
        """
        from aspire_mom.volumes.fitting import fit_volume

        return fit_volume(self, volume, **options)


def volume_transform(volume: Volume) -> np.ndarray:
    """
    Fourier transform of a volume on the integer frequencies, the inverse of
    :meth:`FourierVolume.to_volume`.

    :param volume: One ASPIRE `Volume`.
    :return: V [kz, ky, kx] (L, L, L), complex128, zero frequency at L//2.
    :raises TypeError: `volume` is no real `Volume`.
    :raises ValueError: it is a stack or not finite.
    """
    return fft.centered_fftn(check_volume("volume", volume).astype(np.float64))
