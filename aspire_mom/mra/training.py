"""Supervised training of encoders (section 5.1.1)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import torch
from torch import Tensor, nn

from aspire_mom.mra.errors import squared_errors
from aspire_mom.mra.mixture_encoder import Hypotheses, MixtureEncoder
from aspire_mom.mra.problems import (
    TRAINING,
    VALIDATION,
    Problems,
    Training,
    draw_problems,
    training_set,
)
from aspire_mom.training import TrainingStatus, train_network

# How fast the likelihood of an error falls with its size, beyond which size, and the
# share that alternatives learn which are not near.
TAIL, NEAR, ALL = 2.0, 1e-2, 0.03
# Distances of parameters that count as much as a factor of e^(1/TAIL) in error.
CENTRES, LOG_WIDTHS = 0.1, 0.3
# Accuracy of best shifts in training: peaks of the correlation, and Newton steps.
SEARCH = {"n_peaks": 1, "n_steps": 3}


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
    :raises ValueError: the checkpoint is damaged or of other training, or signals have
        more Gaussians than the encoder knows of.
    :raises FloatingPointError: the validation loss is not finite.
    """
    if isinstance(encoder, MixtureEncoder) and max(training.ks) > encoder.most:
        raise ValueError(
            f"ks are {training.ks}; this encoder knows of at most {encoder.most}"
            " Gaussians"
        )
    encoder.to(device)
    fixed = training_set(training)
    validation = draw_problems(
        training, training.validation_size, (VALIDATION,), device=device
    )

    def step_loss(step: int) -> Tensor:
        stream = TRAINING, step
        return loss(
            encoder,
            draw_problems(
                training, training.batch_size, stream, fixed=fixed, device=device
            ),
        )

    def validate() -> tuple[float, dict[str, float]]:
        v, rho = encoder(*validation.inputs)
        pairs = {"v": (validation.v, v), "rho": (validation.rho, rho)}
        return float(loss(encoder, validation)), {
            name: float(squared_errors(*pair, **SEARCH).sqrt().mean())
            for name, pair in pairs.items()
        }

    return train_network(
        encoder, training, step_loss, validate, checkpoint=checkpoint, status=status
    )


def loss(encoder: nn.Module, problems: Problems) -> Tensor:
    """
    :param encoder: Network (first, second, σ²/N, σ) → (v, ρ).
    :param problems: Problems.
    :return: Sum of the mean errors of v and of ρ (eq. 21); for a
        :class:`MixtureEncoder` :func:`negative_log_likelihood`.
    """
    if isinstance(encoder, MixtureEncoder):
        return negative_log_likelihood(encoder, problems)
    answers = encoder(*problems.inputs)
    return sum(
        (squared_errors(truth, found, **SEARCH) + 1e-12).sqrt().mean()
        for truth, found in zip((problems.v, problems.rho), answers, strict=True)
    )


def negative_log_likelihood(encoder: MixtureEncoder, problems: Problems) -> Tensor:
    """
    Negative log likelihood, save for a constant, of k and, given k, of v and of ρ, if
    an alternative of probability p at an error e (eq. 21) gives them the density
    p exp(-d)/(e² + NEAR²)^(TAIL/2). Only alternatives near to the truth learn from it,
    save for a small share. The distance d of parameters leads Gaussians where errors
    are flat: one that has ended up far from the window's ends would never learn that it
    is cut off.

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
    k = where.shape[-1]
    orders = torch.tensor(list(permutations(range(k))), device=where.device)
    centres, widths = where[:, :, orders].unbind(1)
    off = (alternatives.centres[:, :, None] - centres[:, None]) / CENTRES
    wider = (alternatives.log_widths[:, :, None] - widths[:, None].log()) / LOG_WIDTHS
    return ((off**2 + wider**2).mean(-1).amin(-1) + 1).sqrt()
