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


def aligned_grids(problem: GridProblem, x: Tensor) -> list[PositiveGrid]:
    """
    :param problem: A problem.
    :param x: Parameters (n_starts, n).
    :return: Their grids, points moved such that each is aligned with the first one,
        whatever its hand.
    """
    first, *others = (grid_of(problem, row) for row in x)
    return [first, *(_registered(grid, first) for grid in others)]


def averaged_starts(
    problem: GridProblem,
    grids: Sequence[PositiveGrid],
    groups: Sequence[Sequence[int]],
    first: Tensor,
) -> Tensor:
    """
    Average volumes that a search has found. Each is partly right and has errors of its
    own, which averages reduce, so these often lie in a better basin than any of them.

    :param problem: The problem that they were fitted to.
    :param grids: The volumes, as :func:`aligned_grids` returns them.
    :param groups: Which of them to average for each new start.
    :param first: Parameters (n,) of the one with which the others are aligned.
    :return: Parameters (len(groups), n) of grids fitted to averages, with that one's
        gain and density.
    """
    points = SphericalDesign(2 * problem.n_rings + EXTRA_DEGREE).points
    radii = torch.arange(FIRST_RING, problem.n_rings)
    k = radii[:, None, None] * torch.tensor(points).float()
    reference = grid_of(problem, first)
    with torch.no_grad():
        values = {
            i: grids[i](k) for i in sorted({i for group in groups for i in group})
        }
        targets = [sum(values[i] for i in group) / len(group) for group in groups]
        targets = torch.view_as_real(torch.stack(targets)).movedim(-1, 1)
        # Each ring counts equally.
        scale = targets.square().sum(1).mean(-1).sqrt()[:, None, :, None]
        gains, targets = reference.gain(radii)[:, None] / scale, targets / scale
        functions = torch.stack(problem.grid.functions(k)).flatten(0, -2)

    def losses(roots: Tensor) -> Tensor:
        found = (roots**2 @ functions.T).reshape(targets.shape)
        return (gains * found - targets).square().flatten(1).mean(1)

    roots = reference.roots.detach().expand(len(groups), -1)
    roots, _ = minimise_batch(losses, roots, FIT_STEPS)
    rest = first[roots.shape[1] :].expand(len(groups), -1)
    return torch.cat((roots.to(first), rest), 1)


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
