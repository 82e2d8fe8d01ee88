"""From moments to a signal and a density of shifts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

# Importing it disables the loggers that exist, so that this comes first.
import aspire  # noqa: F401
import numpy as np
from matplotlib.figure import Figure

from aspire_mom.checks import check_choice, check_integer
from aspire_mom.files import contents_of, load_arrays, save_arrays
from aspire_mom.mra.chi_squared import WhitenedMoments, least_squares
from aspire_mom.mra.marching import march
from aspire_mom.mra.mixture_fit import fit_mixture
from aspire_mom.mra.moments import (
    FourierMoments,
    forward_moments,
    to_fourier,
    to_samples,
)
from aspire_mom.mra.shift_ambiguity import centre_density, to_distribution
from aspire_mom.mra.signals import MIN_SIZE, Arrays
from aspire_mom.mra.spectral import fit_density_and_subsample_shift, spectral
from aspire_mom.threads import one_blas_thread

FORMAT = "aspire_mom.MRASolution.1"
logger = logging.getLogger(__name__)

Method = Literal["auto", "spectral", "marching", "least-squares", "mixture"]
# Noise levels (N, and σ relative to the signal's root mean square) that least squares
# assumes in turn on exact moments. Strong noise leaves fewer local minima.
STAGES = (10**6, 1.0), (10**9, 0.1), (10**12, 0.0)
# Largest relative error with which a signal and a density fit exact moments.
FIT_TOLERANCE = 1e-6
# Mean squared residual, in units of the noise, above which another start is tried.
MAX_MEAN_SQUARE, RANDOM_STARTS = 2.0, 20
NO_FIT = "No v and ρ were found that fit the moments within their noise."
# Rounding of exact moments relative to their total power, in double and in single
# precision; and the largest deviation from symmetry and from equal means.
ROUNDING, SINGLE_ROUNDING, MAX_DEVIATION = 1e-9, 1e-6, 1e-6
# Standard errors beyond which a deviation is not noise.
BEYOND_NOISE = 6.0
# ρ counts as not uniform if the squared coherence exceeds its mean for a uniform ρ by
# this factor. Noise alone does so with a probability below 16 exp(1 - 16) = 5e-6, the
# bound for a weighted mean of exponential variables.
COHERENT = 16.0


@dataclass(frozen=True, eq=False)
class MRASolution:
    """
    A signal and a density of shifts.

    :param v: Signal (n,), float64, in the units of the data.
    :param rho: Density of shifts (n,), float64, 0 or more, of sum one.
    """

    v: np.ndarray
    rho: np.ndarray

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """
        :param path: File to write (.npz), with arrays `v` and `rho`.
        :param overwrite: Replace an existing file.
        """
        save_arrays(path, FORMAT, {"v": self.v, "rho": self.rho}, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> MRASolution:
        """
        :param path: A file that :meth:`save` has written.
        :return: The solution.
        """
        arrays, _ = load_arrays(path, FORMAT)
        with contents_of(path):
            return cls(arrays["v"], arrays["rho"])

    def plot(self) -> Figure:
        """:return: A picture of the signal and of the density."""
        figure = Figure(figsize=(8, 3), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(self.v, "o-", ms=3)
        left.set(title="signal v", xlabel="sample")
        right.bar(np.arange(len(self.rho)), self.rho)
        right.set(title="density ρ of shifts", xlabel="shift in samples")
        return figure


class MRAInversion:
    """
    Find the signal and the density of shifts that given moments belong to.

    If t is a whole number of samples, (v(· - t), ρ(· + t)) has the same moments. The
    pair whose ρ has its circular mean within half a sample of 0 is returned. Methods:

    - "auto", "mixture": from exact moments marching, and if its result does not fit
      them, least squares from other starts. From noisy ones, one to three Gaussians for
      v and for ρ, fitted from the predictions of a trained network. If noise does not
      explain their χ², also least squares; the result of lower BIC is returned.
    - "marching": frequency marching along the diagonals of the second moment.
    - "least-squares": regularised least squares over v and ρ from marching.
    - "spectral": Abbe et al. (2018).

    :param moments: Moments of one problem, noise bias removed.
    :param method: One of the above.
    :raises ValueError: moments that no real signal has; a constant signal; a ρ that is
        uniform or periodic, with which v is not determined.
    """

    def __init__(self, moments: FourierMoments, *, method: Method = "auto"):
        check_choice("method", method, get_args(Method))
        self.moments, self.method = _checked(moments), method

    @one_blas_thread()
    def estimate(self) -> MRASolution:
        """:return: v, of mean first[0]/√n, and ρ."""
        v, rho = self._pair()
        # The first moment alone determines the mean best.
        mean = self.moments.first[0].real / np.sqrt(len(v))
        return MRASolution(v + (mean - v.mean()), rho)

    def _pair(self) -> Arrays:
        if self.method == "spectral":
            return spectral(self.moments)
        v, rho = march(self.moments)
        if self.method == "marching":
            return v, rho
        exact = self.moments.n_observations is None
        if exact and self.method != "least-squares":
            return self._solve_exact(v, rho)
        fit = None if self.method == "least-squares" else fit_mixture(self.moments)
        if fit is not None and fit[2].good:
            return centre_density(*fit[:2])
        v, rho, chi_squared = self._least_squares(v, rho)
        n_values = len(v) * (len(v) + 3) / 2
        bic = chi_squared + (2 * len(v) - 1) * np.log(n_values)
        if fit is not None and fit[2].bic < bic:
            v, rho, _ = fit
        return centre_density(v, to_distribution(rho))

    def _solve_exact(self, v, rho) -> Arrays:
        """Return the first of these that fits the exact moments: marching's result, the
        same with the density fitted again, or least squares from other starts."""
        if self._fits(v, rho):
            return v, rho
        pair = fit_density_and_subsample_shift(v, self.moments)
        if self._fits(*pair):
            return pair
        v, _, _ = self._least_squares(v, rho)
        pair = fit_density_and_subsample_shift(v, self.moments)
        if not self._fits(*pair):
            logger.warning(NO_FIT)
        return pair

    def _fits(self, v, rho) -> bool:
        first, second = forward_moments(v, rho)
        off, second_off = first - self.moments.first, second - self.moments.second
        # Relative to the power, since the first moment may be 0.
        power = np.trace(self.moments.second).real
        error = np.linalg.norm(off) / np.sqrt(power)
        second_error = np.linalg.norm(second_off) / np.linalg.norm(self.moments.second)
        return max(error, second_error) < FIT_TOLERANCE

    def _least_squares(self, v, rho) -> tuple[np.ndarray, np.ndarray, float]:
        """Least squares from marching, or, where that fails because the spectrum has
        gaps, from the spectral method and from random phases."""
        moments = self.moments
        stages = [(moments.n_observations, moments.sigma)]
        if moments.n_observations is None:
            rms = np.sqrt(np.trace(moments.second).real / len(v))
            stages = [(count, share * rms) for count, share in STAGES]
        stages = [
            WhitenedMoments(replace(moments, n_observations=N, sigma=sigma))
            for N, sigma in stages
        ]
        best = v, rho, np.inf
        for start in self._starts(v, rho):
            if not start[0].any():
                continue
            for data in stages:
                *start, chi_squared = least_squares(data, *start)
            if chi_squared < best[2]:
                best = *start, chi_squared
            if best[2] < MAX_MEAN_SQUARE * len(data.values):
                return best
        if moments.n_observations is not None:
            logger.warning(NO_FIT)
        return best

    def _starts(self, v, rho) -> Iterator[Arrays]:
        yield v, rho
        yield spectral(self.moments)
        n, rng = len(v), np.random.default_rng(0)
        modulus = np.sqrt(np.diag(self.moments.second).real.clip(0))
        for _ in range(RANDOM_STARTS):
            phases = np.angle(np.fft.fft(rng.standard_normal(n)))
            v_hat = modulus * np.exp(1j * phases)
            v_hat[0] = self.moments.first[0]
            yield np.fft.ifft(v_hat, norm="ortho").real, rng.dirichlet(np.ones(n))


def solve(
    first: np.ndarray,
    second: np.ndarray,
    *,
    n_observations: int | None = None,
    sigma: float = 0.0,
    method: Method = "auto",
) -> Arrays:
    """
    Run :class:`MRAInversion` for one problem or for each of a batch.

    :param first: First moments (..., n), complex, as :class:`FourierMoments` has them.
    :param second: Second moments (..., n, n), complex, noise bias removed.
    :param n_observations: Number of observations; None for exact moments.
    :param sigma: Standard deviation of the noise; counts only with `n_observations`.
    :param method: See :class:`MRAInversion`.
    :return: v (..., n) and ρ (..., n).
    :raises ValueError: batches that differ, or as :class:`MRAInversion`.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape[:-1] != second.shape[:-2]:
        shapes = f"shapes {first.shape} and {second.shape}"
        raise ValueError(f"first and second have {shapes}, not (..., n), (..., n, n)")
    v, rho = np.empty((2, *first.shape))
    for i in np.ndindex(first.shape[:-1]):
        moments = FourierMoments(first[i], second[i], n_observations, sigma)
        solution = MRAInversion(moments, method=method).estimate()
        v[i], rho[i] = solution.v, solution.rho
    return v, rho


def _checked(moments: FourierMoments) -> FourierMoments:
    """The same in complex128, `n_observations` None where there is no noise."""
    first, second = np.asarray(moments.first), np.asarray(moments.second)
    N, sigma = moments.n_observations, moments.sigma
    for name, values in (("first", first), ("second", second)):
        if values.dtype.kind not in "fiuc":
            raise ValueError(f"{name} has dtype {values.dtype}; it must be numbers")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has values that are NaN or infinite")
    n = first.size
    if first.shape != (n,) or n < MIN_SIZE or second.shape != (n, n):
        raise ValueError(
            f"first and second have shapes {first.shape} and {second.shape}; they must"
            f" be (n,) and (n, n) with the same n of at least {MIN_SIZE}"
        )
    if N is not None:
        check_integer("n_observations", N, 1)
    if not isinstance(sigma, int | float | np.number) or not 0 <= sigma < np.inf:
        raise ValueError(f"sigma is {sigma!r}; it must be a finite number, 0 or more")
    sigma = 0.0 if N is None else float(sigma)
    single = np.result_type(first, second).itemsize < 16
    tolerance = SINGLE_ROUNDING if single else ROUNDING
    first, second = first.astype(np.complex128), second.astype(np.complex128)
    real_first, real_second = to_fourier(*to_samples(first, second))
    off = np.abs(second - real_second).max(), np.abs(first - real_first).max() ** 2
    asymmetry = np.abs(second - second.conj().T).max()
    if max(*off, asymmetry) > MAX_DEVIATION * np.abs(second).max():
        raise ValueError(
            "the moments are not those of real signals in numpy.fft.fftfreq order:"
            " values at opposite frequencies must be complex conjugates, and second"
            " Hermitian"
        )
    _check_noise_bias(first, second, N, sigma, tolerance)
    _check_determined(second, N, sigma, tolerance)
    return FourierMoments(first, second, N if sigma > 0 else None, sigma)


def _check_noise_bias(first, second, N, sigma, tolerance) -> None:
    """Check that second has no negative power, and first the same mean."""
    n, total = len(first), np.abs(np.diag(second)).sum()
    least = np.linalg.eigvalsh(second)[0]
    # The spread of the eigenvalues of pure noise, with a factor of safety of 2.
    spread = sigma**2 * (2 * np.sqrt(n / N) + n / N) if sigma else 0.0
    if least < -2 * spread - tolerance * total:
        raise ValueError(
            f"second has negative power, {least:.3g}, which noise of sigma = {sigma:g}"
            " does not explain: sigma is larger than the data allow, or was subtracted"
            " twice"
        )
    mean, power = first[0].real ** 2, second[0, 0].real
    # The mean's own noise is in both moments, so that only its sample variance counts.
    error = MAX_DEVIATION * total + _significant_noise(N, sigma)
    if not -error - sigma**2 <= power - mean <= error + sigma**2 / 2:
        raise ValueError(
            f"first and second do not belong together: |first[0]|² is {mean:.6g} and"
            f" second[0, 0] {power:.6g}; both must be of the unitary DFT of the same"
            " data, and sigma² subtracted from the diagonal of second"
        )


def _significant_noise(N: int | None, sigma: float) -> float:
    """A power that noise alone does not reach."""
    return BEYOND_NOISE * np.sqrt(2 / N) * sigma**2 if sigma else 0.0


def _check_determined(second, N, sigma, tolerance) -> None:
    """Refuse constant signals, and uniform or periodic ρ, which do not determine v."""
    n = len(second)
    power = np.diag(second).real.clip(0)
    varied = power > _significant_noise(N, sigma) + tolerance * power.sum()
    if not varied[1:].any():
        raise ValueError("the signal is constant to within noise; rho cannot be found")
    k, lags = np.arange(n), np.arange(1, n // 2 + 1)
    l = (k - lags[:, None]) % n
    squares = np.abs(second[k, l]) ** 2
    seen = squares.max(-1) > tolerance**2 * power[1:].max() * power.max()
    if N is not None:
        # If ρ is uniform, an entry k ≠ l has the variance level[k] level[l] / N.
        level = power + sigma**2 + tolerance * power.sum()
        weights = (power / level)[k] * (power / level)[l]
        coherence = (weights * squares / (level[k] * level[l])).sum(-1)
        seen &= N * coherence > COHERENT * weights.sum(-1)
    for p in range(3, n + 1):
        # With period n/p (p = n: uniform), entries (k, l) only relate frequencies of
        # the same class k mod p, and the classes r and -r may get opposite phases.
        if n % p == 0 and varied[2 * k % p > 0].any() and not seen[lags % p > 0].any():
            raise ValueError(
                "rho is uniform to within noise, or has a period of"
                f" {n // p} samples; the first two moments then do not determine the"
                f" phases of v at frequencies that are not multiples of {p}"
            )
