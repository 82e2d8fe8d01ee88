"""From moments to a signal and a density of shifts: all solvers behind one function."""

from __future__ import annotations

import logging
from typing import Literal, get_args

# Importing it disables the loggers that exist, so that this comes first.
import aspire  # noqa: F401
import numpy as np

from aspire_mom.mra.checks import check_moments
from aspire_mom.mra.density import meeting_density
from aspire_mom.mra.gauge import fix_gauge, to_distribution
from aspire_mom.mra.learned import learned_fit
from aspire_mom.mra.least_squares import least_squares
from aspire_mom.mra.marching import march
from aspire_mom.mra.misfit import Quadratic, degrees_of_freedom
from aspire_mom.mra.moments import forward_moments, to_samples
from aspire_mom.mra.prior import mixture_fit
from aspire_mom.mra.spectral import spectral
from aspire_mom.threads import one_blas_thread

logger = logging.getLogger(__name__)

Method = Literal["auto", "spectral", "marching", "least-squares", "mixture", "learned"]
# Exact moments, for code that wants a number of observations; and noisy ones, of a
# noise as strong as the signal, by which least squares approaches them.
AS_EXACT, AS_NOISY = 10**12, 10**6
# Relative error of moments (eq. 22) up to which exact ones count as met.
MET = 1e-6
# Misfit, in degrees of freedom, above which least squares starts again elsewhere.
POOR = 2.0
RANDOM_STARTS = 20
NOT_MET = (
    "No signal and density were found that meet the moments to within their noise;"
    " what comes closest is returned."
)


@one_blas_thread()
def solve(
    first: np.ndarray,
    second: np.ndarray,
    *,
    n_observations: int | None = None,
    sigma: float = 0.0,
    method: Method = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """
    A signal and a density of shifts with given Fourier moments (eq. 6, 24): unitary
    DFT, `numpy.fft.fftfreq` order, first[k] = E v̂_j(k), second[k, l] = E v̂_j(k)
    conj v̂_j(l), noise bias removed, v_j = v(· - s_j); so that a shift by s samples
    multiplies v̂(k) by exp(-2πi k s/n).

    Any (v(· - t), ρ(· + t)) has the same moments. Returned is the pair whose ρ has its
    circular mean within half a sample of shift 0: shifting the data by t whole samples
    shifts v by t and leaves ρ as it is; reversing the data reverses both (but for means
    just half a sample off with v and ρ symmetric: :func:`gauge.fix_gauge`).

    Methods:

    - "auto": marching where the moments are exact, and least squares from other starts
      where marching does not meet them; where they are noisy, "learned", and "mixture"
      where that leaves a misfit that noise does not explain.
    - "learned": v and ρ as one to three Gaussians each, fitted from where a trained
      network says. Quick, and for such signals only. Exact moments: as "auto".
    - "mixture": v and ρ as a few Gaussians each, their number decided by the data, or
      regularised least squares where that describes the data better.
    - "marching": frequency marching along the diagonals of the second moment.
    - "least-squares": regularised least squares over v and ρ from marching.
    - "spectral": Abbe et al. (2018).

    :param first: First moments (n,), or a batch (..., n), complex.
    :param second: Second moments (n, n), or a batch (..., n, n), complex.
    :param n_observations: N that they are averages over; None for exact moments.
    :param sigma: Standard deviation of the noise per sample, in v's units; it counts
        only with `n_observations`.
    :param method: One of the above.
    :return: v (..., n), in the data's scale, mean(v) = first[0]/√n, and ρ (..., n),
        which is 0 or more and sums to one. Float64.
    :raises TypeError: moments that are not numbers.
    :raises ValueError: shapes that do not match; moments that are not finite, not those
        of real signals, that do not belong together, whose noise bias is left or whose
        power is negative beyond noise, or too small for their precision; a constant
        signal, or a ρ that is uniform or has a period of n/3, n/4 or less, with which
        the two moments do not determine v; an unknown method. With `n_observations`,
        ρ is what the shifts were drawn from, even if those drawn happen to be uneven.
        A v̂ that is 0 at most frequencies may leave v undetermined too, and is not
        refused.
    """
    if method not in get_args(Method):
        names = ", ".join(f'"{name}"' for name in get_args(Method))
        raise ValueError(f"method is {method!r}; it must be one of {names}")
    first, second, sigma, unit = check_moments(first, second, n_observations, sigma)
    exact = n_observations is None or sigma == 0
    noise = {"n_observations": n_observations, "sigma": sigma}
    if method == "spectral":
        return _scaled(first, *spectral(first, second, **noise), unit)
    if not exact and method in ("auto", "learned"):
        found = np.empty((2, *first.shape))
        for i in np.ndindex(first.shape[:-1]):
            pair = _learned(first[i], second[i], noise, method == "learned")
            found[0][i], found[1][i] = pair
        return _scaled(first, *found, unit)
    v, rho = march(first, second, **noise)
    if method == "marching":
        return _scaled(first, v, rho, unit)
    for i in np.ndindex(first.shape[:-1]):
        one = first[i], second[i]
        if method == "least-squares":
            v[i], rho[i] = _pair(_warned(_start(*one, v[i], rho[i], noise)))
        elif exact:
            v[i], rho[i] = _meet(*one, v[i], rho[i], noise)
        else:
            (v[i], rho[i]), _ = _mixture(*one, v[i], rho[i], noise)
    return _scaled(first, v, rho, unit)


def _learned(
    first: np.ndarray, second: np.ndarray, noise: dict, always: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What the network leads to; the better of that and the search for a mixture where
    the misfit is not good, unless it is to be taken `always`."""
    quick = learned_fit(first, second, **noise)
    if quick is not None and (always or quick.good):
        if not quick.good:
            logger.warning(NOT_MET)
        return quick.pair
    pair, score = _mixture(first, second, *march(first, second, **noise), noise)
    return pair if quick is None or score < quick.score else quick.pair


def _mixture(first, second, v, rho, noise) -> tuple[tuple, float]:
    start = _warned(_start(first, second, v, rho, noise))
    return mixture_fit(to_samples(first, second), start, **noise)


def _scaled(first, v, rho, unit):
    """The mean is known best from the first moment alone."""
    n = first.shape[-1]
    v = v + (first[..., :1].real / np.sqrt(n) - v.mean(-1, keepdims=True))
    return unit * v, rho


def _pair(found: Quadratic) -> tuple[np.ndarray, np.ndarray]:
    n = len(found.at) // 2
    return fix_gauge(found.at[:n], to_distribution(found.at[n:]))


def _meet(first, second, v, rho, noise) -> tuple[np.ndarray, np.ndarray]:
    """What marching found from exact moments, if it meets them; else with another
    density; else from other starts."""

    def met(pair):
        # Relative to the power, since the first moment may be 0.
        made = forward_moments(*pair)
        off = np.linalg.norm(made[0] - first) / np.sqrt(np.trace(second).real)
        return max(off, np.linalg.norm(made[1] - second) / np.linalg.norm(second)) < MET

    if met((v, rho)):
        return v, rho
    pair = meeting_density(v, first, second)
    if met(pair):
        return pair
    v, _ = _pair(_start(first, second, v, rho, noise))
    pair = meeting_density(v, first, second)
    if not met(pair):
        logger.warning(NOT_MET)
    return pair


def _start(first, second, v, rho, noise) -> Quadratic:
    """
    Least squares from marching, or, where that fails as it does for signals whose
    spectrum has gaps, from the spectral method and from random phases.
    """
    n = len(first)
    moments = to_samples(first, second)
    count = noise["n_observations"] if noise["sigma"] else AS_EXACT
    rng = np.random.default_rng(0)
    modulus = np.sqrt(np.maximum(np.diag(second).real, 0))
    best = None
    for i in range(RANDOM_STARTS + 2):
        if i == 1:
            v, rho = spectral(first, second, **noise)
        elif i > 1:
            phases = np.exp(1j * np.angle(np.fft.fft(rng.standard_normal(n))))
            v_hat = modulus * phases
            v_hat[0] = first[0]
            v, rho = np.fft.ifft(v_hat, norm="ortho").real, rng.dirichlet(np.ones(n))
        if not v.any():
            continue
        if not noise["sigma"]:
            # Exact moments have a misfit too rugged to descend from afar.
            near = least_squares(moments, v, rho, AS_NOISY, np.sqrt(np.mean(v**2)))
            v, rho = near.at[:n], near.at[n:]
        found = least_squares(moments, v, rho, count, noise["sigma"])
        if best is None or found.value < best.value:
            best = found
        if best.value < POOR * degrees_of_freedom(n):
            break
    return best


def _warned(found: Quadratic) -> Quadratic:
    if found.value >= POOR * degrees_of_freedom(len(found.at) // 2):
        logger.warning(NOT_MET)
    return found
