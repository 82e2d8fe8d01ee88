"""Frequency marching along the diagonals of the second moment."""

import numpy as np

from aspire_mom.mra.moments import FourierMoments
from aspire_mom.mra.shift_ambiguity import from_half_spectra
from aspire_mom.mra.signals import Arrays

# Rounding of exact moments relative to the signal's power, which acts like noise.
ROUNDING = 1e-15
# Estimates below this many standard errors are set to 0. Rounds in which every
# coefficient is estimated again from all others.
SIGNIFICANT, SWEEPS = 3.0, 2


def march(moments: FourierMoments) -> Arrays:
    """
    Solve v̂(k) ρ̃(k - l) conj v̂(l) = second[k, l] (eq. 15) frequency by frequency, in
    the shift at which arg ρ̃(1) = 0.

    With v̂ and ρ̃ known below k, v̂(k) follows from the entries (k, l), 0 < l < k, by
    weighted least squares, and then ρ̃(k) from all pairs of frequencies that lie k
    apart. The first moment replaces row and column 0. Pairs more than n/2 apart, at
    which ρ̃ wraps around, only serve to find the sub-sample part of the shift.

    :param moments: Moments of one problem.
    :return: v and ρ, (n,) each, ρ a distribution. From exact moments both are exact as
        far as v̂ exceeds rounding, if v̂(1) and ρ̃(1) are not 0.
    """
    state, K = _March(moments), len(moments.first) // 2
    for k in range(1, K + 1):
        state.set_signal(k, np.arange(min(k - 1, 1), k))
        state.set_density(k, np.arange(k + 1))
        if k == 1:
            state.normalise_shift()
    # Estimate every coefficient again from all others.
    for i in range(SWEEPS + 1):
        for d in range(1, K + 1):
            state.set_density(d, np.arange(d - K, K + 1))
        state.normalise_shift()
        for k in range(1, K + 1) if i < SWEEPS else ():
            l = np.arange(k - K, K + 1)
            state.set_signal(k, l[l != k])
    state.v[K] = moments.first[0].real
    halves = state.v[K:], state.rho[K:]
    return from_half_spectra(*halves, moments.second, state.variance)


class _March:
    # Coefficients found so far and entries of the second moment with their weights, at
    # frequencies -K … K (index K is frequency 0).
    def __init__(self, moments: FourierMoments):
        n = len(moments.first)
        self.K = K = n // 2
        self.signed = signed = np.arange(-K, K + 1)
        self.entries = moments.second[signed[:, None] % n, signed % n]
        power = np.diag(self.entries).real.clip(0)
        self.modulus = np.sqrt(power)
        self.variance = entry_variance(power, moments)
        self.modulus_weight = 4 * power / np.diag(self.variance)
        # A constant takes the place of v̂(0), which may be 0.
        unit = np.sqrt(power.mean())
        self.entries[:, K] = moments.first[signed % n] * unit
        self.entries[K] = self.entries[:, K].conj()
        variance = self.variance.copy()
        row = moments.mean_variance * unit**2 + (ROUNDING * power.sum()) ** 2
        variance[:, K] = variance[K] = row
        unwrapped = np.abs(signed[:, None] - signed) <= K
        self.weights = np.where(unwrapped, 1 / variance, 0)
        self.v, self.rho = np.zeros((2, len(power)), complex)
        self.v[K], self.rho[K] = unit, 1

    def estimate(self, known, at, to) -> tuple[complex, float]:
        # x with known · x ≈ entries by weighted least squares, and its precision.
        weights = self.weights[at, to]
        precision = (np.abs(known) ** 2 * weights).sum()
        total = (known.conj() * weights * self.entries[at, to]).sum()
        return total / precision if precision > 0 else 0j, precision

    def set_signal(self, k: int, l: np.ndarray) -> None:
        # Estimate v̂(k) from the entries (k, l).
        at, to = self.K + k, self.K + l
        known = self.v[to].conj()
        # v̂(1) is estimated before ρ̃(1), which is positive: only the phase counts then.
        phase_only = k == 1 and len(l) == 1
        if not phase_only:
            known = known * self.rho[self.K + k - l]
        z, precision = self.estimate(known, at, to)
        size, own = np.abs(z), self.modulus_weight[at]
        value = 0
        if size**2 * precision > SIGNIFICANT**2 and own > 0:
            counted = 0 if phase_only else precision
            modulus = (size * counted + self.modulus[at] * own) / (counted + own)
            value = z / size * modulus
        self.v[at], self.v[self.K - k] = value, np.conj(value)

    def set_density(self, d: int, k: np.ndarray) -> None:
        # Estimate ρ̃(d) from the entries (k, k - d).
        at, to = self.K + k, self.K + k - d
        z, precision = self.estimate(self.v[at] * self.v[to].conj(), at, to)
        # No probability distribution has a coefficient above 1.
        significant = np.abs(z) ** 2 * precision > SIGNIFICANT**2
        z = z / max(np.abs(z), 1) if significant else 0
        self.rho[self.K + d], self.rho[self.K - d] = z, np.conj(z)

    def normalise_shift(self) -> None:
        # Shift v and ρ so that arg ρ̃(1) = 0.
        phase = np.exp(-1j * np.angle(self.rho[self.K + 1]) * self.signed)
        self.rho, self.v = self.rho * phase, self.v * phase.conj()


def entry_variance(power: np.ndarray, moments: FourierMoments) -> np.ndarray:
    """
    :param power: |v̂(k)|², (..., n).
    :param moments: Moments, whose σ and N count.
    :return: Variance of the noise in the second moment's entries, (..., n, n): σ²
        (|v̂(k)|² + |v̂(l)|²)/N + σ⁴/N, and rounding.
    """
    rounding = (ROUNDING * power.sum(-1)[..., None, None]) ** 2
    sums = power[..., :, None] + power[..., None, :]
    return moments.mean_variance * (sums + moments.sigma**2) + rounding
