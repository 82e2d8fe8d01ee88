import math

import numpy as np
import pytest
import torch
from aspire.image import Image
from scipy.spatial.transform import Rotation as Rotations
from scipy.special import logsumexp

from aspire_mom import PolarBasis
from aspire_mom.phantoms import chain_phantom
from aspire_mom.refinement.posterior import Model, expectation, inner
from aspire_mom.refinement.shifts import Shifts
from aspire_mom.refinement.slices import slices
from aspire_mom.refinement.views import Views, coarse_directions, largest_order

L = 25
CPU = torch.device("cpu")


def model_on(n_rings, nats=20.0, L=L):
    """A model whose slices differ from nothing by so many nats, and its density."""
    views = Views.for_rings(n_rings)
    rng = np.random.default_rng(0)
    density = rng.dirichlet(np.full(len(views.directions), 2.0))
    areas = PolarBasis(L, n_rings).areas
    u = chain_phantom(L, seed=4).asnumpy()[0]
    c = slices(u, views.directions, n_rings, L)
    noise = np.full(n_rings, (areas * inner(c, c)).sum(1).mean() / (2 * nats))
    noise *= 1 + np.arange(n_rings) / 10
    return Model(u, density, noise, views, areas, L, CPU), density


def noisy_images(model, n, seed=0):
    """Coefficients of slices with noise, times CTF, and squared CTFs."""
    rng = np.random.default_rng(seed)
    c = model.slices[rng.integers(len(model.slices), size=n)]
    h = rng.uniform(0.5, 1.5, (n, model.n_rings))
    noise = rng.normal(size=(2, *c.shape)) / np.sqrt(2 * model.weights)
    x = c * h[:, None] + np.sqrt(h)[:, None] * (noise[0] + 1j * noise[1])
    return torch.from_numpy(x.astype(np.complex64)), torch.from_numpy(h).float()


def brute_force(x, h, slices, weights, prior, n_angles):
    """Scores (views, angles) of one image, term by term."""
    alpha = 2 * np.pi * np.arange(n_angles) / n_angles
    scores = np.zeros((len(slices), n_angles))
    for m in range(slices.shape[1]):
        count = 1 if m == 0 else 2
        inner = (weights * x[m].conj() * slices[:, m]).sum(1)
        scores += count * (inner[:, None] * np.exp(1j * m * alpha)).real
        squares = (weights * h * np.abs(slices[:, m]) ** 2).sum(1)
        scores -= count * squares[:, None] / 2
    return scores + prior[:, None]


@pytest.mark.parametrize("n_rings", [6, 8])
def test_sums_over_coarse_views_agree_with_enumeration(n_rings):
    model, density = model_on(n_rings)
    x, h = noisy_images(model, 3)
    found = expectation(model, x, h, Shifts(0.0, 1.0, L, CPU))
    n_angles, total = model.n_angles, 0.0
    expected = np.zeros(model.slices.shape, complex)
    mass, information = np.zeros(len(density)), np.zeros(found.information.shape)
    turns = np.exp(
        -2j * np.pi / n_angles
        * np.outer(np.arange(n_angles), np.arange(model.slices.shape[1]))
    )  # fmt: skip
    for i, (image, ctf) in enumerate(zip(x.numpy(), h.numpy(), strict=True)):
        score = brute_force(
            image, ctf, model.slices, model.weights, np.log(density), n_angles
        )
        p = np.exp(score - logsumexp(score))
        total += logsumexp(score) - np.log(n_angles)
        expected += (p @ turns)[:, :, None] * image
        mass += p.sum(1)
        information += p.sum(1)[:, None] * ctf
        view, angle = np.unravel_index(score.argmax(), score.shape)
        assert found.poses[i, 0] == view
        assert math.isclose(
            found.poses[i, 1], 2 * np.pi * angle / n_angles, rel_tol=1e-6
        )
        assert math.isclose(found.poses[i, 4], p.max(), rel_tol=1e-3)
    assert math.isclose(found.log_likelihood, total, rel_tol=1e-4)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found.slices / scale, expected / scale, atol=5e-4)
    np.testing.assert_allclose(found.mass, mass, atol=5e-4)
    np.testing.assert_allclose(found.information, information, atol=5e-4)


@pytest.mark.parametrize(("n_rings", "L", "n_levels"), [(10, 25, 2), (17, 41, 3)])
def test_finer_views_agree_with_enumeration(n_rings, L, n_levels, monkeypatch):
    # One of the images hardly tells views apart.
    monkeypatch.setattr("aspire_mom.refinement.posterior.MOST_KEPT", 200)
    monkeypatch.setattr("aspire_mom.refinement.posterior.MOST_FINER", 400)
    model, density = model_on(n_rings, 150, L)
    assert len(model.views.levels) == n_levels
    x, h = noisy_images(model, 4)
    found = expectation(model, x, h, Shifts(0.0, 1.0, L, CPU))
    views = model.views
    coarsest = views.coarsest[-1]
    prior = (np.log(density) - np.log(np.bincount(coarsest)))[coarsest]
    mass = np.zeros(len(views.finest))
    for i, (image, ctf) in enumerate(zip(x.numpy(), h.numpy(), strict=True)):
        score = brute_force(
            image, ctf, model.slices, model.weights, prior, model.n_angles
        )
        p = np.exp(score - logsumexp(score))
        mass += p.sum(1)
        assert found.poses[i, 0] == p.max(1).argmax()
        # Of the poses that were tried: not below that of all.
        assert 0.999 < found.poses[i, 4] / p.max() < 1.1
    # Views that hold less than LEAST_SHARE of the best one's are left out.
    np.testing.assert_allclose(found.mass, mass, atol=0.03)
    assert abs(found.mass.sum() - len(x)) < 0.1


def test_shifts_are_undone():
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:33, :33] - 16
    smooth = np.exp(-((x - 2) ** 2 + (y + 1) ** 2) / 8) * (1 + 0.3 * x)
    offsets = rng.uniform(-1.5, 1.5, (3, 2))
    moved = Image(np.repeat(smooth[None], 3, 0)).shift(offsets).asnumpy()
    basis = PolarBasis(33, 12, largest_order(11) + 6)
    c = torch.from_numpy(basis.coefficients(moved)).to(torch.complex64)
    shifts = Shifts(1.0, 1.0, 33, CPU)
    for image, offset in zip(c, offsets, strict=True):
        back = shifts.undone(image[None], offset[None])[0]
        expected = basis.coefficients(smooth[None])[0]
        orders = largest_order(11) - 2
        np.testing.assert_allclose(
            back[:orders], expected[:orders], atol=1e-3 * abs(expected).max()
        )


@pytest.mark.parametrize(("n_rings", "L"), [(10, 25), (17, 41)])
def test_the_shift_of_an_image_is_found(n_rings, L):
    model, _ = model_on(n_rings, 1000, L)
    shifts = Shifts(1.5, 1.0, L, CPU)
    orders = model.slices.shape[1] + 8
    x = np.zeros((1, orders, n_rings), np.complex64)
    x[0, : model.slices.shape[1]] = model.slices[100]
    moved = shifts.undone(torch.from_numpy(x), -np.array([[1.25, -0.75]]))
    found = expectation(model, moved, torch.ones(1, n_rings), shifts)
    np.testing.assert_allclose(found.poses[0, 2:4], (1.25, -0.75))
    assert found.poses[0, 0] == 100
    assert math.isclose(found.mass.sum(), 1, rel_tol=0.05)


def test_shift_priors_sum_to_one():
    shifts = Shifts(1.5, 2.0, L, CPU)
    assert math.isclose(shifts.prior.exp().sum(), 1, rel_tol=1e-5)
    assert len(Shifts(0.0, 2.0, L, CPU)) == 1


def test_each_finer_view_belongs_to_the_closest():
    views = Views.for_rings(20)
    assert views.rings == (8, 13, 20)
    coarsest = np.arange(len(views.directions))
    pairs = zip(views.levels[:-1], views.levels[1:], strict=True)
    for i, (coarser, finer) in enumerate(pairs):
        children = views.children[i]
        assert sorted(children[children >= 0]) == list(range(len(finer)))
        assert (children >= 0).any(1).all()
        closest = (finer @ coarser.T).argmax(1)
        which, place = np.nonzero(children >= 0)
        np.testing.assert_array_equal(closest[children[which, place]], which)
        coarsest = coarsest[closest]
        np.testing.assert_array_equal(views.coarsest[i + 1], coarsest)


def test_levels_have_at_most_twice_the_rings():
    for n_rings in range(9, 33):
        rings = Views.for_rings(n_rings).rings
        assert rings[0] == 8
        assert rings[-1] == n_rings
        assert all(a < b <= 2 * a for a, b in zip(rings[:-1], rings[1:], strict=True))


def test_views_are_as_fine_as_rings_need():
    # The distance from anywhere to the closest view, with some margin for the lattice.
    for n_rings in (8, 12, 20):
        views = Views.for_rings(n_rings).finest
        anywhere = Rotations.random(2000, rng=0).as_matrix()[:, :, 2]
        angle = np.arccos(np.clip((anywhere @ views.T).max(1), -1, 1)).max()
        assert angle < 1.0 / (n_rings - 1)
    assert len(coarse_directions()) == len(Views.for_rings(5).finest)
