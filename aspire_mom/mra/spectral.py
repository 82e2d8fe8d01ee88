"""The spectral method of Abbe et al., and linear least squares for the density."""

import numpy as np
from scipy.optimize import minimize_scalar, nnls

from aspire_mom.mra.marching import SIGNIFICANT, entry_variance
from aspire_mom.mra.moments import FourierMoments, relative_errors, to_samples
from aspire_mom.mra.shift_ambiguity import centre_density, to_distribution
from aspire_mom.mra.signals import Arrays, shift

# Relative weight of ρ's norm, where moments leave ρ open; sub-sample shifts tried.
RIDGE, OFFSETS = 1e-7, 16


def spectral(moments: FourierMoments) -> Arrays:
    """
    Find v from an eigenvector of the second moment with its power spectrum divided out
    (eq. 16; arXiv 1710.02590, algorithm 1), then ρ by linear least squares. It suits
    rough signals: frequencies of a power below three standard errors are left out.

    :param moments: Moments of one problem.
    :return: v and ρ, (n,) each, ρ a distribution.
    """
    power = np.diag(moments.second).real.clip(0)
    kept = power > SIGNIFICANT * np.sqrt(np.diag(entry_variance(power, moments)))
    modulus = np.sqrt(np.where(kept, power, 0))
    flatten = np.divide(1, modulus, out=np.zeros_like(modulus), where=kept)
    _, flat = to_samples(moments.first, flatten[:, None] * moments.second * flatten)
    # Use the eigenvector whose eigenvalue is farthest from all others.
    values, vectors = np.linalg.eigh(flat)
    gaps = np.diff(values, prepend=-np.inf, append=np.inf)
    vector = vectors[:, np.argmax(np.minimum(gaps[:-1], gaps[1:]))]
    v_hat = np.fft.fft(vector) * modulus
    sign = -1 if v_hat[0].real * moments.first[0].real < 0 else 1
    v = np.fft.ifft(sign * v_hat, norm="ortho").real
    return centre_density(v, density_of_shifts(v, moments))


def density_of_shifts(v: np.ndarray, moments: FourierMoments) -> np.ndarray:
    """
    Find the ρ ≥ 0 whose moments with a given signal are nearest in the Frobenius norm,
    the first moment in units of the signal's root mean square. Both are linear in ρ̃:
    this minimises Σ_d weight[d] |ρ̃(d) - total[d]/weight[d]|².

    :param v: Signal (n,).
    :param moments: Moments of one problem.
    :return: ρ (n,), a distribution.
    """
    n = len(v)
    v_hat, k = np.fft.fft(v, norm="ortho"), np.arange(n)
    to = (k - k[:, None]) % n
    known = v_hat * v_hat[to].conj()
    power = (np.abs(v_hat) ** 2).mean()
    total = (known.conj() * moments.second[k, to]).sum(-1)
    total += power * v_hat.conj() * moments.first
    weight = (np.abs(known) ** 2).sum(-1) + power * np.abs(v_hat) ** 2
    total, weight = total / weight.max(), weight / weight.max()

    half = slice(1, n // 2 + 1)
    # All frequencies but Nyquist's occur twice, as d and -d.
    twice = np.where(2 * k == n, 1, 2)
    scale = np.sqrt((weight + RIDGE**2) * twice)
    rows = np.fft.fft(np.eye(n), axis=0)[half] * scale[half, None]
    values = (total * twice / scale)[half]
    # ρ̃(0) = 1 counts as much as all others together.
    largest = np.sqrt(weight.sum())
    matrix = np.concatenate((np.full((1, n), largest), rows.real, rows.imag))
    target = np.concatenate(([largest], values.real, values.imag))
    try:
        rho, _ = nnls(matrix, target, maxiter=50 * n)
    except RuntimeError:  # No convergence.
        return to_distribution(np.linalg.lstsq(matrix, target)[0])
    return rho / rho.sum()


def fit_density_and_subsample_shift(v: np.ndarray, moments: FourierMoments) -> Arrays:
    """
    Find the sub-sample shift of a signal, and the ρ ≥ 0, that fit the moments best.

    :param v: Signal (n,), known up to a shift.
    :param moments: Moments of one problem.
    :return: v and ρ.
    """

    def pair(by) -> Arrays:
        moved = shift(v, by)
        return moved, density_of_shifts(moved, moments)

    def distance(by):
        return sum(relative_errors(*pair(by), moments.first, moments.second))

    start = min(np.arange(OFFSETS) / OFFSETS - 0.5, key=distance)
    bounds = (start - 1 / OFFSETS, start + 1 / OFFSETS)
    best = minimize_scalar(distance, bounds=bounds, options={"xatol": 1e-9})
    return centre_density(*pair(best.x))
