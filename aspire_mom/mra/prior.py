"""
The default for noisy moments: v and ρ each a few Gaussians on a window, how many being
decided by the data, as in the package's three-dimensional default.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

from aspire_mom.mra.curves import NO_CUT, Curves
from aspire_mom.mra.gauge import fix_gauge, shift_pair, to_distribution
from aspire_mom.mra.misfit import (
    Expansion,
    Observed,
    Quadratic,
    degrees_of_freedom,
    misfit,
)
from aspire_mom.mra.mixtures import PENALTY, grow, single_gaussians

# Precision of ρ's entries that fitting v alone takes for granted.
DENSITY_RIDGE = 400.0
# Rounds of fitting v, then ρ, then both; and standard deviations of χ² above its mean
# up to which a fit counts as good, so that no further round is needed.
ROUNDS, GOOD = 3, 4.0
# Misfit, in degrees of freedom, at which v or ρ is not of this kind.
HOPELESS = 30.0
# Numbers of Gaussians of ρ that are tried together with v.
TRIED = 2
JUMPS = 8
# Steps of the last fit, of v and ρ together, and the gain at which it is done, far less
# than noise makes. Or it is given up: where steps fail at a damping, and where two in a
# row gain less than a share of what lies above twice the expectation.
STEPS, CONVERGED = 50, 0.1
DAMPING, STUCK, SLOW = 1e-3, 1e2, 0.05
# The share where a bound is given, and of what lies above that.
HOPELESS_SHARE = 0.2
# Largest step of centres, in units of n, and of logarithms.
FARTHEST = 0.25, 1.0

Pair = tuple[Curves, Curves]


def mixture_fit(
    moments: tuple[np.ndarray, np.ndarray],
    start: Quadratic,
    n_observations: int,
    sigma: float,
) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """
    Fit a few Gaussians to v and to ρ, and fall back on least squares over v and ρ
    themselves where that describes the data better (by misfit plus PENALTY per
    parameter), as it does for signals of any other kind.

    :param moments: E v_j (n,) and E v_j v_jᵀ (n, n), noise bias removed, on samples.
    :param start: The misfit at the result of :func:`least_squares`.
    :param n_observations: N.
    :param sigma: σ.
    :return: v and ρ, (n,) each, and the misfit plus PENALTY per parameter.
    """
    n = len(start.at) // 2
    v, rho = start.at[:n], start.at[n:]
    # Gaussians are positive: of a signal that is mostly negative, fit the opposite.
    sign = -1.0 if -v.min() > v.max() else 1.0
    v, moments = sign * v, (sign * moments[0], moments[1])
    # With v's peak at 0, so that shifted data take the same path.
    peak = int(np.argmax(v))
    moments = tuple(np.roll(m, -peak, range(m.ndim)) for m in moments)
    observed = Observed.from_samples(*moments, n_observations, sigma)
    start = misfit(observed, np.roll(v, -peak), rho)
    best_score, best = np.inf, start
    current, good = start, degrees_of_freedom(n) + GOOD * n
    for i in range(ROUNDS):
        score, current = _round(current, observed, everywhere=i > 0)
        if score < best_score:
            best_score, best = score, current
        if best.value < good or best.value > HOPELESS * degrees_of_freedom(n):
            break
    unrestricted = start.value + PENALTY * (2 * n - 1)
    if best_score > unrestricted:
        best_score, best = unrestricted, start
    v, rho = best.at[:n], to_distribution(best.at[n:])
    return fix_gauge(sign * np.roll(v, peak), rho), best_score


def _round(
    start: Quadratic, observed: Observed, *, everywhere: bool
) -> tuple[float, Quadratic]:
    """Gaussians for v, ρ being free; then for ρ, v being of these; then both. v's
    window is looked for where v may jump, or everywhere."""
    n = len(start.at) // 2
    v, rho = start.at[:n], start.at[n:]
    free = np.eye(2 * n)[n:]
    windows, offsets = jumps(v, JUMPS)
    if everywhere:
        windows, offsets = np.append(windows, np.arange(n)), np.append(offsets, [0] * n)
    starts = single_gaussians(
        v, np.append(NO_CUT, windows), np.append(0, offsets), density=False
    )
    target = start.minimised_over(free, slice(0, n), DENSITY_RIDGE)
    signal = grow(target, starts, offset=True)[0][1]

    # Onto the sample points of v's window.
    _, rho = shift_pair(v, rho, -signal.parameters[0, -1])
    signal = _without_offset(signal)
    values, by = signal.values()
    whole = misfit(observed, values[0], rho)
    moves = np.zeros((by.shape[1] - 1, 2 * n))
    moves[:, :n] = by[0, :-1]
    target = whole.minimised_over(moves, slice(n, 2 * n), 1e-9)
    starts = single_gaussians(rho, np.arange(NO_CUT, n), np.zeros(n + 1), density=True)
    densities = grow(target, starts, offset=signal.windows[0] == NO_CUT)

    best_score, best, tried = np.inf, None, set()
    for _, density in densities:
        if density.k in tried or len(tried) == TRIED:
            continue
        tried.add(density.k)
        # A signal without a cut follows ρ onto its sample points.
        parameters = signal.parameters.copy()
        parameters[:, : signal.k] += density.parameters[0, -1]
        *both, value = fit_both(
            signal.with_parameters(parameters), _without_offset(density), observed
        )
        score = value + PENALTY * (signal.n_free + density.n_free)[0]
        if score < best_score:
            best_score, best = score, both
    return best_score, misfit(observed, *(x.curves[0] for x in best))


def jumps(curve: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Where a curve, smooth but for a jump and known at points between its samples only by
    interpolation, may jump: peaks of its difference above the frequencies that smooth
    curves have.

    :param curve: Values (n,).
    :param most: Candidates wanted.
    :return: First samples after the jumps, and by how much they lie beyond, in samples.
    """
    n, fine = len(curve), 8
    k = np.arange(n // 2 + 1)
    difference = (1 - np.exp(-2j * np.pi * k / n)) * np.fft.rfft(curve)
    padded = np.zeros(n * fine // 2 + 1, complex)
    padded[: len(k)] = np.where(k >= n / 6, difference, 0)
    height = np.abs(np.fft.irfft(padded, n * fine))
    peak = (height >= np.roll(height, 1)) & (height > np.roll(height, -1))
    where = np.argsort(np.where(peak, -height, 0))[:most] / fine
    return np.round(where).astype(int) % n, where - np.round(where)


def fit_both(
    signal: Curves,
    density: Curves,
    observed: Observed,
    *,
    equal: bool = False,
    bound: float = np.inf,
) -> tuple[Curves, Curves, float]:
    """
    Minimise the misfit itself over the parameters of v and ρ but for offsets, by
    Levenberg-Marquardt steps.

    :param signal: Start of v, one curve.
    :param density: Start of ρ, one curve.
    :param observed: The moments.
    :param equal: Keep the ratios of the Gaussians' masses, in each curve.
    :param bound: Misfit above which the result is of no use.
    :return: Both curves, and their misfit.
    """
    pair, n = (signal, density), signal.n
    ways = ways_of(pair, equal)
    P = 3 * signal.k
    along = np.zeros((ways.shape[1], P + n))
    along[:P, :P] = np.eye(P)

    def expand(pair):
        v, rho = pair
        along[P:, P:] = rho.by_shape[0]
        whole = expanded(pair, observed).along(v.by_shape[0])
        return whole.along(ways @ along)

    limit, slow = min(2 * degrees_of_freedom(n), bound), 0
    share = SLOW if bound == np.inf else HOPELESS_SHARE
    current, damping = expand(pair), DAMPING
    for _ in range(STEPS):
        size = np.diag(current.hessian)
        matrix = current.hessian + np.diag(damping * size + 1e-7 * size.max() + 1e-30)
        step = np.linalg.solve(matrix, current.gradient)
        if step @ current.gradient < CONVERGED:
            break
        tried = moved_along(pair, step @ ways)
        there = expand(tried)
        gain = current.value - there.value
        if gain > 0 or bound < np.inf:
            slow = slow + 1 if gain < share * (current.value - limit) else 0
        if gain > 0:
            pair, current, damping = tried, there, damping / 10
        else:
            damping = max(10 * damping, DAMPING)
        if slow == 2 or 0 < gain < CONVERGED or damping > STUCK:
            break
    return *pair, current.value


def expanded(pair: Pair, observed: Observed) -> Expansion:
    """The misfit about a pair."""
    return Expansion(observed, pair[0].curves[0], pair[1].curves[0])


def ways_of(pair: Pair, equal: bool) -> np.ndarray:
    """
    :param pair: v and ρ.
    :param equal: Whether ratios of the Gaussians' masses are kept, in each curve.
    :return: Directions, as rows, in which their parameters but for offsets may move.
    """
    parts = [_ways(curves.k, curves.density, equal) for curves in pair]
    (a, b), (c, d) = (part.shape for part in parts)
    ways = np.zeros((a + c, b + d))
    ways[:a, :b], ways[a:, b:] = parts
    return ways


@cache
def _ways(k: int, density: bool, equal: bool) -> np.ndarray:
    every = np.eye(3 * k)
    if not equal:
        return every
    ways = every[: 2 * k].copy()
    # Wider Gaussians are lower.
    ways[k:, 2 * k :] = -np.eye(k)
    return ways if density else np.vstack((ways, every[2 * k :].sum(0)))


def moved_along(pair: Pair, step: np.ndarray) -> Pair:
    """
    :param pair: v and ρ, one curve each.
    :param step: Changes of the parameters of both but for offsets.
    :return: The pair with these changes, all of them less where one is too large, and
        within bounds.
    """
    low, high, farthest = _limits(*((x.windows.item(), x.k, x.n) for x in pair))
    step = step / max(1, np.abs(step / farthest).max())
    before = np.concatenate([x.parameters[0, :-1] for x in pair])
    after, P = np.clip(before + step, low, high), 3 * pair[0].k
    parameters = [x.parameters.copy() for x in pair]
    parameters[0][0, :-1], parameters[1][0, :-1] = after[:P], after[P:]
    signal, density = (
        x.with_parameters(p) for x, p in zip(pair, parameters, strict=True)
    )
    return signal, density


@lru_cache(1000)
def _limits(*both: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least and greatest parameters of two curves but for offsets, and largest steps,
    by their windows, numbers of Gaussians and samples."""
    bounds, farthest = [], []
    for window, k, n in both:
        curve = Curves(np.zeros((1, 3 * k + 1)), np.array([window]), n, False)
        bounds.append([x[0, :-1] for x in curve.bounds()])
        farthest.append(np.repeat((FARTHEST[0] * n, FARTHEST[1]), (k, 2 * k)))
    return *np.hstack(bounds), np.concatenate(farthest)


def _without_offset(curves: Curves) -> Curves:
    parameters = curves.parameters.copy()
    parameters[:, -1] = 0
    return curves.with_parameters(parameters)
