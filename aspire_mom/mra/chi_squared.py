"""
The χ² of a signal and a density of shifts, given noisy moments.

Noise leaves the entries of the moments far from independent. Take the mean and the
covariance of the observations instead of the first and the second moment, in the axes
in which the covariance C is diagonal with entries λ. There the noise of an entry (a, b)
has the variance (σ²(λ_a + λ_b) + σ⁴)/N, twice that on the diagonal, the noise of the
mean has σ²/N, and all are uncorrelated. The observed C is accurate enough to choose the
axes. The N shifts drawn from ρ are a second source of errors, which is correlated. Its
covariance has the rank n - 1, and :class:`ShiftSampling` divides it out.
"""

from __future__ import annotations

import numpy as np

from aspire_mom.mra.moments import to_samples
from aspire_mom.mra.signals import all_shifts

# Least σ that entries are weighted for, relative to the root mean square of v; less
# makes the weights span too many magnitudes.
LEAST_NOISE = 1e-3


class WhitenedMoments:
    """
    Moments of one problem, divided by the standard deviations of their noise.

    :param first: First moment (n,), Fourier.
    :param second: Second moment (n, n), Fourier, noise bias removed.
    :param n_observations: N.
    :param sigma: σ.
    """

    def __init__(
        self, first: np.ndarray, second: np.ndarray, n_observations: int, sigma: float
    ):
        first, second = to_samples(first, second)
        n = len(first)
        sigma = max(sigma, LEAST_NOISE * np.sqrt(np.trace(second) / n))
        self.powers, self.axes = np.linalg.eigh(second - np.outer(first, first))
        self.mean = first @ self.axes
        # Eigenvalues as small as those of noise alone say nothing.
        edge = 2 * sigma**2 * np.sqrt(n / n_observations)
        level = np.where(self.powers > edge, self.powers, 0) + sigma**2 / 2
        self.upper = np.triu_indices(n)
        variance = sigma**2 * (level[:, None] + level) / n_observations
        variance *= 1 + np.eye(n)
        self.n_observations = n_observations
        self.scale = 1 / np.sqrt(variance[self.upper])
        self.mean_scale = np.sqrt(n_observations) / sigma
        #: Observed values (n + n(n + 1)/2,): the mean, then the covariance.
        self.values = self._joined(self.mean, np.diag(self.powers))

    def _joined(self, mean: np.ndarray, second: np.ndarray) -> np.ndarray:
        second = second[..., self.upper[0], self.upper[1]] * self.scale
        return np.concatenate((self.mean_scale * mean, second), -1)

    def _shifts(self, v, rho) -> tuple[np.ndarray, np.ndarray]:
        shifted = all_shifts(v) @ self.axes
        mean = np.einsum("...s,...sa->...a", rho, shifted)
        return mean, shifted - mean[..., None, :]

    def each_shift(self, v: np.ndarray, rho: np.ndarray) -> np.ndarray:
        """
        :param v: Signal (n,).
        :param rho: Density (n,), of sum one.
        :return: The signal and the products of its entries about the mean, for each
            shift, in standard deviations of the noise, (n, n + n(n + 1)/2).
        """
        _, centred = self._shifts(v, rho)
        return self._joined(centred, centred[:, :, None] * centred[:, None])

    def power_along_shifts(self, v: np.ndarray) -> np.ndarray:
        """
        :param v: Signal (n,).
        :return: The power that observations have along each shift of it, less its mean,
            (n,).
        """
        shifted = all_shifts(v - v.mean()) @ self.axes
        return shifted**2 @ self.powers + (shifted @ self.mean) ** 2

    def residuals(self, v: np.ndarray, rho: np.ndarray) -> np.ndarray:
        """
        :param v: Signals (..., n).
        :param rho: Densities (..., n), of sum one.
        :return: Their values minus those observed, (..., n + n(n + 1)/2), in standard
            deviations of the noise.
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
    The errors that come from drawing N shifts from ρ, at a signal and a density. Their
    covariance AAᵀ, in units of the noise, is that of N multinomial draws.

    :param data: The moments.
    :param v: Signal (n,).
    :param rho: Density (n,), of sum one; not negative.
    """

    def __init__(self, data: WhitenedMoments, v: np.ndarray, rho: np.ndarray):
        each = data.each_shift(v, rho)
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
        :return: (1 + AAᵀ)^(-1/2) of them, whose squares sum to χ².
        """
        along = residuals @ self._draws.T @ self._axes
        return residuals - (along * self._shrinking) @ self._axes.T @ self._draws
