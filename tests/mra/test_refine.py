"""Alignment of encoder outputs, and refinement from them."""

import numpy as np
import pytest
import torch

from aspire_mom.mra import (
    FourierMoments,
    GaussianFamily,
    exact_moments,
    relative_errors,
    shift,
    shift_error,
    simulate_moments,
)
from aspire_mom.mra.paper_encoder import PaperEncoder
from aspire_mom.mra.refine import _alignment, predict, refine_directly, refine_weights
from aspire_mom.mra.weights import pretrained
from tests.references import alignment as reference


@pytest.fixture(scope="module")
def noisy():
    rng = np.random.default_rng(3)
    v, rho = GaussianFamily(2).draw(4, rng)
    return v, rho, simulate_moments(v, rho, 10**5, 1.0, rng)


def mismatch(v, rho, moments):
    return sum(relative_errors(v, rho, moments.first, moments.second))


@pytest.mark.parametrize("n", [20, 41])
def test_alignment_brings_shifted_outputs_together(n):
    rng = np.random.default_rng(0)
    if n % 2:
        v, rho = GaussianFamily(3, n).draw(30, rng)
    else:
        v, rho = reference.periodic_pairs(3, n, 30, rng)
    moments = exact_moments(v, rho)
    by = rng.uniform(-n / 2, n / 2, (2, 30))
    moved = shift(v, by[0]), shift(rho, by[1])
    assert np.median(mismatch(*moved, moments)) > 0.1
    back = _alignment(*moved, moments)
    v_back, rho_back = shift(moved[0], back[0]), shift(moved[1], back[1])
    # Smooth signals leave the common part of a sample open, up to the size of what is
    # aliased.
    assert np.median(mismatch(v_back, rho_back, moments)) < (1e-6 if n % 2 else 1e-2)


def test_refining_weights_lowers_the_loss_and_leaves_the_encoder(noisy):
    v, rho, moments = noisy
    encoder = pretrained("paper-2")
    before = {k: p.clone() for k, p in encoder.state_dict().items()}
    seen = []
    found = refine_weights(encoder, moments, n_steps=30, status=seen.append)
    errors = np.array([s.errors.numpy() for s in seen])
    assert [s.step for s in seen] == list(range(31))
    assert (errors[-1] < errors[0]).all()
    assert errors[-1].mean() < 0.7 * errors[0].mean()
    assert shift_error(v, found[0]).mean() < shift_error(v, seen[0].v.numpy()).mean()
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_each_problem_has_weights_of_its_own(noisy):
    moments = noisy[2]
    encoder = PaperEncoder(seed=1)
    together = refine_weights(encoder, moments, n_steps=15)
    one = FourierMoments(moments.first[2], moments.second[2], 10**5, 1.0)
    alone = refine_weights(encoder, one, n_steps=15)
    for a, b in zip(together, alone, strict=True):
        assert b.shape == (41,)
        np.testing.assert_allclose(a[2], b, atol=1e-3 * np.abs(b).max())


def test_refining_directly(noisy):
    v, rho, moments = noisy
    start = predict(pretrained(), moments)
    found = refine_directly(*start, moments, n_steps=60)
    assert (mismatch(*found, moments) < mismatch(*start, moments)).all()
    assert found[1].min() >= 0
    np.testing.assert_allclose(found[1].sum(-1), 1)


def test_from_exact_moments_it_goes_towards_the_truth():
    v, rho = GaussianFamily(2).draw(8, np.random.default_rng(4))
    moments = exact_moments(v, rho)
    start = predict(pretrained("paper-2"), moments)
    found = refine_directly(*start, moments, n_steps=400, learning_rate=3e-3)
    for truth, before, after in zip((v, rho), start, found, strict=True):
        assert (
            shift_error(truth, after).mean() < 0.8 * shift_error(truth, before).mean()
        )


def test_status_stops(noisy):
    seen = []

    def status(s):
        seen.append(s.step)
        return s.step == 3

    refine_directly(*noisy[:2], noisy[2], status=status)
    assert seen == [0, 1, 2, 3]


def test_shapes_must_match(noisy):
    v, rho, moments = noisy
    with pytest.raises(ValueError, match="the first moment has"):
        refine_directly(v[:2], rho[:2], moments)
