"""What one expansion of the misfit tells of a pair of curves and of others like it."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np

from aspire_mom.mra.misfit import Observed, Quadratic, misfit
from aspire_mom.mra.mixtures import Curves, at_windows
from aspire_mom.mra.prior import Pair, ways_of

# Changes by another window that are looked at: relative to the curve up to FARTHEST,
# and in units of what noise does to v from NEAR[0], and of v in good fits to NEAR[1].
FARTHEST, NEAR = 0.5, (1.0, 300.0)
# Precision with which parameters are known (samples, logarithms) when misfits of other
# curves are foreseen.
RIDGE = 1.0


class Outlook:
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
            for f in (with_other_windows(x, least, most), merged(x))
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
            expected, steps = foreseen(self.whole, adjust @ self.along, self.ways)
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


def foreseen(
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


def with_other_windows(curve: Curves, least: float, most: float) -> Curves:
    """The curve with all windows by which it changes, relative to its norm, by more
    than the least and less than the most, and not just as their neighbours do."""
    others, curve = at_windows(curve, np.arange(curve.n)), curve.curves[0]
    away = others.curves - curve
    steps = away - away[np.arange(-1, len(away) - 1)]
    away, steps = (np.einsum("wj,wj->w", x, x) for x in (away, steps))
    least, most = (x**2 * (curve @ curve) for x in (least, most))
    return others[(away > least) & (steps > least) & (away < most)]


def merged(curve: Curves) -> Curves:
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
