"""What one expansion of the misfit tells of a pair of curves and of others like it."""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from itertools import accumulate, combinations
from typing import NamedTuple

import numpy as np
from scipy.linalg.lapack import dposv

from aspire_mom.mra.misfit import Expansion, Quadratic
from aspire_mom.mra.mixtures import Curves, at_windows, in_all_windows
from aspire_mom.mra.prior import Pair, ways_of

# Changes by another window that are looked at: relative to the curve up to FARTHEST,
# and in units of what noise does to v from NEAR[0], and of v in good fits to NEAR[1].
FARTHEST, NEAR = 0.5, (1.0, 300.0)
# Precision with which parameters are known (samples, logarithms) when misfits of other
# curves are foreseen.
RIDGE = 1.0


class Changes(NamedTuple):
    """
    What a misfit of m unknowns is along each of A changes of them.

    :param bent: Products of the hessian and each change (A, m).
    :param pull: Products with the gradient (A,).
    :param curvature: Curvatures (A,).
    """

    bent: np.ndarray
    pull: np.ndarray
    curvature: np.ndarray


class Outlook:
    """
    What one expansion of the misfit about a pair foresees, to second order and with all
    parameters adjusted: for the pair itself, and for it with another window or with two
    Gaussians merged. If the pair itself comes to a good misfit, only windows of v are
    looked at that change little.

    :param pair: v and ρ.
    :param expansion: The misfit about them.
    """

    def __init__(self, pair: Pair, expansion: Expansion):
        observed = expansion.observed
        (signal, density), n = pair, observed.mean.size
        self.pair, self._known = pair, {}
        by_v, P = signal.by_shape[0], 3 * signal.k
        self.whole = expansion.along(by_v)
        self._along = np.zeros((P + 3 * density.k, P + n))
        self._along[:P, :P], self._along[P:, P:] = np.eye(P), density.by_shape[0]
        noise = observed.sigma / np.sqrt(observed.n_observations)
        noise /= np.linalg.norm(signal.curves[0])
        self._changes = Changes(np.zeros((1, P + n)), np.zeros(1), np.zeros(1))
        most = FARTHEST
        if self.foreseen(equal=True)[0][0] < observed.good:
            most = min(FARTHEST, NEAR[1] * noise)
        none = [np.empty((0, n))]
        # Windows and mergers of v, then of ρ.
        self.others = [
            f
            for x, most in zip(pair, (most, FARTHEST), strict=True)
            for f in (with_other_windows(x, NEAR[0] * noise, most), merged(x))
        ]
        self._ends = list(accumulate(map(len, self.others), initial=1))
        ways = [
            np.concatenate([x.curves for x in self.others[i : i + 2] if len(x)] or none)
            - curve.curves[0]
            for i, curve in zip((0, 2), pair, strict=True)
        ]
        parts = [self._changes, density_changes(self.whole, ways[1])]
        if len(ways[0]):
            parts.insert(1, Changes(*expansion.of_others(ways[0])))
        self._changes = Changes(*map(np.concatenate, zip(*parts, strict=True)))
        self._known = {}

    def foreseen(self, equal: bool) -> tuple[np.ndarray, np.ndarray]:
        """
        :param equal: Whether ratios of masses are kept.
        :return: Misfits (A,), the pair's own first, and the changes of both curves'
            parameters that lead there (A, P).
        """
        if equal not in self._known:
            adjust = ways_of(self.pair, equal)
            along = adjust @ self._along
            expected, steps = foreseen(self.whole, along, self._changes)
            self._known[equal] = expected, steps @ adjust
        return self._known[equal]

    def numbers(self, kind: int) -> np.ndarray:
        """Which of the alternatives are windows (0) or mergers (1)."""
        ends = self._ends
        both = (range(ends[i], ends[i + 1]) for i in (kind, kind + 2))
        return np.array([number for part in both for number in part], int)

    def pair_of(self, number: int) -> Pair:
        """The pair with one alternative in it."""
        if number == 0:
            return self.pair
        i = bisect_right(self._ends, number) - 1
        number -= self._ends[i]
        other = self.others[i][number : number + 1]
        return (other, self.pair[1]) if i < 2 else (self.pair[0], other)


def density_changes(whole: Quadratic, ways: np.ndarray) -> Changes:
    """
    :param whole: Misfit whose last n unknowns are ρ.
    :param ways: Changes of ρ (A, n).
    """
    n = ways.shape[1]
    bent = ways @ whole.hessian[-n:]
    curvature = np.einsum("aj,aj->a", bent[:, -n:], ways)
    return Changes(bent, ways @ whole.gradient[-n:], curvature)


def foreseen(
    whole: Quadratic, adjust: np.ndarray, changes: Changes
) -> tuple[np.ndarray, np.ndarray]:
    """
    The least values of a misfit after each of several changes.

    :param whole: Misfit, of m unknowns.
    :param adjust: Directions (F, m) that may then be moved along.
    :param changes: The changes, A of them.
    :return: Values (A,), and how far to move (A, F).
    """
    inner = adjust @ whole.hessian @ adjust.T
    inner.flat[:: len(inner) + 1] += RIDGE
    slopes = (whole.gradient - changes.bent) @ adjust.T
    steps = dposv(inner, slopes.T)[1].T
    values = whole.value - 2 * changes.pull + changes.curvature
    values -= np.einsum("af,af->a", slopes, steps)
    return values, steps


def with_other_windows(curve: Curves, least: float, most: float) -> Curves:
    """The curve with all windows by which it changes, relative to its norm, by more
    than the least and less than the most, and not just as their neighbours do."""
    values, curve_values = in_all_windows(curve), curve.curves[0]
    away = values - curve_values
    steps = np.empty_like(away)
    np.subtract(values[1:], values[:-1], out=steps[1:])
    np.subtract(values[0], values[-1], out=steps[0])
    away, steps = (np.einsum("wj,wj->w", x, x) for x in (away, steps))
    least, most = (x**2 * (curve_values @ curve_values) for x in (least, most))
    windows = np.flatnonzero((away > least) & (steps > least) & (away < most))
    others = at_windows(curve, windows)
    others.__dict__["curves"] = values[windows]
    return others


def merged(curve: Curves) -> Curves:
    """The curve with each pair of its Gaussians replaced by one of the same mass, mean
    and variance."""
    k = curve.k
    two, others = _pairs_of(k)
    parameters = np.zeros((len(two), 3 * k - 2))
    if len(two):
        old = curve.parameters[0, :-1].reshape(3, k)
        centres, widths, heights = old[:, two]
        mass = np.exp(widths + heights)
        total = np.add.reduce(mass, 1)
        share = mass / total[:, None]
        mean = np.einsum("ai,ai->a", share, centres)
        squares = np.exp(2 * widths) + (centres - mean[:, None]) ** 2
        width = np.log(np.einsum("ai,ai->a", share, squares)) / 2
        new = parameters[:, :-1].reshape(-1, 3, k - 1)
        new[:, :, :-1] = old[:, others].swapaxes(0, 1)
        new[:, 0, -1], new[:, 1, -1] = mean, width
        new[:, 2, -1] = np.log(total) - width
    windows = curve.windows.repeat(len(two))
    return Curves(parameters, windows, curve.n, curve.density)


@cache
def _pairs_of(k: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of k numbers, and the others of each (a number for k = 1, of none)."""
    two = np.array(list(combinations(range(k), 2)), int).reshape(-1, 2)
    others = [[i for i in range(k) if i not in pair] for pair in two]
    return two, np.array(others, int).reshape(len(two), max(k - 2, 0))
