"""Noise-thresholded frequency marching along the diagonals of the second moment."""

from __future__ import annotations

import numpy as np

from aspire_mom.mra.shift_ambiguity import from_half_spectra

# Rounding of exact moments relative to the signal's power, which acts like noise.
ROUNDING = 1e-15
# Estimates below this many standard errors count as zero.
SIGNIFICANT = 3.0
# Rounds of re-estimation of every coefficient from all others, after the march.
SWEEPS = 2


def march(
    first: np.ndarray,
    second: np.ndarray,
    *,
    n_observations: int | None = None,
    sigma: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Solve v̂(k) ρ̃(k - l) conj v̂(l) = second[k, l] (eq. 15) frequency by frequency, in
    the shift at which arg ρ̃(1) = 0.

    With v̂ and ρ̃ known below k, v̂(k) follows from the entries (k, l), 0 < l < k, by
    weighted least squares, its modulus from the diagonal as well, and then ρ̃(k) from
    all pairs of frequencies up to k that lie k apart. What is below three standard
    errors is set to zero. The first moment stands in for row and column 0, which say
    the same with more noise. Pairs more than n/2 apart, at which ρ̃ wraps around, serve
    only to find by what part of a sample that shift is off the sample points.

    :param first: First moments (..., n).
    :param second: Second moments (..., n, n), noise bias removed.
    :param n_observations: N; None for exact moments.
    :param sigma: Standard deviation of the noise.
    :return: v and ρ, (..., n) each; exact from exact moments as far as v̂ stands
        out of rounding and v̂(1) and ρ̃(1) are not 0. ρ is a distribution.
    """
    n = first.shape[-1]
    share = 0.0 if n_observations is None else sigma**2 / n_observations
    state = _March(first, second, share, sigma)
    for k in range(1, n // 2 + 1):
        state.set_signal(k, np.arange(min(k - 1, 1), k))
        state.set_density(k, np.arange(k + 1))
        if k == 1:
            state.turn()
    state.sweep()
    state.v[..., n // 2] = first[..., 0].real
    return from_half_spectra(
        state.v[..., n // 2 :],
        state.rho[..., n // 2 :],
        second,
        state.variance,
    )


# Coefficients found so far, at signed frequencies -K … K (entry K is frequency 0), and
# the entries of the second moment that they are found from, with their weights.
class _March:
    def __init__(self, first, second, share, sigma):
        n = first.shape[-1]
        self.K = K = n // 2
        self.signed = signed = np.arange(-K, K + 1)
        self.entries = second[..., signed[:, None] % n, signed % n]
        power = np.maximum(np.einsum("...kk->...k", self.entries).real, 0)
        self.modulus = np.sqrt(power)
        self.variance = variance = entry_variance(power, share, sigma)
        self.modulus_weight = 4 * power / np.einsum("...kk->...k", variance)
        # The first moment is a row 0 of its own: v̂(k) ρ̃(k) = first[k], times any number
        # in v̂(0)'s place. v's mean may be 0.
        unit = np.sqrt(power.mean(-1))
        self.entries[..., :, K] = first[..., signed % n] * unit[..., None]
        self.entries[..., K, :] = self.entries[..., :, K].conj()
        row = share * unit**2 + (ROUNDING * power.sum(-1)) ** 2
        variance = variance.copy()
        variance[..., :, K] = variance[..., K, :] = row[..., None]
        unwrapped = np.abs(signed[:, None] - signed) <= K
        with np.errstate(divide="ignore"):
            self.weights = np.where(unwrapped & (variance > 0), 1 / variance, 0)
        self.v = np.zeros(power.shape, complex)
        self.rho = np.zeros(power.shape, complex)
        self.v[..., K], self.rho[..., K] = unit, 1

    def set_signal(self, k: int, l: np.ndarray) -> None:
        # Estimate v̂(k) from the entries (k, l).
        K = self.K
        known = self.v[..., K + l].conj()
        # The first step knows no ρ̃ yet, but that ρ̃(1) is to be positive.
        blind = k == 1 and len(l) == 1
        if not blind:
            known = known * self.rho[..., K + k - l]
        z, precision = _weighted_least_squares(
            known, self.entries[..., K + k, K + l], self.weights[..., K + k, K + l]
        )
        size, own = np.abs(z), self.modulus_weight[..., K + k]
        found = (size**2 * precision > SIGNIFICANT**2) & (own > 0)
        counted = 0 if blind else precision
        modulus = _divide(
            size * counted + self.modulus[..., K + k] * own, counted + own
        )
        self.v[..., K + k] = np.where(found, _divide(z, size) * modulus, 0)
        self.v[..., K - k] = self.v[..., K + k].conj()

    def set_density(self, d: int, k: np.ndarray) -> None:
        # Estimate ρ̃(d) from the entries (k, k - d).
        at, to = self.K + k, self.K + k - d
        known = self.v[..., at] * self.v[..., to].conj()
        z, precision = _weighted_least_squares(
            known, self.entries[..., at, to], self.weights[..., at, to]
        )
        z = np.where(np.abs(z) ** 2 * precision > SIGNIFICANT**2, z, 0)
        # No probability distribution has a larger coefficient.
        z = z / np.maximum(np.abs(z), 1)
        self.rho[..., self.K + d], self.rho[..., self.K - d] = z, z.conj()

    def sweep(self) -> None:
        """Estimate everything again from everything else."""
        K = self.K
        for i in range(SWEEPS + 1):
            for d in range(1, K + 1):
                self.set_density(d, np.arange(d - K, K + 1))
            self.turn()
            for k in range(1, K + 1) if i < SWEEPS else ():
                l = np.arange(k - K, K + 1)
                self.set_signal(k, l[l != k])

    def turn(self) -> None:
        """Shift v and ρ so that arg ρ̃(1) = 0."""
        by = np.angle(self.rho[..., self.K + 1, None])
        phase = np.exp(-1j * by * self.signed)
        self.rho, self.v = self.rho * phase, self.v * phase.conj()


def entry_variance(power: np.ndarray, share: float, sigma: float) -> np.ndarray:
    """
    :param power: |v̂(k)|², (..., n).
    :param share: σ²/N.
    :param sigma: σ.
    :return: Variance of the noise in the second moment's entries, (..., n, n): σ²
        (|v̂(k)|² + |v̂(l)|²)/N + σ⁴/N, and rounding.
    """
    rounding = (ROUNDING * power.sum(-1)[..., None, None]) ** 2
    both = power[..., :, None] + power[..., None, :]
    return share * (both + sigma**2) + rounding


def _weighted_least_squares(known, values, weights):
    """x with known · x ≈ values, and its precision; 0 where nothing is known."""
    precision = (np.abs(known) ** 2 * weights).sum(-1)
    return _divide((known.conj() * weights * values).sum(-1), precision), precision


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 where b is."""
    return np.divide(a, b, out=np.zeros(np.shape(a), np.result_type(a)), where=b > 0)
