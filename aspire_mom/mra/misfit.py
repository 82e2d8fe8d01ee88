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
        factor, pivots, rank, _ = dpstrf(weights / np.outer(scale, scale), tol=ACCURATE)
        factors = np.empty((rank, len(first)))
        factors[:, pivots - 1] = np.triu(factor)[:rank]
        factors *= scale
        mean = first @ axes
        return cls(axes, mean, powers, weights, factors, n_observations, sigma)


class Expansion:
    """
    The misfit of one problem about a signal and a density, to second order in their
    moments' first-order changes (Gauss-Newton).

    :param observed: The moments.
    :param v: Signal (n,).
    :param rho: Density (n,), sum one; where it is negative its draws count as 0.
    """

    def __init__(self, observed: Observed, v: np.ndarray, rho: np.ndarray):
        n, axes, count = len(v), observed.axes, observed.n_observations
        self.observed, self.v, self.rho = observed, v, rho
        self._first_weight = count / observed.sigma**2
        occurs = np.maximum(rho, 0)
        occurs /= occurs.sum()
        shifted = all_shifts(v) @ axes
        centre = occurs @ shifted
        centred = shifted - centre
        weighted = rho[:, None] * centred
        self._shifted, self._centred, self._weighted = shifted, centred, weighted

        # What is missing in both moments.
        first, away = observed.mean - rho @ shifted, observed.mean - centre
        second = np.multiply.outer(away, away)
        second -= centred.T @ weighted
        second.flat[:: n + 1] += observed.powers
        pull, first_pull = second * observed.weights, first * self._first_weight
        self._missing = np.concatenate((pull.ravel(), first_pull))
        value = pull.ravel() @ second.ravel() + first_pull @ first
        by_missing = np.einsum("sa,sa->s", centred @ pull, centred)
        by_missing += shifted @ first_pull
        products = (centred * observed.factors[:, None]) @ centred.T
        by_density = np.einsum("tsr,tsr->sr", products, products)
        by_density += self._first_weight * (shifted @ shifted.T)
        # Changes of the density, and what is missing.
        self._by_density = np.column_stack((by_density, by_missing))

        # Minimised over draws L x, at a cost |x|², L Lᵀ = (diag ρ - ρρᵀ)/N.
        self._occurs, self._root = occurs, np.sqrt(occurs / count)[:, None]
        self._drawn = self._draws(self._by_density)
        inner = self._drawn[:, :n] - (self._drawn[:, :n] @ occurs)[:, None]
        inner *= self._root[:, 0]
        inner.flat[:: n + 1] += 1
        # A triangle L⁻¹ of what is to be inverted, L Lᵀ: draws become L⁻¹ of them.
        self._factor = dpotrf(inner, lower=1, clean=0)[0]
        self._drawn = self._whitened(self._drawn)
        last = self._drawn[:, n]
        #: The misfit there.
        self.value = float(value - last @ last)

    def _draws(self, normal: np.ndarray) -> np.ndarray:
        """What draws share with changes, from what density changes do (n, …)."""
        return self._root * (normal - self._occurs @ normal)

    def _whitened(self, drawn: np.ndarray) -> np.ndarray:
        return dtrtrs(self._factor, drawn, lower=1)[0]

    def _changed(self, moves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What moves of v (P, n) change in both moments, (P, n² + n), and that times
        its weights."""
        P, n = moves.shape
        moved = all_shifts(moves) @ self.observed.axes
        change, pull = np.empty((2, P, n * n + n))
        half = moved.swapaxes(-1, -2) @ self._weighted
        second = change[:, : n * n].reshape(P, n, n)
        np.add(half, half.swapaxes(-1, -2), out=second)
        np.matmul(self.rho, moved, out=change[:, n * n :])
        weights = self.observed.weights.ravel()
        np.multiply(change[:, : n * n], weights, out=pull[:, : n * n])
        np.multiply(change[:, n * n :], self._first_weight, out=pull[:, n * n :])
        return change, pull

    def _with_density(self, pull: np.ndarray) -> np.ndarray:
        """What moves share with changes of the density, (P, n)."""
        n = len(self.v)
        bent = self._centred @ pull[:, : n * n].reshape(-1, n, n)
        cross = np.einsum("psa,sa->ps", bent, self._centred)
        cross += pull[:, n * n :] @ self._shifted.T
        return cross

    def along(self, moves: np.ndarray) -> Quadratic:
        """
        :param moves: Directions (P, n) in which v may move.
        :return: The misfit as a function of how far v goes in each direction, from 0,
            and of ρ, (P + n,). ρ may change only by what has the sum 0.
        """
        (P, n), change = moves.shape, self._changed(moves)
        self._moves = change[0]
        cross = self._with_density(change[1])
        normal = np.empty((P + n, P + n + 1))
        normal[:P, :P] = change[1] @ change[0].T
        normal[:P, P:-1], normal[:P, -1] = cross, change[0] @ self._missing
        normal[P:, :P], normal[P:, P:] = cross.T, self._by_density
        self._all_drawn = np.hstack((self._whitened(self._draws(cross.T)), self._drawn))
        normal -= self._all_drawn[:, :-1].T @ self._all_drawn
        at = np.concatenate((np.zeros(P), self.rho))
        return Quadratic(at, normal[:, :-1], normal[:, -1], self.value)

    def of_others(
        self, others: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        :param others: More moves of v (A, n), after those of :meth:`along`.
        :return: For each by itself, the product of the hessian and the move,
            (A, P + n), the product with the gradient, and the curvature, (A,).
        """
        change, pull = self._changed(others)
        cross = self._with_density(pull)
        drawn = self._whitened(self._draws(cross.T))
        bent = np.hstack(
            (pull @ self._moves.T, cross, (change @ self._missing)[:, None])
        )
        bent -= drawn.T @ self._all_drawn
        curvature = np.einsum("ax,ax->a", pull, change)
        curvature -= np.einsum("ra,ra->a", drawn, drawn)
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
