"""
The search for a `PositiveGrid` with given first, second and third moments.

Many random starts are fitted to the first few rings, all in one batch of tensors. Ring
after ring is added, and each time only the starts of lowest loss go on. Averages of
the last few are fitted, and averages of what comes of them, for several rounds. On all
rings, fits go on until the best explains the moments as well as their noise allows:
from there on, they would follow the noise. Where there are several processes, each
fits its share of the starts of a level.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations, count
from typing import NamedTuple

import numpy as np
import torch
from aspire.utils import tqdm
from torch import Tensor, nn

from aspire_mom.checkpoints import Checkpoint
from aspire_mom.inversion.grid_averages import (
    aligned_grids,
    averaged_starts,
    grid_of,
)
from aspire_mom.inversion.grid_problem import FIRST_RING, GridProblem
from aspire_mom.inversion.optimise import (
    OptimizerStatus,
    StatusCallback,
    StoppedByUser,
    minimise_batch,
)
from aspire_mom.inversion.search import Candidate, SearchOptions
from aspire_mom.inversion.start import LEAST_GRID_RINGS
from aspire_mom.moments import Moments
from aspire_mom.moments.report import ring_rms
from aspire_mom.processes import (
    all_gather_rows,
    broadcast_object,
    is_first,
    local_rows,
)
from aspire_mom.rotations import DiscreteDensity, SphericalDesign
from aspire_mom.volumes import PositiveGrid

logger = logging.getLogger(__name__)

# Per number of rings, from 3 on: the share of the starts that are fitted, steps, and
# the weight in the loss of the free gains' squares, for starts with odd seeds. Those
# with even seeds have free gains from the first level on. Either kind finds maps that
# the other does not. On the last level both are equally free, so that losses compare.
# Losses tell starts apart only once they have converged, so each level takes its time,
# save the first: ring 2 alone fits many volumes.
LEVELS = (
    (1, 80, 1.0),
    (0.75, 240, 1.0),
    (0.5, 240, 1.0),
    (0.19, 240, 1e-3),
    (0.094, 240, 1e-5),
)
FREE_WEIGHT = 1e-5
# Starts that are fitted to all rings.
FINISHED = 8
# Rounds of averaging, each of a third of `SearchOptions.n_steps`; averages in a round;
# and how many of the best FINISHED, drawn at random, each is of. Averages of only the
# very best lead back to known basins more often.
ROUNDS, AVERAGES, PARENTS = 8, 4, 3
# A round of averages is the last one if their losses, less that of noise, differ by no
# more than this share.
SAME = 0.05
# Rings at most: on 10, a step takes four times as long as on 8, and twice the memory.
MAX_RINGS = 10
# Standard deviation of the density's coefficients at the start.
DENSITY_SPREAD = 0.1
# Largest logarithm of a free gain on the rings that are left out.
MAX_LOG_GAIN = 3.0
# Least power of a coefficient, in units of its ring's, that starts are scaled to.
LEAST_POWER = 1e-3
STEPS_PER_REPORT = 20


def search_grid(
    moments: Moments,
    n_rings: int,
    density: DiscreteDensity,
    options: SearchOptions,
    *,
    support_radius: float,
    device: torch.device,
    status: StatusCallback | None,
    checkpoint: Checkpoint,
) -> list[Candidate]:
    """
    :param moments: In-plane averaged polar moments; third ones of rings, if any.
    :param n_rings: Number of rings, at least FIRST_RING + 1.
    :param density: A smooth density; the results are copies of it.
    :param options: Options of the search, without None.
    :param support_radius: Radius in boxes of a ball that holds the molecule.
    :param device: torch device.
    :param status: Status callback.
    :param checkpoint: Where finished levels are kept.
    :return: The starts that were fitted to all rings, best first; what came of averages
        takes the place of the first one if it is better.
    :raises StoppedByUser: The status callback returned True.
    :raises FloatingPointError: The losses of all starts became infinite or NaN.
    """
    seeds = list(range(options.seed, options.seed + options.n_starts))
    grid = PositiveGrid(n_rings, support_radius=support_radius)
    degree = math.isqrt(len(density.coefficients) + 1) - 1
    levels = _levels(options, n_rings)
    total = sum(n_starts * (n_steps + 1) for _, n_starts, n_steps, _ in levels)
    total += sum(_round_sizes(levels[-1][1])) * (options.n_steps // 3 + 1)
    bar = tqdm(desc="inversion", total=total, disable=not is_first())
    fits = _Fits(bar, status, checkpoint, device)
    x = losses = None
    histories: dict[int, list[dict]] = {seed: [] for seed in seeds}
    with bar, _flushed_denormals():
        for level, n_starts, n_steps, weight in levels:
            if losses is not None:
                kept = _kept(seeds, losses, n_starts)
                x, seeds = x[kept], [seeds[i] for i in kept]
            weights = [weight if seed % 2 else FREE_WEIGHT for seed in seeds]
            weights = torch.tensor(weights)[local_rows(len(seeds))]
            problem = GridProblem(moments, grid, degree, level, weights).to(device)
            x = _random_starts(problem, seeds) if x is None else x
            stage = f"grid, {level} rings"
            enough = problem.noise_loss if level == n_rings else 0.0
            x, losses = fits.fit(problem, x, n_steps, stage, enough)
            if not losses.isfinite().any():
                raise FloatingPointError(f"the loss became infinite or NaN in {stage}")
            for seed, loss in zip(seeds, losses.tolist(), strict=True):
                histories[seed].append(_entry(stage, level, loss))
        # Losses that are not finite come last.
        order = losses.argsort()[: int(losses.isfinite().sum())]
        x, losses, seeds = x[order], losses[order], [seeds[i] for i in order]
        if len(seeds) > 1:
            row, loss = _from_averages(fits, problem, x, losses, options)
            if loss < losses[0]:
                x[0], losses[0] = row, loss
                entry = _entry("grid, averages", n_rings, loss.item())
                histories[seeds[0]].append(entry)
        bar.update(bar.total - bar.n)
    candidates = []
    for seed, row, loss in zip(seeds, x, losses.tolist(), strict=True):
        candidate = Candidate(seed, *_candidate(problem, row, density), False)
        candidate.loss = candidate.criterion = loss
        candidate.history = histories[seed]
        candidates.append(candidate.to(device))
    return candidates


def _from_averages(
    fits: "_Fits",
    problem: GridProblem,
    x: Tensor,
    losses: Tensor,
    options: SearchOptions,
) -> tuple[Tensor, Tensor]:
    """Parameters and loss of the best fit, in rounds: averages of starts, which are
    given best first, are fitted, and join them. This ends once the best one reaches the
    noise, or all of a round come to the same."""
    n_starts, grids, latest = len(x), [], losses
    for i, n_averages in enumerate(_round_sizes(n_starts)):
        excess = (latest - problem.noise_loss).nan_to_num(nan=math.inf)
        same = i > 0 and len(latest) > 1 and excess.max() <= (1 + SAME) * excess.min()
        if same or excess.min() <= 0:
            break
        # The problem had as many starts as were left.
        weights = torch.full((n_averages,), FREE_WEIGHT)[local_rows(n_averages)]
        problem.gain_weights = weights.to(x.device)
        stage = f"grid, averages {i + 1}"
        starts = x[:1].expand(n_averages, -1)  # if the checkpoint has what comes of it
        if stage not in fits.checkpoint.state:
            grids = grids or aligned_grids(problem, x[:n_starts])
            # Fits stay aligned with what they started from.
            grids += [grid_of(problem, row) for row in x[len(grids) :]]
            best = losses.argsort().tolist()
            groups = list(combinations(best[:FINISHED], min(PARENTS, len(best))))
            drawn = np.random.default_rng(i).permutation(len(groups))[:n_averages]
            first = next(j for j in best if j == 0 or j >= n_starts)
            starts = averaged_starts(
                problem, grids, [groups[j] for j in drawn], x[first]
            )
        n_steps, enough = options.n_steps // 3, problem.noise_loss
        found, latest = fits.fit(problem, starts, n_steps, stage, enough)
        x, losses = torch.cat((x, found)), torch.cat((losses, latest))
    best = losses.argsort()[0]
    return x[best], losses[best]


def _round_sizes(n_starts: int) -> list[int]:
    """Number of averages in each round."""
    sizes: list[int] = []
    for _ in range(ROUNDS if n_starts > 1 else 0):
        n = n_starts + sum(sizes)
        sizes.append(min(AVERAGES, math.comb(min(n, FINISHED), min(n, PARENTS))))
    return sizes


def _entry(stage: str, n_rings: int, loss: float) -> dict:
    return {"stage": stage, "n_rings": n_rings, "loss": loss, "criterion": loss}


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Take denormal numbers as 0: weights near 0 make CPUs ten times slower."""
    tiny = torch.tensor(torch.finfo(torch.float32).tiny)
    before = (tiny / 2).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _kept(seeds: list[int], losses: Tensor, n_starts: int) -> list[int]:
    """The best of the starts with even seeds, and of those with odd ones."""
    order = [i for i in losses.argsort().tolist() if losses[i].isfinite()]
    halves = [[i for i in order if seeds[i] % 2 == odd] for odd in (0, 1)]
    return [i for half in halves for i in half[: (n_starts + 1) // 2]]


class _Fits(NamedTuple):
    """Fits of many starts at once, of which each process has its share."""

    bar: tqdm
    status: StatusCallback | None
    checkpoint: Checkpoint
    device: torch.device

    def fit(
        self,
        problem: GridProblem,
        x: Tensor,
        n_steps: int,
        stage: str,
        enough: float,
    ) -> tuple[Tensor, Tensor]:
        """
        Fit starts, or read the checkpoint's result.

        :param problem: What to fit to.
        :param x: Parameters (n_starts, n).
        :param n_steps: Number of steps, at most.
        :param stage: Name of the stage.
        :param enough: Loss of the best start that is low enough.
        :return: Parameters and losses (n_starts,).
        """
        n, states = len(x), self.checkpoint.state
        if stage in states:
            self.bar.update(n * (n_steps + 1))
        else:
            objective = self._watched(problem.losses, n, n_steps, stage)

            def reached(losses: Tensor) -> bool:
                if enough <= 0:
                    return False
                losses = all_gather_rows(losses, n).nan_to_num(nan=math.inf)
                return losses.min().item() <= enough

            fitted = minimise_batch(objective, x[local_rows(n)], n_steps, reached)
            x, losses = (all_gather_rows(values, n) for values in fitted)
            states[stage] = {"x": x, "losses": losses}
            self.checkpoint.write_now_and_then()
        x, losses = (states[stage][name].to(self.device) for name in ("x", "losses"))
        return x, losses

    def _watched(
        self, losses: Callable[[Tensor], Tensor], n: int, n_steps: int, stage: str
    ) -> Callable[[Tensor], Tensor]:
        """The function `losses`, which also moves the bar and calls the status
        callback. All processes call it equally often, with their shares of n starts."""
        evaluations = count()

        def objective(x: Tensor) -> Tensor:
            values, step = losses(x), next(evaluations)
            self.bar.update(n)
            if self.status is not None and step % STEPS_PER_REPORT == 0:
                loss = all_gather_rows(values.detach(), n).min().item()
                stop = self.status(OptimizerStatus(stage, step, n_steps, loss))
                if broadcast_object(bool(stop)):
                    raise StoppedByUser(stage)
            return values

        return objective


def _levels(options: SearchOptions, n_rings: int) -> list[tuple[int, int, int, float]]:
    """Numbers of rings, of starts and of steps, and weights of the free gains."""
    levels = []
    for i, n in enumerate(range(FIRST_RING + 1, n_rings + 1)):
        share, n_steps, weight = LEVELS[min(i, len(LEVELS) - 1)]
        n_starts = min(options.n_starts, max(FINISHED, round(share * options.n_starts)))
        if n == n_rings:
            n_starts, weight = min(n_starts, FINISHED), FREE_WEIGHT
            n_steps = n_steps if n_starts > 1 else options.n_steps
        levels.append((n, n_starts, n_steps, weight))
    return levels


def _random_starts(problem: GridProblem, seeds: list[int]) -> Tensor:
    """Parameters of grids scaled to the power of the moments, and of densities."""
    starts, grid = [], problem.grid
    for seed in seeds:
        options = {"support_radius": grid.support_radius, "seed": seed}
        parameters = PositiveGrid(grid.n_rings, **options).parameters()
        generator = torch.Generator().manual_seed(seed)
        coefficients = torch.randn(problem.harmonics.shape[1], generator=generator)
        starts.append(torch.cat((*parameters, DENSITY_SPREAD * coefficients)))
    x = torch.stack(starts).detach().to(problem.powers.device)
    counts = torch.from_numpy(1.0 + (problem.orders > 0)).to(x)
    power = (problem.views(x).abs().square().mean(-1) * counts).sum(-1)
    roots, *others = problem.split(x)
    target = (counts * problem.powers.clamp(min=LEAST_POWER)).sum()
    scale = (target / power) ** 0.25
    return torch.cat((roots * scale[:, None], *others), 1)


@torch.no_grad()
def _candidate(problem: GridProblem, x: Tensor, density: DiscreteDensity) -> tuple:
    """A start's volume and density. On the rings that were left out, the gain gives the
    volume the power that the moments have if all views are equally likely."""
    volume, density = grid_of(problem, x), copy.deepcopy(density)
    coefficients = problem.split(x[None])[-1][0]
    density.coefficients.copy_(coefficients)
    directions = torch.tensor(SphericalDesign(13).points).float()
    for ring in range(FIRST_RING):
        volume.log_gains[ring] = 0
        rms = volume(ring * directions).abs().square().mean().sqrt() / problem.L
        gain = torch.log(float(problem.rms[ring]) / rms)
        volume.log_gains[ring] = gain.clamp(-MAX_LOG_GAIN, MAX_LOG_GAIN)
    return volume, density


def check_grid(
    moments: Moments, density: nn.Module, n_rings: int, search: SearchOptions
) -> None:
    """
    :param moments: Moments to find a `PositiveGrid` from.
    :param density: Density model.
    :param n_rings: Number of rings.
    :param search: Options of the search.
    :raises ValueError: The search cannot use them.
    """
    if not moments.basis.inplane_average:
        raise ValueError(
            f"the moments are in {moments.basis}; the grid needs a PolarBasis that is"
            " averaged over in-plane angles"
        )
    if moments.shift_std is None:
        raise ValueError(
            "the images have shifts of unknown spread; the grid needs their standard"
            " deviation: give shift_std to the estimator, or use"
            " moments.with_corrections(shift_std=…)"
        )
    if not LEAST_GRID_RINGS <= n_rings <= MAX_RINGS:
        raise ValueError(
            f"n_rings is {n_rings}; the grid takes {LEAST_GRID_RINGS} to {MAX_RINGS}"
        )
    if not ring_rms(moments)[FIRST_RING:n_rings].any():
        raise ValueError(f"the moments have no power on rings from {FIRST_RING} on")
    third = moments.third_basis
    if third is None:
        logger.warning(
            "There are no third moments; first and second ones alone seldom single out"
            " a volume."
        )
    elif third.ring_indices is None:
        raise ValueError(
            "third moments are compressed to eigenvectors; the grid needs those of"
            " rings, ThirdMomentBasis.rings(basis)"
        )
    if getattr(density, "coefficients", None) is None:
        raise ValueError(
            "the grid's density must be smooth: DiscreteDensity(quadrature, degree=6)"
        )
    if search.optimizer == "adam":
        raise ValueError("optimizer is adam; the grid takes lbfgs")
