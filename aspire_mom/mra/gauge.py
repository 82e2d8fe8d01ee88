"""
The orbit of a solution, (v(· - t), ρ(· + t)), whose members have the same moments, and
which of them is returned: that whose ρ has its circular mean, -arg ρ̃(1), nearest to
shift 0. Shifting the data by whole samples then shifts v and leaves ρ as it is, and
reversing the data reverses both; see `fix_gauge` for means just half a sample off.

Only shifts by whole samples keep all moments exactly: at others the entries (k, l) with
|k - l| > n/2, at which ρ̃ wraps around, change. Where these entries or the sign of ρ
tell, the sub-sample part of t is what they say, and the circular mean lies within half
a sample of 0; otherwise it is exactly 0.
"""

from __future__ import annotations

import numpy as np

from aspire_mom.mra.signals import shift

# Standard errors by which wrapped entries must stand out to decide.
DECISIVE = 4.0
# Distance from half a sample, and asymmetry relative to the first coefficient, below
# which there is none.
ROUNDING = 1e-6
# Negative mass that a shift by part of a sample must remove to be preferred.
NEGATIVE = 1e-6


def fix_gauge(v: np.ndarray, rho: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Move pairs by whole samples so that ρ's circular mean is within half of one of 0.

    Where it is at just half a sample, -1/2 is as near as 1/2, and which of them it goes
    to must change sign with the data's direction: it is 1/2 where ρ leans to the right,
    or v where ρ is symmetric. Where v is symmetric as well it is 1/2, and reversed data
    then have v and ρ reversed and one sample off. No rule can do better there: data
    symmetric in all may be their own reverse, but neither pair is.

    :param v: Signals (..., n).
    :param rho: Densities (..., n).
    :return: v and ρ, rolled in opposite directions.
    """
    n = v.shape[-1]
    mean = -np.angle(np.fft.fft(rho)[..., 1]) * n / (2 * np.pi)
    below = np.floor(mean)
    tie = np.abs(mean - below - 0.5) < ROUNDING
    by = np.where(tie, below, np.round(mean)).astype(int)
    if tie.any():
        lean = _lean(rho)
        by += tie & (np.where(lean == 0, _lean(v), lean) < 0)
    j = np.arange(n)
    return (
        np.take_along_axis(v, (j - by[..., None]) % n, -1),
        np.take_along_axis(rho, (j + by[..., None]) % n, -1),
    )


def _lean(x: np.ndarray) -> np.ndarray:
    """
    -1 or 1, which shifts leave as it is and reversal changes the sign of: that of the
    first sine coefficient about the circular mean that is not 0; 0 for symmetric x.
    """
    x_hat = np.fft.rfft(x)
    k = np.arange(x_hat.shape[-1])
    about_mean = x_hat * np.exp(-1j * np.angle(x_hat[..., 1:2]) * k)
    sines = -about_mean.imag
    sines[np.abs(sines) <= ROUNDING * np.abs(x_hat[..., 1:2])] = 0
    first = np.argmax(sines != 0, -1)[..., None]
    return np.sign(np.take_along_axis(sines, first, -1)[..., 0])


def from_half_spectra(
    v_hat: np.ndarray,
    rho_hat: np.ndarray,
    second: np.ndarray,
    variance: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Pairs on the sample points from coefficients known up to a shift of any size.

    :param v_hat: Unitary coefficients at frequencies 0 … n//2, (..., n//2 + 1).
    :param rho_hat: Coefficients ρ̃ at the same frequencies; ρ̃(0) = 1.
    :param second: Second moments (..., n, n).
    :param variance: Variance of the noise in their entries at signed frequencies
        -(n//2) … n//2.
    :return: v and ρ, (..., n), ρ ≥ 0 summing to one.
    """
    n = second.shape[-1]
    by, decided = _wrapped_offset(v_hat, rho_hat, second, variance)
    by = np.where(decided, by, _least_negative_offset(rho_hat, n))
    phase = np.exp(2j * np.pi / n * by[..., None] * np.arange(n // 2 + 1))
    v = np.fft.irfft(v_hat * phase, n, norm="ortho")
    rho = np.fft.irfft(rho_hat * phase.conj(), n)
    return fix_gauge(v, to_distribution(rho))


def to_distribution(rho: np.ndarray) -> np.ndarray:
    """
    :param rho: Real values (..., n) with a positive sum.
    :return: The nearest probability distributions, (..., n).
    """
    descending = -np.sort(-rho, axis=-1)
    excess = (np.cumsum(descending, -1) - 1) / np.arange(1, rho.shape[-1] + 1)
    count = (descending > excess).sum(-1, keepdims=True)
    projected = np.maximum(rho - np.take_along_axis(excess, count - 1, -1), 0)
    return projected / projected.sum(-1, keepdims=True)


def _wrapped_offset(v_hat, rho_hat, second, variance):
    """
    Shift, in (-1/2, 1/2] samples, off the sample points: in the true gauge entries that
    wrap around are v̂(k) conj v̂(l) ρ̃(k - l - n); t samples away that product is
    exp(-2πi t) times them. And whether they stand out of the noise.
    """
    n = second.shape[-1]
    K = n // 2
    signed = np.arange(-K, K + 1)
    k, l = np.nonzero(signed[:, None] - signed > n / 2)
    v, rho = (
        np.concatenate((half[..., :0:-1].conj(), half), -1) for half in (v_hat, rho_hat)
    )
    model = v[..., k] * v[..., l].conj() * rho[..., K + k - l - n]
    weights = 1 / np.maximum(variance[..., k, l], 1e-300)
    match = weights * model.conj() * second[..., (k - K) % n, (l - K) % n]
    precision = (weights * np.abs(model) ** 2).sum(-1)
    total = match.sum(-1)
    decided = np.abs(total) > DECISIVE * np.sqrt(precision)
    return np.angle(total) / (2 * np.pi), decided & (precision > 0)


def _least_negative_offset(rho_hat, n):
    """The shift, in samples, at which ρ has least negative mass: a density with a jump
    rings between the sample points. 0 where it makes no difference."""
    best, step = np.zeros(rho_hat.shape[:-1]), 1 / 16
    offsets = np.arange(-8, 8)
    k = np.arange(n // 2 + 1)

    def negative(by):
        phase = np.exp(-2j * np.pi / n * by[..., None] * k)
        rho = np.fft.irfft(rho_hat[..., None, :] * phase, n)
        return -np.minimum(rho, 0).sum(-1)

    unmoved = negative(best[..., None])[..., 0]
    while step > 1e-10:
        tried = best[..., None] + step * offsets
        mass = negative(tried)
        at = np.argmin(mass, -1)[..., None]
        best = np.take_along_axis(tried, at, -1)[..., 0]
        step /= 6
    return np.where(mass.min(-1) < unmoved - NEGATIVE, best, 0)


def shift_pair(
    v: np.ndarray, rho: np.ndarray, by: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """
    :param v: Signals (..., n).
    :param rho: Densities (..., n).
    :param by: Shifts t (...,), in samples.
    :return: v(· - t) and ρ(· + t), by trigonometric interpolation.
    """
    return shift(v, by), shift(rho, -np.asarray(by))
