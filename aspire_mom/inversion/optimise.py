"""The optimisation loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Optimizer = Literal["lbfgs", "adam"]
LBFGS_STEPS_PER_REPORT = 20
ADAM_STEPS_PER_REPORT = 50


@dataclass(frozen=True)
class OptimizerStatus:
    """
    What a status callback is told.

    :param stage: Which start and stage of the search this is.
    :param step: Steps done in this stage.
    :param n_steps: Steps that the stage may take.
    :param loss: Loss after them.
    """

    stage: str
    step: int
    n_steps: int
    loss: float


StatusCallback = Callable[[OptimizerStatus], bool | None]


class StoppedByUser(Exception):
    """A status callback returned True."""


def minimise(
    objective: Callable[[], Tensor],
    parameters: Iterable[torch.nn.Parameter],
    *,
    method: Optimizer,
    n_steps: int,
    learning_rates: tuple[float, ...] = (1e-3, 1e-4),
    stage: str = "",
    status: StatusCallback | None = None,
    state: dict | None = None,
    save: Callable[[dict], None] | None = None,
) -> float:
    """
    Minimise by L-BFGS with strong Wolfe line searches, or by Adam with the learning
    rates in turn, each for an equal share of the steps (section 5.2).

    :param objective: Loss of the parameters as they are, a real scalar.
    :param parameters: What to change.
    :param method: "lbfgs" or "adam".
    :param n_steps: Number of steps.
    :param learning_rates: Adam's schedule.
    :param stage: Name of this stage, for the status.
    :param status: Called every few steps; returning True stops.
    :param state: What `save` was given, to go on from there.
    :param save: Called with a resumable state every few steps.
    :return: The loss at the end.
    :raises StoppedByUser: `status` returned True; the parameters keep their values.
    :raises FloatingPointError: the loss is not finite.
    """
    parameters = list(parameters)
    lbfgs = method == "lbfgs"
    every = LBFGS_STEPS_PER_REPORT if lbfgs else ADAM_STEPS_PER_REPORT
    if lbfgs:
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=every,
            max_eval=2 * every,
            history_size=30,
            line_search_fn="strong_wolfe",
            tolerance_grad=0,
            tolerance_change=1e-9,
        )
    else:
        optimizer = torch.optim.Adam(parameters, lr=learning_rates[0])
    step = 0
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    loss = float("inf")
    while step < n_steps:
        if lbfgs:
            before, loss = loss, float(optimizer.step(closure))
            step += every
            if before - loss < 1e-6 * abs(loss):
                step = n_steps
        else:
            for _ in range(min(every, n_steps - step)):
                share = step * len(learning_rates) // n_steps
                optimizer.param_groups[0]["lr"] = learning_rates[share]
                loss = optimizer.step(closure)
                step += 1
            loss = float(loss)
        if loss != loss or loss == float("inf"):
            raise FloatingPointError(
                f"the loss became {loss} in stage {stage!r}; lower the learning rate"
            )
        if save is not None:
            save({"optimizer": optimizer.state_dict(), "step": step})
        if status and status(OptimizerStatus(stage, min(step, n_steps), n_steps, loss)):
            raise StoppedByUser(stage)
    with torch.no_grad():
        return float(objective())
