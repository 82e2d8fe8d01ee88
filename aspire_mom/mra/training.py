"""Supervised training of encoders (section 5.1.1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path

import torch
from torch import Tensor, nn

from aspire_mom.files import Checkpoint
from aspire_mom.mra.mixture_encoder import Hypotheses, MixtureEncoder
from aspire_mom.mra.supervision import (
    TRAINING,
    VALIDATION,
    Problems,
    Training,
    draw_problems,
    training_set,
)
from aspire_mom.training import warm_cosine

# Errors below which a problem counts as solved, so that it is not all that is trained.
SOLVED = 1e-3
# How fast the likelihood of an error falls with its size, beyond which size, and the
# share that alternatives learn which are not near.
TAIL, NEAR, ALL = 2.0, 1e-2, 0.03
# Distances of parameters that count as much as a factor of e^(1/TAIL) in error.
CENTRES, LOG_WIDTHS = 0.1, 0.3
OVERSAMPLING, NEWTON_STEPS = 4, 3


@dataclass(frozen=True)
class TrainingStatus:
    """
    What a status callback is told.

    :param step: Steps done.
    :param n_steps: Steps that there will be.
    :param v_error: Mean relative error of v (eq. 21) in the last validation.
    :param rho_error: Mean relative error of ρ.
    :param best: Least validation loss so far.
    """

    step: int
    n_steps: int
    v_error: float
    rho_error: float
    best: float


def train(
    encoder: nn.Module,
    training: Training,
    *,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    status: Callable[[TrainingStatus], bool | None] | None = None,
) -> float:
    """
    Minimise the shift-invariant errors of eq. 21 over an encoder's weights by Adam. The
    encoder ends with the weights of the best validation.

    Every step's problems follow from the seed and the step's number alone, so that a
    run that goes on from a checkpoint ends where an uninterrupted one does.

    :param encoder: Network (first, second, σ²/N, σ) → (v, ρ).
    :param training: What to do.
    :param device: Torch device.
    :param checkpoint: File to keep the state in, and to go on from where it exists.
    :param status: Called after each validation; returning True stops.
    :return: The best validation loss.
    :raises ValueError: the checkpoint is damaged or of another run, or signals have
        more Gaussians than the encoder knows of.
    :raises FloatingPointError: the loss is not finite.
    """
    if isinstance(encoder, MixtureEncoder) and max(training.ks) > encoder.most:
        raise ValueError(
            f"ks are {training.ks}; this encoder knows of at most {encoder.most}"
            " Gaussians"
        )
    encoder.to(device).train()
    optimizer = torch.optim.AdamW(
        encoder.parameters(),
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
    )
    step, best, best_at, best_weights = 0, math.inf, 0, _copy(encoder)
    kept = Checkpoint(checkpoint, {k: str(v) for k, v in asdict(training).items()})
    state = kept.state
    if state:
        encoder.load_state_dict(state["encoder"])
        optimizer.load_state_dict(state["optimizer"])
        step, best, best_at = state["step"], state["best"], state["best_at"]
        best_weights = state["best_weights"]
    fixed = training_set(training)
    validation = draw_problems(
        training, training.validation_size, (VALIDATION,), device=device
    )
    late = training.patience * training.validate_every
    while step < training.n_steps and step - best_at < late:
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * warm_cosine(step, training.n_steps)
        problems = draw_problems(
            training, training.batch_size, (TRAINING, step), fixed=fixed, device=device
        )
        optimizer.zero_grad()
        value = loss(encoder, problems, training.logarithmic)
        value.backward()
        norm = nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        # One problem among millions may overflow single precision in the march.
        if torch.isfinite(norm):
            optimizer.step()
        step += 1
        if step % training.validate_every and step < training.n_steps:
            continue
        value, v_error, rho_error = _validate(encoder, validation, training)
        if value < best:
            best, best_at, best_weights = value, step, _copy(encoder)
        kept.state = {
            "encoder": encoder.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "best": best,
            "best_at": best_at,
            "best_weights": best_weights,
        }
        kept.write()
        told = TrainingStatus(step, training.n_steps, v_error, rho_error, best)
        if status is not None and status(told):
            break
    encoder.load_state_dict(best_weights)
    encoder.eval()
    return best


def loss(encoder: nn.Module, problems: Problems, logarithmic: bool) -> Tensor:
    """
    :param encoder: Network (first, second, σ²/N, σ) → (v, ρ).
    :param problems: Problems.
    :param logarithmic: Whether the logarithm of errors counts.
    :return: Sum of the mean errors of v and of ρ, or of the means of their logarithms;
        for a :class:`MixtureEncoder` that of :func:`surprise`.
    """
    if isinstance(encoder, MixtureEncoder):
        return surprise(encoder, problems)
    total = 0.0
    for truth, found in zip(
        (problems.v, problems.rho), encoder(*problems.inputs), strict=True
    ):
        squared = squared_errors(truth, found)
        if logarithmic:
            total = total + 0.5 * (squared + SOLVED**2).log().mean()
        else:
            total = total + (squared + SOLVED**2).sqrt().mean()
    return total


def surprise(encoder: MixtureEncoder, problems: Problems) -> Tensor:
    """
    Negative log likelihood, save for a constant, of k and, given k, of v and of ρ, if
    an alternative of probability p at an error e (eq. 21) gives them the density
    p exp(-d)/(e² + NEAR²)^(TAIL/2). Only alternatives near to the truth learn from it,
    save for a small share. d, a distance of parameters, leads Gaussians to where they
    are from where errors are flat: one that has ended up far from the window's ends
    would never learn that it is cut off.

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
            squared = squared_errors(
                truth[:, None].expand_as(curves).flatten(0, 1), curves.flatten(0, 1)
            ).unflatten(0, curves.shape[:2])
            fits = -TAIL / 2 * (squared + NEAR**2).log() - _distances(
                alternatives, where
            )
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


def squared_errors(truth: Tensor, estimate: Tensor) -> Tensor:
    """
    Squares of the shift-invariant relative errors, eq. 21, with a gradient: at the best
    shift the error's derivative by the shift is 0, so that it may count as a constant.

    :param truth: Signals (batch, n), real.
    :param estimate: Estimates (batch, n).
    :return: Squared errors (batch,).
    """
    n = truth.shape[-1]
    a, b = torch.fft.rfft(truth), torch.fft.rfft(estimate)
    k = torch.arange(a.shape[-1], device=truth.device)
    twice = torch.where((k == 0) | (2 * k == n), 1.0, 2.0)
    with torch.no_grad():
        match = a.conj() * b * twice
        height = torch.fft.irfft(match / twice, n * OVERSAMPLING)
        by = height.argmax(-1, keepdim=True) / OVERSAMPLING
        omega = 2 * math.pi / n * k
        for _ in range(NEWTON_STEPS):
            waves = match * torch.exp(1j * omega * by)
            slope = (omega * waves.imag).sum(-1, keepdim=True)
            bend = (omega**2 * waves.real).sum(-1, keepdim=True)
            by = by - (slope / bend.clamp_min(1e-12)).clamp(-0.1, 0.1)
    residual = a * torch.exp(-1j * omega * by) - b
    power = (twice * (residual.real**2 + residual.imag**2)).sum(-1)
    return power / (twice * (a.real**2 + a.imag**2)).sum(-1)


def _validate(encoder, problems, training) -> tuple[float, float, float]:
    encoder.eval()
    with torch.no_grad():
        value = float(loss(encoder, problems, training.logarithmic))
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the validation loss became {value}; lower the learning rate"
            )
        v, rho = encoder(*problems.inputs)
        v_error = float(squared_errors(problems.v, v).sqrt().mean())
        rho_error = float(squared_errors(problems.rho, rho).sqrt().mean())
    encoder.train()
    return value, v_error, rho_error


def _copy(encoder: nn.Module) -> dict:
    return copy.deepcopy(encoder.state_dict())
