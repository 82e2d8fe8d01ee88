"""Which pairs of moments can be solved."""

from __future__ import annotations

from functools import cache

import numpy as np

# What rounding may do to exact moments, relative to their total power; moments in
# single precision have ROUNDING_UNITS of theirs.
TOLERANCE, ROUNDING_UNITS = 1e-9, 10
# Share of the mean's power that an estimated σ may get wrong.
ESTIMATED = 0.05
# Share of σ² that no estimate of it leaves behind.
LEFT_BEHIND = 0.5
# Standard errors at which noise is ruled out.
BEYOND_NOISE = 6.0
# Bound on the chance that a uniform ρ is taken for another (which is 10 times less).
MISTAKEN = 1e-3
# Factor on how far noise spreads eigenvalues, asymptotically, that is still noise.
SPREAD = 2.0
# Noise, in units of the data, beyond which no number of observations helps.
HOPELESS = 1e50
MIN_SIZE = 4


def check_moments(
    first: np.ndarray,
    second: np.ndarray,
    n_observations: int | None,
    sigma: float,
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """
    :param first: First moments (..., n).
    :param second: Second moments (..., n, n).
    :param n_observations: N, or None for exact moments.
    :param sigma: Standard deviation of the noise.
    :return: Moments, complex128, and σ, 0 for exact moments, of the data divided by a
        power of two, and that unit: second's largest entry is about 1, so that products
        of powers neither overflow nor underflow.
    :raises TypeError: moments that are not numbers.
    :raises ValueError: as `solve` says.
    """
    first, second = np.asarray(first), np.asarray(second)
    for name, values in (("first", first), ("second", second)):
        if values.dtype.kind not in "fiuc":
            raise TypeError(f"{name} has dtype {values.dtype}; it must be numbers")
    n = first.shape[-1] if first.ndim else 0
    if n < MIN_SIZE or second.shape != (*first.shape, n):
        raise ValueError(
            f"first and second have shapes {first.shape} and {second.shape}; they must"
            f" be (..., n) and (..., n, n) with the same n of at least {MIN_SIZE}"
        )
    _check_noise(n_observations, sigma)
    tolerance = TOLERANCE
    for values in (first, second):
        if values.dtype.kind in "fc":
            tolerance = max(tolerance, ROUNDING_UNITS * np.finfo(values.dtype).eps)
    for name, values in (("first", first), ("second", second)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has values that are NaN or infinite")
    unit = _unit(first, second)
    first = first.astype(np.complex128) * (1 / unit)
    second = second.astype(np.complex128) * (1 / unit) * (1 / unit)
    level = 0.0 if n_observations is None else min(float(sigma) / unit, HOPELESS)
    loose = max(tolerance, 1e-6)
    _check_real(first, second, loose)
    _check_power(second, n_observations, level, tolerance, unit)
    _check_means(first, second, n_observations, level, loose, unit)
    _check_varied(first, second, n_observations, level, tolerance)
    return first, second, level, unit


def _unit(first: np.ndarray, second: np.ndarray) -> float:
    """A power of two near the data's size, 1 for data that are 0."""
    largest = float(max(np.abs(second.real).max(), np.abs(second.imag).max()))
    kind = second.dtype if second.dtype.kind in "fc" else np.float64
    least = float(np.finfo(kind).tiny)
    if largest < least and (largest > 0 or first.any()):
        raise ValueError(
            f"second has a largest entry of {largest:.3g}, and {np.dtype(kind)} is"
            f" accurate above {least:.3g} only: multiply the data by a number"
        )
    return 2.0 ** (np.frexp(largest)[1] // 2)


def _check_noise(n_observations: int | None, sigma: float) -> None:
    count, level = np.asarray(n_observations), np.asarray(sigma)
    if n_observations is not None and not (
        count.ndim == 0 and count.dtype.kind in "iu" and count >= 1
    ):
        raise ValueError(
            f"n_observations is {n_observations!r}; it must be an integer of at least"
            " 1, or None for exact moments"
        )
    if not (level.ndim == 0 and level.dtype.kind in "fiu" and 0 <= level < np.inf):
        raise ValueError(f"sigma is {sigma!r}; it must be a finite number, 0 or more")


def _check_real(first: np.ndarray, second: np.ndarray, tolerance: float) -> None:
    """Symmetries that moments of real signals have."""
    minus, opposite = _opposite(first.shape[-1])
    scale = _largest(second)
    limit = tolerance * scale
    conjugate = second.conj()
    if (_largest(second - conjugate.swapaxes(-1, -2)) > limit).any():
        raise ValueError("second is not Hermitian; it must be E v̂(k) conj v̂(l)")
    off = _largest(
        second - np.take(conjugate.reshape(*first.shape[:-1], -1), opposite, -1)
    )
    off_first = _largest((first - first.conj()[..., minus])[..., None])
    if (off > limit).any() or (off_first > tolerance * np.sqrt(scale)).any():
        raise ValueError(
            "the moments are not those of real signals in numpy.fft.fftfreq order:"
            " those are complex conjugates at opposite frequencies"
        )


def _largest(x: np.ndarray) -> np.ndarray:
    """Largest real or imaginary part in size, of complex matrices (..., n, n)."""
    parts = np.ascontiguousarray(x).view(np.float64)
    return np.maximum.reduce(np.abs(parts), (-2, -1))


@cache
def _opposite(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the opposite frequency is in (n,), and where in (n, n), flattened."""
    minus = -np.arange(n) % n
    return minus, n * minus[:, None] + minus


def _check_power(second, n_observations, sigma, tolerance, unit) -> None:
    """The second moment is a covariance about 0: no power in it is negative."""
    n = second.shape[-1]
    power = np.einsum("...kk->...k", second).real
    total = np.abs(power).sum(-1)
    # Pure noise spreads eigenvalues by σ²(2√(n/N) + n/N) about 0.
    noise = 0.0
    if n_observations is not None:
        noise = sigma**2 * (2 * np.sqrt(n / n_observations) + n / n_observations)
    allowed = SPREAD * noise + tolerance * total
    # What has a Cholesky factor has no negative power, and takes less time to find out.
    try:
        np.linalg.cholesky(second + allowed[..., None, None] * np.eye(n))
        return
    except np.linalg.LinAlgError:
        least = np.linalg.eigvalsh(second)[..., 0]
    if (least >= -allowed).all():
        return
    if sigma > 0:
        raise ValueError(
            f"second has power of {least.min() * unit**2:.3g} in some direction, where"
            f" noise explains down to {-SPREAD * noise * unit**2:.3g}: sigma ="
            f" {sigma * unit:g} is larger than the data allow, or was subtracted twice"
        )
    raise ValueError(
        f"second has negative power, {least.min() * unit**2:.3g} in some direction; a"
        " second moment has none (give n_observations and sigma if it is noisy)"
    )


def _check_means(first, second, n_observations, sigma, tolerance, unit) -> None:
    """
    Shifts leave a signal's mean alone, so both moments must have the same; what
    second[0, 0] has more than |first[0]|² is noise bias, if it is in all directions.
    """
    mean, power = first[..., 0].real ** 2, second[..., 0, 0].real
    excess = power - mean
    limit = most = tolerance * np.einsum("...kk->...", second).real
    if sigma > 0:
        # The mean's own noise is in both, so that only its sample variance counts.
        noise = BEYOND_NOISE * np.sqrt(2 / n_observations) * sigma**2
        limit = limit + noise + ESTIMATED * mean
        most = np.minimum(limit, most + noise + LEFT_BEHIND * sigma**2)
    biased = excess > most
    if biased.any():
        least = np.linalg.eigvalsh(second)[..., 0]
        biased &= least > excess / 2
    if biased.any():
        raise ValueError(
            "second has its noise bias left: every direction has a power of at least"
            f" {least[biased].flat[0] * unit**2:.6g}, and second[0, 0] is larger than"
            f" |first[0]|² by {excess[biased].flat[0] * unit**2:.6g}; subtract sigma²"
            " from its diagonal"
        )
    off = np.abs(excess) > limit
    if off.any():
        raise ValueError(
            f"first and second do not belong together: |first[0]|² is"
            f" {mean[off].flat[0] * unit**2:.6g} and second[0, 0]"
            f" {power[off].flat[0] * unit**2:.6g}, and shifts change neither; both must"
            " be of the unitary DFT of the same data, noise bias removed"
        )


def _check_varied(first, second, n_observations, sigma, tolerance) -> None:
    """
    Refuse constant signals, and ρ that leave v open: uniform ones, whose second moment
    is diagonal, and ones that repeat themselves.

    Where ρ̃(d) is 0 unless p divides d, entries (k, l) relate frequencies of the same
    class k mod p only, and the classes r and -r may be turned by opposite phases. Only
    for r = 0 and r = p/2 are these the same class, with a sign left that a shift by n/p
    changes as well: p = 2 does no harm. Any other p is a multiple of 4 or of an odd
    prime.
    """
    n = second.shape[-1]
    power = np.maximum(np.einsum("...kk->...k", second).real, 0)
    noise = 0.0
    if n_observations is not None:
        # A diagonal entry has twice the noise, and is compared with noise alone.
        noise = np.sqrt(2 / n_observations) * sigma**2
    limit = BEYOND_NOISE * noise + tolerance * power.sum(-1)
    varied = power > limit[..., None]
    if not varied[..., 1:].any(-1).all():
        raise ValueError(
            "the signal is constant to within noise: second has no power but at"
            " frequency 0, so that shifts change nothing and rho cannot be found"
        )
    moments = first, second, power, n_observations, sigma, tolerance
    # The first lag is no multiple of any period, so that it is enough to see that.
    if _seen_lags(*moments, 1).all():
        return
    seen = _seen_lags(*moments, n // 2)
    if not seen.any(-1).all():
        shifts = ""
        if n_observations is not None:
            shifts = f" but for what {n_observations} shifts drawn at random leave"
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


def _seen_lags(
    first, second, power, n_observations, sigma, tolerance, highest
) -> np.ndarray:
    """
    At which lags d = 1 … highest the second moment tells that ρ̃(d) is not 0,
    (..., highest), in a test of all n//2.

    Even where it is 0, the N shifts drawn from ρ have a coefficient of variance 1/N. If
    ρ is uniform, an entry k ≠ l has the variance

        E |y(k)|² |y(l)|² / N = (|v̂(k)|² + σ²) (|v̂(l)|² + σ²) / N,

    of which shifts make |v̂(k) v̂(l)|²/N, noise the rest; k = -l has (|v̂(k)|⁴ + 4
    |v̂(k)|² σ² + 2σ⁴)/N, since y(-k) is the conjugate of y(k). The first moment, of
    variance (|v̂(k)|² + σ²)/N, stands in for row and column 0. The statistic of a lag is
    the mean of |entry|²/variance with the weights b = share of shifts in the variance.
    All entries of a lag have the same ρ̃(d): shifts do not average out as noise does,
    the covariance of entries i ≠ j is √(b_i b_j) of their deviations. The statistic, a
    weighted sum of exponentials, has the mean 1, and a variance s² and a largest weight
    λ of

        s² = [(Σ b²)² + Σ m b² (1 - b²)] / (Σ b)²,
        λ ≤ [Σ b² + max m b (1 - b²)] / Σ b,

    m = 2 since (k, l) and (-l, -k) are the same, 1 for k = -l; both s² and λ are twice
    that for d = n/2, where ρ̃ is real. It exceeds 1 + s √(2u) + λu with a chance of at
    most exp(-u) (Laurent & Massart 2000, lemma 1).
    """
    n = second.shape[-1]
    k, l, edge, frequency, opposite, same, real = _by_lag(n, highest)
    entries = second[..., k, l]
    squares = entries.real**2 + entries.imag**2
    changing = power[..., 1:].max(-1) * power.max(-1)
    least = max(tolerance, 1e-7) ** 2 * changing[..., None]
    seen = np.maximum.reduce(squares, -1) > least
    if n_observations is None:
        return seen
    # Frequencies with no power but rounding say nothing.
    floor = sigma**2 + tolerance * power.sum(-1)[..., None]
    variance = power + floor
    share = power / variance
    variance[..., 0], share[..., 0] = 1, 1
    squares = np.where(edge, np.abs(first[..., frequency]) ** 2, squares)
    variances = variance[..., k] * variance[..., l]
    variances += opposite * ((2 * power + floor) * floor)[..., k]
    b = share[..., k] * share[..., l]
    total = np.maximum(np.add.reduce(b, -1), 1e-100)
    strength = np.add.reduce(b * squares / variances, -1) / total
    square = b * b
    own = same * (b - b * square)
    square = np.add.reduce(square, -1)
    spread = real * (square**2 + np.add.reduce(b * own, -1)) / total**2
    largest = real * (square + np.maximum.reduce(own, -1)) / total
    u = np.log(n // 2 / MISTAKEN)
    limit = 1 + np.sqrt(2 * u * spread) + np.minimum(largest, np.sqrt(spread)) * u
    return seen & (n_observations * strength > limit)


@cache
def _by_lag(n: int, highest: int) -> tuple[np.ndarray, ...]:
    """
    For entries (k, l = k - d), d = 1 … highest: k and l, (highest, n); whether the
    first moment stands in for them, at which frequency; whether l = -k; and how often
    an entry, and a lag, (highest,), occur, as `_seen_lags` says.
    """
    lags = np.arange(1, highest + 1)
    k = np.arange(n) + 0 * lags[:, None]
    l = (k - lags[:, None]) % n
    opposite = (k + l) % n == 0
    same, real = np.where(opposite, 1, 2), np.where(2 * lags == n, 2, 1)
    return k, l, (k == 0) | (l == 0), np.where(k == 0, l, k), opposite, same, real
