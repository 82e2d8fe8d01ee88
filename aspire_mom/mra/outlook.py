"""What one expansion of the misfit tells of a pair of curves and of others like it."""

from __future__ import annotations

from functools import cache, cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.linalg.lapack import dposv

from aspire_mom.mra.curves import Curves, at_windows, in_all_windows
from aspire_mom.mra.misfit import Expansion, Quadratic
from aspire_mom.mra.prior import Pair, ways_of

# Changes by another window that are looked at: relative to the curve up to FARTHEST,
# and in units of what noise does to v from NEAR[0], and of v in good fits to NEAR[1].
FARTHEST, NEAR = 0.5, (1.0, 100.0)
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
    parameters adjusted: for the pair itself (number 0), for it with another window, and
    for it with two Gaussians merged.

    :param pair: v and ρ.
    :param expansion: The misfit about them.
    :param both: Whether v's windows are looked at as well; if the pair itself comes to
        a good misfit, only those that change little.
    """

    def __init__(self, pair: Pair, expansion: Expansion, both: bool = True):
        observed = expansion.observed
        (signal, density), n = pair, observed.mean.size
        self.pair, self.expansion, self._known = pair, expansion, {}
        by_v, P = signal.by_shape[0], 3 * signal.k
        self.whole = expansion.along(by_v)
        self._along = np.zeros((P + 3 * density.k, P + n))
        self._along[:P, :P], self._along[P:, P:] = np.eye(P), density.by_shape[0]
        v, rho = signal.curves[0], density.curves[0]
        noise = observed.sigma / np.sqrt(observed.n_observations * (v @ v))
        least = NEAR[0] * noise
        self._windows, others = other_windows(density, least, FARTHEST)
        parts = [density_changes(self.whole, np.vstack((np.zeros(n), others - rho)))]
        self._n_density = len(others)
        if both:
            most = FARTHEST
            own = Changes(*(x[:1] for x in parts[0]))
            adjust = ways_of(pair, True) @ self._along
            if foreseen(self.whole, adjust, own)[0][0] < observed.good:
                most = min(FARTHEST, NEAR[1] * noise)
            windows, others = other_windows(signal, least, most)
            if len(windows):
                self._windows = np.concatenate((self._windows, windows))
                parts.append(Changes(*expansion.of_others(others - v)))
        self._changes = _joined(parts)

    def foreseen(self, equal: bool) -> tuple[np.ndarray, np.ndarray]:
        """
        :param equal: Whether ratios of masses are kept.
        :return: Misfits of the pair and of all with other windows (A,), and the changes
            of both curves' parameters that lead there (A, P).
        """
        if equal not in self._known:
            adjust = ways_of(self.pair, equal)
            along = adjust @ self._along
            expected, steps = foreseen(self.whole, along, self._changes)
            self._known[equal] = expected, steps @ adjust
        return self._known[equal]

    def best_window(self, equal: bool, margin: float) -> int:
        """Which number is foreseen to have the least misfit; 0, for the pair itself,
        unless another is lower by a margin."""
        expected = np.round(self.foreseen(equal)[0], 3)
        best = int(np.argmin(expected))
        return best if expected[best] < expected[0] - margin else 0

    def pair_of(self, number: int) -> Pair:
        """The pair with one of the windows."""
        if number == 0:
            return self.pair
        window, (signal, density) = self._windows[number - 1 : number], self.pair
        if number <= self._n_density:
            return signal, at_windows(density, window)
        return at_windows(signal, window), density

    @cached_property
    def mergers(self) -> tuple[list[Pair], np.ndarray]:
        """The pair with two Gaussians of v or of ρ merged, in every way that changes
        them by less than FARTHEST, and the misfits foreseen (A,), masses free."""
        signal, density = self.pair
        others = [_near(merged(x), x.curves[0]) for x in self.pair]
        pairs = [(others[0][i : i + 1], density) for i in range(len(others[0]))]
        pairs += [(signal, others[1][i : i + 1]) for i in range(len(others[1]))]
        parts = []
        if len(others[0]):
            moves = others[0].curves - signal.curves[0]
            parts.append(Changes(*self.expansion.of_others(moves)))
        if len(others[1]):
            moves = others[1].curves - density.curves[0]
            parts.append(density_changes(self.whole, moves))
        if not parts:
            return [], np.empty(0)
        along = ways_of(self.pair, False) @ self._along
        return pairs, foreseen(self.whole, along, _joined(parts))[0]


def _near(others: Curves, curve: np.ndarray) -> Curves:
    """Those that differ from a curve by less than FARTHEST of it."""
    away = others.curves - curve
    distance = np.einsum("aj,aj->a", away, away)
    return others[distance < FARTHEST**2 * (curve @ curve)]


def _joined(parts: list[Changes]) -> Changes:
    return Changes(*(np.concatenate(x) for x in zip(*parts, strict=True)))


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
    inner.ravel()[:: len(inner) + 1] += RIDGE
    slopes = (whole.gradient - changes.bent) @ adjust.T
    steps = dposv(inner, slopes.T)[1].T
    values = whole.value - 2 * changes.pull + changes.curvature
    values -= np.einsum("af,af->a", slopes, steps)
    return values, steps


def other_windows(
    curve: Curves, least: float, most: float
) -> tuple[np.ndarray, np.ndarray]:
    """
    All windows by which a curve changes, relative to its norm, by more than the least
    and less than the most, and not just as their neighbours do.

    :return: Windows (A,), and the curve with them (A, n).
    """
    values, curve_values = in_all_windows(curve), curve.curves[0]
    away = values - curve_values
    steps = np.empty_like(away)
    np.subtract(values[1:], values[:-1], out=steps[1:])
    np.subtract(values[0], values[-1], out=steps[0])
    away, steps = (np.einsum("wj,wj->w", x, x) for x in (away, steps))
    least, most = (x**2 * (curve_values @ curve_values) for x in (least, most))
    windows = np.flatnonzero((away > least) & (steps > least) & (away < most))
    return windows, values[windows]


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
