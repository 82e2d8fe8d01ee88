"""Supervised training of encoders (section 5.1.1)."""

from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aspire_mom.mra.mixture_encoder import Hypotheses, MixtureEncoder
from aspire_mom.mra.moments import exact_moments, simulate_moments
from aspire_mom.mra.shift_ambiguity import squared_errors
from aspire_mom.mra.signals import GaussianFamily
from aspire_mom.training import TrainingSettings, train_network

# Streams of random numbers: training, validation and test problems share none.
TRAINING, VALIDATION, TEST = 0, 1, 2
# Noise levels in a batch.
GROUPS = 8
# Ranges of log10 σ and of log10 N/σ² where there is noise.
LOG_SIGMA, LOG_RATIO = (-0.2, 1.1), (4.0, 8.0)
# Likelihood of errors; MEAN_WEIGHT is the share in the loss of the mean over
# alternatives, which gives all of them gradients.
TAIL_EXPONENT, ERROR_SCALE, MEAN_WEIGHT = 2.0, 1e-2, 0.03
# Units of distances between the Gaussians' centres, and between log widths.
CENTRES, LOG_WIDTHS = 0.1, 0.3
# Accuracy of best shifts in training.
SEARCH = {"n_peaks": 1, "n_steps": 3}


@dataclass(frozen=True)
class Training(TrainingSettings):
    """
    How to train an encoder, and which problems to draw.

    :param ks: Numbers of Gaussians in v and ρ, in equal parts.
    :param n: Sample points.
    :param exact_share: Fraction of problems with exact moments; 1 for no noise.
    :param highest: Highest frequency of noisy moments; others are 0. All if None.
    :param set_size: Size of a fixed training set; None draws every problem anew.
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


class _Problems(NamedTuple):
    """Problems with their answers. `inputs` are the encoders' (first, second, σ²/N, σ).
    `parameters` (batch, 2, 2, largest k) are means and standard deviations of Gaussians
    for v and for ρ; NaN beyond k."""

    inputs: tuple[Tensor, Tensor, Tensor, Tensor]
    v: Tensor
    rho: Tensor
    parameters: Tensor


def train(
    encoder: nn.Module, training: Training, *, device: str = "cpu", **options
) -> float:
    """
    Minimise the sum of the mean errors of v and of ρ (eq. 21), or for a
    :class:`MixtureEncoder` the negative log likelihood of such errors, as
    :func:`~aspire_mom.training.train_network` does.

    :param encoder: Network (first, second, σ²/N, σ) → (v, ρ).
    :param training: Problems and steps.
    :param device: Torch device.
    :param options: `checkpoint` and `status`, which gets errors "v" and "rho".
    :return: The best validation loss.
    :raises ValueError: a :class:`MixtureEncoder` for fewer Gaussians.
    """
    if isinstance(encoder, MixtureEncoder) and max(training.ks) > encoder.most:
        most = f"at most {encoder.most} Gaussians"
        raise ValueError(f"ks are {training.ks}; this encoder is for {most}")
    encoder.to(device)
    fixed = training_set(training)
    size = training.validation_size
    validation = _draw_problems(training, size, (VALIDATION,), device=device)

    def step_loss(step: int) -> Tensor:
        size, stream = training.batch_size, (TRAINING, step)
        return _loss(encoder, _draw_problems(training, size, stream, fixed, device))

    def validate() -> tuple[float, dict[str, float]]:
        v, rho = encoder(*validation.inputs)
        errors = _mean_error(validation.v, v), _mean_error(validation.rho, rho)
        named = dict(zip(("v", "rho"), map(float, errors), strict=True))
        return float(_loss(encoder, validation)), named

    return train_network(encoder, training, step_loss, validate, **options)


def training_set(training: Training) -> tuple[np.ndarray, ...] | None:
    """
    :param training: How an encoder is trained.
    :return: v and ρ (set_size, n) of its fixed training set, and their parameters
        (set_size, 2, 2, largest k); None if it has none.
    """
    if training.set_size is None:
        return None
    rng = np.random.default_rng((training.seed, TRAINING))
    return _draw_pairs(training, training.set_size, rng)


def _draw_pairs(training, count, rng) -> tuple[np.ndarray, ...]:
    """v, ρ and their parameters, in equal parts for each number of Gaussians."""
    v, rho = np.empty((2, count, training.n))
    parameters = np.full((count, 2, 2, max(training.ks)), np.nan)
    parts = np.array_split(np.arange(count), len(training.ks))
    for k, part in zip(training.ks, parts, strict=True):
        family = GaussianFamily(k, training.n)
        parameters[part, ..., :k] = drawn = family.draw_parameters(len(part), rng)
        v[part], rho[part] = family.pair(drawn)
    return v, rho, parameters


def _draw_problems(training, count, stream, fixed=None, device="cpu") -> _Problems:
    """Draw problems, float32, v and ρ from a fixed set if there is one."""
    rng = np.random.default_rng((training.seed, *stream))
    if fixed is None:
        pairs = _draw_pairs(training, count, rng)
    else:
        chosen = rng.integers(len(fixed[0]), size=count)
        pairs = tuple(x[chosen] for x in fixed)
    groups = []
    for part in np.array_split(np.arange(count), min(GROUPS, count)):
        v, rho = pairs[0][part], pairs[1][part]
        if training.exact_share < 1 and rng.random() > training.exact_share:
            sigma = 10 ** rng.uniform(*LOG_SIGMA)
            N = round(sigma**2 * 10 ** rng.uniform(*LOG_RATIO))
            m = simulate_moments(v, rho, N, sigma, rng, highest=training.highest)
        else:
            m = exact_moments(v, rho)
        noise = (np.full(len(part), x) for x in (m.mean_variance, m.sigma))
        groups.append((m.first, m.second, *noise))
    inputs = [np.concatenate(x) for x in zip(*groups, strict=True)]
    doubles = (torch.as_tensor(x, device=device) for x in (*inputs, *pairs))
    singles = [x.cfloat() if x.is_complex() else x.float() for x in doubles]
    return _Problems(tuple(singles[:4]), *singles[4:])


def _mean_error(truth: Tensor, estimate: Tensor) -> Tensor:
    return (squared_errors(truth, estimate, **SEARCH) + 1e-12).sqrt().mean()


def _loss(encoder: nn.Module, problems: _Problems) -> Tensor:
    if isinstance(encoder, MixtureEncoder):
        return _negative_log_likelihood(encoder, problems)
    v, rho = encoder(*problems.inputs)
    return _mean_error(problems.v, v) + _mean_error(problems.rho, rho)


def _negative_log_likelihood(encoder: MixtureEncoder, problems: _Problems) -> Tensor:
    """
    The mean over problems, up to a constant, for k and, given k, for v and ρ. An
    alternative of probability p at an error e (eq. 21) gives them the density
    p exp(-d)/(e² + ERROR_SCALE²)^(TAIL_EXPONENT/2), d the distance of parameters.
    """
    counts, pairs = encoder.hypotheses(*problems.inputs)
    true_count = problems.parameters[:, 0, 0].isfinite().sum(-1)
    total = nn.functional.nll_loss(counts, true_count - 1, reduction="sum")
    for k, pair in enumerate(pairs, 1):
        rows = torch.nonzero(true_count == k)[:, 0]
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
            fits = -TAIL_EXPONENT / 2 * (squared + ERROR_SCALE**2).log() - distances
            likelihood = torch.logsumexp(alternatives.log_probabilities + fits, -1)
            total = total - (1 - MEAN_WEIGHT) * likelihood.sum()
            total = total - MEAN_WEIGHT * fits.mean(-1).sum()
    return total / len(counts)


def _distances(alternatives: Hypotheses, where: Tensor) -> Tensor:
    """(batch, alternatives), from parameters (batch, 2, k) in any order."""
    orders = torch.tensor(list(permutations(range(where.shape[-1]))))
    centres, widths = where[:, :, orders.to(where.device)].unbind(1)
    off = (alternatives.centres[:, :, None] - centres[:, None]) / CENTRES
    wider = (alternatives.log_widths[:, :, None] - widths[:, None].log()) / LOG_WIDTHS
    return ((off**2 + wider**2).mean(-1).amin(-1) + 1).sqrt()
