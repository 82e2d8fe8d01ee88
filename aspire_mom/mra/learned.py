"""The quick fit of noisy moments: a few Gaussians, from where a network says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import NamedTuple

import numpy as np

from aspire_mom.mra.curves import Curves, at_windows
from aspire_mom.mra.gauge import fix_gauge
from aspire_mom.mra.misfit import Observed
from aspire_mom.mra.mixture_encoder import MIN_SIZE
from aspire_mom.mra.mixtures import PENALTY
from aspire_mom.mra.moments import to_samples
from aspire_mom.mra.outlook import Outlook
from aspire_mom.mra.prior import Pair, expanded, fit_both, moved_along
from aspire_mom.mra.quick_encoder import Alternatives, leans_left, quick_encoder
from aspire_mom.mra.signals import all_shifts

# Probability below which alternatives for curves are not tried, and other numbers of
# Gaussians where a fit is good.
LIKELY, STILL_LIKELY = 0.1, 0.25
# Starts tried for each number of Gaussians, until a fit is good.
TRIED = 3
# Times that windows are moved, pairs tried each time, and the gain worth going on for.
ROUNDS, OTHERS, WORTHWHILE = 6, 2, 3.0
# Steps without damping, of which one is the last where its misfit is as foreseen to
# within so much, a share of a standard error of one parameter. Steps that gain LITTLE
# are foreseen far better than that.
UNDAMPED, SETTLED, LITTLE = 4, 1.0, 25.0
# By how much the misfit foreseen from two Gaussians merged may be above what is worth
# having.
UNSURE = 30.0


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
    # Gaussians are positive; and data and their reverse take the same path.
    sign, backward = np.sign(mean), leans_left(first, second)
    if backward:
        first, second = first.conj(), second.conj()
    moments = to_samples(sign * first, second)
    observed = Observed.from_samples(*moments, n_observations, sigma)
    share = sigma**2 / n_observations
    encoder = quick_encoder()
    counts, parts = encoder(first, second, share, sigma)
    good = observed.good
    best = None
    for i in np.argsort(-counts, kind="stable"):
        done = best is not None and best.misfit < good
        if done and counts[i] < STILL_LIKELY:
            break
        v, rho = (
            _curves(x, n, density)
            for x, density in zip(
                encoder.alternatives(parts, i), (False, True), strict=True
            )
        )
        total = abs(mean) * np.sqrt(n)
        for start in islice(_starts(v, rho, total, observed), 1 if done else TRIED):
            bound = best.score() - _cost(start, True) if done else np.inf
            fit = _fit_with_windows(start, observed, equal=True, bound=bound)
            best = fit if best is None else min(best, fit, key=_Fit.score)
            if fit.misfit < good:
                break
    best = _revised(best, observed)
    v, rho = (curve.curves[0] for curve in best.pair)
    if backward:
        v, rho = (np.roll(x[::-1], 1) for x in (v, rho))
    pair = fix_gauge(sign * v, rho)
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
    :param outlook: What is foreseen from there, or from one step before; None if the
        fit was given up.
    :param number: Which of the outlook's alternatives the pair is.
    """

    pair: Pair
    misfit: float
    equal: bool
    outlook: Outlook | None
    number: int = 0

    def score(self) -> float:
        """The misfit plus PENALTY per parameter."""
        return self.misfit + _cost(self.pair, self.equal)


def _fit(pair: Pair, observed: Observed, *, equal: bool, bound: float = np.inf) -> _Fit:
    """
    Minimise the misfit from a pair; not to the end if it stays above a bound.

    Each step takes the window that it foresees to be the best. One is the last when the
    misfit that it leads to is what was foreseen to within a share of what noise does to
    one parameter: another could gain no more than that, nor would what it foresees of
    windows, masses and mergers differ by more.
    """
    if bound == np.inf:
        there = expanded(pair, observed)
        for _ in range(UNDAMPED):
            outlook = Outlook(pair, there)
            expected, steps = outlook.foreseen(equal)
            number = outlook.best_window(equal, WORTHWHILE)
            tried = moved_along(outlook.pair_of(number), steps[number])
            here, there, value = there, None, float(expected[number])
            if outlook.whole.value - value > LITTLE:
                there = expanded(tried, observed)
                value = there.value_near(here)
            if abs(value - expected[number]) < SETTLED and (
                number == 0
                or value < observed.good
                and _merger(outlook, expected[0], equal) is None
            ):
                return _Fit(tried, value, equal, outlook, number)
            there = there or expanded(tried, observed)
            if there.value_near(there) > outlook.whole.value:
                break
            pair = tried
    *pair, value = fit_both(*pair, observed, equal=equal, bound=bound)
    pair = tuple(pair)
    if value > bound:
        return _Fit(pair, value, equal, None)
    outlook = Outlook(pair, expanded(pair, observed))
    expected, steps = outlook.foreseen(equal)
    return _Fit(moved_along(pair, steps[0]), float(expected[0]), equal, outlook)


def _fit_with_windows(
    start: Pair, observed: Observed, *, equal: bool, bound: float = np.inf
) -> _Fit:
    """
    Fits from a start, and then from what the best fit is with v's or ρ's window
    elsewhere, which no small step leads to, as long as that helps.
    """
    best = _fit(start, observed, equal=equal, bound=bound)
    for _ in range(ROUNDS):
        for pair in _better_windows(best):
            fit = _fit(pair, observed, equal=equal, bound=best.misfit - WORTHWHILE)
            if fit.outlook is not None:
                best = fit
                break
        else:
            break
    return best


def _better_windows(fit: _Fit) -> Iterator[Pair]:
    """The pairs of least misfit to be expected among those with one other window, if it
    is less than what the fit has."""
    if fit.outlook is None:
        return
    expected, steps = fit.outlook.foreseen(fit.equal)
    order = np.argsort(np.round(expected[1:], 3), kind="stable")
    for i in 1 + order[:OTHERS]:
        if expected[i] < fit.misfit - WORTHWHILE:
            yield moved_along(fit.outlook.pair_of(i), steps[i])


def _revised(best: _Fit, observed: Observed) -> _Fit:
    """With other masses and with fewer Gaussians, as far as they are worth it: the
    network knows equal masses only, and as many Gaussians in v as in ρ."""
    ratios = sum(curve.k - 1 for curve in best.pair)
    if best.misfit > observed.good:
        free = _fit_with_windows(best.pair, observed, equal=False)
        best = min(best, free, key=_Fit.score)
    elif ratios:
        expected = best.outlook.foreseen(equal=False)[0][best.number]
        if expected < best.misfit - PENALTY * ratios:
            free = _fit(best.pair, observed, equal=False)
            best = min(best, free, key=_Fit.score)
    while best.outlook is not None:
        pair = _merger(best.outlook, best.misfit, best.equal)
        if pair is None:
            break
        bound = best.score() - _cost(pair, best.equal)
        # What is foreseen from where two are merged is more reliable than from afar.
        closer = Outlook(pair, expanded(pair, observed), both=False)
        if closer.foreseen(best.equal)[0][0] > bound + UNSURE:
            break
        fit = _fit(pair, observed, equal=best.equal, bound=bound)
        if fit.outlook is None:
            break
        best = fit
    return best


def _merger(outlook: Outlook, misfit: float, equal: bool) -> Pair | None:
    """The merger that is missed least by what has a misfit; None if it is missed."""
    pairs, expected = outlook.mergers
    if not pairs:
        return None
    i = int(np.argmin(np.round(expected, 3)))
    # One parameter less than there are fewer, since too many are taken to be adjusted.
    return pairs[i] if expected[i] <= misfit + PENALTY * (1 if equal else 2) else None


def _curves(alternatives: Alternatives, n: int, density: bool) -> Curves:
    """Likely alternatives for a curve, most likely first, of Gaussians of mass √2π, in
    a window that begins at 0."""
    centres, widths, probabilities = alternatives
    likely = probabilities >= min(LIKELY, probabilities[0])
    centres, widths = (centres[likely] + 0.5) * n - 0.5, widths[likely] + np.log(n)
    offset, windows = np.zeros((len(widths), 1)), np.zeros(len(widths), int)
    return Curves(np.hstack((centres, widths, -widths, offset)), windows, n, density)


def _starts(
    signals: Curves, densities: Curves, total: float, observed: Observed
) -> Iterator[Pair]:
    """Pairs of curves, likely ones first, v with a given sum, ρ in the window that
    suits the second moment best, and a step from there."""
    k = signals.k
    for i, j in _by_rank(len(signals), len(densities)):
        signal, density = signals[i : i + 1], densities[j : j + 1]
        v, rho = signal.curves[0], density.curves[0]
        shifted = all_shifts(v - v.mean()) @ observed.axes
        strength = shifted**2 @ observed.powers + (shifted @ observed.mean) ** 2
        # Row r of all_shifts(ρ) is ρ moved by r.
        window = np.argmax(all_shifts(rho) @ strength, keepdims=True)
        parameters = [x.parameters.copy() for x in (signal, density)]
        parameters[0][:, 2 * k : 3 * k] += np.log(total / np.add.reduce(v))
        parameters[1][:, :k] += window
        signal, density = (
            x.with_parameters(p)
            for x, p in zip((signal, density), parameters, strict=True)
        )
        pair = signal, at_windows(density, window)
        outlook = Outlook(pair, expanded(pair, observed), both=False)
        number = outlook.best_window(True, WORTHWHILE)
        step = outlook.foreseen(True)[1][number]
        yield moved_along(outlook.pair_of(number), step)


@cache
def _by_rank(a: int, b: int) -> list[tuple[int, int]]:
    """Pairs of numbers below a and b, those of a small sum first."""
    return sorted(np.ndindex(a, b), key=lambda pair: (sum(pair), pair))
