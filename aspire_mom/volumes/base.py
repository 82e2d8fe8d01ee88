"""The interface of all volume models."""

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from aspire.numeric import fft
from aspire.volume import Volume
from torch import Tensor
from tqdm import tqdm

from aspire_mom.checks import check_integer, check_positive
from aspire_mom.volumes.grid import volume_transform

# Frequencies evaluated at once, for a whole grid and in a fit.
GRID_CHUNK, POINTS_PER_CHUNK = 2**13, 2**11
# Models with no more parameters than this are polished with L-BFGS.
SMALL_MODEL = 5000
# Added to the mean power of each shell, as a fraction of the strongest shell's, to
# bound the weights of weak shells in a fit.
ADDED_POWER = 1e-6


class FourierVolume(torch.nn.Module):
    """
    A volume model whose Fourier transform can be evaluated at any frequency (the
    paper's v̂_φ, section 4.2).

    Units are those of the box: positions x in [-1/2, 1/2)³ with 0 at voxel L//2,
    frequencies k in cycles per box (integers are the L-point DFT's), xyz order, and
    V(k) = Σ V[z, y, x] exp(-2πi k·(x, y, z)/L), voxel coordinates counted from L//2.
    A subclass defines :meth:`forward`; real volumes need V(-k) = conj V(k).
    """

    #: Whether :meth:`on_rings` may take all points at once in a gradient: it needs
    #: little memory.
    rings_at_once = False

    def forward(self, k: Tensor) -> Tensor:
        """
        :param k: Frequencies (..., 3), xyz order, cycles per box, real dtype.
        :return: V(k), shape (...), complex dtype of the same precision.
        """
        raise NotImplementedError

    def variables(self) -> list[Tensor]:
        """:return: Tensors that Fourier values depend on, other than k."""
        return [*self.parameters()]

    def on_rings(self, directions: Tensor, radii: Tensor) -> Tensor:
        """
        :param directions: Unit vectors (n, 3), xyz order.
        :param radii: Radii (n_rings,) in cycles per box, of the directions' dtype.
        :return: V at radius × direction, (n, n_rings), complex.
        """
        return self(radii[None, :, None] * directions[:, None, :])

    def slices(self, rotations: Tensor, frequencies: Tensor) -> Tensor:
        """
        :param rotations: Rotation matrices (n, 3, 3) as in ASPIRE: R acts, not Rᵀ.
        :param frequencies: In-plane frequencies (p, 2) as (kx, ky), cycles per box.
        :return: Central slices V(R (kx, ky, 0)ᵀ), (n, p), complex (eq. 11 to 13).
        """
        return self(torch.einsum("nij,pj->npi", rotations[:, :, :2], frequencies))

    @torch.no_grad()
    def to_volume(self, L: int, pixel_size: float | None = None) -> Volume:
        """
        :param L: Voxels along an edge.
        :param pixel_size: Ångström per voxel.
        :return: ASPIRE `Volume`, [z, y, x], float32, from V at integer frequencies. For
            even L the Nyquist planes are zero, as ASPIRE has them.
        """
        check_integer("L", L, 1)
        if pixel_size is not None:
            check_positive("pixel_size", pixel_size)
        like = next(self.parameters())
        n = L - 1 + L % 2  # without the Nyquist planes: as many k > 0 as k < 0
        axis = torch.arange(n) - n // 2
        k = torch.cartesian_prod(axis, axis, axis).flip(-1)[: n**3 // 2 + 1]
        parts = [self(chunk.to(like)).cpu() for chunk in k.split(GRID_CHUNK)]
        half = torch.cat(parts).numpy().astype(np.complex128)
        cube = np.concatenate((half, half[-2::-1].conj())).reshape(n, n, n)
        values = np.pad(cube, [(L - n, 0)] * 3)
        grid = fft.centered_ifftn(values).real
        return Volume(grid.astype(np.float32), pixel_size=pixel_size)

    def fit(
        self,
        volume: Volume,
        *,
        n_steps: int = 2000,
        learning_rate: float = 1e-3,
        batch_size: int = 2048,
        seed: int = 0,
        callback: Callable[[int, float], bool | None] | None = None,
    ) -> float:
        """
        Fit to a volume, as for the "neural ground truth" of the paper's section 5.2:
        least squares on the Fourier values at the integer frequencies |k| < L/2.

        Adam works on random batches, its learning rate falling to zero along a cosine.
        Squared errors have the weight 1/RMS of V on their shell, which lets weak outer
        shells count without letting them dominate. If the model has at most 5000
        parameters, L-BFGS follows, on all frequencies and without weights.

        :param volume: One ASPIRE `Volume`, of odd or even size L.
        :param n_steps: Steps of Adam; L-BFGS takes at most a quarter as many.
        :param learning_rate: Adam's first learning rate.
        :param batch_size: Frequencies per step of Adam.
        :param seed: Seed of the batches.
        :param callback: Called after each step of Adam with the step and the relative
            loss Σ w |ΔV|² / Σ w |V|², w the weights; returning True stops.
        :return: :meth:`relative_error`, in which frequencies |k| ≥ L/2 count, too.
        :raises ValueError: the volume is zero at the frequencies of the fit.
        """
        k, target = _integer_frequencies(volume, next(self.parameters()))
        power = target.abs().square().sum()
        if power == 0:
            raise ValueError("the volume to fit is zero at all frequencies |k| < L/2")

        def loss(rows: Tensor | slice, weights: Tensor | float) -> Tensor:
            return (weights * (self(k[rows]) - target[rows]).abs().square()).sum()

        generator = torch.Generator().manual_seed(seed)
        batch_size = min(batch_size, len(k))
        weights = _shell_weights(k, target) * len(k) / batch_size
        optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        for step in tqdm(range(n_steps), desc="Fitting volume", leave=False):
            batch = torch.randperm(len(k), generator=generator)[:batch_size]
            optimizer.zero_grad()
            value = 0.0
            for rows in batch.to(k.device).split(POINTS_PER_CHUNK):
                part = loss(rows, weights[rows])
                part.backward()
                value += part.item()
            optimizer.step()
            schedule.step()
            if callback is not None and callback(step, value):
                break
        else:
            if sum(p.numel() for p in self.parameters()) <= SMALL_MODEL:
                _polish(self, lambda: loss(slice(None), 1 / power), n_steps // 4)
        return self.relative_error(volume)

    def relative_error(self, volume: Volume) -> float:
        """
        :param volume: One ASPIRE `Volume` of size L.
        :return: ‖to_volume(L) - v‖/‖v‖, eq. 27 without the rotation.
        """
        truth = volume.asnumpy()[0]
        difference = self.to_volume(truth.shape[0]).asnumpy()[0] - truth
        return float(np.linalg.norm(difference) / np.linalg.norm(truth))


def _polish(model: FourierVolume, loss: Callable[[], Tensor], n_steps: int) -> None:
    """L-BFGS; after a loss that is not finite, take the best parameters so far."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=n_steps, line_search_fn="strong_wolfe"
    )
    lowest, best = math.inf, copy.deepcopy(model.state_dict())

    def closure() -> Tensor:
        nonlocal lowest, best
        optimizer.zero_grad()
        value = loss()
        value.backward()
        if not torch.isfinite(value):
            raise FloatingPointError
        if value < lowest:
            lowest, best = value.item(), copy.deepcopy(model.state_dict())
        return value

    try:
        optimizer.step(closure)
    except FloatingPointError:
        model.load_state_dict(best)


def _shell_weights(k: Tensor, target: Tensor) -> Tensor:
    """Inverse RMS of V on each k's shell (n,), scaled so that Σ weight |V|² = 1."""
    power, shell = target.abs().square(), torch.linalg.norm(k, dim=1).round().long()
    mean = torch.bincount(shell, power) / torch.bincount(shell).clamp_min(1)
    weights = (mean + ADDED_POWER * mean.max()).rsqrt()[shell].to(power)
    return weights / (weights * power).sum()


def _integer_frequencies(volume: Volume, like: Tensor) -> tuple[Tensor, Tensor]:
    """Half of the integer frequencies |k| < L/2, (n, 3), and V there."""
    values = volume_transform(volume)
    L = len(values)
    axis = np.arange(L) - L // 2
    kz, ky, kx = np.meshgrid(axis, axis, axis, indexing="ij")
    half = (kz > 0) | ((kz == 0) & ((ky > 0) | ((ky == 0) & (kx >= 0))))
    half &= kx**2 + ky**2 + kz**2 < (L / 2) ** 2
    k = torch.from_numpy(np.stack((kx, ky, kz), -1)[half]).to(like)
    return k, torch.from_numpy(values[half]).to(k.device, (1j * k[:0]).dtype)
