"""The trained network in NumPy."""

import numpy as np
import pytest
import torch

from aspire_mom.mra import GaussianFamily, simulate_moments
from aspire_mom.mra.quick_encoder import leans_left, quick_encoder
from aspire_mom.mra.weights import pretrained


@pytest.mark.parametrize(("n", "sigma"), [(19, 0.1), (41, 1.0), (64, 3.0)])
def test_it_says_what_the_network_says(n, sigma):
    """Of data turned over, and of data reversed where those are what it is told."""
    rng = np.random.default_rng(n)
    v, rho = GaussianFamily(2, n).draw(6, rng)
    m = simulate_moments(v, rho, 10**5, sigma, rng)
    encoder, slow = quick_encoder(), pretrained("mixture").double()
    share = sigma**2 / 10**5
    for first, second in zip(m.first, m.second, strict=True):
        backward = leans_left(first, second)
        assert leans_left(-first, second) == backward
        assert leans_left(first.conj(), second.conj()) != backward
        if backward:
            first, second = first.conj(), second.conj()
        likely, parts = encoder(-first, second, share, sigma)
        inputs = (torch.tensor(np.array([x])) for x in (first, second, share, sigma))
        with torch.no_grad():
            log_likely, pairs = slow.hypotheses(*inputs)
        np.testing.assert_allclose(likely, log_likely[0].exp(), atol=1e-5)
        for i, pair in enumerate(pairs):
            for found, expected in zip(
                encoder.alternatives(parts, i), pair, strict=True
            ):
                expected = [x[0].numpy() for x in expected.likeliest()]
                expected[2] = np.exp(expected[2])
                for a, b in zip(found, expected, strict=True):
                    np.testing.assert_allclose(a, b, atol=1e-5)
