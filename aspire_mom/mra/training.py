"""Supervised training of encoders (section 5.1.1), on problems drawn as it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aspire_mom.mra.mixture_encoder import Hypotheses, MixtureEncoder
from aspire_mom.mra.moments import exact_moments, simulate_moments
from aspire_mom.mra.shift_ambiguity import squared_errors
from aspire_mom.mra.signals import GaussianFamily
from aspire_mom.training import TrainingSettings, TrainingStatus, train_network

# Streams of random numbers: training, validation and test problems share none.
TRAINING, VALIDATION, TEST = 0, 1, 2
SINGLE = {"c": np.complex64, "f": np.float32, "i": np.int64}
# Problems of one batch come in this many groups, each of one k and one noise level.
GROUPS = 8
# Ranges of log10 σ and of log10 N/σ² where there is noise. They hold N = 10⁴ … 10⁸ at
# σ = 1 for signals of mean 1 and for signals of norm 1.
LOG_SIGMA, LOG_RATIO = (-0.2, 1.1), (4.0, 8.0)
# The likelihood of an error e is (e² + NEAR²)^(-TAIL/2). A share ALL of the loss is the
# same for all alternatives, near the truth or not.
TAIL, NEAR, ALL = 2.0, 1e-2, 0.03
# Distances of parameters that count as much as a factor of e^(1/TAIL) in error.
CENTRES, LOG_WIDTHS = 0.1, 0.3
# Accuracy of best shifts in training.
SEARCH = {"n_peaks": 1, "n_steps": 3}


@dataclass(frozen=True)
class Training(TrainingSettings):
    """
    How to train an encoder: the fields of
    :class:`~aspire_mom.training.TrainingSettings`, and which problems to draw.

    :param ks: Numbers of Gaussians in v and ρ, in equal parts.
    :param n: Sample points.
    :param exact_share: Share of problems with exact moments; 1 for no noise.
    :param highest: Highest frequency of noisy moments, less than n/2; others are 0. All
        if None.
    :param set_size: Size of a fixed training set, from which batches are drawn; None
        draws every problem anew.
    :raises ValueError: a number is out of range.
    """

    n_steps: int = 7_000
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    validation_size: int = 2048
    ks: tuple[int, ...] = (1, 2, 3)
    n: int = 41
    exact_share: float = 0.3
    highest: int | None = None
    set_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.exact_share <= 1:
            raise ValueError(
                f"exact_share is {self.exact_share}; it must lie in [0, 1]"
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


def train(
    encoder: nn.Module,
    training: Training,
    *,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
    status: Callable[[TrainingStatus], bool | None] | None = None,
) -> float:
    """
    Minimise :func:`loss` over an encoder's parameters by Adam. The encoder ends with
    the parameters of the best validation.

    :param encoder: Network (first, second, σ²/N, σ) → (v, ρ).
    :param training: Problems and steps.
    :param device: Torch device.
    :param checkpoint: File that keeps the state; training goes on from an existing one.
    :param status: Called after each validation, with errors "v" and "rho"; returning
        True stops.
    :return: The best validation loss.
    :raises ValueError: the checkpoint is damaged or of other training; a
        :class:`MixtureEncoder` with a fixed training set or for fewer Gaussians.
    :raises FloatingPointError: the validation loss is not finite.
    """
    if isinstance(encoder, MixtureEncoder):
        if max(training.ks) > encoder.most:
            raise ValueError(
                f"ks are {training.ks}; this encoder knows of at most {encoder.most}"
                " Gaussians"
            )
        if training.set_size is not None:
            raise ValueError(
                f"set_size is {training.set_size}; MixtureEncoder learns from new"
                " problems only, set_size None"
            )
    encoder.to(device)
    fixed = training_set(training)
    validation = draw_problems(
        training, training.validation_size, (VALIDATION,), device=device
    )

    def step_loss(step: int) -> Tensor:
        size, stream = training.batch_size, (TRAINING, step)
        problems = draw_problems(training, size, stream, fixed=fixed, device=device)
        return loss(encoder, problems)

    def validate() -> tuple[float, dict[str, float]]:
        v, rho = encoder(*validation.inputs)
        return float(loss(encoder, validation)), {
            "v": float(_mean_error(validation.v, v)),
            "rho": float(_mean_error(validation.rho, rho)),
        }

    return train_network(
        encoder, training, step_loss, validate, checkpoint=checkpoint, status=status
    )


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
    :param stream: Stream of random numbers: TRAINING with the step, VALIDATION or TEST.
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
    if training.exact_share < 1 and rng.random() > training.exact_share:
        sigma = 10 ** rng.uniform(*LOG_SIGMA)
        N = round(sigma**2 * 10 ** rng.uniform(*LOG_RATIO))
        moments = simulate_moments(v, rho, N, sigma, rng, highest=training.highest)
        share = sigma**2 / N
    else:
        moments, sigma, share = exact_moments(v, rho), 0.0, 0.0
    same = (np.full(size, x) for x in (share, sigma))
    return moments.first, moments.second, *same, v, rho, np.full(size, k), parameters


def _parts(count: int, n: int) -> list[int]:
    """A number in n parts that are as equal as can be."""
    return [count * (i + 1) // n - count * i // n for i in range(n)]


def _mean_error(truth: Tensor, estimate: Tensor) -> Tensor:
    return (squared_errors(truth, estimate, **SEARCH) + 1e-12).sqrt().mean()


def loss(encoder: nn.Module, problems: Problems) -> Tensor:
    """
    :param encoder: Network (first, second, σ²/N, σ) → (v, ρ).
    :param problems: Problems.
    :return: Sum of the mean errors of v and of ρ (eq. 21); for a
        :class:`MixtureEncoder` :func:`negative_log_likelihood`.
    """
    if isinstance(encoder, MixtureEncoder):
        return negative_log_likelihood(encoder, problems)
    v, rho = encoder(*problems.inputs)
    return _mean_error(problems.v, v) + _mean_error(problems.rho, rho)


def negative_log_likelihood(encoder: MixtureEncoder, problems: Problems) -> Tensor:
    """
    Compute the negative log likelihood, up to a constant, of k and, given k, of v and
    of ρ. An alternative of probability p at an error e (eq. 21) gives them the density
    p exp(-d)/(e² + NEAR²)^(TAIL/2), so that alternatives near the truth learn most. The
    distance d of parameters guides Gaussians where errors are flat: one far from the
    window's ends would never learn that it is cut off.

    :param encoder: Network that gives alternatives.
    :param problems: Problems with known k.
    :return: The mean over problems.
    """
    counts, pairs = encoder.hypotheses(*problems.inputs)
    total = nn.functional.nll_loss(counts, problems.k - 1, reduction="sum")
    for k, pair in enumerate(pairs, 1):
        rows = torch.nonzero(problems.k == k)[:, 0]
        if len(rows) == 0:
            continue
        parameters = problems.parameters[rows, :, :, :k].unbind(1)
        truths = problems.v[rows], problems.rho[rows]
        for truth, where, every in zip(truths, parameters, pair, strict=True):
            alternatives = Hypotheses(*(x[rows] for x in every))
            curves = alternatives.curves(truth.shape[-1])
            truth = truth / truth.sum(-1, keepdim=True)
            squared = squared_errors(truth[:, None].expand_as(curves), curves, **SEARCH)
            distances = _distances(alternatives, where)
            fits = -TAIL / 2 * (squared + NEAR**2).log() - distances
            likelihood = torch.logsumexp(alternatives.log_probabilities + fits, -1)
            total = total - (1 - ALL) * likelihood.sum() - ALL * fits.mean(-1).sum()
    return total / len(problems.k)


def _distances(alternatives: Hypotheses, where: Tensor) -> Tensor:
    """From parameters (batch, 2, k), whose order does not matter: (batch,
    alternatives)."""
    orders = torch.tensor(list(permutations(range(where.shape[-1]))))
    centres, widths = where[:, :, orders.to(where.device)].unbind(1)
    off = (alternatives.centres[:, :, None] - centres[:, None]) / CENTRES
    wider = (alternatives.log_widths[:, :, None] - widths[:, None].log()) / LOG_WIDTHS
    return ((off**2 + wider**2).mean(-1).amin(-1) + 1).sqrt()
