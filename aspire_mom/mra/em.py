"""Expectation-maximisation on raw observations."""

import numpy as np

from aspire_mom.checks import check_positive
from aspire_mom.mra.shift_ambiguity import centre_density
from aspire_mom.mra.signals import Arrays, all_shifts, check_pair

# Observations handled at once.
BATCH_SIZE = 20_000


def expectation_maximisation(
    observations: np.ndarray,
    sigma: float,
    v: np.ndarray,
    rho: np.ndarray | None = None,
    *,
    n_steps: int = 500,
    tolerance: float = 1e-5,
) -> Arrays:
    """
    Maximise the likelihood of observations (eq. 23) over v and ρ. Each step computes
    the probabilities of shifts, p_js ∝ ρ[s] exp(y_j · v(· - s) / σ²). v becomes the
    average of the y_j shifted back, and ρ the average of p_j.

    :param observations: y (N, n), real.
    :param sigma: Standard deviation of the noise, above 0.
    :param v: Start (n,).
    :param rho: Start (n,); uniform by default.
    :param n_steps: Most steps.
    :param tolerance: Relative change of v in a step below which it has converged.
    :return: v and ρ, (n,) each, ρ centred at shift 0.
    :raises ValueError: shapes that do not match, or values that are not finite.
    """
    observations, v = np.asarray(observations), np.asarray(v, float)
    n = observations.shape[-1] if observations.ndim else 0
    if observations.ndim != 2 or v.shape != (n,) or observations.size == 0:
        shapes = f"shapes {observations.shape} and {v.shape}"
        raise ValueError(f"observations and v have {shapes}, not (N > 0, n) and (n,)")
    if not np.isfinite(observations).all():
        raise ValueError("observations have values that are NaN or infinite")
    check_positive("sigma", sigma)
    v, rho = check_pair(v, np.full(n, 1 / n) if rho is None else rho)
    j = np.arange(n)
    back = (j[:, None] + j) % n
    for _ in range(n_steps):
        # Products with all shifts are faster than FFTs for n up to a few hundred.
        templates = all_shifts(v).T / sigma**2
        with np.errstate(divide="ignore"):
            prior = np.log(rho)
        weights, sums = np.zeros(n), np.zeros((n, n))
        for start in range(0, len(observations), BATCH_SIZE):
            y = observations[start : start + BATCH_SIZE]
            p = y @ templates + prior
            np.exp(p - p.max(1, keepdims=True), out=p)
            p /= p.sum(1, keepdims=True)
            weights += p.sum(0)
            sums += p.T @ y
        # Σ_j p_js y_j, shifted back by s and summed over s.
        new = sums[j[:, None], back].sum(0) / len(observations)
        change = np.linalg.norm(new - v)
        v, rho = new, weights / len(observations)
        if change < tolerance * np.linalg.norm(v):
            break
    return centre_density(v, rho)
