"""Views of grids by spherical harmonics."""

import numpy as np
import pytest
import torch

from aspire_mom import PolarBasis, PositiveGrid, SO3Quadrature, SphericalDesign
from aspire_mom.inversion.forward import PolarForward
from aspire_mom.inversion.grid_views import GridViews


@pytest.mark.parametrize("L", [24, 25])
@pytest.mark.parametrize("radius", [0.25, 0.5])
def test_views_are_those_of_the_points(L, radius):
    """One point at a time, also on the edge of the ball, against the transform on the
    circle of each view."""
    grid = PositiveGrid(6, support_radius=radius)
    basis = PolarBasis(L, n_rings=6)
    quadrature = SO3Quadrature.product(SphericalDesign(7), 1)
    forward = PolarForward(basis, quadrature, 0.0)
    supported = basis.order_support.diagonal(axis1=1, axis2=2).copy()
    supported[:, :2] = False
    orders, rings = np.nonzero(supported)
    units = np.arange(1.0, 7.0)
    distance = grid.points.norm(dim=1)
    points = distance.argsort()[[0, 1, -3, -2, -1]]
    weights = torch.eye(len(distance))[points]
    found = GridViews(grid, forward, orders, rings, units)(weights)
    assert found.shape == (5, len(orders), forward.n_views)
    for ring in range(2, 6):
        real, imag = grid.functions(ring * forward.directions.float())
        expected = forward.orders(real[:, points], imag[:, points]) / units[ring]
        expected = expected.permute(1, 0, 2)[:, orders[rings == ring]]
        rms = expected.abs().square().sum(1).mean().sqrt()
        difference = (found[:, rings == ring] - expected).abs().max()
        assert difference < 0.01 * rms
