"""Starts from averages."""

import copy

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from aspire_mom import compare
from aspire_mom.inversion import grid_search
from aspire_mom.inversion.grid_averages import aligned_grids, averaged_starts
from aspire_mom.inversion.grid_problem import GridProblem
from aspire_mom.rotations import SphericalDesign
from tests.inversion.test_grid import DEGREE, inversion, moments_of, parameters, truth


def moved(grid, seed, mirrored):
    """The same volume, elsewhere: not of points of the grid."""
    other = copy.deepcopy(grid)
    matrix = Rotation.random(random_state=seed).as_matrix()
    other.points = grid.points @ torch.tensor(matrix, dtype=torch.float32).T
    if mirrored:
        other.points = other.points * torch.tensor((1.0, 1.0, -1.0))
    return other


def test_averages_are_of_registered_volumes():
    """One volume in three poses and hands: their average is the volume."""
    grid, coefficients = truth(5)
    moments = moments_of(grid, coefficients, SphericalDesign(20))
    problem = GridProblem(moments, grid, DEGREE, 5, torch.zeros(3))
    x = parameters(grid, coefficients)
    others = []
    for seed, mirrored in ((0, False), (1, True)):
        pose = moved(grid, seed, mirrored)
        spread = (grid.points[:, None] - pose.points[None]).norm(dim=-1)
        weights = torch.exp(-(spread**2) / (2 * 0.4**2 / 81)) @ grid.roots.detach() ** 2
        weights *= (grid.roots.detach() ** 2).sum() / weights.sum()
        resampled = copy.deepcopy(grid)
        resampled.roots.data = weights.sqrt()
        others.append(parameters(resampled, coefficients))
    every = torch.cat((x, *others))
    grids = aligned_grids(problem, every)
    starts = averaged_starts(problem, grids, [(0,), (1, 2)], x[0])
    assert starts.shape == (2, x.shape[1])
    # The average of one is that one.
    torch.testing.assert_close(starts[0], x[0], rtol=1e-3, atol=1e-3)
    n_points = len(grid.roots)
    np.testing.assert_array_equal(starts[1, n_points:], x[0, n_points:])
    average = copy.deepcopy(grid)
    average.roots.data = starts[1, :n_points]
    fsc = compare(average.to_volume(21, 1.0), grid.to_volume(21, 1.0)).fsc
    assert fsc[1:5].min() > 0.95
    # With the density of the first one, which the others are aligned with.
    elsewhere = problem._distances(torch.cat(others)).min()
    assert problem._distances(starts[1:]) < 0.6 * elsewhere


def test_the_best_start_goes_on_from_averages(monkeypatch):
    """It ends lower than without, and the other starts stay as they were."""
    monkeypatch.setattr(grid_search, "LEVELS", ((1, 20, 1.0), (1, 20, 1.0)))
    monkeypatch.setattr(grid_search, "ROUNDS", 2)
    grid, coefficients = truth(5)
    moments = moments_of(grid, coefficients, SphericalDesign(20))
    found = inversion(moments, n_starts=4, n_steps=30).estimate()
    losses = [entry["loss"] for entry in found.history]
    assert [entry["stage"] for entry in found.history[-2:]] == [
        "grid, 5 rings",
        "grid, averages",
    ]
    assert losses[-1] < losses[-2] <= found.starts[1]["loss"]
    assert len({start["seed"] for start in found.starts}) == 4


@pytest.mark.parametrize(
    ("n_starts", "sizes"), [(1, []), (2, [1, 1, 4]), (3, [1, 4, 4]), (8, [4, 4, 4])]
)
def test_no_average_is_made_twice_in_a_round(monkeypatch, n_starts, sizes):
    monkeypatch.setattr(grid_search, "ROUNDS", 3)
    assert grid_search._round_sizes(n_starts) == sizes


def test_one_start_has_no_average(monkeypatch):
    monkeypatch.setattr(grid_search, "LEVELS", ((1, 5, 1.0),))
    grid, coefficients = truth(5)
    moments = moments_of(grid, coefficients, SphericalDesign(20))
    found = inversion(moments, n_starts=1, n_steps=5).estimate()
    assert found.history[-1]["stage"] == "grid, 5 rings"
