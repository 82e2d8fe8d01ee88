"""The optimisation loop."""

from __future__ import annotations

import copy
from collections import deque
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
CONVERGED = 1e-5
# Of `minimise_batch`: pairs kept, length of the first step, Armijo's constant, and the
# least curvature of a pair that is kept.
BATCH_HISTORY, FIRST_STEP, ARMIJO, LEAST_CURVATURE = 20, 0.1, 1e-4, 1e-10


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


def minimise_batch(
    objective: Callable[[Tensor], Tensor],
    x: Tensor,
    n_steps: int,
    enough: Callable[[Tensor], bool] = lambda losses: False,
) -> tuple[Tensor, Tensor]:
    """
    Minimise one function from several starts at once by L-BFGS (Nocedal & Wright 2006,
    algorithm 7.4). Every start has a line search of its own: where a step does not meet
    Armijo's condition, a shorter one is tried at the next evaluation, at which the
    other starts go on.

    :param objective: Function from points (n_starts, n) to losses (n_starts,), each of
        its own point. A loss that is not finite counts as a step too long.
    :param x: Starts (n_starts, n).
    :param n_steps: Number of evaluations, at most.
    :param enough: Function of the lowest losses so far (n_starts,): whether to stop.
    :return: The best points (n_starts, n) and their losses (n_starts,).
    """

    def evaluated(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        losses = objective(x)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
        return losses.detach(), gradient

    def where(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(rows[:, None], a, b)

    losses, gradient = evaluated(x)
    direction = -FIRST_STEP * gradient / gradient.norm(dim=1, keepdim=True)
    size, zero = torch.ones_like(losses), torch.zeros_like(x)
    memory: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=BATCH_HISTORY)
    for _ in range(n_steps):
        if enough(losses):
            break
        trial = x + size[:, None] * direction
        new_losses, new_gradient = evaluated(trial)
        slope = (gradient * direction).sum(1)
        accepted = new_losses <= losses + ARMIJO * size * slope
        accepted &= new_losses.isfinite()
        step = where(accepted, trial - x, zero)
        change = where(accepted, new_gradient - gradient, zero)
        curvature = (step * change).sum(1)
        convex = curvature > LEAST_CURVATURE * (change**2).sum(1)
        inverse = torch.where(convex, 1 / curvature, 0)
        memory.append((where(convex, step, zero), where(convex, change, zero), inverse))
        # The minimum of the parabola through both losses and the slope.
        parabola = -slope * size**2 / (2 * (new_losses - losses - slope * size))
        shorter = torch.where(parabola.isfinite(), parabola, 0)
        shorter = shorter.clamp(min=0.1 * size, max=0.5 * size)
        x, gradient = where(accepted, trial, x), where(accepted, new_gradient, gradient)
        losses = torch.where(accepted, new_losses, losses)
        direction = where(accepted, _lbfgs_direction(gradient, memory), direction)
        size = torch.where(accepted, 1, shorter)
    return x, losses


def _lbfgs_direction(gradient: Tensor, memory: deque) -> Tensor:
    """The two-loop recursion, for a batch. Pairs left out have an inverse of 0."""
    q, coefficients = gradient, []
    for step, change, inverse in reversed(memory):
        coefficients.append(inverse * (step * q).sum(1))
        q = q - coefficients[-1][:, None] * change
    scale = torch.ones_like(q[:, 0])
    for _, change, inverse in memory:  # the latest pair counts
        squares = inverse * (change**2).sum(1)
        scale = torch.where(squares > 0, 1 / squares, scale)
    q = q * scale[:, None]
    for (step, change, inverse), a in zip(memory, reversed(coefficients), strict=True):
        q = q + (a - inverse * (change * q).sum(1))[:, None] * step
    return -q
