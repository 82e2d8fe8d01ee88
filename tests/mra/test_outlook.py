"""What one expansion foresees."""

import numpy as np
import pytest

from aspire_mom.mra import simulate_moments
from aspire_mom.mra.curves import Curves
from aspire_mom.mra.misfit import Observed, misfit
from aspire_mom.mra.moments import to_samples
from aspire_mom.mra.outlook import Outlook, other_windows
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
    best = outlook.best_window(equal=True, margin=5)
    assert best > 0
    assert [x.windows[0] for x in outlook.pair_of(best)] == [0, 0]
    assert expected[best] == expected.min() < expected[0] - 5
    # Two Gaussians far apart are not to be merged.
    assert outlook.mergers[0] == []
    assert outlook_of(tuple(wrong), observed).best_window(True, np.inf) == 0


@pytest.mark.parametrize("n", [24, 25])
def test_mergers_are_foreseen(n):
    """Two Gaussians at one place are one."""
    pair, observed = problem(n)
    split = [
        np.insert(x.parameters, [1, 3, 5], x.parameters[:, [0, 2, 4]], 1) for x in pair
    ]
    near = []
    for p, x in zip(split, pair, strict=True):
        p[:, 6:8] -= np.log(2)
        near.append(Curves(p, x.windows, n, x.density))
    outlook = outlook_of(tuple(near), observed)
    pairs, expected = outlook.mergers
    for which in (0, 1):
        rows = [i for i, pair in enumerate(pairs) if pair[which].k == 2]
        best = min(rows, key=lambda i: expected[i])
        assert expected[best] < outlook.whole.value + 1
        for a, b in zip(pairs[best], pair, strict=True):
            np.testing.assert_allclose(a.curves, b.curves, rtol=1e-9)


def test_windows_that_change_nothing_are_left_out():
    n = 60
    narrow = Curves(np.array([[30.0, np.log(2.0), 0.0, 0.0]]), np.array([0]), n, False)
    windows, values = other_windows(narrow, 1e-3, 0.5)
    # Four standard deviations, 8 samples, to either side; and not half of it cut off.
    assert len(windows) == len(values) > 0
    distance = np.abs(windows - 30)
    assert distance.max() <= 8
    assert distance.min() >= 1
