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
from scipy.linalg.lapack import dposv, dpstrf

from aspire_mom.mra.signals import all_shifts

# Least σ that entries are weighted for, relative to v's root mean square; less makes
# the weights span too many magnitudes.
LEAST_NOISE = 1e-3
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


def misfit(
    observed: Observed, v: np.ndarray, rho: np.ndarray, moves: np.ndarray | None = None
) -> Quadratic:
    """
    The misfit of one problem, expanded about a signal and a density to second order in
    their moments' first-order changes (Gauss-Newton).

    :param observed: The moments.
    :param v: Signal (n,).
    :param rho: Density (n,), sum one; where it is negative its draws count as 0.
    :param moves: Directions (P, n) in which v may move; all, one by one, if None.
    :return: The misfit as a function of v and ρ, (2n,), or, with `moves`, of how far v
        goes in each direction, from 0, and of ρ, (P + n,). ρ may change only by what
        has the sum 0.
    """
    n, axes = len(v), observed.axes
    P = n if moves is None else len(moves)
    first_weight = observed.n_observations / observed.sigma**2
    occurs = np.maximum(rho, 0)
    occurs /= occurs.sum()
    shifted = all_shifts(v) @ axes
    centre = occurs @ shifted
    centred = shifted - centre
    weighted = rho[:, None] * centred

    # What moves change in both moments, and last what is missing in them.
    moved = all_shifts(np.eye(n) if moves is None else moves) @ axes
    first, second = np.empty((P + 1, n)), np.empty((P + 1, n, n))
    np.matmul(rho, moved, out=first[:P])
    half = moved.swapaxes(-1, -2) @ weighted
    np.add(half, half.swapaxes(-1, -2), out=second[:P])
    first[P] = observed.mean - rho @ shifted
    away = observed.mean - centre
    np.subtract(np.outer(away, away), centred.T @ weighted, out=second[P])
    second[P].flat[:: n + 1] += observed.powers

    pull, first_pull = second * observed.weights, first * first_weight
    between = pull.reshape(P + 1, -1) @ second.reshape(P + 1, -1).T
    between += first_pull @ first.T
    cross = np.einsum("psa,sa->ps", centred @ pull, centred) + first_pull @ shifted.T
    products = (centred * observed.factors[:, None]) @ centred.T
    by_density = np.einsum("tsr,tsr->sr", products, products)
    by_density += first_weight * (shifted @ shifted.T)
    m = P + n
    normal = np.empty((m + 1, m + 1))
    normal[:P, :P], normal[m, m], normal[m, :P] = (
        between[:P, :P],
        between[P, P],
        between[P, :P],
    )
    normal[:P, P:m], normal[m, P:m], normal[P:m, P:m] = cross[:P], cross[P], by_density
    normal[P:m, :P], normal[:m, m] = cross[:P].T, normal[m, :m]

    # Minimised over draws L x, at a cost |x|², L Lᵀ = (diag ρ - ρρᵀ)/N.
    root = np.sqrt(occurs / observed.n_observations)[:, None]
    drawn = root * (normal[P:m] - occurs @ normal[P:m])
    inner = drawn[:, P:m] - (drawn[:, P:m] @ occurs)[:, None]
    inner *= root[:, 0]
    inner.flat[:: n + 1] += 1
    normal -= drawn.T @ dposv(inner, drawn)[1]
    at = np.concatenate((v if moves is None else np.zeros(P), rho))
    return Quadratic(at, normal[:m, :m], normal[:m, m], float(normal[m, m]))
