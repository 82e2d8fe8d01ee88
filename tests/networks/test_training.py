"""Training: that it learns, goes on where it was, and shares nothing with tests."""

import dataclasses

import numpy as np
import pytest
import torch

from aspire_mom.bases import PolarBasis
from aspire_mom.checkpoints import InvalidCheckpoint
from aspire_mom.networks import StartEncoder, Training, train
from aspire_mom.networks.errors import InvariantErrors
from aspire_mom.networks.exact import ExactMoments
from aspire_mom.networks.training import (
    STANDARDISATION,
    TRAINING,
    VALIDATION,
    _add_noise,
    _draw_problems,
    _ring_noise,
    power_errors,
)

SMALL = Training(
    n_steps=30, batch_size=32, validate_every=10, validation_size=64, learning_rate=1e-3
)
SIZES = {"n_rings": 4, "max_order": 5, "width": 32, "n_blocks": 1}


def small_encoder(seed=0):
    return StartEncoder(4, **SIZES, seed=seed)


def test_training_lowers_the_loss():
    encoder = small_encoder()
    exact = ExactMoments(4, 5)
    errors = InvariantErrors(4, exact.points, encoder.degree)
    validation = _draw_problems(SMALL, 64, (VALIDATION,), exact)
    family = _draw_problems(SMALL, 64, (STANDARDISATION,), exact)
    encoder.standardise(*family.moments)

    def loss():
        with torch.no_grad():
            found = encoder(*validation.moments)
            return sum(errors(validation.truth, found)).mean().item()

    before = loss()
    seen = []
    best = train(encoder, SMALL, status=seen.append)
    after = loss()
    assert not encoder.training
    assert after == pytest.approx(best, rel=1e-4)
    assert after < before - 0.2
    assert [s.step for s in seen] == [10, 20, 30]
    assert seen[-1].best == best
    assert seen[-1].loss == sum(seen[-1].errors.values())


def test_going_on_is_the_same_as_not_stopping(tmp_path):
    path, training = tmp_path / "c", dataclasses.replace(SMALL, n_steps=20)
    whole_encoder = small_encoder()
    whole = train(whole_encoder, training)
    train(small_encoder(), training, checkpoint=path, status=lambda s: s.step == 10)
    encoder = small_encoder(seed=1)
    assert train(encoder, training, checkpoint=path) == whole
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, whole_encoder.state_dict()[name]), name


def test_stops_early():
    training = dataclasses.replace(
        SMALL, n_steps=200, learning_rate=1e-12, patience=2, validate_every=2
    )
    seen = []
    train(small_encoder(), training, status=seen.append)
    assert seen[-1].step < 20


def test_nothing_is_shared():
    exact = ExactMoments(4, 5)
    streams = [(TRAINING, 0), (TRAINING, 1), (VALIDATION,), (STANDARDISATION,)]
    volumes, views = set(), set()
    for stream in streams:
        problems = _draw_problems(SMALL, 32, stream, exact)
        volumes |= {tuple(v.flatten().tolist()) for v in problems.truth[0]}
        views |= {tuple(p.tolist()) for p in problems.truth[1]}
    assert len(volumes) == 4 * 8  # each volume has four densities
    assert len(views) == 4 * 32
    first, second = (_draw_problems(SMALL, 32, streams[0], exact) for _ in range(2))
    torch.testing.assert_close(first.moments[1], second.moments[1])


def test_noise_has_the_errors_it_claims():
    """Many draws of one problem, levels fixed by the ranges' shared limits."""
    exact = ExactMoments(4, 5)
    rng = np.random.default_rng(0)
    first_exact, exactly, _ = _draw_problems(SMALL, 8, (VALIDATION,), exact).moments
    # What matters is that entries stay Hermitian and scatter as their errors say.
    n = 4000
    first, second, error = _add_noise(
        first_exact[:1].expand(n, -1), exactly[:1].expand(n, -1, -1, -1), rng
    )
    torch.testing.assert_close(second, second.mH)
    assert first.is_complex()
    twice = torch.where(torch.arange(6) == 0, 1.0, 2.0)[:, None]
    own = second.diagonal(dim1=-2, dim2=-1).real
    own_exact = exactly[:1].diagonal(dim1=-2, dim2=-1).real
    deviation = (twice * (own - own_exact)).sum(1)
    noisy = error[:, 1] > 0
    assert noisy.float().mean() == pytest.approx(0.75, abs=0.03)
    assert (deviation[~noisy] == 0).all()
    scatter = (deviation[noisy] / error[noisy]).square().mean(0).sqrt()
    torch.testing.assert_close(scatter, torch.ones(4), atol=0.05, rtol=0)
    mixed = second[noisy][:, 2, 1, 3] - exactly[0, 2, 1, 3]
    assert mixed.real.std() == pytest.approx(mixed.imag.std().item(), rel=0.1)


def test_ring_noise_is_the_basis_s_and_of_any_size():
    noise = _ring_noise(6, 4)
    for L in (24, 41):
        second = PolarBasis(L, n_rings=4, max_order=5).noise_second()
        own = np.einsum("mrr->mr", second).real / L**2
        np.testing.assert_allclose(noise, own, atol=0.02)


def test_power_errors_count_orders_twice():
    own = torch.tensor([[[3.0], [2.0]]])
    assert power_errors(own).item() == pytest.approx(5.0)


def test_bad_settings(tmp_path):
    with pytest.raises(ValueError, match="n_steps is 0; it must be an integer"):
        Training(n_steps=0)
    with pytest.raises(ValueError, match="learning_rate is -1"):
        Training(learning_rate=-1)
    with pytest.raises(
        ValueError, match="batch_size is 12; it must be a multiple of 8"
    ):
        Training(batch_size=12)
    path = tmp_path / "c"
    train(small_encoder(), SMALL, checkpoint=path, status=lambda s: True)
    other = dataclasses.replace(SMALL, seed=1)
    with pytest.raises(InvalidCheckpoint, match="of other data or settings"):
        train(small_encoder(), other, checkpoint=path)
    path.write_bytes(b"x")
    with pytest.raises(InvalidCheckpoint, match="is no checkpoint, or a damaged one"):
        train(small_encoder(), SMALL, checkpoint=path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        train(small_encoder(), SMALL, checkpoint=tmp_path / "no" / "c")
