"""
The χ² of a signal and a density of shifts, given noisy moments.

Let λ be the eigenvalues of the observations' covariance, noise bias removed. Along its
eigenvectors, noise causes uncorrelated errors, of variance σ²/N in the mean and
(σ²(λ_a + λ_b) + σ⁴)/N in entry (a, b) of the covariance, twice that if a = b.
:class:`ShiftSampling` whitens the errors that come from drawing N shifts from ρ.
"""

from contextlib import suppress

import numpy as np
from scipy import optimize

from aspire_mom.mra.moments import FourierMoments, to_samples
from aspire_mom.mra.signals import Arrays, all_shifts

# Least σ used in weights, relative to the root mean square of v.
LEAST_NOISE = 1e-3
# Standard deviations of the prior about the start, of v relative to its RMS, and of ρ.
SIGNAL_SPREAD, DENSITY_SPREAD = 0.1, 0.05
STEPS = 50


class WhitenedMoments:
    """
    Mean and covariance of observations, in standard deviations of their noise.

    :param moments: Moments of one problem, not exact.
    """

    def __init__(self, moments: FourierMoments):
        N = moments.n_observations
        assert N is not None
        first, second = to_samples(moments.first, moments.second)
        n = len(first)
        sigma = max(moments.sigma, LEAST_NOISE * np.sqrt(np.trace(second) / n))
        self.n_observations = N
        self.powers, self.axes = np.linalg.eigh(second - np.outer(first, first))
        self.mean = first @ self.axes
        # Eigenvalues as small as those of noise alone count as 0.
        edge = 2 * sigma**2 * np.sqrt(n / N)
        level = np.where(self.powers > edge, self.powers, 0) + sigma**2 / 2
        variance = sigma**2 * (level[:, None] + level) / N * (1 + np.eye(n))
        self.upper = np.triu_indices(n)
        self.scale = 1 / np.sqrt(variance[self.upper])
        self.mean_scale = np.sqrt(N) / sigma
        #: Observed values (n + n(n + 1)/2,): the mean, then the covariance.
        self.values = self._joined(self.mean, np.diag(self.powers))

    def _joined(self, mean: np.ndarray, second: np.ndarray) -> np.ndarray:
        second = second[..., self.upper[0], self.upper[1]] * self.scale
        return np.concatenate((self.mean_scale * mean, second), -1)

    def _shifts(self, v, rho) -> Arrays:
        shifted = all_shifts(v) @ self.axes
        mean = np.einsum("...s,...sa->...a", rho, shifted)
        return mean, shifted - mean[..., None, :]

    def power_along_shifts(self, v: np.ndarray) -> np.ndarray:
        """
        :param v: Signal (n,).
        :return: uᵀ M2 u (n,), M2 the second moment, for all shifts u of v - mean(v).
        """
        shifted = all_shifts(v - v.mean()) @ self.axes
        return shifted**2 @ self.powers + (shifted @ self.mean) ** 2

    def residuals(self, v: np.ndarray, rho: np.ndarray) -> np.ndarray:
        """
        :param v: Signals (..., n).
        :param rho: Densities (..., n), of sum one.
        :return: Their values minus those observed, (..., n + n(n + 1)/2).
        """
        mean, centred = self._shifts(v, rho)
        second = centred.swapaxes(-1, -2) @ (rho[..., None] * centred)
        return self._joined(mean, second) - self.values

    def jacobian(
        self, v: np.ndarray, rho: np.ndarray, by_v: np.ndarray, by_rho: np.ndarray
    ) -> np.ndarray:
        """
        :param v: Signal (n,).
        :param rho: Density (n,), of sum one.
        :param by_v: Changes of v (P, n).
        :param by_rho: Changes of ρ (R, n), of sum zero.
        :return: First-order changes of the residuals, (P + R, n + n(n + 1)/2).
        """
        _, centred = self._shifts(v, rho)
        moved = all_shifts(by_v) @ self.axes
        half = moved.swapaxes(-1, -2) @ (rho[:, None] * centred)
        by_v = self._joined(rho @ moved, half + half.swapaxes(-1, -2))
        second = (by_rho[:, None] * centred.T) @ centred
        return np.concatenate((by_v, self._joined(by_rho @ centred, second)))


class ShiftSampling:
    """
    Errors from drawing N shifts from ρ, at a signal and a density. Their covariance
    AAᵀ, in units of the noise, is that of N multinomial draws.

    :param data: The moments.
    :param v: Signal (n,).
    :param rho: Density (n,), of sum one; not negative.
    """

    def __init__(self, data: WhitenedMoments, v: np.ndarray, rho: np.ndarray):
        # Each shift of v less the mean, and the products of its entries.
        _, centred = data._shifts(v, rho)
        each = data._joined(centred, centred[:, :, None] * centred[:, None])
        each -= rho @ each
        self._draws = np.sqrt(rho / data.n_observations)[:, None] * each
        powers, self._axes = np.linalg.eigh(self._draws @ self._draws.T)
        powers = np.maximum(powers, 1e-300)
        self._shrinking = (1 - 1 / np.sqrt(1 + powers)) / powers
        r = self.whiten(data.residuals(v, rho))
        #: Its mean is the number of residuals if v and ρ are the true ones.
        self.chi_squared = float(r @ r)

    def whiten(self, residuals: np.ndarray) -> np.ndarray:
        """
        :param residuals: In units of the noise, (..., m).
        :return: (1 + AAᵀ)^(-1/2) times them, whose squares sum to χ².
        """
        along = residuals @ self._draws.T @ self._axes
        return residuals - (along * self._shrinking) @ self._axes.T @ self._draws


class _Explained(Exception):
    """Noise explains the residuals."""


def least_squares(
    data: WhitenedMoments, v: np.ndarray, rho: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """
    Minimise the residuals over v and ρ until noise explains them. A weak prior keeps v
    and ρ near the start where the moments do not determine them.

    :param data: The moments.
    :param v: Start (n,).
    :param rho: Start (n,), of sum one.
    :return: v, ρ, which may be slightly negative, and the residuals' sum of squares.
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
        if r @ r < best[2]:
            best = *pair(x), float(r @ r)
        if r @ r < len(r):
            raise _Explained
        return np.append(r, x)

    def jacobian(x):
        v_here, rho_here = pair(x)
        by = data.jacobian(v_here, rho_here, spread * np.eye(n), by_rho)
        return np.hstack((by, np.eye(2 * n))).T

    with suppress(_Explained):
        optimize.least_squares(
            residuals, np.zeros(2 * n), jacobian, method="lm", ftol=1e-4, max_nfev=STEPS
        )
    return best
