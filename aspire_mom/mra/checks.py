"""Which pairs of moments can be solved."""

from __future__ import annotations

import numpy as np

from aspire_mom.mra.marching import entry_variance

# What rounding may do to exact moments, relative to their total power; moments in
# single precision have ROUNDING_UNITS of theirs.
TOLERANCE, ROUNDING_UNITS = 1e-9, 10
# Share of the mean's power that an estimated σ may get wrong.
ESTIMATED = 0.05
# Standard errors at which noise is ruled out.
BEYOND_NOISE = 6.0
# Factor on how far noise spreads eigenvalues, asymptotically, that is still noise.
SPREAD = 2.0
MIN_SIZE = 4


def check_moments(
    first: np.ndarray,
    second: np.ndarray,
    n_observations: int | None,
    sigma: float,
) -> tuple[np.ndarray, np.ndarray]:
    """
    :param first: First moments (..., n).
    :param second: Second moments (..., n, n).
    :param n_observations: N, or None for exact moments.
    :param sigma: Standard deviation of the noise.
    :return: Both as complex128.
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
    first, second = first.astype(np.complex128), second.astype(np.complex128)
    for name, values in (("first", first), ("second", second)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has values that are NaN or infinite")
    share = 0.0 if n_observations is None else sigma**2 / n_observations
    _check_real(first, second, max(tolerance, 1e-6))
    _check_power(second, n_observations, sigma, share, tolerance)
    _check_means(first, second, sigma, share, max(tolerance, 1e-6))
    _check_varied(second, sigma, share, tolerance)
    return first, second


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
    n = first.shape[-1]
    minus = -np.arange(n) % n
    scale = np.abs(second).max((-1, -2))
    off = np.abs(second - second.conj().swapaxes(-1, -2)).max((-1, -2))
    if (off > tolerance * scale).any():
        raise ValueError("second is not Hermitian; it must be E v̂(k) conj v̂(l)")
    off = np.abs(second - second.conj()[..., minus[:, None], minus]).max((-1, -2))
    off_first = np.abs(first - first.conj()[..., minus]).max(-1)
    limit, first_limit = tolerance * scale, tolerance * np.sqrt(scale)
    if (off > limit).any() or (off_first > first_limit).any():
        raise ValueError(
            "the moments are not those of real signals in numpy.fft.fftfreq order:"
            " those are complex conjugates at opposite frequencies"
        )


def _check_power(second, n_observations, sigma, share, tolerance) -> None:
    """The second moment is a covariance about 0: no power in it is negative."""
    n = second.shape[-1]
    power = np.einsum("...kk->...k", second).real
    total = np.abs(power).sum(-1)
    # Pure noise spreads eigenvalues by σ²(2√(n/N) + n/N) about 0.
    noise = 0.0
    if n_observations is not None:
        noise = sigma**2 * (2 * np.sqrt(n / n_observations) + n / n_observations)
    least = np.linalg.eigvalsh(second)[..., 0]
    if (least >= -(SPREAD * noise + tolerance * total)).all():
        return
    if share > 0:
        raise ValueError(
            f"second has power of {least.min():.3g} in some direction, where noise"
            f" explains down to {-SPREAD * noise:.3g}: sigma = {sigma:g} is larger than"
            " the data allow, or was subtracted twice"
        )
    raise ValueError(
        f"second has negative power, {least.min():.3g} in some direction; a second"
        " moment has none (give n_observations and sigma if it is noisy)"
    )


def _check_means(first, second, sigma, share, tolerance) -> None:
    """Shifts leave a signal's mean alone, so both moments must have the same."""
    mean, power = first[..., 0].real ** 2, second[..., 0, 0].real
    total = np.einsum("...kk->...", second).real
    limit = tolerance * total
    if share > 0:
        limit = limit + BEYOND_NOISE * np.sqrt(2 * share) * sigma + ESTIMATED * mean
    off = np.abs(mean - power) > limit
    if off.any():
        raise ValueError(
            f"first and second do not belong together: |first[0]|² is"
            f" {mean[off].flat[0]:.6g} and second[0, 0] {power[off].flat[0]:.6g}, and"
            " shifts change neither; both must be of the unitary DFT of the same data,"
            " noise bias removed"
        )


def _check_varied(second, sigma, share, tolerance) -> None:
    """Refuse constant signals, and uniform ρ, whose second moment is diagonal."""
    n = second.shape[-1]
    power = np.maximum(np.einsum("...kk->...k", second).real, 0)
    floor = (tolerance * power.sum(-1))[..., None]
    variance = entry_variance(power, share, sigma)
    # A diagonal entry has twice the noise, and is compared with noise alone.
    noise = np.sqrt(2 * share) * sigma * np.ones(n)
    if (power[..., 1:] <= BEYOND_NOISE * noise[1:] + floor).all(-1).any():
        raise ValueError(
            "the signal is constant to within noise: second has no power but at"
            " frequency 0, so that shifts change nothing and rho cannot be found"
        )
    off = ~np.eye(n, dtype=bool)
    strength = (np.abs(second) ** 2 / variance)[..., off]
    count = n * (n - 1)
    # Entries (k, l), (l, k) and their opposites are the same: a quarter is independent.
    limit = 1 + BEYOND_NOISE * np.sqrt(4 / count)
    largest = np.abs(second)[..., off].max(-1)
    changing = np.sqrt(power[..., 1:].max(-1) * power.max(-1))
    uniform = (strength.mean(-1) < limit) | (largest < max(tolerance, 1e-7) * changing)
    if uniform.any():
        raise ValueError(
            "rho is uniform to within noise: second is diagonal, and the first two"
            " moments then determine v's power spectrum but not v"
        )
