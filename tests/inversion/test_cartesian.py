import numpy as np
import pytest
import torch

from aspire_mom.bases import CartesianBasis
from aspire_mom.inversion import MomentLoss, cartesian, forward_model
from aspire_mom.inversion.cartesian import CartesianLoss
from aspire_mom.moments import Moments
from aspire_mom.networks import LatentEncoder
from aspire_mom.volumes import FourierNet
from tests.inversion.models import (
    closed_form,
    exact_moments,
    largest_difference,
    mixture,
    quadrature_of,
    random_probabilities,
    random_rotations,
)
from tests.references import forward as reference

SIZES = pytest.mark.parametrize("L", [8, 9])
# Multiples of four share values between in-plane angles; others do not.
ANGLES = pytest.mark.parametrize("n_inplane", [1, 4, 6, 12])


def problem(L, n_inplane, dtype=torch.float32):
    basis = CartesianBasis(L)
    quadrature = quadrature_of(random_rotations(3), n_inplane)
    p = random_probabilities(len(quadrature))
    return basis, quadrature, p, mixture(dtype=dtype)


@SIZES
@ANGLES
def test_turned_slices_are_those_of_every_node(L, n_inplane):
    """Against the defining sum at every node, no symmetry used."""
    basis, quadrature, p, model = problem(L, n_inplane, torch.float64)
    expected = reference.cartesian_moments(
        closed_form(model), quadrature.rotations.matrices, p, L
    )
    actual = forward_model(basis, quadrature)(model, torch.from_numpy(p))
    for a, e in zip(actual, expected, strict=True):
        assert largest_difference(a, e) < 1e-9


def test_a_quarter_of_the_nodes_is_evaluated():
    basis, quadrature, p, model = problem(9, 12)
    evaluate, points = model.forward, []
    model.forward = lambda k: points.append(k[..., 0].numel()) or evaluate(k)
    forward_model(basis, quadrature)(model, torch.from_numpy(p))
    # Half of the pixels and the centre, three of twelve angles.
    assert sum(points) == 3 * 3 * (9 * 9 // 2 + 1)


@SIZES
@pytest.mark.parametrize("lam", [1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_is_eq_28_and_so_is_its_gradient(L, lam, dtype):
    """Without ever forming the model's second moment, but as if it were formed."""
    basis, quadrature, p, model = problem(L, 4, dtype)
    truth = exact_moments(mixture(seed=1), p[::-1].copy(), quadrature, basis)
    forward = forward_model(basis, quadrature)
    logits = torch.from_numpy(np.log(p)).requires_grad_()
    parameters = [logits, *model.parameters()]
    results = []
    for loss, values in (
        (MomentLoss(truth, weighting="none", lam=lam), forward),
        (CartesianLoss(truth, lam=lam), lambda m, p: (forward.slices(m), p)),
    ):
        value = loss(*values(model, logits.softmax(0).to(dtype)))
        results.append((value, *torch.autograd.grad(value, parameters)))
    for formed, factored in zip(*results, strict=True):
        assert largest_difference(factored, formed) < 1e-4


def test_errors_are_eq_22():
    basis, quadrature, p, model = problem(9, 2)
    truth = exact_moments(mixture(seed=1), p, quadrature, basis)
    own = exact_moments(model, p, quadrature, basis)
    slices = forward_model(basis, quadrature).slices(model)
    actual = CartesianLoss(truth).relative_errors(slices, torch.from_numpy(p))
    expected = own.relative_error(truth)
    assert [float(a.detach()) for a in actual] == pytest.approx(expected, rel=1e-4)


def test_what_no_real_image_has_is_an_error_that_stays():
    """Moments that are not of real images: eq. 28 counts what cannot be met."""
    basis, quadrature, p, model = problem(9, 2)
    truth = exact_moments(model, p, quadrature, basis)
    first = truth.first + 0.1j * np.linalg.norm(truth.first) / 9
    second = truth.second + 0.02j * np.triu(np.ones((81, 81)), 1)
    second = np.triu(second) + np.triu(second, 1).conj().T
    odd = Moments(first, second, basis)
    forward, probabilities = forward_model(basis, quadrature), torch.from_numpy(p)
    slices = forward.slices(model)
    expected = exact_moments(model, p, quadrature, basis).relative_error(odd)
    actual = CartesianLoss(odd).relative_errors(slices, probabilities)
    assert [float(a.detach()) for a in actual] == pytest.approx(expected, rel=1e-3)


def test_moments_without_power_are_refused():
    basis, quadrature, p, model = problem(8, 1)
    truth = exact_moments(model, p, quadrature, basis)
    empty = Moments(0 * truth.first, truth.second, basis)
    with pytest.raises(ValueError, match="first moment is 0"):
        CartesianLoss(empty)


@pytest.mark.parametrize("kept", [0, 10**6])
@pytest.mark.parametrize("encoded", [False, True])
def test_chunks_have_the_values_and_gradients_of_the_whole(monkeypatch, kept, encoded):
    """Those of an encoder of the volume's latent variable, too."""
    monkeypatch.setattr(cartesian, "POINTS_KEPT", kept)
    monkeypatch.setattr(cartesian, "POINTS_PER_CHUNK", {"cpu": 30})
    encoder = LatentEncoder.polar(3, 4, 2) if encoded else None
    net = FourierNet(5, hidden=8, encoder=encoder).double()
    rows = torch.from_numpy(random_rotations(11))
    points = torch.randn(7, 2, dtype=torch.float64)
    weights = torch.randn(11, 7, 2, dtype=torch.float64)

    def differentiated(values):
        net.zero_grad()
        (weights * torch.view_as_real(values)).sum().backward(retain_graph=True)
        return [None if p.grad is None else p.grad.clone() for p in net.parameters()]

    moments = torch.randn(4), torch.randn(3, 4, 4)
    net.encode(*(m.to(torch.complex128) for m in moments))
    whole = net.slices(rows, points)
    in_chunks = cartesian.in_chunks(net, net.slices, rows, points)
    torch.testing.assert_close(in_chunks, whole)
    torch.testing.assert_close(differentiated(in_chunks), differentiated(whole))
    with torch.no_grad():
        again = cartesian.in_chunks(net, net.slices, rows, points)
    torch.testing.assert_close(again, whole)


def test_models_without_gradients_are_evaluated():
    net = FourierNet(5, hidden=8).requires_grad_(False)
    rotations = torch.from_numpy(random_rotations(2)).float()
    values = cartesian.in_chunks(net, net.slices, rotations, torch.randn(7, 2))
    assert not values.requires_grad
