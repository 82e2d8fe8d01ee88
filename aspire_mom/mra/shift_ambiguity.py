"""
The shift ambiguity: (v(· - t), ρ(· + t)) has the same moments for every t. The pair is
returned whose ρ has its circular mean, -arg ρ̃(1), nearest to shift 0. Shifting the data
by whole samples then shifts v and leaves ρ as it is, and reversing the data reverses
both.

Only shifts by whole samples keep all moments exactly. Others change the entries (k, l)
with |k - l| > n/2, at which ρ̃ wraps around. Where these entries or the sign of ρ tell,
they decide the sub-sample part of t, and the circular mean lies within half a sample
of 0; otherwise it is exactly 0.
"""

from __future__ import annotations

import numpy as np

# Standard errors by which wrapped entries must stand out to decide.
DECISIVE = 4.0
# Negative mass that a shift by part of a sample must remove to be preferred.
NEGATIVE = 1e-6


def centre_density(v: np.ndarray, rho: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Move pairs by whole samples so that ρ's circular mean is within half of one of 0.

    :param v: Signals (..., n).
    :param rho: Densities (..., n).
    :return: v and ρ, rolled in opposite directions.
    """
    n = v.shape[-1]
    mean = -np.angle(np.fft.fft(rho)[..., 1]) * n / (2 * np.pi)
    by, j = np.round(mean).astype(int)[..., None], np.arange(n)
    return (
        np.take_along_axis(v, (j - by) % n, -1),
        np.take_along_axis(rho, (j + by) % n, -1),
    )


def from_half_spectra(
    v_hat: np.ndarray, rho_hat: np.ndarray, second: np.ndarray, variance: np.ndarray
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
    return centre_density(v, to_distribution(rho))


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
    Shift, in (-1/2, 1/2] samples, off the sample points, and whether it stands out of
    the noise. On the sample points entries that wrap around are v̂(k) conj v̂(l)
    ρ̃(k - l - n); t samples away that product is exp(-2πi t) times them.
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
