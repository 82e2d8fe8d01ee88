"""The quick fit of noisy moments: a few Gaussians, from where a network says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice
from typing import NamedTuple

import numpy as np

from aspire_mom.mra.gauge import fix_gauge, to_distribution
from aspire_mom.mra.misfit import Observed, Quadratic, degrees_of_freedom, misfit
from aspire_mom.mra.mixture_encoder import MIN_SIZE
from aspire_mom.mra.mixtures import PENALTY, Curves, at_windows
from aspire_mom.mra.moments import to_samples
from aspire_mom.mra.prior import Pair, fit_both, moved_along, ways_of
from aspire_mom.mra.quick_encoder import Alternatives, quick_encoder
from aspire_mom.mra.signals import all_shifts

# Probability below which numbers of Gaussians, and alternatives, are not tried.
LIKELY = 0.1
# Starts tried for each number of Gaussians, until a fit is good, its misfit being no
# more than so many standard deviations above what is expected.
TRIED, SURE = 3, 2.0
# Times that windows are moved, pairs tried each time, and the gain worth going on for.
ROUNDS, OTHERS, WORTHWHILE = 6, 2, 3.0
# Relative changes by another window that are looked at.
CHANGE = 1e-4, 0.5
# Precision with which parameters are known (samples, logarithms) when misfits of other
# curves are foreseen.
RIDGE = 1.0


class LearnedFit(NamedTuple):
    """
    :param pair: v and ρ, (n,) each.
    :param good: Whether their misfit is what noise explains.
    :param score: The misfit plus PENALTY per parameter, by which fits compare.
    """

    pair: tuple[np.ndarray, np.ndarray]
    good: bool
    score: float


def learned_fit(
    first: np.ndarray,
    second: np.ndarray,
    n_observations: int,
    sigma: float,
) -> LearnedFit | None:
    """
    Fit one to three Gaussians each to v and to ρ, from what the package's
    `MixtureEncoder` takes for likely.

    :param first: First moment (n,).
    :param second: Second moment (n, n).
    :param n_observations: N.
    :param sigma: σ.
    :return: The best fit; None where n is too small for the network.
    """
    n, mean = len(first), first[0].real
    if n < MIN_SIZE or mean == 0:
        return None
    # Gaussians are positive.
    sign = np.sign(mean)
    moments = to_samples(sign * first, second)
    observed = Observed.from_samples(*moments, n_observations, sigma)
    expected = degrees_of_freedom(n)
    good = expected + SURE * np.sqrt(2 * expected)
    share = sigma**2 / n_observations
    counts, alternatives = quick_encoder()(first, second, share, sigma)
    best = None
    for i in np.argsort(-counts, kind="stable"):
        done = best is not None and best.misfit < good
        if done and counts[i] < LIKELY:
            break
        curves = (_curves(a, n, abs(mean) * np.sqrt(n)) for a in alternatives[i])
        for start in islice(_starts(*curves, observed), 1 if done else TRIED):
            bound = best.score() - _cost(start, True) if done else np.inf
            fit = _fit_with_windows(start, observed, equal=True, bound=bound)
            best = fit if best is None else min(best, fit, key=_Fit.score)
            if fit.misfit < good:
                break
    best = _revised(best, good)
    v, rho = (curve.values(by_offset=False)[0][0] for curve in best.pair)
    pair = fix_gauge(sign * v, to_distribution(rho))
    return LearnedFit(pair, best.misfit < good, best.score())


def _cost(pair: Pair, equal: bool) -> float:
    """PENALTY for each parameter of a pair, of equal masses or not."""
    free = sum(curve.n_free[0] - equal * (curve.k - 1) for curve in pair)
    return PENALTY * float(free)


@dataclass(frozen=True, eq=False)
class _Fit:
    """
    :param pair: v and ρ.
    :param misfit: Their misfit.
    :param equal: Whether each curve's Gaussians were kept at their ratios of masses.
    :param observed: The moments.
    """

    pair: Pair
    misfit: float
    equal: bool
    observed: Observed

    def score(self) -> float:
        """The misfit plus PENALTY per parameter."""
        return self.misfit + _cost(self.pair, self.equal)

    @cached_property
    def values(self) -> tuple:
        """v (n,) and its derivatives by parameters (3k, n), and those of ρ."""
        both = (curve.values(by_offset=False) for curve in self.pair)
        return tuple((value[0], by[0]) for value, by in both)

    @cached_property
    def whole(self) -> Quadratic:
        """The misfit about the pair as a function of v and ρ."""
        (v, _), (rho, _) = self.values
        return misfit(self.observed, v, rho)

    def foreseen(
        self, signals: Curves | None, densities: Curves | None, *, equal: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        What is to be expected if one curve is replaced, with all parameters adjusted,
        to second order: first if none is, then for each of other signals, then for each
        of other densities.

        :return: Misfits (A,), and changes of both curves' parameters (A, P).
        """
        (v, by_v), (rho, by_rho) = self.values
        n, ways = len(v), [np.zeros((1, 2 * len(v)))]
        for others, value, at in ((signals, v, 0), (densities, rho, n)):
            if others is not None and len(others):
                way = np.zeros((len(others), 2 * n))
                way[:, at : at + n] = others.values(by_offset=False)[0] - value
                ways.append(way)
        adjust = ways_of(self.pair, equal)
        along = np.zeros((adjust.shape[1], 2 * n))
        along[: len(by_v), :n], along[len(by_v) :, n:] = by_v, by_rho
        expected, steps = _foreseen(self.whole, adjust @ along, np.concatenate(ways))
        return expected, steps @ adjust


def _foreseen(
    whole: Quadratic, adjust: np.ndarray, ways: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    The least values of a misfit after each of several changes.

    :param whole: Misfit, of m unknowns.
    :param adjust: Directions (F, m) that may then be moved along.
    :param ways: Changes (A, m).
    :return: Values (A,), and how far to move (A, F).
    """
    bent = ways @ whole.hessian
    inner = adjust @ whole.hessian @ adjust.T + RIDGE * np.eye(len(adjust))
    slopes = (whole.gradient - bent) @ adjust.T
    steps = np.linalg.solve(inner, slopes.T).T
    values = whole.value - 2 * ways @ whole.gradient + (ways * bent).sum(1)
    return values - (slopes * steps).sum(1), steps


def _fit(pair: Pair, observed: Observed, *, equal: bool, bound: float = np.inf) -> _Fit:
    *pair, value = fit_both(*pair, observed, equal=equal, bound=bound)
    return _Fit(tuple(pair), value, equal, observed)


def _fit_with_windows(
    start: Pair, observed: Observed, *, equal: bool, bound: float = np.inf
) -> _Fit:
    """
    Fits from a start, and then from what the best fit is with v's or ρ's window
    elsewhere, which no small step leads to, as long as that helps.
    """
    best = _fit(start, observed, equal=equal, bound=bound)
    for _ in range(ROUNDS):
        if best.misfit > bound:
            break
        for pair in _better_windows(best):
            fit = _fit(pair, observed, equal=equal)
            if fit.misfit < best.misfit - WORTHWHILE:
                best = fit
                break
        else:
            break
    return best


def _revised(best: _Fit, good: float) -> _Fit:
    """With other masses and with fewer Gaussians, as far as they are worth it: the
    network knows equal masses only, and as many Gaussians in v as in ρ."""
    ratios = sum(curve.k - 1 for curve in best.pair)
    observed = best.observed
    if best.misfit > good:
        free = _fit_with_windows(best.pair, observed, equal=False)
        best = min(best, free, key=_Fit.score)
    elif ratios:
        expected = best.foreseen(None, None, equal=False)[0][0]
        if expected < best.misfit - PENALTY * ratios:
            free = _fit(best.pair, observed, equal=False)
            best = min(best, free, key=_Fit.score)
    while (pair := _with_one_less(best)) is not None:
        fit = _fit(pair, observed, equal=best.equal)
        if fit.score() >= best.score():
            break
        best = fit
    return best


def _with_one_less(fit: _Fit) -> Pair | None:
    """The fit with two Gaussians of a curve merged, those that are missed least; None
    if they are expected to be missed."""
    signal, density = fit.pair
    signals, densities = (_merged(curve) for curve in fit.pair)
    if not len(signals) + len(densities):
        return None
    expected = fit.foreseen(signals, densities, equal=False)[0][1:]
    i = int(np.argmin(np.round(expected, 3)))
    if expected[i] > fit.misfit + PENALTY * (2 if fit.equal else 3):
        return None
    if i < len(signals):
        return signals[i : i + 1], density
    i -= len(signals)
    return signal, densities[i : i + 1]


def _merged(curve: Curves) -> Curves:
    """The curve with each pair of its Gaussians replaced by one of the same mass, mean
    and variance."""
    k, rows = curve.k, []
    centres, widths, heights = curve.parameters[0, :-1].reshape(3, k)
    for i, j in combinations(range(k), 2):
        two, others = [i, j], [x for x in range(k) if x not in (i, j)]
        masses = np.exp(widths[two] + heights[two])
        mean = np.average(centres[two], weights=masses)
        squares = np.exp(2 * widths[two]) + (centres[two] - mean) ** 2
        width = np.log(np.average(squares, weights=masses)) / 2
        height = np.log(masses.sum()) - width
        pairs = zip((centres, widths, heights), (mean, width, height), strict=True)
        rows.append(np.append([np.append(p[others], x) for p, x in pairs], 0.0))
    parameters = np.reshape(rows, (len(rows), 3 * max(k - 1, 1) + 1))
    return Curves(parameters, curve.windows.repeat(len(rows)), curve.n, curve.density)


def _curves(alternatives: Alternatives, n: int, total: float) -> Curves:
    """Likely alternatives for a curve of a given sum, most likely first, in a window
    that begins at 0."""
    centres, widths, probabilities = alternatives
    likely = probabilities >= min(LIKELY, probabilities[0])
    centres, widths = (centres[likely] + 0.5) * n - 0.5, widths[likely] + np.log(n)
    offset, windows = np.zeros((len(widths), 1)), np.zeros(len(widths), int)
    curves = Curves(np.hstack((centres, widths, -widths, offset)), windows, n, False)
    sums, k = curves.values(by_offset=False)[0].sum(1), curves.k
    curves.parameters[:, 2 * k : 3 * k] += np.log(total / sums)[:, None]
    return curves


def _starts(signals: Curves, densities: Curves, observed: Observed) -> Iterator[Pair]:
    """
    Pairs of curves, with ρ in that window from which two steps lead to the least misfit
    to be expected, and these steps done; in order of that misfit after the first.
    """
    n, found = signals.n, []
    rho = densities.values(by_offset=False)[0]
    rho /= rho.sum(1, keepdims=True)
    for i, v in enumerate(signals.values(by_offset=False)[0]):
        shifted = all_shifts(v - v.mean()) @ observed.axes
        strength = shifted**2 @ observed.powers + (shifted @ observed.mean) ** 2
        # Row r of all_shifts(ρ) is ρ moved by r.
        windows = np.argmax(all_shifts(rho) @ strength, 1)
        parameters = densities.parameters.copy()
        parameters[:, : densities.k] += windows[:, None]
        moved = Curves(parameters, windows, n, True)
        moved = at_windows(moved, windows)
        found += [(i + j, i, signals[i : i + 1], moved[j : j + 1]) for j in range(len(moved))]
    found.sort(key=lambda step: step[:2])
    for *_, signal, density in found:
        yield _steps([_steps([(signal, density)], observed)[0][1]], observed)[0][1]


def _steps(pairs: list[Pair], observed: Observed) -> list[tuple[float, Pair]]:
    """
    One Gauss-Newton step from each of several pairs with the same v, with ρ's window
    moved to where it leads to the least misfit: that misfit to be expected, and the
    pair.
    """
    signal, found = pairs[0][0], []
    v, by_v = (x[0] for x in signal.values(by_offset=False))
    whole = None
    for _, density in pairs:
        rho, by_rho = (x[0] for x in density.values(by_offset=False))
        adjust = ways_of((signal, density), equal=True)
        if whole is None:
            base, whole = rho, misfit(observed, v, rho, by_v)
        along = np.zeros((len(by_v) + len(by_rho), len(by_v) + len(v)))
        along[: len(by_v), : len(by_v)] = np.eye(len(by_v))
        along[len(by_v) :, len(by_v) :] = by_rho
        others = _with_other_windows(density, own=True)
        ways = np.zeros((len(others), along.shape[1]))
        ways[:, len(by_v) :] = others.values(by_offset=False)[0] - base
        expected, steps = _foreseen(whole, adjust @ along, ways)
        best = int(np.argmin(np.round(expected, 3)))
        pair = moved_along((signal, others[best : best + 1]), steps[best] @ adjust)
        found.append((float(expected[best]), pair))
    return found


def _better_windows(fit: _Fit) -> Iterator[Pair]:
    """The pairs of least misfit to be expected among those with one other window, if it
    is less than what the fit has."""
    signal, density = fit.pair
    signals, densities = (_with_other_windows(curve) for curve in (signal, density))
    expected, steps = fit.foreseen(signals, densities, equal=fit.equal)
    for i in np.argsort(np.round(expected, 3), kind="stable")[:OTHERS]:
        if expected[i] < expected[0] - WORTHWHILE:
            j = i - 1 - len(signals)
            pair = (
                (signals[i - 1 : i], density)
                if j < 0
                else (signal, densities[j : j + 1])
            )
            yield moved_along(pair, steps[i])


def _with_other_windows(curve: Curves, *, own: bool = False) -> Curves:
    """The curve with all windows that change it, but not beyond recognition, and, where
    asked for, its own."""
    curves = at_windows(curve, np.arange(curve.n))
    values, value = curves.values(by_offset=False)[0], curve.values(by_offset=False)[0]
    change = np.linalg.norm(values - value, axis=1) / np.linalg.norm(value)
    looked_at = (change > CHANGE[0]) & (change < CHANGE[1])
    return curves[looked_at | (own & (curves.windows == curve.windows[0] % curve.n))]
