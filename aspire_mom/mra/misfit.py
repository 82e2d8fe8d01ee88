"""
How far a signal and a density are from noisy moments, in units of what noise does.

The noise in the moments' entries is far from independent. With m and C the mean and
covariance of clean observations, take second moments about m, in C's eigenvectors: then
noise gives the entries (a, b) variances (σ²(λ_a + λ_b) + σ⁴)/N (twice that on the
diagonal) and no correlations, neither with each other nor with the first moment, whose
entries have σ²/N. The shifts that happened to be drawn add the covariance of N draws
from ρ, of rank n - 1, which Woodbury's identity takes in. The misfit of the truth is
therefore distributed as χ² with n + n(n + 1)/2 degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from aspire_mom.mra.signals import all_shifts

# Least σ that entries are weighted for, relative to v's root mean square; less makes
# the weights span too many magnitudes.
LEAST_NOISE = 1e-3


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


def misfit(
    moments: tuple[np.ndarray, np.ndarray],
    v: np.ndarray,
    rho: np.ndarray,
    n_observations: int,
    sigma: float,
    moves: np.ndarray | None = None,
) -> Quadratic:
    """
    The misfit of one problem, expanded about a signal and a density to second order in
    their moments' first-order changes (Gauss-Newton). Weights are theirs as well.

    :param moments: E v_j (n,) and E v_j v_jᵀ (n, n), noise bias removed, on sample
        points.
    :param v: Signal (n,).
    :param rho: Density (n,), sum one; where it is negative weights take it as 0.
    :param n_observations: N.
    :param sigma: σ.
    :param moves: Directions (P, 2n) in which v and then ρ may move; all, one by one, if
        None.
    :return: The misfit as a function of v and ρ, (2n,), or, with `moves`, of how far to
        go in each direction, (P,), from 0.
    """
    n = len(v)
    sigma = max(sigma, LEAST_NOISE * np.sqrt(np.mean(v**2)))
    shifted = all_shifts(v)
    occurs = np.maximum(rho, 0) / np.maximum(rho, 0).sum()
    centre = occurs @ shifted
    centred = shifted - centre
    powers, axes = np.linalg.eigh((centred.T * occurs) @ centred)
    powers = np.maximum(powers, 0)
    a, b, upper = _upper(n)
    variance = sigma**2 * (powers[a] + powers[b] + sigma**2) * np.where(a == b, 2, 1)
    scale = np.sqrt(n_observations / variance)
    first_scale = np.sqrt(n_observations) / sigma

    first = moments[0] - rho @ shifted
    second = moments[1] - (shifted.T * rho) @ shifted
    second -= np.outer(first, centre) + np.outer(centre, first)
    residual = np.concatenate(
        (first * first_scale, (axes.T @ second @ axes)[a, b] * scale)
    )

    on_axes = centred @ axes
    products = (on_axes[:, :, None] * on_axes[:, None]).reshape(n, -1)
    by_density = np.hstack((shifted * first_scale, products[:, upper] * scale))
    moved = all_shifts(np.eye(n) if moves is None else moves[:, :n])
    by_signal = ((moved @ axes) * rho[:, None]).swapaxes(-1, -2) @ on_axes
    by_signal = (by_signal + by_signal.swapaxes(-1, -2)).reshape(len(moved), -1)
    by_signal = np.hstack(((rho @ moved) * first_scale, by_signal[:, upper] * scale))
    if moves is None:
        jacobian = np.vstack((by_signal, by_density))
    else:
        jacobian = by_signal + moves[:, n:] @ by_density

    # (I + J L Lᵀ Jᵀ)⁻¹ with L Lᵀ = (diag ρ - ρρᵀ)/N, J the derivatives by ρ.
    root = np.sqrt(occurs)
    draws = (np.diag(root) - np.outer(occurs, root)) / np.sqrt(n_observations)
    drawn = draws.T @ by_density
    inner = np.eye(n) + drawn @ drawn.T
    both = np.vstack((jacobian, residual))
    cross = drawn @ both.T
    normal = both @ both.T - cross.T @ np.linalg.solve(inner, cross)
    return Quadratic(
        np.concatenate((v, rho)) if moves is None else np.zeros(len(moves)),
        normal[:-1, :-1],
        normal[:-1, -1],
        float(normal[-1, -1]),
    )


@cache
def _upper(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a symmetric matrix's different entries are: rows, columns, flat."""
    a, b = np.triu_indices(n)
    return a, b, a * n + b
