"""Fitting a volume model to a given volume by gradient descent."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from aspire.volume import Volume
from torch import Tensor
from tqdm import tqdm

from aspire_mom.volumes.base import FourierVolume, volume_transform

# Models with no more parameters than this are polished with L-BFGS.
SMALL_MODEL = 5000
# Frequencies evaluated at once: as many as keep a network's layers in cache.
POINTS_PER_CHUNK = 2**11
# Shells of less power than this, relative to the strongest, count as if they had it.
FAINT = 1e-6


def fit_volume(
    model: FourierVolume,
    volume: Volume,
    *,
    n_steps: int = 2000,
    learning_rate: float = 1e-3,
    batch_size: int = 2048,
    seed: int = 0,
    callback: Callable[[int, float], bool | None] | None = None,
) -> float:
    """
    Fit a model to a volume, as for the "neural ground truth" of Khoo, Paul & Sharon
    (section 5.2): least squares on the Fourier values at the integer frequencies
    |k| < L/2, one of each pair ±k. The corners of the Fourier cube, |k| >= L/2, are
    left out: no rotated slice of the grid has values for all of them.

    Adam on random batches, its learning rate falling to zero along a cosine; then
    L-BFGS on all frequencies where the model has at most 5000 parameters.

    A volume's power falls by orders of magnitude from the centre, and Adam does not get
    to the outer shells while errors count as they are; counted relative to their
    shells, they would cost the inner ones. Adam's squares are divided by the RMS of
    their shells, halfway between the two; L-BFGS takes them as they are.

    :param model: Any model, changed in place.
    :param volume: One ASPIRE `Volume`, of odd or even size L.
    :param n_steps: Steps of Adam; L-BFGS takes at most a quarter as many.
    :param learning_rate: Adam's first learning rate.
    :param batch_size: Frequencies per step of Adam.
    :param seed: Seed of the batches.
    :param callback: Called with the step and the loss (relative to the volume's
        power, both weighted) after each step of Adam; stops the fit by returning True.
    :return: ‖to_volume(L) - v‖/‖v‖, eq. 27 without the rotation. It counts the
        corners, where the model is whatever it is.
    """
    k, target = _integer_frequencies(volume, next(model.parameters()))
    power = target.abs().square().sum()
    if power == 0:
        raise ValueError("the volume to fit is zero at all frequencies |k| < L/2")

    def loss(rows: Tensor | slice, weights: Tensor | float) -> Tensor:
        return (weights * (model(k[rows]) - target[rows]).abs().square()).sum()

    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, len(k))
    weights = _shell_weights(k, target) * len(k) / batch_size
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for step in tqdm(range(n_steps), desc="Fitting volume", leave=False):
        batch = torch.randperm(len(k), generator=generator)[:batch_size].to(k.device)
        optimizer.zero_grad()
        value = 0.0
        for rows in batch.split(POINTS_PER_CHUNK):
            part = loss(rows, weights[rows])
            part.backward()
            value += part.item()
        optimizer.step()
        schedule.step()
        if callback is not None and callback(step, value):
            break
    else:
        if sum(p.numel() for p in model.parameters()) <= SMALL_MODEL:
            _polish(model, lambda: loss(slice(None), 1 / power), n_steps // 4)
    return relative_error(model, volume)


def relative_error(model: FourierVolume, volume: Volume) -> float:
    """
    Eq. 27 without the rotation.

    :param model: A volume model.
    :param volume: One ASPIRE `Volume` of size L.
    :return: ‖to_volume(L) - v‖/‖v‖.
    """
    truth = volume.asnumpy()[0]
    difference = model.to_volume(truth.shape[0]).asnumpy()[0] - truth
    return float(np.linalg.norm(difference) / np.linalg.norm(truth))


def _polish(model: FourierVolume, loss: Callable[[], Tensor], n_steps: int) -> None:
    """L-BFGS, to the best point that it has seen if a line search leaves the finite."""
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
    """
    :param k: Frequencies (n, 3).
    :param target: V there (n,), complex.
    :return: The inverse RMS of V on the shell of each (n,), such that weighted squares
        of V sum to one.
    """
    power, shell = target.abs().square(), torch.linalg.norm(k, dim=1).round().long()
    mean = torch.bincount(shell, power) / torch.bincount(shell).clamp_min(1)
    weights = (mean + FAINT * mean.max()).rsqrt()[shell].to(power)
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
