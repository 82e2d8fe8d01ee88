"""Problems that encoders are trained and tested on, drawn with their answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aspire_mom.mra.moments import exact_moments, simulate_moments
from aspire_mom.mra.signals import GaussianFamily
from aspire_mom.training import TrainingSettings

# Streams of random numbers: training, validation and test problems share none.
TRAINING, VALIDATION, TEST = 0, 1, 2
SINGLE = {"c": np.complex64, "f": np.float32, "i": np.int64}
# Problems of one batch come in this many groups, each of one k and one noise level.
GROUPS = 8
# Ranges of log10 σ (v's mean being 1) and of log10 N/σ² where there is noise: N = 10⁴
# … 10⁸ at σ = 1, and signals of norm 1.
LOG_SIGMA, LOG_RATIO = (-0.2, 1.1), (4.0, 8.0)


@dataclass(frozen=True)
class Training(TrainingSettings):
    """
    How an encoder is trained: the fields of
    :class:`~aspire_mom.training.TrainingSettings`, and what problems it sees.

    :param ks: Numbers of Gaussians in v and ρ, in equal parts.
    :param n: Sample points.
    :param noisy: Noise levels of all kinds, or exact moments only.
    :param exact_share: Share of problems with exact moments where there is noise.
    :param highest: Highest frequency at which noisy moments are drawn, less than n/2;
        others are 0. All if None.
    :param set_size: Size of a fixed training set, from which batches are drawn; None
        draws every problem anew.
    :raises ValueError: a number is out of range, or a fixed set is to be noisy.
    """

    n_steps: int = 7_000
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    validation_size: int = 2048
    ks: tuple[int, ...] = (1, 2, 3)
    n: int = 41
    noisy: bool = True
    exact_share: float = 0.15
    highest: int | None = None
    set_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.exact_share <= 1:
            raise ValueError(
                f"exact_share is {self.exact_share}; it must lie in [0, 1]"
            )
        if self.set_size is not None and self.noisy:
            raise ValueError(
                f"set_size is {self.set_size} and noisy is True; a training set of a"
                " fixed size has exact moments"
            )


@dataclass(frozen=True)
class Problems:
    """
    Problems with their answers, as tensors.

    :param first: First moments (batch, n).
    :param second: Second moments (batch, n, n).
    :param share: σ²/N (batch,).
    :param sigma: σ (batch,).
    :param v: Signals (batch, n).
    :param rho: Densities (batch, n).
    :param k: Numbers of Gaussians in each (batch,); 0 where drawn from a fixed set.
    :param parameters: For v and ρ, means and standard deviations of their Gaussians, in
        windows, (batch, 2, 2, largest k), NaN beyond k.
    """

    first: Tensor
    second: Tensor
    share: Tensor
    sigma: Tensor
    v: Tensor
    rho: Tensor
    k: Tensor
    parameters: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inputs of encoders."""
        return self.first, self.second, self.share, self.sigma


def draw_problems(
    training: Training,
    count: int,
    stream: tuple[int, ...],
    *,
    fixed: tuple[np.ndarray, np.ndarray] | None = None,
    device: str | torch.device = "cpu",
) -> Problems:
    """
    :param training: Family, noise and seed.
    :param count: Number of problems.
    :param stream: Which stream of random numbers: TRAINING with the step, VALIDATION or
        TEST.
    :param fixed: v and ρ to choose from, instead of drawing them.
    :param device: Torch device.
    :return: The problems, float32.
    """
    rng = np.random.default_rng((training.seed, *stream))
    sizes = _parts(count, min(GROUPS, count))
    groups = [_draw_group(training, size, rng, fixed) for size in sizes]
    arrays = (np.concatenate(parts) for parts in zip(*groups, strict=True))
    return Problems(
        *(torch.as_tensor(a.astype(SINGLE[a.dtype.kind])).to(device) for a in arrays)
    )


def training_set(training: Training) -> tuple[np.ndarray, np.ndarray] | None:
    """
    :param training: How an encoder is trained.
    :return: v and ρ (set_size, n) of its fixed training set, or None if it has none.
    """
    if training.set_size is None:
        return None
    rng = np.random.default_rng((training.seed, TRAINING))
    sizes = _parts(training.set_size, len(training.ks))
    pairs = [
        GaussianFamily(k, training.n).draw(size, rng)
        for k, size in zip(training.ks, sizes, strict=True)
    ]
    return tuple(np.concatenate(part) for part in zip(*pairs, strict=True))


def _draw_group(training, size, rng, fixed):
    """Problems of one k and one noise level."""
    parameters = np.full((size, 2, 2, max(training.ks)), np.nan)
    if fixed is None:
        k = int(rng.choice(training.ks))
        family = GaussianFamily(k, training.n)
        parameters[..., :k] = family.draw_parameters(size, rng)
        v, rho = family.pair(parameters[..., :k])
    else:
        k = 0
        chosen = rng.integers(len(fixed[0]), size=size)
        v, rho = fixed[0][chosen], fixed[1][chosen]
    if training.noisy and rng.random() > training.exact_share:
        sigma = 10 ** rng.uniform(*LOG_SIGMA)
        N = round(sigma**2 * 10 ** rng.uniform(*LOG_RATIO))
        moments = simulate_moments(v, rho, N, sigma, rng, highest=training.highest)
        share = sigma**2 / N
    else:
        moments, sigma, share = exact_moments(v, rho), 0.0, 0.0
    one = np.ones(size)
    return (
        *(moments.first, moments.second, share * one, sigma * one, v, rho),
        np.full(size, k),
        parameters,
    )


def _parts(count: int, n: int) -> list[int]:
    """A number in n parts that are as equal as can be."""
    return [count * (i + 1) // n - count * i // n for i in range(n)]
