"""Expectation-maximisation on raw observations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aspire_mom.mra.shift_ambiguity import centre_density
from aspire_mom.mra.signals import all_shifts, check_pair


@dataclass(frozen=True)
class EMStatus:
    """
    Progress, for a status callback.

    :param step: Steps done.
    :param change: Relative change of v in the last one.
    """

    step: int
    change: float


def expectation_maximisation(
    observations: np.ndarray,
    sigma: float,
    v: np.ndarray,
    rho: np.ndarray | None = None,
    *,
    n_steps: int = 500,
    tolerance: float = 1e-5,
    batch_size: int = 20_000,
    status: Callable[[EMStatus], bool | None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Maximise the likelihood of observations (eq. 23) over v and ρ. Each step reads all
    of them and computes for each the probabilities of its shifts,

        p_js ∝ ρ[s] exp(y_j · v(· - s) / σ²),

    from which v becomes the average of the y_j shifted back and ρ the average of p_j.
    Correlations with all shifts are one product with the circulant matrix of v, which
    for n up to a few hundred is faster than FFTs of each observation.

    :param observations: y (N, n), real.
    :param sigma: Standard deviation of the noise, above 0.
    :param v: Start (n,).
    :param rho: Start (n,); uniform by default.
    :param n_steps: Most steps.
    :param tolerance: Relative change of v in a step below which it has converged.
    :param batch_size: Observations handled at once.
    :param status: Called after every step; returning True stops.
    :return: v and ρ, (n,) each, ρ centred at shift 0.
    :raises ValueError: shapes that do not match, no observations, values that are not
        finite, a ρ that is no distribution, σ not above 0.
    """
    observations, v = np.asarray(observations), np.asarray(v, float)
    n = v.shape[-1] if v.ndim else 0
    v, rho = check_pair(v, np.full(v.shape, 1 / max(n, 1)) if rho is None else rho)
    _check(observations, v, sigma)
    j = np.arange(n)
    back = (j[:, None] + j) % n
    for step in range(1, n_steps + 1):
        templates = all_shifts(v).T / sigma**2
        with np.errstate(divide="ignore"):
            prior = np.log(rho)
        weights, sums = np.zeros(n), np.zeros((n, n))
        for start in range(0, len(observations), batch_size):
            y = observations[start : start + batch_size]
            p = y @ templates + prior
            p -= p.max(1, keepdims=True)
            np.exp(p, out=p)
            p /= p.sum(1, keepdims=True)
            weights += p.sum(0)
            sums += p.T @ y
        # Σ_j p_js y_j, shifted back by s and summed over s.
        new = sums[j[:, None], back].sum(0) / len(observations)
        change = float(np.linalg.norm(new - v) / np.linalg.norm(new))
        v, rho = new, weights / len(observations)
        if (status and status(EMStatus(step, change))) or change < tolerance:
            break
    return centre_density(v, rho)


def _check(observations: np.ndarray, v: np.ndarray, sigma: float) -> None:
    if v.ndim != 1:
        raise ValueError(f"v has shape {v.shape}; observations are of one signal (n,)")
    n = len(v)
    if observations.ndim != 2 or observations.shape[1] != n:
        raise ValueError(
            f"observations have shape {observations.shape}; v has n = {n}, so they must"
            f" be (N, {n})"
        )
    if len(observations) == 0:
        raise ValueError("there are no observations; at least 1 is needed")
    if not np.isfinite(observations).all():
        raise ValueError("observations have values that are NaN or infinite")
    if not (np.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma is {sigma}; it must be finite and above 0")
