"""The optimisation loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from aspire.utils import tqdm
from torch import Tensor

from aspire_mom.processes import broadcast_object, combine_gradients, is_first
from aspire_mom.volumes import FourierVolume

Optimizer = Literal["lbfgs", "adam"]
LBFGS_STEPS_PER_REPORT = 20
ADAM_STEPS_PER_REPORT = 50
# L-BFGS has converged where a report's steps lower the loss by less than this.
CONVERGED = 1e-6


@dataclass(frozen=True)
class OptimizerStatus:
    """
    Progress, as a status callback receives it.

    :param stage: Name of the start and the stage of the search.
    :param step: Number of steps done in this stage.
    :param n_steps: Largest number of steps in this stage.
    :param loss: The loss.
    :param volume: The volume model; do not change it.
    :param density: The density model; do not change it.
    """

    stage: str
    step: int
    n_steps: int
    loss: float
    volume: FourierVolume | None = None
    density: torch.nn.Module | None = None


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
    split: Iterable[torch.nn.Parameter] = (),
) -> float:
    """
    Minimise by L-BFGS with strong Wolfe line searches, or by Adam with each of the
    learning rates for an equal share of the steps (section 5.2).

    :param objective: Function that returns the loss, a real scalar.
    :param parameters: Parameters to optimise.
    :param method: "lbfgs" or "adam".
    :param n_steps: Number of steps.
    :param learning_rates: Adam's learning rates in turn.
    :param stage: Name of this stage, for the status.
    :param status: Called every few steps; returning True stops.
    :param state: A state that `save` received, to resume from.
    :param save: Called every few steps with a state to resume from.
    :param split: Parameters of a model that each process evaluates in part (see
        :func:`combine_gradients`).
    :return: The final loss.
    :raises StoppedByUser: `status` returned True; the parameters keep their values.
    :raises FloatingPointError: The loss is not finite.
    """
    parameters, split = list(parameters), list(split)
    same = [p for p in parameters if not any(p is q for q in split)]
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

    def evaluate() -> Tensor:
        loss = objective()
        # A line search would go on from NaN to infinitely long steps.
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss.item()} in stage {stage!r}; lower the learning"
                " rate"
            )
        return loss

    @torch.no_grad()
    def value() -> float:
        return broadcast_object(float(evaluate()))

    def closure() -> float:
        optimizer.zero_grad()
        loss = evaluate()
        loss.backward()
        combine_gradients(split, same)
        return broadcast_object(float(loss.detach()))

    # The optimiser changes its state in place; copies keep the saved one as it is.
    if state is None:
        step, loss = 0, value()
    else:
        optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        step, loss = state["step"], state["loss"]
    group, quiet = optimizer.param_groups[0], lbfgs or not is_first()
    with tqdm(
        total=n_steps, initial=step, desc=stage, leave=False, disable=quiet
    ) as bar:
        while step < n_steps:
            before, block = loss, min(every, n_steps - step)
            if lbfgs:
                group["max_iter"] = block
                optimizer.step(closure)
            else:
                for i in range(step, step + block):
                    group["lr"] = learning_rates[i * len(learning_rates) // n_steps]
                    optimizer.step(closure)
            step, loss = step + block, value()
            bar.set_postfix_str(f"loss {loss:.4g}")
            bar.update(block)
            if lbfgs and before - loss < CONVERGED * abs(loss):
                step = n_steps
            if save is not None:
                kept = copy.deepcopy(optimizer.state_dict())
                save({"optimizer": kept, "step": step, "loss": loss})
            stop = status and status(OptimizerStatus(stage, step, n_steps, loss))
            if broadcast_object(bool(stop)):
                raise StoppedByUser(stage)
    return loss
