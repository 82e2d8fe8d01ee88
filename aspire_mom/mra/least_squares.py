"""Regularised least squares over a signal and a density, from any start."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from scipy import optimize

from aspire_mom.mra.chi_squared import WhitenedMoments

# Standard deviations of the prior about the start: of v relative to its root mean
# square, and of ρ.
SIGNAL_SPREAD, DENSITY_SPREAD = 0.1, 0.05
STEPS = 50


class _Explained(Exception):
    """Noise explains what remains."""


def least_squares(
    data: WhitenedMoments, v: np.ndarray, rho: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """
    Minimise the residuals of one problem over v and ρ themselves by
    Levenberg-Marquardt steps. It stops where noise explains the residuals, so that it
    does not fit noise, and a weak prior keeps what the moments leave open as it was at
    the start.

    :param data: The moments.
    :param v: Start (n,).
    :param rho: Start (n,), of sum one.
    :return: v, ρ, entries of which may be slightly negative, and the sum of squares of
        their residuals. The shifts that were drawn are part of ρ.
    """
    n, best = len(v), (v, rho, np.inf)
    spread = SIGNAL_SPREAD * np.sqrt(np.mean(v**2))
    # Changes of ρ have the sum zero.
    by_rho = DENSITY_SPREAD * (np.eye(n) - 1 / n)

    def pair(x):
        return v + spread * x[:n], rho + x[n:] @ by_rho

    def residuals(x):
        nonlocal best
        r = data.residuals(*pair(x))
        squares = float(r @ r)
        if squares < best[2]:
            best = *pair(x), squares
        if squares < len(r):
            raise _Explained
        return np.append(r, x)

    def jacobian(x):
        by = data.jacobian(*pair(x), spread * np.eye(n), by_rho)
        return np.hstack((by, np.eye(2 * n))).T

    with suppress(_Explained):
        optimize.least_squares(
            residuals, np.zeros(2 * n), jacobian, method="lm", ftol=1e-4, max_nfev=STEPS
        )
    return best
