"""
The search for a `PositiveGrid` with given first, second and third moments.

Many random starts are fitted to the first few rings, all in one batch of tensors. Ring
after ring is added, and each time only the starts of lowest loss go on.
"""

import copy
import math
from itertools import count as count_from

import numpy as np
import torch
from aspire.utils import tqdm
from torch import Tensor, nn

from aspire_mom.checks import describe_shift_std
from aspire_mom.files import Checkpoint
from aspire_mom.inversion.forward import PolarForward
from aspire_mom.inversion.optimise import (
    OptimizerStatus,
    StatusCallback,
    StoppedByUser,
    minimise_batch,
)
from aspire_mom.inversion.search import Candidate, SearchOptions
from aspire_mom.inversion.start import cut_to_support
from aspire_mom.moments import Moments
from aspire_mom.moments.report import ring_rms
from aspire_mom.rotations import DiscreteDensity, SO3Quadrature, SphericalDesign
from aspire_mom.rotations.densities import log_density_harmonics
from aspire_mom.volumes import PositiveGrid

# Real maps have little on rings 0 and 1 that a compact density explains.
FIRST_RING = 2
# Shares of the starts that are fitted to 1, 2, … rings, and steps.
LEVELS = (1, 100), (0.67, 150), (0.25, 200), (0.09, 250), (0.04, 250)
FINISHED = 2
# Starts in one batch of tensors: more do not fit into cache.
BATCH = 16
# Degree of the quadrature beyond the largest angular order.
EXTRA_DEGREE = 5
# Standard deviation of the density's coefficients at the start.
DENSITY_SPREAD = 0.1
# Weights in the loss of the density's coefficients and of bends of the gain.
DENSITY_WEIGHT, BEND_WEIGHT = 1e-5, 1e-4
# Error of the model, relative to an entry's rings, that is added to standard errors.
MODEL_ERROR = 0.03
# Largest difference of the logarithms of gains on rings 0 and 1 from that on ring 2.
MAX_BEND = 3.0
STEPS_PER_REPORT = 20


class GridProblem:
    """
    The distance of grids and densities from moments on rings FIRST_RING … n_rings - 1:
    the sum over first, second and third moments of Σ w |M - M̂|² / Σ w |M̂|², of entries
    divided by the RMS of their rings. w is the inverse of the squared standard error,
    plus 3 % squared for errors of the model. Two penalties keep the density smooth and
    the gain nearly straight on a logarithmic scale.

    A row of coefficients is one angular order m on one ring r, ordered by m, then r.

    :param moments: In-plane averaged polar moments.
    :param grid: The kind of volume.
    :param degree: Degree of the log-density's harmonics.
    :param n_rings: Number of rings.
    """

    def __init__(self, moments: Moments, grid: PositiveGrid, degree: int, n_rings: int):
        basis = cut_to_support(moments.basis, n_rings, grid.support_radius)
        design = SphericalDesign(basis.max_order + EXTRA_DEGREE)
        forward = PolarForward(basis, SO3Quadrature.product(design, 1), 0.0)
        supported = basis.order_support.diagonal(axis1=1, axis2=2).copy()
        supported[:, :FIRST_RING] = False
        self.n_rings, self.n_points, self.L = n_rings, len(grid.points), basis.L
        self.orders, self.rings = np.nonzero(supported)
        self.rms = np.maximum(ring_rms(moments), np.finfo(np.float32).tiny)
        unit = torch.from_numpy(1 / self.rms[self.rings]).float()
        matrix = torch.stack([*_coefficients(forward, grid, self.orders, self.rings)])
        # (2, rows, views, points): real and imaginary parts.
        self.matrix = (matrix * unit[:, None, None, None]).transpose(0, 1).contiguous()
        views = design.points
        self.harmonics = log_density_harmonics(views, degree).float()
        self._set_first_and_second(moments)
        self._set_third(moments)

    def _set_first_and_second(self, moments: Moments) -> None:
        self.second, first_error = [], moments.first_error
        for m in range(self.orders.max() + 1):
            rows = np.flatnonzero(self.orders == m)
            rings, scale = self.rings[rows], self.rms[self.rings[rows]]
            pairs = np.outer(scale, scale)
            at = (m, *np.ix_(rings, rings))
            error = None if moments.second_error is None else moments.second_error[at]
            target = _Target(moments.second[at] / pairs, error, pairs)
            self.second.append((slice(rows[0], rows[-1] + 1), 1 + (m > 0), target))
            if m == 0:
                error = None if first_error is None else first_error[rings]
                self.first = _Target(moments.first[rings] / scale, error, scale)
        self.powers = torch.cat([t.value.diagonal().real for *_, t in self.second])

    def _set_third(self, moments: Moments) -> None:
        """Products of rows (m2, m1 + m2) that meet rows m1, per m1."""
        self.third: list[tuple] = []
        third = moments.third_basis
        if third is None:
            return
        kept, areas = third.ring_indices, np.sqrt(third.basis.areas)
        rows, places = [], []
        for m in range(min(self.orders.max(), third.max_order) + 1):
            of_order = np.flatnonzero(self.orders == m)
            of_order = of_order[np.isin(self.rings[of_order], kept[m])]
            rows.append(of_order)
            places.append(np.searchsorted(kept[m], self.rings[of_order]))
        units = [areas[self.rings[r]] * self.rms[self.rings[r]] for r in rows]

        def blocks(values: np.ndarray, m1: int, m2: int) -> np.ndarray:
            orders = (m1, m2, m1 + m2)
            block = third.block(values, m1, m2)[np.ix_(*(places[m] for m in orders))]
            return block.transpose(1, 2, 0).reshape(-1, len(rows[m1]))

        for m1 in range((len(rows) - 1) // 2 + 1):
            parts = []
            for m2 in range(m1, len(rows) - m1):
                b, c = rows[m2], rows[m1 + m2]
                if not (len(rows[m1]) and len(b) and len(c)):
                    continue
                scale = np.outer(np.outer(units[m2], units[m1 + m2]), units[m1])
                error = scale * 0
                if moments.third_error is not None:
                    error = blocks(moments.third_error, m1, m2)
                # Signs and permutations of the three orders, see `ThirdMomentBasis`.
                count = 12 / ((1 + (m1 == m2)) * (1 + (m1 == 0))) if m2 else 1.0
                pairs = np.repeat(b, len(c)), np.tile(c, len(b))
                value = blocks(moments.third, m1, m2) / scale
                parts.append((*pairs, value, error, scale, np.full_like(scale, count)))
            if parts:
                b, c, value, error, scale, count = map(
                    np.concatenate, zip(*parts, strict=True)
                )
                target = _Target(value, error, scale, count)
                rows_b, rows_c = torch.from_numpy(b), torch.from_numpy(c)
                span = slice(rows[m1][0], rows[m1][-1] + 1)
                self.third.append((span, rows_b, rows_c, target))

    def to(self, device: torch.device) -> "GridProblem":
        """
        :param device: Device of the tensors.
        :return: The same problem, there.
        """
        for name in ("matrix", "harmonics", "powers"):
            setattr(self, name, getattr(self, name).to(device))
        self.first.to(device)
        for *_, target in self.second:
            target.to(device)
        self.third = [
            (span, b.to(device), c.to(device), target.to(device))
            for span, b, c, target in self.third
        ]
        return self

    def losses(self, x: Tensor) -> Tensor:
        """
        :param x: Parameters (n_starts, n) of grids and densities: roots, coefficients
            of the density, logarithms of gains.
        :return: Losses (n_starts,).
        """
        _, coefficients, log_gains = self.split(x)
        losses = torch.cat([self._distances(part) for part in x.split(BATCH)])
        bends = log_gains[:, FIRST_RING : self.n_rings].diff(n=2).square().sum(1)
        penalty = DENSITY_WEIGHT * coefficients.square().sum(1) + BEND_WEIGHT * bends
        return losses + penalty

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        :param x: Parameters (n_starts, n).
        :return: Roots, coefficients of the density, logarithms of gains.
        """
        n, n_density = self.n_points, self.harmonics.shape[1]
        return x[:, :n], x[:, n : n + n_density], x[:, n + n_density :]

    def views(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        :param x: Parameters (n_starts, n).
        :return: Real and imaginary parts of the coefficients of the views, (n_starts,
            rows, n_views), in units of the RMS of their rings.
        """
        roots, _, log_gains = self.split(x)
        _, n_rows, n_views, _ = self.matrix.shape
        flat = roots**2 @ self.matrix.reshape(-1, self.n_points).T
        rings = torch.as_tensor(self.rings, device=x.device)
        gains = log_gains[:, rings].exp()[:, None, :, None]
        return (flat.reshape(-1, 2, n_rows, n_views) * gains).unbind(1)

    def _distances(self, x: Tensor) -> Tensor:
        re, im = self.views(x)
        logits = self.split(x)[1] @ self.harmonics.T
        # Views, then their antipodes, which show mirror images.
        ahead, behind = torch.softmax(logits, -1)[:, None].tensor_split(2, -1)
        even, odd = ahead + behind, ahead - behind
        total = self.first.distance((re[:, : len(self.first.value)] * even).sum(-1))
        total = total / self.first.norm
        second = third = 0
        for span, count, target in self.second:
            a, b = re[:, span], im[:, span]
            real = (a * even) @ a.mT + (b * even) @ b.mT
            cross = (b * odd) @ a.mT
            second = second + count * target.distance(real, cross - cross.mT)
        total = total + second / sum(n * t.norm for _, n, t in self.second)
        for span, rows_b, rows_c, target in self.third:
            a, b = re[:, span], im[:, span]
            c, d, e, f = re[:, rows_b], im[:, rows_b], re[:, rows_c], im[:, rows_c]
            products = torch.cat((c * e + d * f, d * e - c * f), -1)
            real = products @ torch.cat((a * even, -b * even), -1).mT
            imag = products @ torch.cat((b * odd, a * odd), -1).mT
            third = third + target.distance(real, imag)
        if self.third:
            total = total + third / sum(t.norm for *_, t in self.third)
        return total


class _Target:
    """Entries of a moment, in units of the RMS of their rings, and their weights."""

    def __init__(self, value, error, scale, count=1.0):
        relative = 0 if error is None else error / scale
        weights = count / (relative**2 + MODEL_ERROR**2)
        self.value = torch.from_numpy(value.astype(np.complex64))
        weights = np.broadcast_to(weights, value.shape).astype(np.float32)
        self.weights = torch.from_numpy(weights * MODEL_ERROR**2)
        self.norm = float((self.weights * self.value.abs() ** 2).sum())

    def to(self, device: torch.device) -> "_Target":
        self.value, self.weights = self.value.to(device), self.weights.to(device)
        return self

    def distance(self, real: Tensor, imag: Tensor | float = 0.0) -> Tensor:
        squares = (real - self.value.real) ** 2 + (imag - self.value.imag) ** 2
        return (self.weights * squares).flatten(1).sum(1)


def _coefficients(forward: PolarForward, grid: PositiveGrid, orders, rings):
    """Yield, per row, the coefficients of each point's Gaussian without the gain, real
    and imaginary parts, (2, n_views, n_points), float32."""
    per_ring = {}
    for ring in np.unique(rings):
        cosines, sines = grid.functions(ring * forward.directions.float())
        per_ring[ring] = forward.orders(cosines, sines)
    for m, ring in zip(orders, rings, strict=True):
        yield torch.view_as_real(per_ring[ring][m]).permute(2, 1, 0) / forward.L


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
    :return: The starts that were fitted to all rings, best first.
    :raises StoppedByUser: The status callback returned True.
    """
    seeds = list(range(options.seed, options.seed + options.n_starts))
    grid = PositiveGrid(n_rings, support_radius=support_radius)
    degree = math.isqrt(len(density.coefficients) + 1) - 1
    x, losses, histories = None, None, {seed: [] for seed in seeds}
    levels = _levels(options, n_rings)
    # Weights near 0 are denormal numbers, with which CPUs are ten times slower.
    torch.set_flush_denormal(True)
    with tqdm(
        desc="inversion", total=sum(n * (steps + 1) for _, n, steps in levels)
    ) as bar:
        for level, count, n_steps in levels:
            problem = GridProblem(moments, grid, degree, level).to(device)
            if x is None:
                x = _random_starts(problem, grid, seeds).to(device)
            else:
                order = losses.argsort()[:count]
                x, seeds = x[order], [seeds[i] for i in order]
            stage = f"grid, {level} rings"
            done = checkpoint.state.get(stage)
            if done is None:
                objective = _watched(problem.losses, bar, status, stage, n_steps)
                x, losses = minimise_batch(objective, x, n_steps)
                done = checkpoint.state[stage] = {"x": x, "losses": losses}
                checkpoint.write_now_and_then()
            x, losses = (done[name].to(device) for name in ("x", "losses"))
            for seed, loss in zip(seeds, losses.tolist(), strict=True):
                values = {"n_rings": level, "loss": loss, "criterion": loss}
                histories[seed].append({"stage": stage, **values})
    torch.set_flush_denormal(False)
    found = []
    for i in losses.argsort():
        candidate = _candidate(problem, seeds[i], x[i], losses[i], grid, density)
        candidate.history = histories[seeds[i]]
        found.append(candidate.to(device))
    return found


def _watched(losses, bar, status, stage: str, n_steps: int):
    """The function `losses`, which also moves the bar and calls the status callback."""
    evaluations = count_from()

    def objective(x: Tensor) -> Tensor:
        values, step = losses(x), next(evaluations)
        bar.update(len(x))
        if status is not None and step % STEPS_PER_REPORT == 0:
            if status(OptimizerStatus(stage, step, n_steps, float(values.min()))):
                raise StoppedByUser(stage)
        return values

    return objective


def _levels(options: SearchOptions, n_rings: int) -> list[tuple[int, int, int]]:
    """Numbers of rings, of starts and of steps."""
    levels = []
    for i, n in enumerate(range(FIRST_RING + 1, n_rings + 1)):
        share, n_steps = LEVELS[min(i, len(LEVELS) - 1)]
        count = min(options.n_starts, max(FINISHED, round(share * options.n_starts)))
        levels.append((n, count, options.n_steps if n == n_rings else n_steps))
    return levels


def _random_starts(problem: GridProblem, grid: PositiveGrid, seeds: list) -> Tensor:
    """Parameters of grids scaled to the power of the moments, and of densities."""
    starts = []
    for seed in seeds:
        other = PositiveGrid(
            grid.n_rings, support_radius=grid.support_radius, seed=seed
        )
        generator = torch.Generator().manual_seed(seed)
        coefficients = torch.randn(problem.harmonics.shape[1], generator=generator)
        starts.append(
            torch.cat((other.roots, DENSITY_SPREAD * coefficients, other.log_gains))
        )
    x = torch.stack(starts).detach().to(problem.powers.device)
    counts = torch.from_numpy(1.0 + (problem.orders > 0)).to(x)
    re, im = problem.views(x)
    power = ((re**2 + im**2).mean(-1) * counts).sum(-1)
    scale = ((counts * problem.powers).sum() / power) ** 0.25
    return torch.cat(
        (x[:, : problem.n_points] * scale[:, None], x[:, problem.n_points :]), 1
    )


@torch.no_grad()
def _candidate(problem, seed, x, loss, grid, density) -> Candidate:
    """A start with its volume. On the rings that were left out, the gain gives it the
    power of the moments."""
    volume, density = copy.deepcopy(grid), copy.deepcopy(density)
    roots, coefficients, log_gains = (t[0].cpu() for t in problem.split(x[None]))
    volume.roots.copy_(roots)
    density.coefficients.copy_(coefficients)
    directions = torch.from_numpy(SphericalDesign(13).points).float()
    for ring in range(FIRST_RING):
        parts = [part @ roots**2 for part in volume.functions(ring * directions)]
        rms = sum(part.square().mean() for part in parts).sqrt()
        matched = math.log(problem.rms[ring] * problem.L / rms)
        nearest = float(log_gains[FIRST_RING])
        log_gains[ring] = min(max(matched, nearest - MAX_BEND), nearest + MAX_BEND)
    volume.log_gains.copy_(log_gains)
    candidate = Candidate(seed, volume, density, False)
    candidate.loss = candidate.criterion = float(loss)
    return candidate


def check_grid(moments: Moments, density: nn.Module, n_rings: int) -> None:
    """
    :param moments: Moments to find a `PositiveGrid` from.
    :param density: Density model.
    :param n_rings: Number of rings.
    :raises ValueError: The search cannot use them.
    """
    if not moments.basis.inplane_average or moments.shift_std != 0:
        raise ValueError(
            'volume="grid" is for centred images and a polar basis that averages over'
            f" in-plane angles; the moments are in {moments.basis}, of images with"
            f" shifts of {describe_shift_std(moments.shift_std)}"
        )
    third = moments.third_basis
    if third is not None and third.ring_indices is None:
        raise ValueError(
            "third moments are compressed to eigenvectors; the grid needs those of"
            " rings, ThirdMomentBasis.rings(basis)"
        )
    if n_rings <= FIRST_RING + 1:
        raise ValueError(
            f"n_rings is {n_rings}; the grid needs at least {FIRST_RING + 2}, since it"
            f" leaves out rings below {FIRST_RING}"
        )
    if getattr(density, "coefficients", None) is None:
        raise ValueError(
            "the grid's density must be smooth: DiscreteDensity(quadrature, degree=6)"
        )
