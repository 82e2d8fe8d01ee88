"""The quick fit of noisy moments: a few Gaussians, from where a network says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, islice
from typing import NamedTuple

import numpy as np

from aspire_mom.mra.gauge import fix_gauge, to_distribution
from aspire_mom.mra.misfit import Observed, Quadratic, degrees_of_freedom, misfit
from aspire_mom.mra.mixture_encoder import MIN_SIZE
from aspire_mom.mra.mixtures import PENALTY, Curves, at_windows
from aspire_mom.mra.moments import to_samples
from aspire_mom.mra.prior import Pair, fit_both, moved_along, ways_of
from aspire_mom.mra.quick_encoder import Alternatives, leans_left, quick_encoder
from aspire_mom.mra.signals import all_shifts

# Probability below which numbers of Gaussians, and alternatives, are not tried.
LIKELY = 0.1
# Starts tried for each number of Gaussians, until a fit is good, its misfit being no
# more than so many standard deviations above what is expected.
TRIED, SURE = 3, 2.0
# Times that windows are moved, pairs tried each time, and the gain worth going on for.
ROUNDS, OTHERS, WORTHWHILE = 6, 2, 3.0
# Changes by another window that are looked at: relative to the curve up to FARTHEST,
# and in units of what noise does to v from NEAR[0], and of v in good fits to NEAR[1].
FARTHEST, NEAR = 0.5, (1.0, 100.0)
# The least of these changes on the way there.
LEAST = 1e-3
# Gain foreseen of a step that is taken unseen.
CLOSE = 5.0
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
    # Gaussians are positive; and data and their reverse take the same path.
    sign, backward = np.sign(mean), leans_left(first, second)
    if backward:
        first, second = first.conj(), second.conj()
    moments = to_samples(sign * first, second)
    observed = Observed.from_samples(*moments, n_observations, sigma)
    share = sigma**2 / n_observations
    encoder = quick_encoder()
    counts, parts = encoder(first, second, share, sigma)
    good = _good(observed)
    best = None
    for i in np.argsort(-counts, kind="stable"):
        done = best is not None and best.misfit < good
        if done and counts[i] < LIKELY:
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
    pair = fix_gauge(sign * v, to_distribution(rho))
    return LearnedFit(pair, best.misfit < good, best.score())


def _cost(pair: Pair, equal: bool) -> float:
    """PENALTY for each parameter of a pair, of equal masses or not."""
    free = sum(curve.n_free[0] - equal * (curve.k - 1) for curve in pair)
    return PENALTY * float(free)


class _Outlook:
    """
    What one expansion of the misfit about a pair foresees, to second order and with all
    parameters adjusted: for the pair itself, and for it with another window or with two
    Gaussians merged.

    :param pair: v and ρ.
    :param observed: The moments.
    :param near: Whether only windows are looked at that change little.
    """

    def __init__(self, pair: Pair, observed: Observed, *, near: bool):
        (signal, density), n = pair, observed.mean.size
        noise = observed.sigma / np.sqrt(observed.n_observations)
        noise /= np.linalg.norm(signal.curves[0])
        least, most = NEAR[0] * noise, FARTHEST
        if near:
            most = min(most, NEAR[1] * noise)
        self.pair, self._known = pair, {}
        # Windows and mergers of v, then of ρ.
        self.others = [
            f
            for x, most in zip(pair, (most, FARTHEST), strict=True)
            for f in (_with_other_windows(x, least, most), _merged(x))
        ]
        self._ends = np.cumsum([1, *map(len, self.others)])
        ways = [
            np.concatenate([x.curves for x in others]) - curve.curves[0]
            for others, curve in zip(
                (self.others[:2], self.others[2:]), pair, strict=True
            )
        ]
        moves = np.concatenate((signal.by_shape[0], ways[0]))
        P, M, A = 3 * signal.k, len(moves), len(ways[0]) + 1
        self.whole = misfit(observed, signal.curves[0], density.curves[0], moves)
        self.ways = np.zeros((A + len(ways[1]), M + n))
        self.ways[1:A, P:M], self.ways[A:, M:] = np.eye(M - P), ways[1]
        self.along = np.zeros((P + 3 * density.k, M + n))
        self.along[:P, :P], self.along[P:, M:] = np.eye(P), density.by_shape[0]

    def foreseen(self, equal: bool) -> tuple[np.ndarray, np.ndarray]:
        """
        :param equal: Whether ratios of masses are kept.
        :return: Misfits (A,), the pair's own first, and the changes of both curves'
            parameters that lead there (A, P).
        """
        if equal not in self._known:
            adjust = ways_of(self.pair, equal)
            expected, steps = _foreseen(self.whole, adjust @ self.along, self.ways)
            self._known[equal] = expected, steps @ adjust
        return self._known[equal]

    def numbers(self, kind: int) -> np.ndarray:
        """Which of the alternatives are windows (0) or mergers (1)."""
        ends = self._ends
        return np.r_[ends[kind] : ends[kind + 1], ends[kind + 2] : ends[kind + 3]]

    def pair_of(self, number: int) -> Pair:
        """The pair with one alternative in it."""
        i = int(np.searchsorted(self._ends, number, "right")) - 1
        number -= self._ends[i]
        other = self.others[i][number : number + 1]
        return (other, self.pair[1]) if i < 2 else (self.pair[0], other)


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
    inner = adjust @ whole.hessian @ adjust.T
    inner.flat[:: len(inner) + 1] += RIDGE
    slopes = (whole.gradient - bent) @ adjust.T
    steps = np.linalg.solve(inner, slopes.T).T
    values = whole.value - 2 * ways @ whole.gradient
    values += np.einsum("am,am->a", bent, ways) - np.einsum("af,af->a", slopes, steps)
    return values, steps


@dataclass(frozen=True, eq=False)
class _Fit:
    """
    :param pair: v and ρ.
    :param misfit: Their misfit.
    :param equal: Whether each curve's Gaussians were kept at their ratios of masses.
    :param outlook: What is foreseen from there, or close by; None if the fit was given
        up.
    """

    pair: Pair
    misfit: float
    equal: bool
    outlook: _Outlook | None

    def score(self) -> float:
        """The misfit plus PENALTY per parameter."""
        return self.misfit + _cost(self.pair, self.equal)


def _fit(pair: Pair, observed: Observed, *, equal: bool, bound: float = np.inf) -> _Fit:
    """Minimise the misfit from a pair; not to the end if it stays above a bound."""
    outlook = _Outlook(pair, observed, near=True) if bound == np.inf else None
    if outlook is None or outlook.whole.value - outlook.foreseen(equal)[0][0] > CLOSE:
        *pair, value = fit_both(*pair, observed, equal=equal, bound=bound)
        if value > bound:
            return _Fit(tuple(pair), value, equal, None)
        outlook = _Outlook(tuple(pair), observed, near=value < _good(observed))
    elif outlook.whole.value > _good(observed) + CLOSE:
        outlook = _Outlook(pair, observed, near=False)
    expected, steps = outlook.foreseen(equal)
    pair = moved_along(outlook.pair, steps[0])
    return _Fit(pair, float(expected[0]), equal, outlook)


def _good(observed: Observed) -> float:
    """Misfits up to this are what noise explains."""
    expected = degrees_of_freedom(len(observed.mean))
    return expected + SURE * np.sqrt(2 * expected)


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
    windows = fit.outlook.numbers(0)
    order = np.argsort(np.round(expected[windows], 3), kind="stable")
    for i in windows[order[:OTHERS]]:
        if expected[i] < fit.misfit - WORTHWHILE:
            yield moved_along(fit.outlook.pair_of(i), steps[i])


def _revised(best: _Fit, observed: Observed) -> _Fit:
    """With other masses and with fewer Gaussians, as far as they are worth it: the
    network knows equal masses only, and as many Gaussians in v as in ρ."""
    ratios = sum(curve.k - 1 for curve in best.pair)
    if best.misfit > _good(observed):
        free = _fit_with_windows(best.pair, observed, equal=False)
        best = min(best, free, key=_Fit.score)
    elif ratios:
        expected = best.outlook.foreseen(equal=False)[0][0]
        if expected < best.misfit - PENALTY * ratios:
            free = _fit(best.pair, observed, equal=False)
            best = min(best, free, key=_Fit.score)
    while (pair := _with_one_less(best)) is not None:
        bound = best.score() - _cost(pair, best.equal)
        fit = _fit(pair, observed, equal=best.equal, bound=bound)
        if fit.outlook is None:
            break
        best = fit
    return best


def _with_one_less(fit: _Fit) -> Pair | None:
    """The fit with two Gaussians of a curve merged, those that are missed least; None
    if they are expected to be missed."""
    mergers = fit.outlook.numbers(1)
    if len(mergers) == 0:
        return None
    expected = fit.outlook.foreseen(equal=False)[0][mergers]
    i = int(np.argmin(np.round(expected, 3)))
    if expected[i] > fit.misfit + PENALTY * (2 if fit.equal else 3):
        return None
    return fit.outlook.pair_of(mergers[i])


def _merged(curve: Curves) -> Curves:
    """The curve with each pair of its Gaussians replaced by one of the same mass, mean
    and variance."""
    k = curve.k
    two, others = _pairs_of(k)
    centres, widths, heights = curve.parameters[0, :-1].reshape(3, k)
    mass = np.exp(widths + heights)[two]
    share = mass / mass.sum(1, keepdims=True)
    mean = (share * centres[two]).sum(1, keepdims=True)
    squares = np.exp(2 * widths[two]) + (centres[two] - mean) ** 2
    width = np.log((share * squares).sum(1, keepdims=True)) / 2
    height = np.log(mass.sum(1, keepdims=True)) - width
    parts = zip((centres, widths, heights), (mean, width, height), strict=True)
    parameters = [np.hstack((p[others], x)) for p, x in parts]
    windows = curve.windows.repeat(len(two))
    return Curves(
        np.hstack((*parameters, np.zeros((len(two), 1)))),
        windows,
        curve.n,
        curve.density,
    )


@cache
def _pairs_of(k: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of k numbers, and the others of each (a number for k = 1, of none)."""
    two = np.array(list(combinations(range(k), 2)), int).reshape(-1, 2)
    others = [[i for i in range(k) if i not in pair] for pair in two]
    return two, np.array(others, int).reshape(len(two), max(k - 2, 0))


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
    suits the second moment best, and two steps from there."""
    k = signals.k
    both = np.ndindex(len(signals), len(densities))
    for i, j in sorted(both, key=lambda pair: (sum(pair), pair)):
        v, rho = signals.curves[i], densities.curves[j]
        signal, density = (
            x.with_parameters(x.parameters.copy())
            for x in (signals[i : i + 1], densities[j : j + 1])
        )
        signal.parameters[:, 2 * k : 3 * k] += np.log(total / v.sum())
        shifted = all_shifts(v - v.mean()) @ observed.axes
        strength = shifted**2 @ observed.powers + (shifted @ observed.mean) ** 2
        # Row r of all_shifts(ρ) is ρ moved by r.
        window = np.argmax(all_shifts(rho) @ strength, keepdims=True)
        density.parameters[:, :k] += window
        yield _step(_step((signal, at_windows(density, window)), observed), observed)


def _step(pair: Pair, observed: Observed) -> Pair:
    """A Gauss-Newton step, with ρ's window moved to where the step leads to the least
    misfit to be expected."""
    signal, density = pair
    v, by_v = signal.curves[0], signal.by_shape[0]
    adjust, P = ways_of(pair, equal=True), len(by_v)
    along = np.zeros((adjust.shape[1], P + len(v)))
    along[:P, :P], along[P:, P:] = np.eye(P), density.by_shape[0]
    others = _with_other_windows(density, LEAST, FARTHEST)
    ways = np.zeros((1 + len(others), P + len(v)))
    ways[1:, P:] = others.curves - density.curves
    whole = misfit(observed, v, density.curves[0], by_v)
    expected, steps = _foreseen(whole, adjust @ along, ways)
    i = int(np.argmin(np.round(expected, 3)))
    if i > 0:
        density = others[i - 1 : i]
    return moved_along((signal, density), steps[i] @ adjust)


def _with_other_windows(curve: Curves, least: float, most: float) -> Curves:
    """The curve with all windows by which it changes, relative to its norm, by more
    than the least and less than the most, and not just as their neighbours do."""
    others, curve = at_windows(curve, np.arange(curve.n)), curve.curves[0]
    away = others.curves - curve
    steps = away - away[np.arange(-1, len(away) - 1)]
    away, steps = (np.einsum("wj,wj->w", x, x) for x in (away, steps))
    least, most = (x**2 * (curve @ curve) for x in (least, most))
    return others[(away > least) & (steps > least) & (away < most)]
