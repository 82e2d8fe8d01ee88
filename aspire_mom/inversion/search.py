"""The search for the best volume: many starts, frequency marching and growth."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import NamedTuple

import torch
from aspire.utils import tqdm
from torch import Tensor, nn

from aspire_mom.checkpoints import Checkpoint
from aspire_mom.checks import check_choice, check_integer
from aspire_mom.inversion.cartesian import CartesianLoss
from aspire_mom.inversion.forward import MAX_SHIFT_STD, CartesianForward, PolarForward
from aspire_mom.inversion.loss import MomentLoss
from aspire_mom.inversion.optimise import (
    Optimizer,
    OptimizerStatus,
    StatusCallback,
    minimise,
)
from aspire_mom.networks import MomentEncoder
from aspire_mom.processes import is_first
from aspire_mom.volumes import FourierVolume, GaussianMixture

# Default number of random starts of each volume model.
N_STARTS = {"gaussians": 16, "grid": 64, "fouriernet": 1, "harmonics": 4}
STEPS = {"lbfgs": 400, "adam": 1000}
SURVIVORS = 4
STEPS_PER_LEVEL = 80
# Scale of the parameter shift_std, in box lengths, chosen so that optimizer steps are
# comparable with those of other parameters; and its initial value, in box lengths (1
# pixel in a box of 50).
SHIFT_UNIT = 0.1
FIRST_SHIFT_STD = 0.02


@dataclass(frozen=True)
class SearchOptions:
    """
    How to search for the best volume and density.

    :param n_starts: Number of starts; by default 16 for Gaussians, 64 for a grid, 4 for
        harmonics, else 1.
    :param n_steps: Steps of the last refinement of each start; by default 400 of L-BFGS
        or 1,000 of Adam. For a grid, three times those of a round of averages.
    :param optimizer: "lbfgs" or "adam"; by default Adam for networks, else L-BFGS.
    :param learning_rates: Adam's learning rates, each for an equal share of the steps.
    :param max_gaussians: Largest number of Gaussians in a mixture.
    :param seed: Seed of the first start; the others have the seeds that follow.
    :raises ValueError: An option is out of range.
    """

    n_starts: int | None = None
    n_steps: int | None = None
    optimizer: Optimizer | None = None
    learning_rates: tuple[float, ...] = (2e-3, 2e-4)
    max_gaussians: int = 64
    seed: int = 0

    def __post_init__(self):
        for name in ("n_starts", "n_steps", "max_gaussians", "seed"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), int(name != "seed"))
        check_choice("optimizer", self.optimizer, STEPS)
        rates = self.learning_rates
        if not rates or not all(0 < rate < math.inf for rate in rates):
            raise ValueError(
                f"learning_rates are {rates}; there must be at least one, all positive"
            )


class LevelProblem(NamedTuple):
    """
    One level of the search.

    :param forward: Map from (volume, probabilities) to moments.
    :param loss: Distance of moments from the estimates.
    :param n_rings: Number of rings in use.
    :param estimates: All estimated moments, for encoders; empty if there are none.
    """

    forward: PolarForward | CartesianForward
    loss: MomentLoss | CartesianLoss
    n_rings: int
    estimates: tuple[Tensor, ...]

    def objective(
        self, volume: FourierVolume, density: nn.Module, shift_std: Tensor | None = None
    ) -> Tensor:
        """
        :param volume: Volume model.
        :param density: Density model.
        :param shift_std: Standard deviation of shifts, pixels, where it is unknown.
        :return: The loss; where that is −2 log-likelihood, the density's penalty is
            added.
        """
        probabilities = self.probabilities(volume, density)
        if isinstance(self.loss, CartesianLoss):
            value = self.loss(self.forward.slices(volume), probabilities)
        else:
            value = self.loss(*self.forward(volume, probabilities, shift_std))
        if self.loss.weighting == "noise" and hasattr(density, "penalty"):
            value = value + density.penalty()
        return value

    def probabilities(self, volume: FourierVolume, density: nn.Module) -> Tensor:
        """
        :param volume: Volume model; if it has an encoder, its latent variable is set.
        :param density: Density model.
        :return: Probabilities of the nodes (n,).
        :raises ValueError: There is not one probability per node.
        """
        if getattr(volume, "encoder", None) is not None:
            volume.encode(*self.estimates)
        encoded = isinstance(density, MomentEncoder)
        probabilities = density(*self.estimates) if encoded else density()
        shape, n_nodes = tuple(probabilities.shape), self.forward.n_nodes
        if shape != (n_nodes,):
            raise ValueError(
                f"probabilities have shape {shape}; the quadrature has {n_nodes} nodes"
            )
        return probabilities


class Candidate(nn.Module):
    """
    One start of the search and its progress.

    :param seed: Seed of its random volume.
    :param volume: Volume model.
    :param density: Density model.
    :param find_shift_std: Whether to find the standard deviation of the images' shifts.
    """

    #: Loss on the last level so far. Where the loss is −2 log posterior, the criterion
    #: is Akaike's, loss + 2 p for p parameters of the volume; otherwise it is the loss.
    loss = criterion = math.inf

    def __init__(
        self, seed: int, volume: FourierVolume, density: nn.Module, find_shift_std: bool
    ):
        super().__init__()
        self.seed, self.volume, self.density = seed, volume, density
        first = torch.tensor(FIRST_SHIFT_STD / SHIFT_UNIT)
        self.shift_std = nn.Parameter(first) if find_shift_std else None
        #: Stages so far: dicts of stage, n_rings, loss and criterion.
        self.history: list[dict] = []

    def shift_pixels(self, L: int) -> Tensor | None:
        """
        :param L: Pixels along an edge.
        :return: Standard deviation of the images' shifts, pixels, if it is unknown.
        """
        return None if self.shift_std is None else SHIFT_UNIT * L * self.shift_std.abs()


def _schedule(n_starts: int, n_levels: int) -> list[int]:
    """
    Return how many candidates are refined on each level, and how many to the end. The
    first rings say little about a start, so all starts reach the second level. Each
    later level drops the worse half. On the last level the count is 0 if the same
    candidates are refined to the end.
    """
    counts = [n_starts] * min(n_levels, 2)
    while len(counts) < n_levels:
        counts.append(min(counts[-1], max(SURVIVORS, counts[-1] // 2)))
    last = counts.pop()
    return [*counts, last if last > SURVIVORS else 0, min(SURVIVORS, last)]


class Search(NamedTuple):
    """
    A search by many starts, frequency marching and growth.

    :param options: Options of the search, without None.
    :param status: Status callback.
    :param checkpoint: Where progress is kept.
    """

    options: SearchOptions
    status: StatusCallback | None
    checkpoint: Checkpoint

    def run(
        self, candidates: list[Candidate], problems: list[LevelProblem]
    ) -> list[Candidate]:
        """
        Refine all starts level by level, keep fewer from each level to the next and
        refine the last few to the end. Gaussian mixtures grow on each level but the
        first.

        :param candidates: The starts.
        :param problems: The levels, coarse to fine.
        :return: The candidates that were refined to the end, best first.
        """
        *counts, n_finished = _schedule(len(candidates), len(problems))
        levels = zip(problems, counts, strict=True)
        stages = [(*level, "", STEPS_PER_LEVEL) for level in levels if level[1]]
        end = (problems[-1], n_finished, ", to the end", self.options.n_steps)
        stages.append(end)
        total, criterion = sum(counts) + n_finished, attrgetter("criterion")
        with tqdm(desc="inversion", total=total, disable=not is_first()) as bar:
            for i, (problem, count, label, n_steps) in enumerate(stages):
                candidates = candidates[:count]
                for candidate in candidates:
                    self.refine(candidate, problem, label, n_steps)
                    bar.set_postfix_str(candidate.history[-1]["stage"])
                    bar.update()
                candidates.sort(key=criterion)
                # The first rings say as little about sizes as about starts. On the last
                # level, mixtures grow after the refinement to the end.
                if label or (i and problem is not problems[-1]):
                    n_kept = stages[i + 1][1] if stages[i + 1 :] else count
                    candidates = [self._grown(c, problem) for c in candidates[:n_kept]]
        return sorted(candidates, key=criterion)

    def refine(
        self, candidate: Candidate, problem: LevelProblem, label: str, n_steps: int
    ) -> None:
        """
        Minimise a candidate's loss on one level, or read the checkpoint's result.

        :param candidate: The candidate, changed in place.
        :param problem: The level.
        :param label: End of the stage's name.
        :param n_steps: Number of steps.
        """
        volume, density = candidate.volume, candidate.density
        shift_std, states = candidate.shift_std, self.checkpoint.state
        stage = f"start {candidate.seed}, {problem.n_rings} rings"
        if isinstance(volume, GaussianMixture):
            stage += f", {len(volume)} Gaussians"
        stage += label

        def keep(more: dict) -> None:
            states[stage] = {"models": copy.deepcopy(candidate.state_dict()), **more}
            self.checkpoint.write_now_and_then()

        def status(now: OptimizerStatus) -> bool | None:
            return self.status(replace(now, volume=volume, density=density))

        begun = states.get(stage)
        if begun is not None:
            candidate.load_state_dict(begun["models"])
        elif shift_std is not None:
            # The gradient with respect to shift_std vanishes at 0, as moments depend on
            # its square, and where shifts are so large that only the innermost rings
            # survive. The previous level may have ended at either, so clamp it.
            least, most = FIRST_SHIFT_STD / SHIFT_UNIT, MAX_SHIFT_STD / SHIFT_UNIT
            shift_std.data.abs_().clamp_(least, most)
        if begun is not None and "optimizer" not in begun:  # finished
            candidate.loss = begun["loss"]
        else:
            candidate.loss = minimise(
                lambda: problem.objective(
                    volume, density, candidate.shift_pixels(problem.forward.L)
                ),
                candidate.parameters(),
                method=self.options.optimizer,
                n_steps=n_steps,
                learning_rates=self.options.learning_rates,
                stage=stage,
                status=self.status and status,
                state=begun,
                save=keep if self.checkpoint.path else None,
                split=volume.parameters(),
            )
            keep({"loss": candidate.loss})
        candidate.criterion = candidate.loss
        if problem.loss.weighting == "noise":
            candidate.criterion += 2 * sum(p.numel() for p in volume.parameters())
        values = {"loss": candidate.loss, "criterion": candidate.criterion}
        candidate.history.append({"stage": stage, "n_rings": problem.n_rings, **values})

    def _grown(self, candidate: Candidate, problem: LevelProblem) -> Candidate:
        """Split Gaussians of a mixture while the criterion falls; return the best."""
        if not isinstance(candidate.volume, GaussianMixture):
            return candidate
        most = self.options.max_gaussians
        while (n := len(candidate.volume)) < most:
            larger = copy.deepcopy(candidate)
            larger.volume = candidate.volume.grown(min(max(1, n // 2), most - n), n)
            self.refine(larger, problem, ", grown", STEPS_PER_LEVEL)
            if larger.criterion >= candidate.criterion:
                break
            candidate = larger
        return candidate
