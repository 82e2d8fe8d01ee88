import numpy as np
import pytest
import torch

from aspire_mom.bases import CartesianBasis, PolarBasis
from aspire_mom.inversion import (
    OptimizerStatus,
    StoppedByUser,
    optimise,
    paper_inversion,
)
from aspire_mom.networks import LatentEncoder, MomentEncoder
from aspire_mom.volumes import FourierNet
from tests.inversion.models import (
    exact_moments,
    mixture,
    quadrature_of,
    random_probabilities,
    random_rotations,
)

L = 8
QUADRATURE = quadrature_of(random_rotations(5), 2)


def truth(basis):
    return exact_moments(mixture(), random_probabilities(10), QUADRATURE, basis)


def test_is_the_papers():
    """Section 5.2 in numbers."""
    inversion = paper_inversion(truth(CartesianBasis(L)))
    assert len(inversion.quadrature) == 1200
    assert inversion.quadrature.n_inplane == 12
    assert inversion.quadrature.degree == 11  # of a 13-design and 12 in-plane angles
    assert inversion.search.n_steps == 20_000
    assert inversion.search.learning_rates == (1e-5, 1e-6)
    assert inversion.loss.weighting == "none"
    assert isinstance(inversion.volume, FourierNet)
    assert isinstance(inversion.density, MomentEncoder)


@pytest.mark.parametrize("n_latent", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_stops_and_goes_on_to_the_same_end(tmp_path, n_latent, monkeypatch):
    """What was done is kept, and adds up to one run; a latent variable or not."""
    monkeypatch.setattr(optimise, "ADAM_STEPS_PER_REPORT", 5)
    moments, seen = truth(CartesianBasis(L)), []
    options = {"n_epochs": 3, "n_latent": n_latent, "seed": 1}
    expected = paper_inversion(moments, **options).estimate()

    def stop(now: OptimizerStatus) -> bool:
        seen.append(now)
        return True

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(StoppedByUser):
        paper_inversion(moments, **options, status=stop, checkpoint=path).estimate()
    assert seen[0].step == 5
    assert seen[0].volume.to_volume(L).asnumpy().any()
    assert seen[0].density is not None
    found = paper_inversion(moments, **options, checkpoint=path).estimate()
    again = paper_inversion(moments, **options, checkpoint=path).estimate()
    np.testing.assert_array_equal(again.volume.asnumpy(), found.volume.asnumpy())
    assert found.history[-1]["loss"] == pytest.approx(
        expected.history[-1]["loss"], rel=1e-5
    )
    assert found.volume.asnumpy() == pytest.approx(
        expected.volume.asnumpy(), rel=1e-3, abs=1e-5
    )


def test_latent_variable_is_of_the_moments_and_learns():
    """Its encoder has gradients, and other moments make another volume."""
    moments = truth(CartesianBasis(L))
    inversion = paper_inversion(moments, n_latent=3)
    problem, volume = inversion.problem(inversion.n_rings), inversion.volume
    assert isinstance(volume.encoder, LatentEncoder)
    problem.objective(volume, inversion.density).backward()
    assert all(p.grad.abs().sum() > 0 for p in volume.encoder.parameters())
    before = volume(torch.ones(3)).detach()
    volume.encode(*(torch.flip(m, [0]) for m in problem.estimates))
    assert (volume(torch.ones(3)) - before).abs() > 1e-6 * before.abs()


def test_counts_are_named():
    moments = truth(CartesianBasis(L))
    for name, value in (("n_epochs", 0), ("n_epochs", 1.5), ("n_latent", -1)):
        with pytest.raises(ValueError, match=name):
            paper_inversion(moments, **{name: value})


def test_other_moments_are_refused():
    with pytest.raises(ValueError, match="CartesianBasis"):
        paper_inversion(truth(PolarBasis(L)))
    with pytest.raises(TypeError, match="not a Moments"):
        paper_inversion(None)
