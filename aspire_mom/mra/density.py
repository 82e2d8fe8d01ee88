"""The density of shifts where the signal is known."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar, nnls

from aspire_mom.mra.moments import forward_moments, relative_errors
from aspire_mom.mra.shift_ambiguity import centre_density, to_distribution
from aspire_mom.mra.signals import shift

# Relative weight of ρ's norm, which decides where the moments leave ρ open.
RIDGE = 1e-7
OFFSETS = 16


def density_of_shifts(
    v: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """
    The ρ ≥ 0 whose moments with a given signal are nearest in the Frobenius norm, the
    first moment in units of the signal's root mean square. Both moments are linear in
    ρ̃; the entries (k, k - d) determine ρ̃(d).

    :param v: Signals (..., n).
    :param first: First moments (..., n).
    :param second: Second moments (..., n, n).
    :return: ρ (..., n), distributions.
    """
    n = v.shape[-1]
    v_hat = np.fft.fft(v, norm="ortho")
    k = np.arange(n)
    to = (k - k[:, None]) % n
    known = v_hat[..., None, :] * v_hat[..., to].conj()
    power = (np.abs(v_hat) ** 2).mean(-1, keepdims=True)
    total = (known.conj() * second[..., k, to]).sum(-1) + power * v_hat.conj() * first
    weight = (np.abs(known) ** 2).sum(-1) + power * np.abs(v_hat) ** 2
    rho = np.empty(v.shape)
    for i in np.ndindex(v.shape[:-1]):
        unit = weight[i].max()
        rho[i] = _nonnegative(total[i] / unit, weight[i] / unit)
    return rho


def density_in_best_place(
    v: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    Where a signal is smooth, the moments leave open by what part of a sample it is
    shifted, but not every such shift goes with a ρ ≥ 0. Find one that does.

    :param v: Signal (n,), known up to a shift.
    :param first: First moment (n,).
    :param second: Second moment (n, n).
    :return: v and ρ.
    """

    def pair(by):
        moved = shift(v, by)
        return moved, density_of_shifts(moved, first, second)

    def distance(by):
        return sum(relative_errors(*forward_moments(*pair(by)), first, second))

    offsets = np.arange(OFFSETS) / OFFSETS - 0.5
    start = offsets[np.argmin([distance(by) for by in offsets])]
    bounds = (start - 1 / OFFSETS, start + 1 / OFFSETS)
    best = minimize_scalar(
        distance, bounds=bounds, method="bounded", options={"xatol": 1e-9}
    )
    return centre_density(*pair(best.x))


def _nonnegative(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The ρ ≥ 0 that minimises Σ_d weight |ρ̃(d) - total/weight|², weights at most 1."""
    n = len(total)
    scale = np.sqrt(weight + RIDGE**2)
    half = slice(1, n // 2 + 1)
    # The Nyquist frequency of even n is its own opposite.
    twice = np.where(2 * np.arange(n) == n, 1, 2)
    scale, total = scale * np.sqrt(twice), total * twice
    rows = np.fft.fft(np.eye(n), axis=0)[half] * scale[half, None]
    values = (total / scale)[half]
    # ρ̃(0) = 1 counts as much as all others together.
    largest = np.sqrt(weight.sum())
    matrix = np.concatenate((np.full((1, n), largest), rows.real, rows.imag))
    try:
        rho, _ = nnls(
            matrix,
            np.concatenate(([largest], values.real, values.imag)),
            maxiter=50 * n,
        )
    except RuntimeError:
        rho_hat = total / scale**2
        rho_hat[0] = 1
        return to_distribution(np.fft.ifft(rho_hat).real)
    return rho / rho.sum()
