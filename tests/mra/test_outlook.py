"""What one expansion foresees."""

import numpy as np
import pytest

from aspire_mom.mra import simulate_moments
from aspire_mom.mra.misfit import Observed, misfit
from aspire_mom.mra.mixtures import Curves
from aspire_mom.mra.moments import to_samples
from aspire_mom.mra.outlook import Outlook, merged, with_other_windows
from aspire_mom.mra.prior import expanded, fit_both, moved_along

N, SIGMA = 10**6, 1.0


def curves(n, density, window=0):
    """One Gaussian in the middle and one that the window's end cuts."""
    heights = -np.log([2.0, 2.0]) if density else [1.0, 0.5]
    p = [[n / 2, n - 2.0, *np.log([2.0, 2.0]), *heights, 0.0]]
    return Curves(np.array(p), np.array([window]), n, density)


def problem(n):
    pair = curves(n, False), curves(n, True)
    rng = np.random.default_rng(n)
    m = simulate_moments(*(x.curves for x in pair), N, SIGMA, rng)
    return pair, Observed.from_samples(*to_samples(m.first[0], m.second[0]), N, SIGMA)


def outlook_of(pair, observed):
    return Outlook(pair, expanded(pair, observed))


@pytest.mark.parametrize("n", [24, 25])
def test_own_misfit_and_adjustment(n):
    """Near the least misfit it is foreseen, and where."""
    pair, observed = problem(n)
    *best, least = fit_both(*pair, observed)
    off = 0.003 * np.random.default_rng(0).standard_normal(12)
    outlook = outlook_of(moved_along(best, off), observed)
    expected, steps = outlook.foreseen(equal=False)
    assert outlook.whole.value > least + 10
    assert expected[0] == pytest.approx(least, abs=2)
    there = moved_along(outlook.pair, steps[0])
    value = misfit(observed, *(x.curves[0] for x in there)).value
    assert value == pytest.approx(least, abs=2)


@pytest.mark.parametrize("n", [24, 25])
@pytest.mark.parametrize("which", [0, 1])
def test_the_right_window_is_foreseen(n, which):
    pair, observed = problem(n)
    wrong = list(pair)
    wrong[which] = Curves(pair[which].parameters, np.array([1]), n, density=bool(which))
    outlook = outlook_of(tuple(wrong), observed)
    expected, _ = outlook.foreseen(equal=True)
    windows = outlook.numbers(0)
    best = outlook.pair_of(windows[np.argmin(expected[windows])])
    assert [x.windows[0] for x in best] == [0, 0]
    assert expected[windows].min() < expected[0] - 5
    mergers = [outlook.pair_of(i) for i in outlook.numbers(1)]
    assert [(a.k, b.k) for a, b in mergers] == [(1, 2), (2, 1)]
    np.testing.assert_array_equal(mergers[0][0].parameters, merged(wrong[0]).parameters)


def test_windows_that_change_nothing_are_left_out():
    n = 60
    narrow = Curves(np.array([[30.0, np.log(2.0), 0.0, 0.0]]), np.array([0]), n, False)
    others = with_other_windows(narrow, 1e-3, 0.5)
    # Four standard deviations, 8 samples, to either side; and not half of it cut off.
    assert len(others) > 0
    distance = np.abs(others.windows - 30)
    assert distance.max() <= 8
    assert distance.min() >= 1
