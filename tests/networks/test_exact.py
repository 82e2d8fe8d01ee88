"""Batched closed forms against the inversion's forward model, volume by volume."""

import numpy as np
import pytest
import torch

from aspire_mom.bases import PolarBasis
from aspire_mom.inversion.forward import forward_model
from aspire_mom.networks.exact import ExactMoments
from aspire_mom.networks.training import _draw_chains, _draw_mixtures, _draw_views
from aspire_mom.rotations import SO3Quadrature, SphericalDesign, VonMisesFisherMixture
from aspire_mom.volumes import GaussianMixture

L = 25


def tensors(mixtures):
    arrays = mixtures.centres, mixtures.sigmas, mixtures.weights
    return [torch.from_numpy(a) for a in arrays]


def as_volume(centres, sigmas, weights):
    keep = weights > 0
    return (
        GaussianMixture(1, support_radius=0.5)
        .double()
        .with_gaussians(centres[keep], sigmas[keep], weights[keep])
    )


@pytest.mark.parametrize("draw", [_draw_mixtures, _draw_chains])
def test_batches_agree_with_the_forward_model(draw):
    rng = np.random.default_rng(0)
    exact = ExactMoments(n_rings=7, max_order=12, degree=20, design_degree=15)
    volumes = tensors(draw(3, rng))
    p = torch.from_numpy(_draw_views(6, exact.points, rng)).reshape(3, 2, -1)
    first, second = exact(exact.expand(*volumes), p)
    assert first.shape == (3, 2, 7)
    assert second.shape == (3, 2, 13, 7, 7)
    quadrature = SO3Quadrature.product(SphericalDesign(15), 1)
    forward = forward_model(PolarBasis(L, n_rings=7, max_order=12), quadrature)
    for i in range(3):
        volume = as_volume(*(t[i] for t in volumes))
        for j in range(2):
            expected = forward(volume, p[i, j])
            for found, wanted in zip((first, second), expected, strict=True):
                wanted = wanted * L ** (wanted.ndim - 1 if wanted.ndim > 1 else 1)
                error = (found[i, j] - wanted).abs()
                assert error.max() < 2e-5
                ring = error.amax(tuple(range(error.ndim - 1)))
                size = wanted.abs().amax(tuple(range(error.ndim - 1)))
                assert (ring < 2e-3 * size).all()


def test_a_gaussian_at_the_centre_and_one_far_out():
    exact = ExactMoments(n_rings=4, max_order=3)
    centres = torch.tensor([[[0.0, 0, 0]], [[0, 0, 9.0]]]).double()
    ones = torch.ones(2, 1).double()
    a = exact.expand(centres, 0.1 * ones, ones)
    assert torch.isfinite(a).all()
    assert a[0, 1:].abs().max() < 1e-6
    decay = torch.exp(-2 * torch.pi**2 * (0.1 * torch.arange(4)) ** 2)
    torch.testing.assert_close(a[0, 0] / (4 * torch.pi) ** 0.5, decay)


def test_views_are_those_of_the_package_s_mixtures(monkeypatch):
    """The same formula, with one mixture's parameters put in for the draws."""
    truth = VonMisesFisherMixture.random(8, seed=5)

    class Fixed:
        def standard_normal(self, shape):
            return 2 * truth.means.reshape(shape)

        def uniform(self, low, high, shape):
            return truth.concentrations.reshape(shape)

        def dirichlet(self, alpha, count):
            return truth.weights.reshape(count, -1)

    quadrature = SO3Quadrature.product(SphericalDesign(9), 1)
    p = _draw_views(1, quadrature.views, Fixed())
    np.testing.assert_allclose(p[0], truth.on(quadrature), rtol=1e-10)


@pytest.mark.parametrize("draw", [_draw_mixtures, _draw_chains])
def test_families_are_real_volumes_in_their_principal_axes(draw):
    mixtures = draw(20, np.random.default_rng(1))
    turned = mixtures.in_principal_axes()
    for m in (mixtures, turned):
        np.testing.assert_allclose(m.weights.sum(1), 1)
        assert (m.weights >= 0).all()
        assert (m.sigmas > 0).all()
        assert np.linalg.norm(m.centres, axis=-1).max() < 0.5
    np.testing.assert_allclose(
        np.linalg.norm(mixtures.centres, axis=-1),
        np.linalg.norm(turned.centres, axis=-1),
    )
    weighted = turned.weights[..., None] * turned.centres
    second = np.swapaxes(weighted, 1, 2) @ turned.centres
    diagonal = np.einsum("bii->bi", second)
    np.testing.assert_allclose(
        second, diagonal[:, None] * np.eye(3), atol=1e-12, rtol=0
    )
    assert (np.diff(diagonal) <= 0).all()
