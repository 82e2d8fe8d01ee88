"""Shift-invariant errors of signals and densities (eq. 21), with sub-sample shifts."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

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
    return squared_errors(*_check(truth, estimate)).sqrt().numpy()


def best_shift(truth: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """
    The shift s that attains :func:`shift_error`'s infimum.

    :param truth: Signals or densities (..., n), real.
    :param estimate: Estimates (..., n).
    :return: Shifts (...,) of the truth, in samples, in [-n/2, n/2).
    :raises ValueError: lengths that differ, values that are not finite, a truth of 0.
    """
    truth, estimate = _check(truth, estimate)
    return _best_shift(truth, estimate, PEAKS, NEWTON_STEPS).numpy()


def align(
    v: np.ndarray, rho: np.ndarray, v_truth: np.ndarray, rho_truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    An estimated pair moved onto a true one, for plots: v by the shift that fits it
    best, ρ by the opposite one, so that the pair's moments stay the same.

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


def squared_errors(
    truth: Tensor,
    estimate: Tensor,
    *,
    n_peaks: int = PEAKS,
    n_steps: int = NEWTON_STEPS,
) -> Tensor:
    """
    Squares of the errors of eq. 21, with a gradient: at the best shift the error's
    derivative by the shift is 0, so that it may count as a constant.

    :param truth: Signals (..., n), real.
    :param estimate: Estimates (..., n).
    :param n_peaks: Peaks of the correlation that are compared.
    :param n_steps: Newton steps to each.
    :return: Squared errors (...,).
    """
    with torch.no_grad():
        by = _best_shift(truth, estimate, n_peaks, n_steps)
    residual = shift(truth, by) - estimate
    return residual.square().sum(-1) / truth.square().sum(-1)


def _best_shift(truth: Tensor, estimate: Tensor, n_peaks: int, n_steps: int) -> Tensor:
    n = truth.shape[-1]
    k = torch.arange(n // 2 + 1, device=truth.device, dtype=truth.dtype)
    # ‖truth(· - s) - estimate‖² = const + b cos²(πs) - 2 Re Σ_k a_k exp(2πiks/n), where
    # b is there at even n for the Nyquist wave, whose norm changes with its shift.
    weights = torch.where((k == 0) | (2 * k == n), 1.0, 2.0).to(truth.dtype) / n
    spectrum = torch.fft.rfft(truth)
    a = weights * spectrum.conj() * torch.fft.rfft(estimate)
    b = spectrum[..., -1:].abs() ** 2 / n * (n % 2 == 0)

    grid = n * OVERSAMPLING
    s = torch.arange(grid, device=truth.device, dtype=truth.dtype) / OVERSAMPLING
    value = 2 * grid * torch.fft.ifft(a, grid).real - b * torch.cos(math.pi * s) ** 2
    peak = (value >= value.roll(1, -1)) & (value >= value.roll(-1, -1))
    start = s[torch.where(peak, value, -math.inf).topk(n_peaks).indices]

    omega, by = 2 * math.pi / n * k, start
    for _ in range(n_steps):
        waves = a[..., None, :] * torch.exp(1j * omega * by[..., None])
        slope = -2 * (omega * waves.imag).sum(-1)
        slope = slope + math.pi * b * torch.sin(2 * math.pi * by)
        bend = -2 * (omega**2 * waves.real).sum(-1)
        bend = bend + 2 * math.pi**2 * b * torch.cos(2 * math.pi * by)
        # Uphill where the function is not concave; never past the next grid points.
        uphill = torch.sign(slope) / (4 * OVERSAMPLING)
        step = torch.where(bend < 0, -slope / torch.where(bend < 0, bend, -1), uphill)
        by = (by + step).clamp(start - 1 / OVERSAMPLING, start + 1 / OVERSAMPLING)
    residual = shift(truth[..., None, :], by) - estimate[..., None, :]
    best = residual.square().sum(-1).argmin(-1, keepdim=True)
    by = by.gather(-1, best)[..., 0]
    return (by + n / 2) % n - n / 2


def _check(truth: np.ndarray, estimate: np.ndarray) -> tuple[Tensor, Tensor]:
    truth, estimate = np.asarray(truth, np.float64), np.asarray(estimate, np.float64)
    if truth.ndim == 0 or estimate.shape[-1:] != truth.shape[-1:]:
        raise ValueError(
            f"truth and estimate have shapes {truth.shape} and {estimate.shape}; their"
            " last axes must be of the same length"
        )
    if not (np.isfinite(truth).all() and np.isfinite(estimate).all()):
        raise ValueError("truth or estimate has values that are NaN or infinite")
    if not (truth != 0).any(-1).all():
        raise ValueError("a truth is 0 everywhere; no relative error is defined")
    pair = torch.from_numpy(truth.copy()), torch.from_numpy(estimate.copy())
    return torch.broadcast_tensors(*pair)
