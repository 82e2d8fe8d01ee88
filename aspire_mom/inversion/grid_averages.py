"""New starts from averages of the grids that a search has found."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from aspire_mom.evaluation.registration import register
from aspire_mom.inversion.grid_problem import EXTRA_DEGREE, FIRST_RING, GridProblem
from aspire_mom.inversion.optimise import minimise_batch
from aspire_mom.rotations import SphericalDesign
from aspire_mom.volumes import PositiveGrid

# Voxels along an edge, per ring, of the volumes that are registered.
VOXELS_PER_RING = 4
FIT_STEPS = 200


@torch.no_grad()
def grid_of(problem: GridProblem, x: Tensor) -> PositiveGrid:
    """
    :param problem: A problem.
    :param x: Parameters (n,) of one start.
    :return: Its grid, on the CPU.
    """
    grid = copy.deepcopy(problem.grid)
    *parts, _ = problem.split(x[None].cpu())
    for parameter, values in zip(grid.parameters(), parts, strict=True):
        parameter.copy_(values[0])
    return grid


def averaged_starts(problem: GridProblem, x: Tensor, counts: Sequence[int]) -> Tensor:
    """
    Average volumes that a search has found. Each is partly right and has errors of its
    own, which averages reduce, so these often lie in a better basin than any of them.

    :param problem: The problem that they were fitted to.
    :param x: Their parameters (n_starts, n), best first.
    :param counts: How many of them to average for each new start.
    :return: Parameters (len(counts), n) of grids with the first one's gain and density,
        fitted to averages of volumes that are registered to the first one.
    """
    first, *others = (grid_of(problem, row) for row in x)
    points = SphericalDesign(2 * problem.n_rings + EXTRA_DEGREE).points
    radii = torch.arange(FIRST_RING, problem.n_rings)
    k = radii[:, None, None] * torch.tensor(points).float()
    with torch.no_grad():
        aligned = [first, *(_registered(grid, first) for grid in others)]
        values = torch.stack([grid(k) for grid in aligned])
        targets = torch.stack([values[:n].mean(0) for n in counts])
        # Each ring counts equally.
        scale = targets[0].abs().square().mean(1).sqrt()[:, None]
        gains = (first.gain(radii) / scale[:, 0])[:, None, None]
        functions = torch.stack(first.functions(k)) * gains
        targets = torch.view_as_real(targets / scale).movedim(-1, 1).flatten(1)
        functions = functions.flatten(0, -2)

    def losses(roots: Tensor) -> Tensor:
        return (roots**2 @ functions.T - targets).square().mean(1)

    roots = first.roots.detach().expand(len(targets), -1)
    roots, _ = minimise_batch(losses, roots, FIT_STEPS)
    rest = x[:1, roots.shape[1] :].expand(len(roots), -1)
    return torch.cat((roots.to(x), rest), 1)


def _registered(grid: PositiveGrid, reference: PositiveGrid) -> PositiveGrid:
    """A grid whose points are moved such that it is aligned with another one."""
    L = VOXELS_PER_RING * grid.n_rings
    found = register(grid.to_volume(L), reference.to_volume(L))
    matrix = torch.tensor(found.rotation.matrices[0]).float()
    if found.mirrored:
        matrix = matrix * torch.tensor((1.0, 1.0, -1.0))
    moved = copy.deepcopy(grid)
    moved.points = grid.points @ matrix.T + torch.tensor(found.shift).float() / L
    return moved
