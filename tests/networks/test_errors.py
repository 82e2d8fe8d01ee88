"""Errors that do not depend on what the moments do not determine."""

import numpy as np
import pytest
import torch

from aspire_mom.bases import PolarBasis
from aspire_mom.inversion.forward import forward_model
from aspire_mom.networks.errors import (
    AXIS_SIGNS,
    VIEW_SIGNS,
    InvariantErrors,
    parity_transform,
)
from aspire_mom.networks.exact import ExactMoments
from aspire_mom.networks.training import _draw_mixtures
from aspire_mom.rotations import SO3Quadrature, SphericalDesign, log_density_harmonics
from aspire_mom.volumes import GaussianMixture

DEGREE = 4
DESIGN = SphericalDesign(31)
rng = np.random.default_rng(0)
COEFFICIENTS = 0.1 * torch.from_numpy(rng.standard_normal((DEGREE + 1) ** 2 - 1))
MIXTURE = _draw_mixtures(1, rng).in_principal_axes()
KEEP = MIXTURE.weights[0] > 0
VOLUME = [
    torch.from_numpy(a[:, KEEP])
    for a in (MIXTURE.centres, MIXTURE.sigmas, MIXTURE.weights)
]
SIGNS = pytest.mark.parametrize("flip", range(8))


def density(points):
    """ρ(d) of the example at points, as probabilities."""
    logits = log_density_harmonics(points, DEGREE) @ COEFFICIENTS
    return torch.softmax(logits, 0)


def flipped_volume(flip):
    """v(Sx) has its Gaussians at S μ."""
    centres, sigmas, weights = VOLUME
    return centres * torch.from_numpy(AXIS_SIGNS[flip]), sigmas, weights


def moments(forward, points, volume, p):
    mixture = GaussianMixture(1, support_radius=0.5).double()
    return forward(mixture.with_gaussians(*(t[0] for t in volume)), p)


@SIGNS
def test_flips_leave_moments_unchanged(flip):
    quadrature = SO3Quadrature.product(DESIGN, 1)
    forward = forward_model(PolarBasis(25, n_rings=6, max_order=8), quadrature)
    points = quadrature.views
    before = moments(forward, points, VOLUME, density(points))
    after = moments(
        forward, points, flipped_volume(flip), density(points * VIEW_SIGNS[flip])
    )
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)
    if flip not in (0, 7):  # S = -1 turns no view
        wrong = moments(forward, points, flipped_volume(flip), density(points))
        assert (wrong[1] - before[1]).abs().max() > 1e-7
    improper = np.prod(AXIS_SIGNS[flip]) < 0
    if improper:
        p = density(points * AXIS_SIGNS[flip])
        wrong = moments(forward, points, flipped_volume(flip), p)
        assert (wrong[1] - before[1]).abs().max() > 1e-7


def test_parity_parts_make_up_the_transform():
    n = 4
    parts = parity_transform(*VOLUME, n).reshape(8, n, n, n)
    mixture = GaussianMixture(1, support_radius=0.5).double()
    mixture = mixture.with_gaussians(*(t[0] for t in VOLUME))
    k = np.array([3, 1, 2])
    for signs in AXIS_SIGNS:
        value = 0
        for part, parity in zip(parts, AXIS_SIGNS, strict=True):
            odd = parity < 0
            sign = np.where(odd, signs, 1).prod()
            value = value + (-1j) ** odd.sum() * sign * part[tuple(k)].item()
        expected = mixture(torch.from_numpy(k * signs).double()).item()
        assert value == pytest.approx(expected, abs=1e-10)


@SIGNS
def test_errors_do_not_see_flips(flip):
    points = ExactMoments(2, 1).points
    errors = InvariantErrors(6, points, DEGREE).double()
    truth = parity_transform(*VOLUME, 6), density(points)[None]
    flipped = flipped_volume(flip)
    # log ρ(S'd) has coefficients with the sign of each harmonic's parity.
    turned = log_density_harmonics(points * VIEW_SIGNS[flip], DEGREE) @ COEFFICIENTS
    own = log_density_harmonics(points, DEGREE)
    coefficients = torch.linalg.lstsq(own, turned[:, None]).solution.T
    volume, divergence = errors(truth, (flipped, coefficients))
    assert volume.item() == pytest.approx(0, abs=1e-6)
    # The design is not exact for the normalisation of a density.
    assert divergence.item() == pytest.approx(0, abs=1e-4)
    # A density in another frame than its volume is wrong.
    if flip not in (0, 7):
        volume, divergence = errors(truth, (flipped, COEFFICIENTS[None]))
        assert volume.item() + divergence.item() > 0.01


def test_errors_are_what_they_say():
    points = ExactMoments(2, 1).points
    errors = InvariantErrors(5, points, DEGREE).double()
    p = density(points)
    centres, sigmas, weights = VOLUME
    found = (centres, 1.1 * sigmas, 0.9 * weights), 0.5 * COEFFICIENTS[None]
    volume, divergence = errors((parity_transform(*VOLUME, 5), p[None]), found)
    axis = torch.arange(-4, 5).double()
    k = torch.cartesian_prod(axis, axis, axis)
    mixture = GaussianMixture(1, support_radius=0.5).double()
    a = mixture.with_gaussians(*(t[0] for t in VOLUME))(k)
    b = mixture.with_gaussians(centres[0], 1.1 * sigmas[0], 0.9 * weights[0])(k)
    shell = k.norm(dim=1).round()
    relative = [
        ((a - b)[shell == s].abs() ** 2).sum()
        / ((a[shell == s].abs() ** 2).sum() + 9e-6 * (shell == s).sum())
        for s in range(1, 5)
    ]
    assert volume.item() == pytest.approx(sum(relative).item() / 4, rel=1e-5)
    logits = log_density_harmonics(points, DEGREE) @ (0.5 * COEFFICIENTS)
    expected = (p * (p.log() - torch.log_softmax(logits, 0))).sum()
    assert divergence.item() == pytest.approx(expected.item(), rel=1e-4)
