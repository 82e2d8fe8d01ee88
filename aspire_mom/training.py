"""Training of networks: one loop for all of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from aspire_mom.checks import check_integer, check_positive
from aspire_mom.files import Checkpoint

# Steps in which the learning rate rises, or a tenth of all.
WARM_UP = 200
LARGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class TrainingSettings:
    """
    Settings of a training. Subclasses add settings of its problems.

    :param n_steps: Steps, over which the learning rate falls to 0 as a cosine.
    :param batch_size: Problems in a step.
    :param learning_rate: Adam's highest learning rate.
    :param weight_decay: Adam's (decoupled) weight decay.
    :param validate_every: Steps between validations.
    :param validation_size: Problems in a validation.
    :param patience: Validations without a new best after which training stops.
    :param seed: Seed of all problems.
    :raises ValueError: a number is out of range.
    """

    n_steps: int = 3000
    batch_size: int = 256
    learning_rate: float = 5e-4
    weight_decay: float = 1e-2
    validate_every: int = 250
    validation_size: int = 1024
    patience: int = 20
    seed: int = 0

    def __post_init__(self):
        counts = "n_steps batch_size validate_every validation_size patience"
        for name in counts.split():
            check_integer(name, getattr(self, name), 1)
        check_positive("learning_rate", self.learning_rate)


@dataclass(frozen=True)
class TrainingStatus:
    """
    State of a training after a validation, for a status callback.

    :param step: Steps done.
    :param n_steps: Steps in all.
    :param loss: Loss in this validation.
    :param best: Lowest loss of all validations so far.
    :param errors: Other errors in this validation, by name.
    """

    step: int
    n_steps: int
    loss: float
    best: float
    errors: dict[str, float]


def _warm_cosine(step: int, n_steps: int) -> float:
    """Factor of the learning rate: a linear rise, then half a cosine to 0."""
    warm = min(1.0, (step + 1) / min(WARM_UP, n_steps / 10))
    return warm * 0.5 * (1 + math.cos(math.pi * step / n_steps))


def train_network(
    network: nn.Module,
    training: TrainingSettings,
    loss: Callable[[int], Tensor],
    validate: Callable[[], tuple[float, dict[str, float]]],
    *,
    checkpoint: str | Path | None = None,
    status: Callable[[TrainingStatus], bool | None] | None = None,
) -> float:
    """
    Minimise a loss over a network's parameters by Adam, with gradients clipped to norm
    1. The network ends in evaluation mode, with the parameters of the best validation.

    Training that goes on from a checkpoint ends where uninterrupted training does, if
    `loss` depends on nothing but the network and the step's number.

    :param network: The network, on the device to use. Its `settings` identify it.
    :param training: Settings of the training.
    :param loss: Loss of the problems of a step, from the step's number.
    :param validate: Loss over the validation's problems, and other errors by name;
        called without gradients, the network in evaluation mode.
    :param checkpoint: File that keeps the state; training goes on from an existing one.
    :param status: Called after each validation; returning True stops.
    :return: The best validation loss.
    :raises ForeignCheckpoint: the checkpoint is damaged or of other training.
    """
    network_text = f"{type(network).__name__} {network.settings}"
    fingerprint = {"network": network_text, **asdict(training)}
    kept = Checkpoint(checkpoint, {k: str(v) for k, v in fingerprint.items()})
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
    )
    n_steps, step, best, best_at = training.n_steps, 0, math.inf, 0
    best_network = copy.deepcopy(network.state_dict())
    if kept.state:
        network.load_state_dict(kept.state["network"])
        # A copy, because the optimiser changes its state in place.
        optimizer.load_state_dict(copy.deepcopy(kept.state["optimizer"]))
        best_network = kept.state["best_network"]
        step, best, best_at = (kept.state[k] for k in ("step", "best", "best_at"))
    network.train()
    while (
        step < n_steps and step - best_at < training.patience * training.validate_every
    ):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * _warm_cosine(step, n_steps)
        optimizer.zero_grad()
        loss(step).backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
        # One problem among millions may overflow single precision.
        if torch.isfinite(norm):
            optimizer.step()
        step += 1
        if step % training.validate_every and step < n_steps:
            continue
        value, errors = _validate(network, validate)
        if value < best:
            best, best_at = value, step
            best_network = copy.deepcopy(network.state_dict())
        kept.state = {
            "network": copy.deepcopy(network.state_dict()),
            "optimizer": copy.deepcopy(optimizer.state_dict()),
            "step": step,
            "best": best,
            "best_at": best_at,
            "best_network": best_network,
        }
        kept.write_now_and_then()
        if status and status(TrainingStatus(step, n_steps, value, best, errors)):
            break
    kept.write()
    network.load_state_dict(best_network)
    network.eval()
    return best


@torch.no_grad()
def _validate(network: nn.Module, validate: Callable) -> tuple[float, dict]:
    network.eval()
    value, errors = validate()
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the validation loss became {value}; lower the learning rate"
        )
    network.train()
    return value, errors
