"""
How far a signal and a density are from noisy moments, in units of what noise does.

The noise in the moments' entries is far from independent. With m and C the mean and
covariance of clean observations, take second moments about m, in C's eigenvectors: then
noise gives the entries (a, b) variances (σ²(λ_a + λ_b) + σ⁴)/N (twice that on the
diagonal) and no correlations, neither with each other nor with the first moment, whose
entries have σ²/N. C is known from the data well enough for that: what noise does to
eigenvalues is less than σ² by √(n/N). The shifts that happened to be drawn are a change
of ρ whose covariance is that of N draws from it, over which the misfit is minimised.
The misfit of the truth is therefore distributed as χ² with n + n(n + 1)/2 degrees of
freedom.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from scipy.linalg.lapack import dpotrf, dpstrf, dtrtrs

from aspire_mom.mra.signals import all_shifts

# Least σ that entries are weighted for, relative to v's root mean square; less makes
# the weights span too many magnitudes.
LEAST_NOISE = 1e-3
# Standard deviations above what is expected up to which a misfit is good.
SURE = 2.0
# Relative accuracy of sums that weights are taken for.
ACCURATE = 1e-6


@dataclass(frozen=True, eq=False)
class Quadratic:
    """
    x ↦ value - 2 gradient·(x - at) + (x - at)ᵀ hessian (x - at), one or more unknowns.

    :param at: Where it is expanded (m,); v and then ρ for a whole misfit.
    :param hessian: Positive semi-definite matrix (m, m).
    :param gradient: Minus half of the gradient there, (m,).
    :param value: Value there.
    """

    at: np.ndarray
    hessian: np.ndarray
    gradient: np.ndarray
    value: float

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :param x: Points (..., m).
        :return: Values (...,) and minus half of the gradients (..., m).
        """
        step = x - self.at
        slope = self.gradient - step @ self.hessian
        return self.value - (step * (self.gradient + slope)).sum(-1), slope

    def damped(self, damping: float) -> Quadratic:
        """A whole misfit with a curvature larger by a factor, to keep steps short."""
        diagonal = np.diag(self.hessian)
        # v and ρ each by their own mean, since they have different units.
        mean = diagonal.reshape(2, -1).mean(1).repeat(len(diagonal) // 2)
        more = damping * np.diag(diagonal + 1e-3 * mean)
        return Quadratic(self.at, self.hessian + more, self.gradient, self.value)

    def along(self, directions: np.ndarray) -> Quadratic:
        """
        :param directions: Rows (d, m).
        :return: The same as a function of how far one goes in each of them, (d,).
        """
        hessian = directions @ self.hessian @ directions.T
        slope = directions @ self.gradient
        return Quadratic(np.zeros(len(slope)), hessian, slope, self.value)

    def minimised_over(
        self, directions: np.ndarray, keep: slice, ridge: float
    ) -> Quadratic:
        """
        The least value over steps along some directions, as a function of the rest.

        :param directions: Rows (d, m) that may be moved along.
        :param keep: Which unknowns the result is a function of.
        :param ridge: Curvature added along the directions, so that data that say
            nothing of them leave them alone.
        """
        cross = directions @ self.hessian[:, keep]
        inner = directions @ self.hessian @ directions.T + ridge * np.eye(
            len(directions)
        )
        slope = directions @ self.gradient
        solved = np.linalg.solve(inner, np.column_stack((cross, slope)))
        return Quadratic(
            self.at[keep],
            self.hessian[keep, keep] - cross.T @ solved[:, :-1],
            self.gradient[keep] - cross.T @ solved[:, -1],
            self.value - slope @ solved[:, -1],
        )


def degrees_of_freedom(n: int) -> int:
    """Real numbers in the two moments of n samples."""
    return n + n * (n + 1) // 2


@dataclass(frozen=True, eq=False)
class Observed:
    """
    Moments of one problem, in the axes in which noise leaves entries uncorrelated.

    :param axes: Eigenvectors of the observations' covariance, as columns (n, n).
    :param mean: Mean of the observations in these axes (n,).
    :param powers: The covariance there, which is diagonal (n,).
    :param weights: 1/(2 × variance) of the second moment's entries off the diagonal
        (n, n), so that sums over all entries count each pair (a, b), (b, a) once.
    :param factors: f (r, n) with weights[a, b] = Σ_t f[t, a] f[t, b].
    :param n_observations: N.
    :param sigma: σ.
    """

    axes: np.ndarray
    mean: np.ndarray
    powers: np.ndarray
    weights: np.ndarray
    factors: np.ndarray
    n_observations: int
    sigma: float

    @property
    def good(self) -> float:
        """Misfits up to this are what noise explains."""
        expected = degrees_of_freedom(len(self.mean))
        return expected + SURE * np.sqrt(2 * expected)

    @classmethod
    def from_samples(
        cls, first: np.ndarray, second: np.ndarray, n_observations: int, sigma: float
    ) -> Observed:
        """
        :param first: E v_j (n,), on sample points.
        :param second: E v_j v_jᵀ (n, n), noise bias removed.
        :param n_observations: N.
        :param sigma: σ.
        """
        sigma = max(sigma, LEAST_NOISE * np.sqrt(np.trace(second) / len(first)))
        powers, axes = np.linalg.eigh(second - np.outer(first, first))
        # Eigenvalues that noise alone may have say nothing.
        edge = 2 * sigma**2 * np.sqrt(len(first) / n_observations)
        level = np.where(powers > edge, powers, 0) + sigma**2 / 2
        weights = n_observations / (2 * sigma**2) / (level[:, None] + level)
        # Of the matrix scaled to a diagonal of 1, so that all entries are as accurate.
        scale = np.sqrt(weights.diagonal())
        scaled = weights / np.multiply.outer(scale, scale)
        factor, pivots, rank, _ = dpstrf(scaled.T, tol=ACCURATE, overwrite_a=1)
        factors = np.empty((rank, len(first)))
        factors[:, pivots - 1] = np.where(_upper(len(first))[:rank], factor[:rank], 0)
        factors *= scale
        mean = first @ axes
        return cls(axes, mean, powers, weights, factors, n_observations, sigma)


@cache
def _upper(n: int) -> np.ndarray:
    """Where a matrix (n, n) has its upper triangle."""
    return np.tri(n, dtype=bool).T


class Expansion:
    """
    The misfit of one problem about a signal and a density, to second order in their
    moments' first-order changes (Gauss-Newton).

    :param observed: The moments.
    :param v: Signal (n,).
    :param rho: Density (n,), sum one; where it is negative its draws count as 0.
    """

    def __init__(self, observed: Observed, v: np.ndarray, rho: np.ndarray):
        n, count = len(v), observed.n_observations
        self.observed, self.v, self.rho = observed, v, rho
        self._first_weight = count / observed.sigma**2
        occurs = np.maximum(rho, 0)
        occurs /= np.add.reduce(occurs)
        self._occurs, self._root = occurs, np.sqrt(occurs / count)
        shifted = all_shifts(v) @ observed.axes
        centre = occurs @ shifted
        centred = shifted - centre
        weighted = rho[:, None] * centred
        self._shifted, self._centred, self._weighted = shifted, centred, weighted

        # What is missing in both moments.
        first, away = observed.mean - rho @ shifted, observed.mean - centre
        second = np.multiply.outer(away, away)
        second -= centred.T @ weighted
        second.ravel()[:: n + 1] += observed.powers
        pull, first_pull = second * observed.weights, first * self._first_weight
        self._pull, self._first = pull.ravel(), first
        self._value = self._pull @ second.ravel() + first_pull @ first
        self._by_missing = np.einsum("sa,sa->s", centred @ pull, centred)
        self._by_missing += shifted @ first_pull

    def value_near(self, other: Expansion) -> float:
        """The misfit there, to which draws of shifts are taken to do what they do to
        another that is near; by itself, exactly."""
        last = other._whitened(other._draws(self._by_missing[None]))[0]
        return float(self._value - last @ last)

    @cached_property
    def _by_density(self) -> np.ndarray:
        """Curvature by changes of the density, and a row of what is missing."""
        observed, centred, n = self.observed, self._centred, len(self.v)
        products = (centred * observed.factors[:, None]) @ centred.T
        normal = np.empty((n + 1, n))
        np.einsum("tsr,tsr->sr", products, products, out=normal[:n])
        normal[:n] += self._first_weight * (self._shifted @ self._shifted.T)
        normal[n] = self._by_missing
        return normal

    @cached_property
    def _factor(self) -> np.ndarray:
        """
        The misfit is minimised over draws L x, at a cost |x|², L Lᵀ = (diag ρ - ρρᵀ)/N.
        A triangle T of what is to be inverted, T Tᵀ: draws become T⁻¹ of them.
        """
        drawn = self._draws(self._by_density[:-1])
        inner = self._root[:, None] * (drawn - self._occurs @ drawn)
        inner.ravel()[:: len(inner) + 1] += 1
        return dpotrf(inner.T, lower=1, clean=0, overwrite_a=1)[0]

    def _draws(self, normal: np.ndarray) -> np.ndarray:
        """What draws share with changes (…, n), from what density changes do (…, n)."""
        drawn = normal - (normal @ self._occurs)[:, None]
        drawn *= self._root
        return drawn

    def _whitened(self, drawn: np.ndarray) -> np.ndarray:
        return dtrtrs(self._factor, drawn.T, lower=1, overwrite_b=1)[0].T

    def _changed(self, moves: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What moves of v (P, n) change in both moments: half of it, which is to be
        added to its transpose, for the second, (P, n²); that sum times its weights,
        (P, n²); and for the first, (P, n)."""
        P, n = moves.shape
        moved = all_shifts(moves) @ self.observed.axes
        half = moved.swapaxes(-1, -2) @ self._weighted
        pull = half + half.swapaxes(-1, -2)
        pull *= self.observed.weights
        return half.reshape(P, -1), pull.reshape(P, -1), self.rho @ moved

    def _with_others(self, change) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What moves share with those of :meth:`along`, (P, P'), with changes of the
        density, (P, n), and with what is missing, (P,)."""
        (_, other, other_first), (half, pull, first) = self._moves, change
        n, first = len(self.v), self._first_weight * first
        bent = self._centred @ pull.reshape(-1, n, n)
        cross = np.einsum("psa,sa->ps", bent, self._centred)
        cross += first @ self._shifted.T
        missing = 2 * (half @ self._pull) + first @ self._first
        return 2 * (half @ other.T) + first @ other_first.T, cross, missing

    def along(self, moves: np.ndarray) -> Quadratic:
        """
        :param moves: Directions (P, n) in which v may move.
        :return: The misfit as a function of how far v goes in each direction, from 0,
            and of ρ, (P + n,). ρ may change only by what has the sum 0.
        """
        P, n = moves.shape
        self._moves = self._changed(moves)
        # Of rows the last is what is missing.
        normal = np.empty((P + n + 1, P + n))
        normal[:P, :P], normal[:P, P:], normal[-1, :P] = self._with_others(self._moves)
        normal[P:-1, :P], normal[P:, P:] = normal[:P, P:].T, self._by_density
        self._drawn = self._whitened(self._draws(normal[:, P:]))
        normal -= self._drawn @ self._drawn[:-1].T
        value = self._value - self._drawn[-1] @ self._drawn[-1]
        at = np.concatenate((np.zeros(P), self.rho))
        return Quadratic(at, normal[:-1], normal[-1], float(value))

    def of_others(
        self, others: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        :param others: More moves of v (A, n), after those of :meth:`along`.
        :return: For each by itself, the product of the hessian and the move,
            (A, P + n), the product with the gradient, and the curvature, (A,).
        """
        half, pull, first = change = self._changed(others)
        shared, cross, missing = self._with_others(change)
        drawn = self._whitened(self._draws(cross))
        bent = np.hstack((shared, cross, missing[:, None]))
        bent -= drawn @ self._drawn.T
        curvature = 2 * np.einsum("ax,ax->a", pull, half)
        curvature += self._first_weight * np.einsum("an,an->a", first, first)
        curvature -= np.einsum("ar,ar->a", drawn, drawn)
        return bent[:, :-1], bent[:, -1], curvature


def misfit(observed: Observed, v: np.ndarray, rho: np.ndarray) -> Quadratic:
    """
    :param observed: The moments of one problem.
    :param v: Signal (n,).
    :param rho: Density (n,).
    :return: The :class:`Expansion` as a function of v and ρ, (2n,).
    """
    whole = Expansion(observed, v, rho).along(np.eye(len(v)))
    at = np.concatenate((v, rho))
    return Quadratic(at, whole.hessian, whole.gradient, whole.value)
