import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aspire_mom.mra import (
    GaussianFamily,
    best_shift,
    shift,
    shift_error,
)
from tests.references import alignment as reference


def signals(n, seed):
    """Smooth, with jumps, and rough."""
    rng = np.random.default_rng(seed)
    v, rho = GaussianFamily(2, n=n).draw(3, rng)
    return np.concatenate((v, rho, rng.standard_normal((3, n))))


@given(n=st.integers(20, 101), by=st.floats(-150, 150), seed=st.integers(0, 999))
def test_the_metric_itself_errs_by_less_than_1e_9(n, by, seed):
    truth = signals(n, seed)
    assert shift_error(truth, shift(truth, by)).max() < 1e-9
    # And it is an error: 1 % of noise is 1 %.
    rng = np.random.default_rng(seed)
    size = 0.01 * np.linalg.norm(truth, axis=1, keepdims=True) / np.sqrt(n)
    noisy = shift(truth, by) + size * rng.standard_normal(truth.shape)
    errors = shift_error(truth, noisy)
    assert errors.min() > 0.003
    assert errors.max() < 0.02


@settings(max_examples=8)
@given(n=st.sampled_from([20, 21, 30, 41]), seed=st.integers(0, 999))
def test_against_a_fine_grid(n, seed):
    """Estimates so bad that several shifts compete; a grid of 1/50 is up to 1e-3 off,
    and only upwards."""
    rng = np.random.default_rng(seed)
    truth, estimate = signals(n, seed)[[0, 4, 7]], signals(n, seed + 1)[[1, 3, 6]]
    estimate = estimate * rng.uniform(0.2, 1.5)
    errors = shift_error(truth, estimate)
    for t, e, error in zip(truth, estimate, errors, strict=True):
        on_grid = reference.shift_error(t, e, points=50)
        assert error <= on_grid + 1e-12
        assert error > on_grid - 2e-3 * np.linalg.norm(e) / np.linalg.norm(t)


def test_shift_is_found_and_wrapped():
    truth = signals(41, 0)
    by = np.array([0, 0.5, -3.25, 20, -20.5, 40, 41, 82.125, -7])
    difference = best_shift(truth, shift(truth, by)) - by
    np.testing.assert_allclose(difference, 41 * np.round(difference / 41), atol=1e-8)
    assert (np.abs(best_shift(truth, shift(truth, by))) <= 20.5).all()


def test_a_constant_has_any_shift():
    assert shift_error(np.ones(20), np.full(20, 1.25)) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("truth", "estimate", "message"),
    [
        (np.ones(4), np.ones(5), r"shapes \(4,\) and \(5,\)"),
        (np.ones(4), np.array([1, 2, np.nan, 3]), "NaN"),
        (np.zeros((2, 4)), np.ones(4), "a truth is 0 everywhere"),
    ],
)
def test_what_has_no_error(truth, estimate, message):
    with pytest.raises(ValueError, match=message):
        shift_error(truth, estimate)
