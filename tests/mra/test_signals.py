import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, norm

from aspire_mom.mra import GaussianFamily, observe, shift
from tests.references import alignment as reference


@pytest.mark.parametrize("n", [20, 41])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_scales(k, n):
    rng = np.random.default_rng(0)
    v, rho = GaussianFamily(k, n=n).draw(50, rng)
    assert v.shape == rho.shape == (50, n)
    np.testing.assert_allclose(v.mean(1), 1)
    np.testing.assert_allclose(rho.sum(1), 1)
    assert v.min() > 0
    assert rho.min() >= 0
    v, rho = GaussianFamily(k, n=n, scale="unit").draw(50, rng)
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1)
    np.testing.assert_allclose(rho.sum(1), 1)


def test_mixtures_are_of_gaussians_of_the_stated_kind():
    """log v of one Gaussian is a parabola, whose coefficients are its parameters."""
    n, rng = 41, np.random.default_rng(1)
    v, rho = GaussianFamily(1, n=n).draw(4000, rng)
    x = (np.arange(n) + 0.5) / n - 0.5
    for signals in (v, rho):
        curve = np.polynomial.polynomial.polyfit(x, np.log(signals).T, 2)
        widths = (-2 * curve[2]) ** -0.5
        means = curve[1] * widths**2
        fitted = norm.pdf(x, means[:, None], widths[:, None])
        shape = signals / signals.sum(1, keepdims=True)
        np.testing.assert_allclose(
            fitted / fitted.sum(1, keepdims=True), shape, atol=1e-6
        )
        # Uniform ranges, to four standard errors of their means.
        assert means.min() > -0.5
        assert means.max() < 0.5
        assert abs(means.mean()) < 4 / np.sqrt(12 * 4000)
        assert widths.min() > 0.05
        assert widths.max() < 0.1
        assert abs(widths.mean() - 0.075) < 4 * 0.05 / np.sqrt(12 * 4000)


def test_signals_and_densities_are_independent_and_fresh():
    v, rho = GaussianFamily(1).draw(2000, np.random.default_rng(2))
    x = np.arange(41) - 20
    means_v, means_rho = v @ x, rho @ x
    assert abs(np.corrcoef(means_v, means_rho)[0, 1]) < 4 / np.sqrt(2000)
    again = GaussianFamily(1).draw(2000, np.random.default_rng(2))
    np.testing.assert_array_equal(again[0], v)
    other = GaussianFamily(1).draw(2000, np.random.default_rng(3))
    assert np.abs(other[0] - v).max(1).min() > 1e-3


@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_observations_are_equation_23(sigma):
    rng = np.random.default_rng(5)
    v, rho = rng.standard_normal(8), rng.dirichlet(np.ones(8))
    rho[3] = 0
    rho /= rho.sum()
    batches = list(observe(v, rho, 20_001, sigma, rng, batch_size=5000))
    assert [len(b) for b in batches] == [5000] * 4 + [1]
    y = np.concatenate(batches)
    if sigma == 0:
        moved = np.stack([np.roll(v, s) for s in range(8)])
        which = np.argmin(np.abs(y[:, None] - moved).sum(-1), axis=1)
        np.testing.assert_array_equal(y, moved[which])
        counts = np.bincount(which, minlength=8)
        assert counts[3] == 0
        expected = len(y) * rho
        assert chisquare(counts[rho > 0], expected[rho > 0]).pvalue > 1e-3
    else:
        mean = sum(p * np.roll(v, s) for s, p in enumerate(rho))
        error = np.sqrt((sigma**2 + y.var(0)) / len(y))
        assert (np.abs(y.mean(0) - mean) < 5 * error).all()
        spread = np.var(v) * 8 / 8 + sigma**2
        total = y.var(0).sum() + (mean**2).sum()
        expected = (v**2).sum() + 8 * sigma**2
        assert total == pytest.approx(expected, rel=5 * np.sqrt(2 / len(y)))
        assert spread > 0


@settings(max_examples=40)
@given(n=st.integers(20, 101), by=st.floats(-200, 200), seed=st.integers(0, 99))
def test_shift(n, by, seed):
    signal = np.random.default_rng(seed).standard_normal(n)
    np.testing.assert_allclose(
        shift(signal, by), reference.shifted(signal, by), atol=1e-9
    )
    whole = round(by)
    np.testing.assert_allclose(shift(signal, whole), np.roll(signal, whole), atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k is 0; it must be an integer of at least 1"),
        ({"k": 1.5}, "k is 1.5"),
        ({"k": 1, "n": 3}, "n is 3; it must be an integer of at least 4"),
        ({"k": 1, "scale": "max"}, "scale is 'max'; it must be density or unit"),
    ],
)
def test_families_that_are_not(settings, message):
    with pytest.raises(ValueError, match=message):
        GaussianFamily(**settings)


@pytest.mark.parametrize(
    ("v", "rho", "message"),
    [
        (np.ones(4), np.ones(5) / 5, r"shapes \(4,\) and \(5,\)"),
        (np.ones(4), np.ones(4), "sums of 4; it must be 0 or more and sum to one"),
        (np.ones(2), np.array([2.0, -1]), "least value of -1"),
        (np.array([1, np.nan]), np.ones(2) / 2, "NaN"),
    ],
)
def test_pairs_that_cannot_be_observed(v, rho, message):
    with pytest.raises(ValueError, match=message):
        next(observe(v, rho, 10, 1.0, np.random.default_rng(0)))
