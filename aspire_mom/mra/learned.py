"""The quick fit of noisy moments: a few Gaussians, from where a network says."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np

from aspire_mom.mra.gauge import fix_gauge, to_distribution
from aspire_mom.mra.misfit import Observed, degrees_of_freedom, misfit
from aspire_mom.mra.mixture_encoder import MIN_SIZE
from aspire_mom.mra.mixtures import PENALTY, Curves, at_windows
from aspire_mom.mra.moments import to_samples
from aspire_mom.mra.prior import fit_both
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

Pair = tuple[Curves, Curves]


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
    encoder = _encoder()
    n, mean = len(first), first[0].real
    if n < MIN_SIZE or mean == 0:
        return None
    # Gaussians are positive.
    sign = np.sign(mean)
    moments = to_samples(sign * first, second)
    observed = Observed.from_samples(*moments, n_observations, sigma)
    expected = degrees_of_freedom(n)
    good = expected + SURE * np.sqrt(2 * expected)
    counts, pairs = _alternatives(encoder, first, second, n_observations, sigma)
    best = None
    for i in np.argsort(-counts, kind="stable"):
        done = best is not None and best.misfit < good
        if done and counts[i] < LIKELY:
            break
        curves = (_curves(h, n, abs(mean) * np.sqrt(n)) for h in pairs[i])
        for start in _starts(*curves, observed)[: 1 if done else TRIED]:
            fit = _fit_with_windows(start, observed, equal=True)
            best = fit if best is None else min(best, fit, key=_Fit.score)
            if fit.misfit < good:
                break
    best = _revised(best, observed, good)
    v, rho = (curve.values(by_offset=False)[0][0] for curve in best.pair)
    pair = fix_gauge(sign * v, to_distribution(rho))
    return LearnedFit(pair, best.misfit < good, best.score())


class _Fit(NamedTuple):
    """
    :param pair: v and ρ.
    :param misfit: Their misfit.
    :param equal: Whether each curve's Gaussians were kept at their ratios of masses.
    """

    pair: Pair
    misfit: float
    equal: bool

    def score(self) -> float:
        """The misfit plus PENALTY per parameter."""
        free = sum(curve.n_free[0] for curve in self.pair)
        ratios = sum(curve.k - 1 for curve in self.pair)
        return self.misfit + PENALTY * (free - self.equal * ratios)


def _fit(pair: Pair, observed: Observed, *, equal: bool, worth: float = 0.0) -> _Fit:
    *pair, misfit = fit_both(*pair, observed, equal=equal, worth=worth)
    return _Fit(tuple(pair), misfit, equal)


def _fit_with_windows(start: Pair, observed: Observed, *, equal: bool) -> _Fit:
    """
    Fits from a start, and then from what the best fit is with v's or ρ's window
    elsewhere, which no small step leads to, as long as that helps.
    """
    best = _fit(start, observed, equal=equal)
    for _ in range(ROUNDS):
        before = best.misfit
        for pair in _better_windows(best, observed):
            fit = _fit(pair, observed, equal=equal)
            best = min(best, fit, key=lambda fit: fit.misfit)
            if best.misfit < before - WORTHWHILE:
                break
        else:
            break
    return best


def _revised(best: _Fit, observed: Observed, good: float) -> _Fit:
    """With other masses and with fewer Gaussians, as far as they are worth it: the
    network knows equal masses only, and as many Gaussians in v as in ρ."""
    ratios = sum(curve.k - 1 for curve in best.pair)
    if best.misfit > good:
        free = _fit_with_windows(best.pair, observed, equal=False)
    elif ratios:
        free = _fit(best.pair, observed, equal=False, worth=PENALTY * ratios)
    else:
        free = best
    best = min(best, free, key=_Fit.score)
    while (pair := _with_one_less(best, observed)) is not None:
        fit = _fit(pair, observed, equal=best.equal)
        if fit.score() >= best.score():
            break
        best = fit
    return best


def _with_one_less(fit: _Fit, observed: Observed) -> Pair | None:
    """The fit with two Gaussians of a curve merged, those that are missed least; None
    if they are expected to be missed."""
    signal, density = fit.pair
    signals, densities = (_merged(curve) for curve in fit.pair)
    if not len(signals) + len(densities):
        return None
    expected = _expected(signal, density, signals, densities, observed)
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


@cache
def _encoder():
    from aspire_mom.mra.weights import pretrained

    return pretrained("mixture").double()


def _alternatives(encoder, first, second, n_observations, sigma):
    """What the encoder says of one problem: probabilities of 1, 2, … Gaussians, and for
    each number alternatives for v and for ρ."""
    import torch

    share, sigma = (
        torch.tensor([x], dtype=torch.float64)
        for x in (sigma**2 / n_observations, sigma)
    )
    with torch.no_grad():
        counts, pairs = encoder.hypotheses(
            torch.as_tensor(first)[None], torch.as_tensor(second)[None], share, sigma
        )
    return counts[0].exp().numpy(), pairs


def _curves(hypotheses, n: int, total: float) -> Curves:
    """Likely alternatives for a curve of a given sum, most likely first, in a window
    that begins at 0."""
    centres, widths, probabilities = (x[0].numpy() for x in hypotheses.likeliest())
    probabilities = np.exp(probabilities)
    likely = probabilities >= min(LIKELY, probabilities[0])
    parameters = np.column_stack(
        (
            (centres + 0.5) * n - 0.5,
            widths + np.log(n),
            -widths,
            np.zeros(len(widths)),
        )
    )[likely]
    curves = Curves(parameters, np.zeros(len(parameters), int), n, False)
    k = curves.k
    parameters[:, 2 * k : 3 * k] += np.log(
        total / curves.values(by_offset=False)[0].sum(1)
    )[:, None]
    return curves


def _starts(signals: Curves, densities: Curves, observed: Observed) -> list[Pair]:
    """
    Pairs of curves, ρ's window being where the second moment has it or one sample to
    either side, in order of the misfit to be expected.
    """
    n, found = signals.n, []
    rho = densities.values(by_offset=False)[0]
    rho /= rho.sum(1, keepdims=True)
    lag = (np.arange(n) - np.arange(n)[:, None]) % n
    for i, v in enumerate(signals.values(by_offset=False)[0]):
        shifted = all_shifts(v - v.mean()) @ observed.axes
        strength = shifted**2 @ observed.powers + (shifted @ observed.mean) ** 2
        # Row r of rho[h][lag] is ρ moved by r.
        windows = np.argmax(rho[:, lag] @ strength, 1)[:, None] + [0, -1, 1]
        parameters = densities.parameters.repeat(3, 0)
        parameters[:, : densities.k] += windows.reshape(-1, 1)
        moved = Curves(parameters, windows.ravel(), n, True)
        moved = at_windows(moved, windows.ravel() % n)
        signal = signals[i : i + 1]
        expected = _expected(signal, moved[:1], signal, moved, observed)[1:]
        found += [(e, i, j, signal, moved[j : j + 1]) for j, e in enumerate(expected)]
    found.sort(key=lambda candidate: candidate[:3])
    return [candidate[3:] for candidate in found]


def _better_windows(fit: _Fit, observed: Observed) -> list[Pair]:
    """The pairs of least misfit to be expected among those with one other window, if it
    is less than what the fit has."""
    signal, density = fit.pair
    signals, densities = (_with_other_windows(curve) for curve in (signal, density))
    pairs = [(signals[i : i + 1], density) for i in range(len(signals))]
    pairs += [(signal, densities[i : i + 1]) for i in range(len(densities))]
    if not pairs:
        return []
    expected = _expected(signal, density, signals, densities, observed)
    order = np.argsort(np.round(expected, 3), kind="stable")[:OTHERS]
    return [pairs[i] for i in order if expected[i] < fit.misfit - WORTHWHILE]


def _with_other_windows(curve: Curves) -> Curves:
    """The curve with all windows that change it, but not beyond recognition."""
    curves, value = (
        at_windows(curve, np.arange(curve.n)),
        curve.values(by_offset=False)[0][0],
    )
    change = np.linalg.norm(
        curves.values(by_offset=False)[0] - value, axis=1
    ) / np.linalg.norm(value)
    return curves[(change > CHANGE[0]) & (change < CHANGE[1])]


def _expected(
    signal: Curves,
    density: Curves,
    signals: Curves,
    densities: Curves,
    observed: Observed,
) -> np.ndarray:
    """
    Misfits with one curve of a pair replaced, and all parameters adjusted, to second
    order: first for each of other signals, then for each of other densities.
    """
    (v, by_v), (rho, by_rho) = (c.values(by_offset=False) for c in (signal, density))
    ways = signals.values(by_offset=False)[0] - v
    moves = np.vstack((by_v[0], ways))
    whole = misfit(observed, v[0], rho[0], moves)
    # First what may be adjusted, then the alternatives.
    p, q = by_v.shape[1], by_rho.shape[1]
    order = np.r_[:p, p + q : q + len(moves)]
    directions = np.zeros((len(moves) + q + len(densities), len(moves) + signal.n))
    directions[order, np.arange(len(moves))] = 1
    directions[p : p + q, len(moves) :] = by_rho[0]
    directions[q + len(moves) :, len(moves) :] = (
        densities.values(by_offset=False)[0] - rho
    )
    every = np.eye(p + q)
    every = np.pad(every, ((0, 0), (0, len(directions) - p - q)))
    target = whole.along(directions)
    target = target.minimised_over(every, slice(p + q, None), RIDGE)
    return target.value - 2 * target.gradient + np.diag(target.hessian)
