"""Regularised least squares for v and ρ, from any start."""

from __future__ import annotations

import numpy as np

from aspire_mom.mra.misfit import Observed, Quadratic, degrees_of_freedom, misfit

# Prior standard deviations about the current point: of v relative to its root mean
# square, and of ρ in absolute terms.
SIGNAL_SPREAD, DENSITY_SPREAD = 0.1, 0.05
STEPS = 50


def least_squares(
    moments: tuple[np.ndarray, np.ndarray],
    v: np.ndarray,
    rho: np.ndarray,
    n_observations: int,
    sigma: float,
) -> Quadratic:
    """
    Minimise the misfit of one problem over v and ρ themselves by Levenberg-Marquardt
    steps. It stops where the misfit is what noise explains, so that it does not fit
    noise: what remains undetermined stays as it was at the start (regularisation by
    early stopping), and single steps are held back by a ridge.

    :param moments: E v_j (n,) and E v_j v_jᵀ (n, n), noise bias removed, on samples.
    :param v: Start (n,).
    :param rho: Start (n,), sum one.
    :param n_observations: N.
    :param sigma: σ.
    :return: The misfit, expanded about the solution `at`, v and then ρ. Entries of ρ
        may be slightly negative.
    """
    n, observed = len(v), Observed.from_samples(*moments, n_observations, sigma)
    ridge = np.concatenate(
        (
            np.full(n, 1 / (SIGNAL_SPREAD**2 * np.mean(v**2))),
            np.full(n, 1 / DENSITY_SPREAD**2),
        )
    )
    current, damping = misfit(observed, v, rho), 1e-4
    for _ in range(STEPS):
        if current.value < degrees_of_freedom(n) or damping > 10:
            break
        matrix = current.damped(damping).hessian + np.diag(ridge)
        x = current.at + np.linalg.solve(matrix, current.gradient)
        tried = misfit(observed, x[:n], x[n:] / x[n:].sum())
        gain = current.value - tried.value
        if gain > 0:
            current, damping = tried, damping / 5
            if gain < 1e-4 * current.value:
                break
        else:
            damping *= 10
    return current
