"""Which pairs of moments can be solved."""

from __future__ import annotations

from functools import cache

import numpy as np

from aspire_mom.mra.moments import FourierMoments
from aspire_mom.mra.signals import MIN_SIZE

# Rounding of exact moments relative to their total power; moments in single precision
# have ROUNDING_UNITS of their own.
TOLERANCE, ROUNDING_UNITS = 1e-9, 10
# Error of an estimated σ, as a share of the mean's power, and of σ².
ESTIMATED, LEFT_BEHIND = 0.05, 0.5
# Standard errors beyond which a deviation is not noise.
BEYOND_NOISE = 6.0
# Bound on the chance that a uniform ρ is taken for another (which is 10 times less).
MISTAKEN = 1e-3
# Factor on the asymptotic spread of eigenvalues by noise that is still noise.
SPREAD = 2.0


def check_moments(moments: FourierMoments) -> FourierMoments:
    """
    :param moments: Moments of one problem or of a batch.
    :return: The same, complex128; `n_observations` is None and `sigma` 0 where they are
        exact.
    :raises TypeError: moments that are not numbers.
    :raises ValueError: moments that cannot be solved, as
        :class:`aspire_mom.mra.MRAInversion` lists them.
    """
    first, second = np.asarray(moments.first), np.asarray(moments.second)
    N, sigma = moments.n_observations, moments.sigma
    tolerance = TOLERANCE
    for name, values in (("first", first), ("second", second)):
        if values.dtype.kind not in "fiuc":
            raise TypeError(f"{name} has dtype {values.dtype}; it must be numbers")
        if values.dtype.kind in "fc":
            tolerance = max(tolerance, ROUNDING_UNITS * np.finfo(values.dtype).eps)
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has values that are NaN or infinite")
    n = first.shape[-1] if first.ndim else 0
    if n < MIN_SIZE or second.shape != (*first.shape, n):
        raise ValueError(
            f"first and second have shapes {first.shape} and {second.shape}; they must"
            f" be (..., n) and (..., n, n) with the same n of at least {MIN_SIZE}"
        )
    _check_noise(N, sigma)
    sigma = 0.0 if N is None else float(sigma)
    first, second = first.astype(np.complex128), second.astype(np.complex128)
    loose = max(tolerance, 1e-6)
    _check_real(first, second, loose)
    _check_power(second, N, sigma, tolerance)
    _check_means(first, second, N, sigma, loose)
    _check_varied(first, second, N, sigma, tolerance)
    return FourierMoments(first, second, N if sigma > 0 else None, sigma)


def _check_noise(N: int | None, sigma: float) -> None:
    count, level = np.asarray(N), np.asarray(sigma)
    if N is not None and not (
        count.ndim == 0 and count.dtype.kind in "iu" and count >= 1
    ):
        raise ValueError(
            f"n_observations is {N!r}; it must be an integer of at least 1, or None for"
            " exact moments"
        )
    if not (level.ndim == 0 and level.dtype.kind in "fiu" and 0 <= level < np.inf):
        raise ValueError(f"sigma is {sigma!r}; it must be a finite number, 0 or more")


def _check_real(first: np.ndarray, second: np.ndarray, tolerance: float) -> None:
    """Check the symmetries that moments of real signals have."""
    minus = -np.arange(first.shape[-1]) % first.shape[-1]
    scale = np.abs(second).max((-2, -1))
    adjoint = second.conj().swapaxes(-1, -2)
    if (np.abs(second - adjoint).max((-2, -1)) > tolerance * scale).any():
        raise ValueError("second is not Hermitian; it must be E v̂(k) conj v̂(l)")
    opposite = second[..., minus[:, None], minus].conj()
    off = np.abs(second - opposite).max((-2, -1)) > tolerance * scale
    off_first = np.abs(first - first[..., minus].conj()).max(-1)
    if (off | (off_first > tolerance * np.sqrt(scale))).any():
        raise ValueError(
            "the moments are not those of real signals in numpy.fft.fftfreq order:"
            " those are complex conjugates at opposite frequencies"
        )


def _check_power(second, N, sigma, tolerance) -> None:
    """The second moment is a covariance about 0: no power in it is negative."""
    n = second.shape[-1]
    total = np.abs(np.einsum("...kk->...k", second).real).sum(-1)
    # Pure noise spreads eigenvalues by σ²(2√(n/N) + n/N) about 0.
    noise = 0.0 if N is None else sigma**2 * (2 * np.sqrt(n / N) + n / N)
    least = np.linalg.eigvalsh(second)[..., 0]
    if (least >= -SPREAD * noise - tolerance * total).all():
        return
    if sigma > 0:
        raise ValueError(
            f"second has power of {least.min():.3g} in some direction, where noise"
            f" explains down to {-SPREAD * noise:.3g}: sigma = {sigma:g} is larger than"
            " the data allow, or was subtracted twice"
        )
    raise ValueError(
        f"second has negative power, {least.min():.3g} in some direction; a second"
        " moment has none (give n_observations and sigma if it is noisy)"
    )


def _check_means(first, second, N, sigma, tolerance) -> None:
    """
    Check that both moments have the same mean, which shifts do not change. What
    second[0, 0] has beyond |first[0]|² is noise bias if it is in all directions.
    """
    mean, power = first[..., 0].real ** 2, second[..., 0, 0].real
    excess = power - mean
    limit = most = tolerance * np.einsum("...kk->...", second).real
    if sigma > 0:
        # The mean's own noise is in both, so that only its sample variance counts.
        noise = BEYOND_NOISE * np.sqrt(2 / N) * sigma**2
        limit = limit + noise + ESTIMATED * mean
        most = np.minimum(limit, most + noise + LEFT_BEHIND * sigma**2)
    biased = excess > most
    if biased.any():
        least = np.linalg.eigvalsh(second)[..., 0]
        biased &= least > excess / 2
    if biased.any():
        raise ValueError(
            "second has its noise bias left: every direction has a power of at least"
            f" {least[biased].flat[0]:.6g}, and second[0, 0] is larger than |first[0]|²"
            f" by {excess[biased].flat[0]:.6g}; subtract sigma² from its diagonal"
        )
    off = np.abs(excess) > limit
    if off.any():
        raise ValueError(
            "first and second do not belong together: |first[0]|² is"
            f" {mean[off].flat[0]:.6g} and second[0, 0] {power[off].flat[0]:.6g}, and"
            " shifts change neither; both must be of the unitary DFT of the same data,"
            " noise bias removed"
        )


def _check_varied(first, second, N, sigma, tolerance) -> None:
    """
    Refuse constant signals, and ρ that leave v open: uniform ones, whose second moment
    is diagonal, and periodic ones.

    If ρ̃(d) is 0 unless p divides d, entries (k, l) relate only frequencies of the same
    class k mod p, and the classes r and -r may be turned by opposite phases. For r = 0
    and r = p/2 these are the same class, with a sign that a shift by n/p changes as
    well, so that p = 2 does no harm. Any other p is a multiple of 4 or of an odd prime.
    """
    n = second.shape[-1]
    power = np.maximum(np.einsum("...kk->...k", second).real, 0)
    # A diagonal entry has twice the variance.
    noise = 0.0 if N is None else np.sqrt(2 / N) * sigma**2
    limit = BEYOND_NOISE * noise + tolerance * power.sum(-1)
    varied = power > limit[..., None]
    if not varied[..., 1:].any(-1).all():
        raise ValueError(
            "the signal is constant to within noise: second has no power but at"
            " frequency 0, so that shifts change nothing and rho cannot be found"
        )
    seen = _significant_lags(first, second, power, N, sigma, tolerance)
    if not seen.any(-1).all():
        shifts = "" if N is None else f" but for what {N} shifts drawn at random leave"
        raise ValueError(
            f"rho is uniform to within noise: second is diagonal{shifts}, and the first"
            " two moments then determine v's power spectrum but not v"
        )
    k, lags = np.arange(n), np.arange(1, n // 2 + 1)
    for p in range(3, n // 2 + 1):
        if n % p or not (p == 4 or all(p % q for q in range(2, p))):
            continue
        open_ = varied[..., 2 * k % p > 0].any(-1)
        if (open_ & ~seen[..., lags % p > 0].any(-1)).any():
            raise ValueError(
                f"rho has a period of {n // p} samples to within noise, and the first"
                f" two moments then leave open how v's frequencies that are no"
                f" multiples of {p} are turned against the others"
            )


def _significant_lags(first, second, power, N, sigma, tolerance) -> np.ndarray:
    """
    At which lags d = 1 … n//2 the second moment shows that ρ̃(d) is not 0, (..., n//2).

    If ρ is uniform, an entry k ≠ l has the variance (|v̂(k)|² + σ²)(|v̂(l)|² + σ²)/N,
    of which |v̂(k) v̂(l)|²/N comes from the shifts drawn; k = -l has (|v̂(k)|⁴ +
    4|v̂(k)|² σ² + 2σ⁴)/N, since y(-k) is the conjugate of y(k). The first moment, of
    variance (|v̂(k)|² + σ²)/N, stands in for row and column 0. The statistic of a lag is
    the mean of |entry|²/variance, weighted by the share b of shifts in the variance.
    All entries of a lag have the same ρ̃(d), so that the covariance of entries i ≠ j is
    √(b_i b_j). As a weighted sum of exponentials the statistic has the mean 1, and a
    variance s² and a largest weight λ of

        s² = [(Σ b²)² + Σ m b² (1 - b²)] / (Σ b)²,
        λ ≤ [Σ b² + max m b (1 - b²)] / Σ b,

    m = 2 since (k, l) and (-l, -k) are the same, 1 for k = -l; both are twice that for
    d = n/2, where ρ̃ is real. It exceeds 1 + s √(2u) + λu with a chance of at most
    exp(-u) (Laurent & Massart 2000, lemma 1).
    """
    n = second.shape[-1]
    k, l, edge, frequency, opposite, same, real = _entries_by_lag(n)
    squares = np.abs(second[..., k, l]) ** 2
    changing = power[..., 1:].max(-1) * power.max(-1)
    least = max(tolerance, 1e-7) ** 2 * changing[..., None]
    seen = squares.max(-1) > least
    if N is None:
        return seen
    # Frequencies whose power is rounding say nothing.
    floor = sigma**2 + tolerance * power.sum(-1)[..., None]
    variance = power + floor
    share = power / variance
    variance[..., 0], share[..., 0] = 1, 1
    squares = np.where(edge, np.abs(first[..., frequency]) ** 2, squares)
    variances = variance[..., k] * variance[..., l]
    variances += opposite * ((2 * power + floor) * floor)[..., k]
    b = share[..., k] * share[..., l]
    total = np.maximum(b.sum(-1), 1e-100)
    strength = (b * squares / variances).sum(-1) / total
    square, own = (b * b).sum(-1), same * b * (1 - b * b)
    spread = real * (square**2 + (b * own).sum(-1)) / total**2
    largest = real * (square + own.max(-1)) / total
    u = np.log(n // 2 / MISTAKEN)
    limit = 1 + np.sqrt(2 * u * spread) + np.minimum(largest, np.sqrt(spread)) * u
    return seen & (N * strength > limit)


@cache
def _entries_by_lag(n: int) -> tuple[np.ndarray, ...]:
    """
    Entries (k, l = k - d), d = 1 … n//2: k and l, (n//2, n); whether the first moment
    stands in for them, and at which frequency; whether l = -k; and how often an entry,
    and a lag, (n//2,), occur.
    """
    lags = np.arange(1, n // 2 + 1)
    k = np.arange(n) + 0 * lags[:, None]
    l = (k - lags[:, None]) % n
    opposite = (k + l) % n == 0
    same, real = np.where(opposite, 1, 2), np.where(2 * lags == n, 2, 1)
    return k, l, (k == 0) | (l == 0), np.where(k == 0, l, k), opposite, same, real
