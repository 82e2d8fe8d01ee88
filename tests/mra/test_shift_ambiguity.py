from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aspire_mom.mra import exact_moments, shift, shift_error
from aspire_mom.mra.shift_ambiguity import centre_density, to_distribution
from aspire_mom.mra.spectral import density_of_shifts


@settings(max_examples=30)
@given(n=st.integers(5, 60), seed=st.integers(0, 999))
def test_nearest_distributions(n, seed):
    """The projection's optimality: x - p is the same where p > 0, and not more where
    p = 0."""
    x = np.random.default_rng(seed).normal(1 / n, 1, (3, n))
    p = to_distribution(x)
    assert p.min() >= 0
    np.testing.assert_allclose(p.sum(1), 1)
    for excess, q in zip(x - p, p, strict=True):
        level = excess[q > 0]
        np.testing.assert_allclose(level, level[0], atol=1e-9)
        assert (excess[q == 0] <= level[0] + 1e-9).all()


@settings(max_examples=30)
@given(n=st.integers(20, 60), by=st.integers(-99, 99), seed=st.integers(0, 999))
def test_centring_keeps_the_moments(n, by, seed):
    rng = np.random.default_rng(seed)
    v, rho = rng.standard_normal(n), rng.dirichlet(np.ones(n))
    fixed = centre_density(v, rho)
    again = centre_density(np.roll(v, by), np.roll(rho, -by))
    for a, b in zip(fixed, again, strict=True):
        np.testing.assert_array_equal(a, b)
    m, same = exact_moments(v, rho), exact_moments(*fixed)
    np.testing.assert_allclose(m.second, same.second, atol=1e-12)
    mean = np.angle(np.fft.fft(fixed[1])[1]) * n / (2 * np.pi)
    assert abs(mean) < 0.5 + 1e-5
    whole = shift(v, 3), shift(rho, -3)
    np.testing.assert_allclose(exact_moments(*whole).second, m.second, atol=1e-9)


@pytest.mark.parametrize("n", [20, 21])
def test_density_for_a_known_signal(n):
    rng = np.random.default_rng(0)
    v, rho = 1 + rng.standard_normal(n), rng.dirichlet(np.full(n, 0.3))
    m = exact_moments(v, rho)
    np.testing.assert_allclose(density_of_shifts(v, m), rho, atol=1e-6)
    # With other moments it is better than any neighbour.
    second = m.second + 0.05 * np.abs(m.second).max() * rng.standard_normal((n, n))
    second = (second + second.conj().swapaxes(-1, -2)) / 2
    k = -np.arange(n) % n
    second = (second + second.conj()[..., k[:, None], k]) / 2
    best = density_of_shifts(v, replace(m, second=second))
    assert shift_error(rho, best) > 1e-3

    power = np.mean(v**2, -1)

    def distance(rho):
        other = exact_moments(v, rho)
        return np.sqrt(
            power * np.linalg.norm(other.first - m.first, axis=-1) ** 2
            + np.linalg.norm(other.second - second, axis=(-1, -2)) ** 2
        )

    for _ in range(50):
        mixed = 0.99 * best + 0.01 * rng.dirichlet(np.full(n, 0.3))
        assert distance(mixed) > distance(best)
