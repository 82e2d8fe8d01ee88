"""Training: that it learns, goes on where it was, and shares nothing with tests."""

import dataclasses

import numpy as np
import pytest
import torch

from aspire_mom.mra import shift, shift_error
from aspire_mom.mra.comparison import draw_test
from aspire_mom.mra.mixture_encoder import MixtureEncoder
from aspire_mom.mra.paper_encoder import PaperEncoder
from aspire_mom.mra.shift_ambiguity import squared_errors
from aspire_mom.mra.signals import GaussianFamily
from aspire_mom.mra.training import (
    SEARCH,
    TRAINING,
    VALIDATION,
    Training,
    _draw_problems,
    _loss,
    train,
    training_set,
)

SMALL = Training(
    n=25,
    n_steps=60,
    batch_size=32,
    validate_every=20,
    validation_size=256,
    learning_rate=3e-3,
)
PAPERS = dataclasses.replace(SMALL, n=15, ks=(1,), exact_share=1.0, set_size=200)


def encoders():
    return [
        (MixtureEncoder(width=32, n_blocks=1), SMALL),
        (PaperEncoder(15, window=5, width=32), PAPERS),
    ]


@pytest.mark.parametrize(("encoder", "training"), encoders())
def test_training_lowers_the_loss(encoder, training):
    validation = _draw_problems(training, 256, (VALIDATION,))
    before = _loss(encoder.eval(), validation).item()
    seen = []
    best = train(encoder, training, status=seen.append)
    after = _loss(encoder, validation).item()
    assert not encoder.training
    assert after == pytest.approx(best, abs=1e-5)
    assert after < before - 0.1
    assert [s.step for s in seen] == [20, 40, 60]
    assert seen[-1].best == best


@pytest.mark.parametrize(("encoder", "training"), encoders())
def test_going_on_is_the_same_as_not_stopping(tmp_path, encoder, training):
    path, training = tmp_path / "c", dataclasses.replace(training, n_steps=40)
    start = {k: v.clone() for k, v in encoder.state_dict().items()}
    whole = train(encoder, training)
    weights = {k: v.clone() for k, v in encoder.state_dict().items()}
    encoder.load_state_dict(start)
    train(encoder, training, checkpoint=path, status=lambda s: s.step == 20)
    with torch.no_grad():
        for p in encoder.parameters():
            p.zero_()
    assert train(encoder, training, checkpoint=path) == whole
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_stops_early():
    training = dataclasses.replace(
        PAPERS, n_steps=200, learning_rate=1e-12, patience=3, validate_every=5
    )
    seen = []
    train(PaperEncoder(15, window=5, width=8), training, status=seen.append)
    assert seen[-1].step < 100


def test_nothing_is_shared():
    def signals(stream, count=64):
        return {tuple(v) for v in _draw_problems(SMALL, count, stream).v.numpy()}

    drawn = [signals((TRAINING, i)) for i in range(3)] + [signals((VALIDATION,))]
    drawn += [
        {
            tuple(v.astype(np.float32))
            for v in draw_test(GaussianFamily(k, 25), 64, 0)[0]
        }
        for k in (1, 2, 3)
    ]
    assert len(set().union(*drawn)) == 7 * 64
    fixed = {tuple(v.astype(np.float32)) for v in training_set(PAPERS)[0]}
    assert len(fixed) == 200
    batch = _draw_problems(PAPERS, 32, (TRAINING, 5), fixed=training_set(PAPERS))
    assert {tuple(v) for v in batch.v.numpy()} <= fixed
    assert not fixed & set().union(*drawn[3:])


@pytest.mark.parametrize("n", [15, 41])
def test_errors_are_the_metrics(n):
    rng = np.random.default_rng(1)
    v, rho = GaussianFamily(2, n).draw(20, rng)
    for truth, found in ((v, shift(v, 2.3) + 0.01 * rho), (rho, v / v.sum())):
        squared = squared_errors(torch.tensor(truth), torch.tensor(found), **SEARCH)
        expected = shift_error(truth, found)
        np.testing.assert_allclose(squared.sqrt(), expected, rtol=0.01)


def test_gradient_of_errors():
    rng = np.random.default_rng(2)
    v, _ = GaussianFamily(2, 15).draw(2, rng)
    found = torch.tensor(shift(v, 1.3) + 0.1 * rng.standard_normal(v.shape))
    truth = torch.tensor(v)
    assert torch.autograd.gradcheck(
        lambda x: squared_errors(truth, x), found.requires_grad_(), atol=1e-4
    )


def test_bad_settings(tmp_path):
    with pytest.raises(ValueError, match="n_steps is 0; it must be an integer of at"):
        Training(n_steps=0)
    with pytest.raises(ValueError, match="learning_rate is -1"):
        Training(learning_rate=-1)
    path = tmp_path / "c"
    encoder = PaperEncoder(15, window=5, width=8)
    train(encoder, PAPERS, checkpoint=path, status=lambda s: True)
    with pytest.raises(ValueError, match="is a checkpoint of other data or settings"):
        train(encoder, dataclasses.replace(PAPERS, seed=1), checkpoint=path)
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match="is no checkpoint, or a damaged one"):
        train(encoder, PAPERS, checkpoint=path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        train(encoder, PAPERS, checkpoint=tmp_path / "no" / "c")


def test_more_gaussians_than_the_encoder_knows_of_are_refused():
    encoder = MixtureEncoder(width=8, n_blocks=1, most=2)
    with pytest.raises(ValueError, match="at most 2 Gaussians"):
        train(encoder, Training(ks=(1, 3), n_steps=1))
