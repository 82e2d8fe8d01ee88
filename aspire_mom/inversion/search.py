"""Many starts, frequency marching and growth: how the inversion avoids local optima."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from aspire_mom.files import Checkpoint
from aspire_mom.inversion.cartesian import CartesianLoss
from aspire_mom.inversion.forward import (
    WIDEST_SHIFTS,
    CartesianForward,
    PolarForward,
)
from aspire_mom.inversion.loss import MomentLoss
from aspire_mom.inversion.optimise import OptimizerStatus, StatusCallback, minimise
from aspire_mom.inversion.options import SearchOptions
from aspire_mom.networks import MomentEncoder
from aspire_mom.volumes import FourierVolume, GaussianMixture

FIRST_RINGS = 4
MARCH = 1.35
SURVIVORS = 4
STEPS_PER_LEVEL = 80
# Unit in boxes of the shifts' standard deviation as a parameter, in which steps as long
# as those of other parameters suit it, and where it starts: at 1 pixel of a box of 50.
SHIFT_UNIT = 0.1
FIRST_SHIFT_STD = 0.02


@dataclass(frozen=True)
class Problem:
    """
    One level of the march: the forward model and the loss over a number of rings.

    :param forward: Map from (volume, probabilities) to moments.
    :param loss: Distance of moments from the estimates.
    :param n_rings: Rings in use (of a Cartesian basis, all).
    :param estimates: The whole estimated moments where there is an encoder.
    """

    forward: PolarForward | CartesianForward
    loss: MomentLoss | CartesianLoss
    n_rings: int
    estimates: tuple[Tensor, ...] = ()

    def objective(
        self,
        volume: FourierVolume,
        density: torch.nn.Module,
        shift_std: Tensor | None = None,
    ) -> Tensor:
        """
        :param volume: Volume model.
        :param density: Density model.
        :param shift_std: Standard deviation of the images' shifts, in `SHIFT_UNIT`
            boxes, where the forward model leaves it open.
        :return: The loss, with the density's penalty where it is −2 log-likelihood.
        """
        self.encode(volume)
        probabilities = self.probabilities(density)
        if isinstance(self.loss, CartesianLoss):
            value = self.loss(self.forward.slices(volume), probabilities)
        else:
            if shift_std is not None:
                shift_std = shift_std * SHIFT_UNIT * self.forward.L
            value = self.loss(*self.forward(volume, probabilities, shift_std))
        if self.loss.weighting == "noise" and hasattr(density, "penalty"):
            value = value + density.penalty()
        return value

    def encode(self, volume: FourierVolume) -> None:
        """Give a volume with an encoder its latent variable."""
        if getattr(volume, "encoder", None) is not None:
            volume.encode(*self.estimates)

    def probabilities(self, density: torch.nn.Module) -> Tensor:
        """Probabilities of the nodes; an encoder is given the estimated moments."""
        if isinstance(density, MomentEncoder):
            return density(*self.estimates)
        return density()

    def criterion(self, loss: float, volume: FourierVolume) -> float:
        """
        Akaike's information criterion, loss + 2 p with p the number of the volume's
        parameters, where the loss is −2 log posterior; else the loss. Lower is better:
        it estimates which model would predict new images best. It sees moments only,
        never a reference.
        """
        if self.loss.weighting != "noise":
            return loss
        return loss + 2 * sum(p.numel() for p in volume.parameters())


@dataclass
class Candidate:
    """
    One start of the search, as far as it has come.

    :param seed: Seed of its random start.
    :param volume: Volume model.
    :param density: Density model.
    :param shift_std: Standard deviation of the images' shifts where it is to be found,
        in `SHIFT_UNIT` boxes, of either sign: moments depend on its square.
    :param loss: Loss at its last level.
    :param criterion: :meth:`Problem.criterion` at its last level.
    :param history: Stages so far: dicts of stage, n_rings, loss and criterion.
    """

    seed: int
    volume: FourierVolume
    density: torch.nn.Module
    shift_std: torch.nn.Parameter | None = None
    loss: float = math.inf
    criterion: float = math.inf
    history: list[dict] = field(default_factory=list)

    def label(self, n_rings: int) -> str:
        """A stage's name."""
        size = ""
        if isinstance(self.volume, GaussianMixture):
            size = f", {len(self.volume)} Gaussians"
        return f"start {self.seed}, {n_rings} rings{size}"


@dataclass(frozen=True)
class Plan:
    """
    How to refine.

    :param options: Options of the search, with no default left open.
    :param status: Status callback.
    :param checkpoint: Where progress is kept.
    """

    options: SearchOptions
    status: StatusCallback | None
    checkpoint: Checkpoint


def march_levels(n_rings: int) -> list[int]:
    """Numbers of rings to solve for in turn: 4, 6, 9, … up to `n_rings`."""
    levels = [min(FIRST_RINGS, n_rings)]
    while levels[-1] < n_rings:
        levels.append(min(math.ceil(MARCH * levels[-1]), n_rings))
    return levels


def survivors(n_candidates: int, level: int, n_levels: int) -> int:
    """
    How many candidates outlive a level. The first rings tell little, so all do; later
    levels drop the worse half, the last one all but a few.
    """
    if level == n_levels - 1:
        return min(SURVIVORS, n_candidates)
    if level == 0:
        return n_candidates
    return min(n_candidates, max(SURVIVORS, n_candidates // 2))


def n_refinements(n_starts: int, n_levels: int) -> int:
    """Pieces of work that :func:`search` reports to `advance`."""
    total, n = 0, n_starts
    for level in range(n_levels):
        if level == n_levels - 1 and n <= SURVIVORS:
            break
        total += n
        n = survivors(n, level, n_levels)
    return total + n


def refine(
    candidate: Candidate, problem: Problem, plan: Plan, *, stage: str, n_steps: int
) -> Candidate:
    """
    Minimise a candidate's loss on one level, or take the result from the checkpoint.

    :param candidate: The candidate, changed in place.
    :param problem: The level.
    :param plan: How to refine.
    :param stage: Name of the stage, unique in the search.
    :param n_steps: Steps.
    :return: The candidate.
    """
    checkpoint, volume, density = plan.checkpoint, candidate.volume, candidate.density
    shift_std = candidate.shift_std
    shifts = [] if shift_std is None else [shift_std]

    def restore(state: dict) -> None:
        volume.load_state_dict(state["volume"])
        density.load_state_dict(state["density"])
        for now, then in zip(shifts, state["shifts"], strict=True):
            now.data.copy_(then)

    def keep(more: dict) -> None:
        states = {"volume": volume.state_dict(), "density": density.state_dict()}
        states["shifts"] = [s.detach() for s in shifts]
        checkpoint.state[stage] = {**copy.deepcopy(states), **more}
        checkpoint.write_now_and_then()

    def status(now: OptimizerStatus) -> bool | None:
        return plan.status(replace(now, volume=volume, density=density))

    begun = checkpoint.state.get(stage)
    if begun is not None:
        restore(begun)
    else:
        # No step leads away from 0, or back from where all but the innermost ring has
        # vanished, where the last level may have brought it.
        for now in shifts:
            now.data.abs_().clamp_(
                FIRST_SHIFT_STD / SHIFT_UNIT, WIDEST_SHIFTS / SHIFT_UNIT
            )
    if begun is not None and "optimizer" not in begun:  # finished
        candidate.loss = begun["loss"]
    else:
        candidate.loss = minimise(
            lambda: problem.objective(volume, density, shift_std),
            [*volume.parameters(), *density.parameters(), *shifts],
            method=plan.options.optimizer,
            n_steps=n_steps,
            learning_rates=plan.options.learning_rates,
            stage=stage,
            status=plan.status and status,
            state=begun,
            save=keep,
            split=volume.parameters(),
        )
        keep({"loss": candidate.loss})
    candidate.criterion = problem.criterion(candidate.loss, volume)
    candidate.history.append(
        {
            "stage": stage,
            "n_rings": problem.n_rings,
            "loss": candidate.loss,
            "criterion": candidate.criterion,
        }
    )
    return candidate


def grow(candidate: Candidate, problem: Problem, plan: Plan) -> Candidate:
    """
    Split the Gaussians of a `GaussianMixture` for as long as the criterion falls; other
    volumes stay as they are.

    :param candidate: The candidate.
    :param problem: The level.
    :param plan: How to refine.
    :return: The best candidate, the one given if none is better.
    """
    if not isinstance(candidate.volume, GaussianMixture):
        return candidate
    most = plan.options.max_gaussians
    while (n := len(candidate.volume)) < most:
        larger = replace(
            candidate,
            volume=candidate.volume.grown(min(max(1, n // 2), most - n), n),
            density=copy.deepcopy(candidate.density),
            shift_std=copy.deepcopy(candidate.shift_std),
            history=list(candidate.history),
        )
        stage = larger.label(problem.n_rings) + ", grown"
        refine(larger, problem, plan, stage=stage, n_steps=STEPS_PER_LEVEL)
        if larger.criterion >= candidate.criterion:
            break
        candidate = larger
    return candidate


def search(
    candidates: list[Candidate],
    problems: list[Problem],
    plan: Plan,
    advance: Callable[[str], None],
) -> list[Candidate]:
    """
    Refine all starts level by level, keeping fewer from each to the next
    (:func:`survivors`); the last few are refined to the end. Gaussian mixtures grow on
    each level.

    :param candidates: The starts.
    :param problems: The levels, coarse to fine.
    :param plan: How to refine.
    :param advance: Called with the name of each finished piece of work.
    :return: The candidates that reached the last level, best first.
    """
    for level, problem in enumerate(problems):
        last = level == len(problems) - 1
        if last and len(candidates) <= SURVIVORS:
            break
        for candidate in candidates:
            stage = candidate.label(problem.n_rings)
            refine(candidate, problem, plan, stage=stage, n_steps=STEPS_PER_LEVEL)
            advance(stage)
        candidates = sorted(candidates, key=lambda c: c.criterion)
        candidates = candidates[: survivors(len(candidates), level, len(problems))]
        if not last:
            candidates = [grow(c, problem, plan) for c in candidates]
    finished = []
    for candidate in candidates:
        stage = candidate.label(problem.n_rings) + ", to the end"
        refine(candidate, problem, plan, stage=stage, n_steps=plan.options.n_steps)
        finished.append(grow(candidate, problem, plan))
        advance(stage)
    return sorted(finished, key=lambda c: c.criterion)
