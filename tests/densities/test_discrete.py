from __future__ import annotations

import numpy as np
import pytest
import torch

from aspire_mom.densities import DiscreteDensity, VonMisesFisherMixture
from aspire_mom.quadrature import SO3Quadrature


@pytest.fixture(scope="module")
def nodes():
    return SO3Quadrature.for_band_limit(4)


def test_starts_uniform(nodes):
    for density in (DiscreteDensity(nodes), DiscreteDensity(len(nodes))):
        assert density().shape == (len(nodes),)
        assert density().dtype == torch.get_default_dtype()
        np.testing.assert_allclose(density.probabilities, nodes.weights, rtol=1e-14)
        assert density.probabilities.dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_from_probabilities_gives_them_back(nodes, dtype):
    p = VonMisesFisherMixture.random(3, seed=1).on(nodes)
    density = DiscreteDensity.from_probabilities((3 * p).astype(dtype))
    assert density().detach().numpy().dtype == dtype
    rtol = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(density.probabilities, p, rtol=rtol)
    np.testing.assert_allclose(density().detach().numpy(), p, rtol=rtol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_are_allowed_and_have_finite_gradients(dtype):
    density = DiscreteDensity.from_probabilities(torch.tensor([0, 1, 3], dtype=dtype))
    np.testing.assert_allclose(density.probabilities, [0, 0.25, 0.75], atol=1e-7)
    density()[1].backward()
    gradient = density.logits.grad.numpy()
    np.testing.assert_allclose(gradient, [0, 0.1875, -0.1875], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_learns_a_density(nodes, dtype):
    target = torch.from_numpy(VonMisesFisherMixture.random(8, seed=0).on(nodes))
    density = DiscreteDensity(nodes).to(dtype)
    optimizer = torch.optim.LBFGS(density.parameters(), max_iter=100)

    def loss():
        optimizer.zero_grad()
        value = -(target.to(dtype) * density().log()).sum()
        value.backward()
        return value

    optimizer.step(loss)
    np.testing.assert_allclose(density.probabilities, target, atol=1e-4)
    assert density.probabilities.sum() == pytest.approx(1, abs=1e-14)
    assert target.max() > 4 * target.min()


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([0.5, -0.1], "minimum is -0.1"),
        ([0.5, np.nan], "finite, non-negative"),
        ([0.0, 0.0], "not all zero"),
        ([[0.5, 0.5]], "one-dimensional"),
        ([1, 2], "floating-point"),
    ],
)
def test_refuses_what_are_no_probabilities(probabilities, message):
    with pytest.raises(ValueError, match=message):
        DiscreteDensity.from_probabilities(np.array(probabilities))


def test_refuses_no_nodes():
    with pytest.raises(ValueError, match="at least one node, got 0"):
        DiscreteDensity(0)
