"""Training of networks: one loop for all of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from aspire_mom.checkpoints import Checkpoint
from aspire_mom.checks import check_integer, check_positive

# Steps of the linear warm-up of the learning rate; at most a tenth of all steps.
WARM_UP_STEPS = 200
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class TrainingSettings:
    """
    Settings of the optimiser. Subclasses add settings of the training data.

    :param n_steps: Steps; after a warm-up the learning rate falls to 0 as a cosine.
    :param batch_size: Problems in a step.
    :param learning_rate: Peak learning rate of AdamW.
    :param weight_decay: Weight decay of AdamW.
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
    Minimise a loss over a network's parameters by AdamW, with gradients clipped to norm
    1. The network ends in evaluation mode, with the parameters of the best validation.
    Interruptions change nothing if `loss` depends on network and step only.

    :param network: The network, on the device to use. Its `settings` identify it.
    :param training: Settings of the training.
    :param loss: Function of a step's number that returns the loss of its problems.
    :param validate: Loss over the validation's problems, and other errors by name;
        called without gradients, the network in evaluation mode.
    :param checkpoint: File that keeps the state; training goes on from an existing one.
    :param status: Called after each validation; returning True stops.
    :return: The best validation loss.
    :raises InvalidCheckpoint: the checkpoint is damaged or of other training.
    :raises FloatingPointError: a validation loss is infinite or NaN.
    """
    fingerprint = {k: str(v) for k, v in asdict(training).items()}
    fingerprint["network"] = f"{type(network).__name__} {network.settings}"
    saved = Checkpoint(checkpoint, fingerprint)
    decay = training.weight_decay
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=decay)
    n_steps, step, best, best_at = training.n_steps, 0, math.inf, 0
    best_network = copy.deepcopy(network.state_dict())
    if saved.state:
        network.load_state_dict(saved.state["network"])
        # A copy, because the optimiser changes its state in place.
        optimizer.load_state_dict(copy.deepcopy(saved.state["optimizer"]))
        best_network = saved.state["best_network"]
        step, best, best_at = (saved.state[k] for k in ("step", "best", "best_at"))
    network.train()
    patience = training.patience * training.validate_every
    while step < n_steps and step - best_at < patience:
        warm_up = min(1.0, (step + 1) / min(WARM_UP_STEPS, n_steps / 10))
        cosine = 0.5 * (1 + math.cos(math.pi * step / n_steps))
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * warm_up * cosine
        optimizer.zero_grad()
        loss(step).backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
        # Skip a step in which one problem among millions overflows single precision.
        if torch.isfinite(norm):
            optimizer.step()
        step += 1
        if step % training.validate_every and step < n_steps:
            continue
        network.eval()
        with torch.no_grad():
            value, errors = validate()
        network.train()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the validation loss became {value}; lower the learning rate"
            )
        if value < best:
            best, best_at = value, step
            best_network = copy.deepcopy(network.state_dict())
        saved.state = {"step": step, "best": best, "best_at": best_at} | {
            "network": copy.deepcopy(network.state_dict()),
            "optimizer": copy.deepcopy(optimizer.state_dict()),
            "best_network": best_network,
        }
        saved.write_now_and_then()
        if status and status(TrainingStatus(step, n_steps, value, best, errors)):
            break
    saved.write()
    network.load_state_dict(best_network)
    network.eval()
    return best
