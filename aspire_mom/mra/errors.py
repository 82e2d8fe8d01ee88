"""Shift-invariant errors of signals and densities (eq. 21), with sub-sample shifts."""

from __future__ import annotations

import numpy as np

from aspire_mom.mra.signals import shift

# Points per sample on which the correlation is first searched, and how many of its
# highest peaks are refined: a peak's height on this grid is known to 0.5 %.
OVERSAMPLING = 8
PEAKS = 6
NEWTON_STEPS = 12


def shift_error(truth: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """
    Relative error up to a shift, eq. 21: inf over real s of ‖truth(· - s) - estimate‖ /
    ‖truth‖, shifted by trigonometric interpolation. The infimum is attained to
    rounding, not on a grid: an exact answer's error is below 1e-9.

    :param truth: Signals or densities (..., n), real.
    :param estimate: Estimates (..., n), real, which broadcast against them.
    :return: Errors (...,), float64.
    :raises ValueError: lengths that differ, values that are not finite, a truth of 0.
    """
    truth, estimate = _check(truth, estimate)
    by = best_shift(truth, estimate)
    residual = np.linalg.norm(shift(truth, by) - estimate, axis=-1)
    return residual / np.linalg.norm(truth, axis=-1)


def best_shift(truth: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """
    The shift s that attains :func:`shift_error`'s infimum.

    :param truth: Signals or densities (..., n), real.
    :param estimate: Estimates (..., n).
    :return: Shifts (...,) of the truth, in samples, in [-n/2, n/2).
    :raises ValueError: lengths that differ, values that are not finite, a truth of 0.
    """
    truth, estimate = _check(truth, estimate)
    n = truth.shape[-1]
    k = np.arange(n // 2 + 1)
    # ‖truth(· - s) - estimate‖² = const + b cos²(πs) - 2 Re Σ_k a_k exp(2πiks/n), where
    # b is there at even n for the Nyquist wave, whose norm changes with its shift.
    weights = np.where((k == 0) | (2 * k == n), 1.0, 2.0) / n
    a = weights * np.fft.rfft(truth).conj() * np.fft.rfft(estimate)
    b = np.abs(np.fft.rfft(truth)[..., -1]) ** 2 / n if n % 2 == 0 else 0.0 * a[..., 0]

    grid = n * OVERSAMPLING
    padded = np.zeros((*a.shape[:-1], grid), complex)
    padded[..., : len(k)] = a
    s = np.arange(grid) / OVERSAMPLING
    value = 2 * grid * np.fft.ifft(padded).real
    value -= np.real(b)[..., None] * np.cos(np.pi * s) ** 2
    peak = (value >= np.roll(value, 1, -1)) & (value >= np.roll(value, -1, -1))
    highest = np.argsort(np.where(peak, value, -np.inf), -1)[..., -PEAKS:]
    start = s[highest]

    omega = 2 * np.pi / n * k
    a, b = a[..., None, :], np.real(b)[..., None]
    by = start
    for _ in range(NEWTON_STEPS):
        waves = a * np.exp(1j * omega * by[..., None])
        slope = -2 * (omega * waves.imag).sum(-1) + np.pi * b * np.sin(2 * np.pi * by)
        bend = -2 * (omega**2 * waves.real).sum(-1)
        bend += 2 * np.pi**2 * b * np.cos(2 * np.pi * by)
        # Uphill where the function is not concave; never past the next grid points.
        step = -slope / np.where(bend < 0, bend, -np.inf)
        step = np.where(bend < 0, step, np.sign(slope) / (4 * OVERSAMPLING))
        by = np.clip(by + step, start - 1 / OVERSAMPLING, start + 1 / OVERSAMPLING)
    residual = shift(truth[..., None, :], by) - estimate[..., None, :]
    best = np.argmin((residual**2).sum(-1), -1)[..., None]
    by = np.take_along_axis(by, best, -1)[..., 0]
    return (by + n / 2) % n - n / 2


def align(
    v: np.ndarray, rho: np.ndarray, v_truth: np.ndarray, rho_truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    An estimated pair moved along its orbit onto a true one, for plots: v by the shift
    that fits it best, ρ by the opposite one, so that the pair's moments stay the same.

    :param v: Estimated signals (..., n).
    :param rho: Estimated densities (..., n).
    :param v_truth: True signals (..., n).
    :param rho_truth: True densities (..., n); only v decides the shift.
    :return: v and ρ, shifted.
    :raises ValueError: lengths that differ, values that are not finite, a truth of 0.
    """
    _check(rho_truth, rho)
    by = best_shift(v_truth, v)
    return shift(np.asarray(v, float), -by), shift(np.asarray(rho, float), by)


def _check(truth: np.ndarray, estimate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, estimate = np.asarray(truth, np.float64), np.asarray(estimate, np.float64)
    if truth.ndim == 0 or estimate.shape[-1:] != truth.shape[-1:]:
        raise ValueError(
            f"truth and estimate have shapes {truth.shape} and {estimate.shape}; their"
            " last axes must be of the same length"
        )
    truth, estimate = np.broadcast_arrays(truth, estimate)
    if not (np.isfinite(truth).all() and np.isfinite(estimate).all()):
        raise ValueError("truth or estimate has values that are NaN or infinite")
    if not (truth != 0).any(-1).all():
        raise ValueError("a truth is 0 everywhere; no relative error is defined")
    return truth, estimate
