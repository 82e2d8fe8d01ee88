"""Residual shifts, which the forward moments model."""

import numpy as np
import pytest
import torch

from aspire_mom.inversion import MomentInversion
from aspire_mom.inversion.forward import Shifts, forward_model
from aspire_mom.moments import CartesianBasis, MomentEstimator, Moments, PolarBasis
from aspire_mom.quadrature import SO3Quadrature, SphericalDesign
from aspire_mom.volumes import GaussianMixture
from tests.moments.sources import largest_difference, simulation

STD = 1.2


def hermite(n):
    """Nodes and weights of a standard normal distribution in the plane."""
    x, w = np.polynomial.hermite_e.hermegauss(n)
    w = w / w.sum()
    nodes = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
    return nodes, np.outer(w, w).ravel()


def shifted_moments(L, basis):
    """
    Moments of clean images (in-plane turned by quarter turns, so that shifts along the
    axes stand for all) averaged over shifts by a quadrature of Gauss and Hermite, and
    those of the centred images.
    """
    nodes, weights = hermite(9)
    n = 4
    views = np.stack(
        np.broadcast_arrays(0.3, 1.1, np.pi / 2 * np.arange(n)), -1
    ).astype(float)
    made = [
        MomentEstimator(
            simulation(
                L,
                n=n,
                angles=views,
                offsets=np.tile(STD * o, (n, 1)),
                noise=0,
                dtype=np.float64,
            ),
            basis,
            noise_variance=0,
            ignore_shifts=True,
        ).estimate()
        for o in nodes
    ]
    first = sum(w * m.first for w, m in zip(weights, made, strict=True))
    second = sum(w * m.second for w, m in zip(weights, made, strict=True))
    centred = simulation(L, n=n, angles=views, noise=0, dtype=np.float64)
    return first, second, MomentEstimator(centred, basis, noise_variance=0).estimate()


@pytest.mark.parametrize("L", [24, 25])
def test_moments_of_shifted_images(L):
    basis = PolarBasis(L, n_rings=7)
    first, second, centred = shifted_moments(L, basis)
    shifts = Shifts(STD / L, basis.n_rings, basis.max_order)
    model = shifts(torch.from_numpy(centred.first), torch.from_numpy(centred.second))
    for value, expected in zip(model, (first, second), strict=True):
        assert largest_difference(value.numpy(), expected) < 1e-4
    # What leaving the shifts out would give.
    assert largest_difference(centred.second, second) > 0.03


def test_pairs_of_pixels_shrink_with_their_distance():
    """Cartesian entries shrink with the distance of their pixels."""
    L, quadrature = 9, SO3Quadrature.product(SphericalDesign(5), 4)
    volume = GaussianMixture(3, seed=1).double()
    p = torch.full((len(quadrature),), 1 / len(quadrature)).double()
    basis = CartesianBasis(L)
    with torch.no_grad():
        plain = forward_model(basis, quadrature)(volume, p)
        shifted = forward_model(basis, quadrature, shift_std=STD)(volume, p)
    k = basis.frequencies
    a = 2 * np.pi**2 * (STD / L) ** 2
    apart = ((k[:, None] - k) ** 2).sum(-1)
    for value, expected in (
        (shifted[0], plain[0].numpy() * np.exp(-a * (k**2).sum(1))),
        (shifted[1], plain[1].numpy() * np.exp(-a * apart)),
    ):
        assert np.allclose(value.numpy(), expected, atol=1e-12)


def test_shift_matrix_keeps_the_power_of_rings():
    basis = PolarBasis(24, n_rings=6)
    rng = np.random.default_rng(0)
    half = rng.standard_normal((basis.max_order + 1, 6, 9))
    half = torch.from_numpy(half * 0.5 ** np.arange(len(half))[:, None, None])
    second = (half @ half.transpose(1, 2)).to(torch.complex128)
    _, shifted = Shifts(0.03, 6, basis.max_order)(torch.zeros(6), second)
    count = torch.full((len(half), 1), 2.0)
    count[0] = 1
    power = [
        (count * s.diagonal(dim1=1, dim2=2).real).sum(0) for s in (second, shifted)
    ]
    assert torch.allclose(*power, rtol=1e-3)


def test_an_inversion_models_the_shifts_of_its_moments():
    """The truth fits moments of shifted images when told of the shifts, else not."""
    L = 16
    quadrature = SO3Quadrature.product(SphericalDesign(9), 1)
    volume = GaussianMixture(4, seed=0, sigma=0.08).double()
    basis = PolarBasis(L, n_rings=5)
    density = np.full(len(quadrature), 1 / len(quadrature))
    p = torch.from_numpy(density)
    with torch.no_grad():
        first, second = forward_model(basis, quadrature, shift_std=1.0)(volume, p)
    losses = []
    for std in (1.0, 0.0):
        moments = Moments(
            first.numpy(), second.numpy(), basis, n_images=100, shift_std=std
        )
        inversion = MomentInversion(moments, quadrature=quadrature)
        problem = inversion._problem(5)
        with torch.no_grad():
            losses.append(float(problem.loss(*problem.forward(volume, p))))
    assert losses[0] < 1e-6 * losses[1]


def test_shifts_need_an_average_in_plane():
    quadrature = SO3Quadrature.product(SphericalDesign(5), 4)
    basis = PolarBasis(9, inplane_average=False)
    with pytest.raises(ValueError, match="shifts of 1.5 pixels.*average over in-plane"):
        forward_model(basis, quadrature, shift_std=1.5)
