"""Moments of Gaussian volumes, which are known in closed form."""

import numpy as np
import pytest
from aspire.source import Simulation
from aspire.utils import Rotation

from aspire_mom.bases import CartesianBasis, PolarBasis
from aspire_mom.moments import MomentEstimator, Noise
from aspire_mom.phantoms import gaussians_on_grid
from aspire_mom.rotations import SphericalDesign, VonMisesFisherMixture
from tests.moments.sources import largest_difference
from tests.references import moments as reference

# Narrow enough to end within the box, wide enough to end within Nyquist: to 1e-5.
CENTRES = 0.7 * np.array([[3.0, -1, 2], [-4, 1, 0.5], [0, 4, -3], [1, -3, -2]])
SIGMAS = np.array([1.5, 1.8, 1.6, 1.7])
HEIGHTS = np.array([1.0, 1.5, 0.7, 2.0])
SIZES = pytest.mark.parametrize("L", [24, 25])


def volume_and_masses(L):
    volume = gaussians_on_grid(CENTRES, SIGMAS, HEIGHTS, L, pixel_size=1.0)
    masses = HEIGHTS * (2 * np.pi * SIGMAS**2) ** 1.5
    total = volume.asnumpy().sum(dtype=np.float64)
    return volume.astype(np.float64), masses * (total / masses.sum())


def estimate(L, rotations, basis):
    source = Simulation(
        vols=volume_and_masses(L)[0],
        n=len(rotations),
        angles=Rotation(rotations).angles,
        offsets=0,
        amplitudes=1,
    )
    return MomentEstimator(source, basis, noise=Noise(variance=0)).estimate()


def exact_coefficients(L, rotations, basis, orders):
    masses = volume_and_masses(L)[1]
    return reference.gaussian_coefficients(
        CENTRES, SIGMAS, masses, L, rotations, basis.n_rings, orders
    )


def exact_moments(L, directions, weights, basis):
    """In-plane averaged, by quadrature over viewing directions."""
    views, orders = reference.rotations_to(directions), np.arange(basis.max_order + 1)
    c = exact_coefficients(L, views, basis, orders)
    first = np.einsum("n,nr->r", weights, c[:, 0])
    second = np.einsum("n,nmr,nms->mrs", weights, c, c.conj())
    return first, second


@SIZES
def test_given_rotations(L):
    """With in-plane angles, in both bases: rings and pixels are of the same volume."""
    rotations = Rotation.generate_random_rotations(
        40, seed=1, dtype=np.float64
    ).matrices
    basis = PolarBasis(L, max_order=15, inplane_average=False)
    moments = estimate(L, rotations, basis)
    c = exact_coefficients(L, rotations, basis, np.arange(-15, 16))
    assert largest_difference(moments.first, c[:, 15:].mean(0)) < 2e-5
    second = np.einsum("nmr,nls->mrls", c[:, 15:], c.conj()) / 40
    assert largest_difference(moments.second, second) < 2e-5

    basis = CartesianBasis(L)
    moments = estimate(L, rotations, basis)
    k = np.einsum("nij,pj->npi", rotations[:, :, :2], basis.frequencies / L)
    width = np.exp(-2 * np.pi**2 * np.sum(k**2, -1)[..., None] * SIGMAS**2)
    waves = width * np.exp(-2j * np.pi * np.einsum("npi,gi->npg", k, CENTRES))
    f = waves @ volume_and_masses(L)[1] / L
    assert largest_difference(moments.first, f.mean(0)) < 1e-4
    assert largest_difference(moments.second, f.T @ f.conj() / 40) < 1e-4


@SIZES
def test_uniform_views(L):
    """
    Images at the points of a spherical design, whose plain mean is exact to degree 41,
    against a product quadrature of degree 50 on the sphere.
    """
    basis = PolarBasis(L)
    views = reference.rotations_to(SphericalDesign(41).points)
    moments = estimate(L, views, basis)
    first, second = exact_moments(L, *reference.product_quadrature(50), basis)
    assert largest_difference(moments.first, first) < 2e-5
    assert largest_difference(moments.second, second) < 2e-5


def test_random_views():
    """
    Images at views drawn from a density, against its moments by quadrature: entries
    are off by as much as their standard errors say. They hang together, few harmonics
    of the density deciding all of them, so that six seeds gave mean squares of 0.1 to
    3.2 instead of 1; moments of uniform views are 30 or more times as far off.
    """
    L = 24
    basis = PolarBasis(L, n_rings=6, max_order=8)
    density = VonMisesFisherMixture.random(3, seed=2)
    rotations = density.sample(4000, seed=3).matrices
    moments = estimate(L, rotations, basis)
    directions, weights = reference.product_quadrature(50)
    uneven = 4 * np.pi * weights * density.pdf(directions)
    first, second = exact_moments(L, directions, uneven, basis)
    for name, exact in (("first", first), ("second", second)):
        difference = np.abs(getattr(moments, name) - exact)
        error = getattr(moments, f"{name}_error")
        known = error > 1e-3 * error.max()
        assert 0.02 < np.mean((difference[known] / error[known]) ** 2) < 6
    flat = exact_moments(L, directions, weights, basis)[1]
    assert np.linalg.norm(flat - second) > 20 * np.linalg.norm(moments.second - second)
