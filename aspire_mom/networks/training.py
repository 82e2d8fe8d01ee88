"""Supervised training of encoders, which section 5.2 leaves for later."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from aspire_mom.files import Checkpoint
from aspire_mom.networks.exact import ExactMoments
from aspire_mom.networks.gauge import GaugeFreeErrors
from aspire_mom.networks.problems import (
    FAMILY,
    TRAINING,
    VALIDATION,
    Problems,
    Training,
    draw_problems,
)
from aspire_mom.networks.start_encoder import StartEncoder
from aspire_mom.training import warm_cosine


@dataclass(frozen=True)
class TrainingStatus:
    """
    What a status callback is told.

    :param step: Steps done.
    :param n_steps: Steps that there will be.
    :param volume_error: Mean squared error of Fourier values over their power in the
        last validation.
    :param divergence: Mean Kullback-Leibler divergence of densities, nats.
    :param correlations: Mean correlation of Fourier values on each shell.
    :param best: Least sum of the first two so far.
    """

    step: int
    n_steps: int
    volume_error: float
    divergence: float
    correlations: tuple[float, ...]
    best: float


def train(
    encoder: StartEncoder,
    training: Training,
    *,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
    status: Callable[[TrainingStatus], bool | None] | None = None,
) -> float:
    """
    Minimise the errors of volumes and densities (see `GaugeFreeErrors`) over an
    encoder's weights by Adam. The encoder ends with the weights of the best validation.

    Every step's problems follow from the seed and the step's number alone, so that a
    run that goes on from a checkpoint ends where an uninterrupted one does.

    :param encoder: The encoder.
    :param training: What to do.
    :param device: Torch device.
    :param checkpoint: File to keep the state in, and to go on from where it exists.
    :param status: Called after each validation; returning True stops.
    :return: The best validation loss.
    :raises FileNotFoundError: no folder for the checkpoint.
    :raises ForeignCheckpoint: the checkpoint is damaged or of another run.
    :raises FloatingPointError: the loss is not finite.
    """
    settings = {**encoder.settings, **asdict(training)}
    kept = Checkpoint(checkpoint, {k: str(v) for k, v in settings.items()})
    # What an object within 0.4 of the box has; directions that tell harmonics apart.
    reach = math.ceil(0.8 * math.pi * (encoder.n_rings - 1))
    exact = ExactMoments(
        encoder.n_rings,
        encoder.max_order,
        degree=max(reach, encoder.max_order + 2),
        design_degree=max(17, 2 * encoder.degree),
    ).to(device)
    errors = GaugeFreeErrors(encoder.n_rings, exact.points, encoder.degree).to(device)
    encoder.to(device).train()
    optimizer = torch.optim.AdamW(
        encoder.parameters(),
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
    )
    validation = draw_problems(training, training.validation_size, (VALIDATION,), exact)
    state = kept.state
    if not state:
        family = draw_problems(training, training.validation_size, (FAMILY,), exact)
        encoder.standardise(family.first, family.second, family.power_error)
        step, best, best_at, best_weights = 0, math.inf, 0, _copy(encoder)
    else:
        encoder.load_state_dict(state["encoder"])
        optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        step, best, best_at = state["step"], state["best"], state["best_at"]
        best_weights = state["best_weights"]
    late = training.patience * training.validate_every
    while step < training.n_steps and step - best_at < late:
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * warm_cosine(step, training.n_steps)
        problems = draw_problems(training, training.batch_size, (TRAINING, step), exact)
        optimizer.zero_grad()
        volume, density, _ = evaluate(encoder, problems, errors)
        (volume + density).mean().backward()
        norm = nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()
        step += 1
        if step % training.validate_every and step < training.n_steps:
            continue
        told = _validate(encoder, validation, errors, step, training.n_steps, best)
        if told.best < best:
            best, best_at, best_weights = told.best, step, _copy(encoder)
        kept.state = {
            "encoder": _copy(encoder),
            "optimizer": copy.deepcopy(optimizer.state_dict()),
            "step": step,
            "best": best,
            "best_at": best_at,
            "best_weights": best_weights,
        }
        kept.write_now_and_then()
        if status is not None and status(told):
            break
    kept.write()
    encoder.load_state_dict(best_weights)
    encoder.eval()
    return best


def evaluate(
    encoder: StartEncoder, problems: Problems, errors: GaugeFreeErrors
) -> tuple[Tensor, Tensor, Tensor]:
    """
    :param encoder: The encoder.
    :param problems: Problems.
    :param errors: How answers are judged.
    :return: What `errors` says of the encoder's answers.
    """
    found = encoder(problems.first, problems.second, problems.power_error)
    return errors((problems.volumes, problems.densities), found)


@torch.no_grad()
def _validate(encoder, problems, errors, step, n_steps, best) -> TrainingStatus:
    encoder.eval()
    volume, density, alike = evaluate(encoder, problems, errors)
    encoder.train()
    volume_error, divergence = volume.mean().item(), density.mean().item()
    value = volume_error + divergence
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the validation loss became {value}; lower the learning rate"
        )
    correlations = tuple(alike.mean(0).tolist())
    return TrainingStatus(
        step, n_steps, volume_error, divergence, correlations, min(best, value)
    )


def _copy(encoder: nn.Module) -> dict:
    return copy.deepcopy(encoder.state_dict())
