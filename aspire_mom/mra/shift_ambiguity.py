"""
The shift ambiguity: (v(· - t), ρ(· + t)) has the same moments for every whole number t
of samples. Errors (eq. 21) do not depend on t. Methods return the pair whose ρ has its
circular mean, -arg ρ̃(1), nearest to shift 0. Shifting the data by whole samples then
shifts v alone, and reversing the data reverses both.

Other shifts change only the entries (k, l) with |k - l| > n/2, at which ρ̃ wraps
around. Where these entries determine the sub-sample part of t, the circular mean lies
within half a sample of 0; otherwise it is exactly 0.
"""

import math

import numpy as np
import torch
from torch import Tensor

from aspire_mom.mra.signals import Array, Arrays, shift

# Points per sample on which the correlation is first searched, where a peak's height is
# known to 0.5 %; peaks refined, and Newton steps.
OVERSAMPLING, PEAKS, NEWTON_STEPS = 8, 6, 12
# Standard errors by which wrapped entries must differ from 0 to determine a shift.
DECISIVE = 4.0


def shift_error(truth: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """
    :param truth: Signals or densities (..., n), real.
    :param estimate: Estimates (..., n), real, which broadcast against them.
    :return: Relative errors up to a shift (eq. 21), inf over real s of ‖truth(· - s) -
        estimate‖ / ‖truth‖, (...,), float64. That of an exact answer is below 1e-9.
    """
    return squared_errors(*_check(truth, estimate)).sqrt().numpy()


def squared_errors(truth: Tensor, estimate: Tensor, **search: int) -> Tensor:
    """
    :param truth: Signals (..., n), real.
    :param estimate: Estimates (..., n).
    :param search: Options of :func:`best_shift`.
    :return: Squared errors (...,) of eq. 21, with a gradient.
    """
    # The error's derivative by the best shift is 0, so that the shift is a constant.
    with torch.no_grad():
        by = best_shift(truth, estimate, **search)
    residual = shift(truth, by) - estimate
    return residual.square().sum(-1) / truth.square().sum(-1)


def centre_density(v: np.ndarray, rho: np.ndarray) -> Arrays:
    """
    :param v: Signals (..., n).
    :param rho: Densities (..., n).
    :return: v and ρ, rolled oppositely: ρ's circular mean is within 1/2 sample of 0.
    """
    n = v.shape[-1]
    mean = -np.angle(np.fft.fft(rho)[..., 1]) * n / (2 * np.pi)
    by, j = np.round(mean).astype(int)[..., None], np.arange(n)
    v = np.take_along_axis(v, (j - by) % n, -1)
    return v, np.take_along_axis(rho, (j + by) % n, -1)


def from_half_spectra(
    v_hat: np.ndarray, rho_hat: np.ndarray, second: np.ndarray, variance: np.ndarray
) -> Arrays:
    """
    Shift pairs (v, ρ) such that the second moment's wrapped entries fit best.

    :param v_hat: v̂(0) … v̂(n//2), (..., n//2 + 1).
    :param rho_hat: ρ̃ at the same frequencies; ρ̃(0) = 1.
    :param second: Second moments (..., n, n).
    :param variance: Variance of their entries at frequencies -(n//2) … n//2.
    :return: v and ρ, (..., n), ρ a distribution.
    """
    n = second.shape[-1]
    by = _wrapped_offset(v_hat, rho_hat, second, variance)
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


def best_shift(
    truth: Array, estimate: Array, n_peaks: int = PEAKS, n_steps: int = NEWTON_STEPS
) -> Array:
    """
    :param truth: Signals or densities (..., n), real, arrays or tensors.
    :param estimate: Estimates (..., n).
    :param n_peaks: Peaks of the correlation that are compared.
    :param n_steps: Newton steps to each.
    :return: Shifts s (...,) of least error (eq. 21), in samples, in [-n/2, n/2).
    """
    if not isinstance(truth, Tensor):
        return best_shift(*_check(truth, estimate)).numpy()
    n = truth.shape[-1]
    k = torch.arange(n // 2 + 1, device=truth.device, dtype=truth.dtype)
    # ‖truth(· - s) - estimate‖² = const + b cos²(πs) - 2 Re Σ_k a_k exp(2πiks/n). At
    # even n, b is the power of the Nyquist wave, whose norm changes with its shift.
    weights = torch.where((k == 0) | (2 * k == n), 1.0, 2.0).to(truth.dtype) / n
    spectrum = torch.fft.rfft(truth)
    a = weights * spectrum.conj() * torch.fft.rfft(estimate)
    b = spectrum[..., -1:].abs() ** 2 / n * (n % 2 == 0)

    grid = n * OVERSAMPLING
    s = torch.arange(grid, device=truth.device, dtype=truth.dtype) / OVERSAMPLING
    value = 2 * grid * torch.fft.ifft(a, grid).real - b * torch.cos(math.pi * s) ** 2
    peak = (value >= value.roll(1, -1)) & (value >= value.roll(-1, -1))
    by = start = s[torch.where(peak, value, -math.inf).topk(n_peaks).indices]

    omega = 2 * math.pi / n * k
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
    return (by.gather(-1, best)[..., 0] + n / 2) % n - n / 2


def _check(truth: np.ndarray, estimate: np.ndarray) -> tuple[Tensor, Tensor]:
    truth, estimate = np.array(truth, np.float64), np.array(estimate, np.float64)
    if truth.ndim == 0 or estimate.shape[-1:] != truth.shape[-1:]:
        shapes = f"shapes {truth.shape} and {estimate.shape}"
        raise ValueError(f"truth and estimate have {shapes}; last axes must be equal")
    if not (np.isfinite(truth).all() and np.isfinite(estimate).all()):
        raise ValueError("truth or estimate has values that are NaN or infinite")
    if not truth.any(-1).all():
        raise ValueError("a truth is 0 everywhere; no relative error is defined")
    return torch.broadcast_tensors(torch.from_numpy(truth), torch.from_numpy(estimate))


def _wrapped_offset(v_hat, rho_hat, second, variance):
    """Shift off the sample points, in (-1/2, 1/2] samples; 0 if it does not stand out
    of the noise. On the sample points, wrapped entries are v̂(k) conj v̂(l) ρ̃(k - l - n);
    t samples away that product is exp(-2πi t) times them."""
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
    return np.where(decided & (precision > 0), np.angle(total) / (2 * np.pi), 0)
