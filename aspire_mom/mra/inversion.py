"""From moments to a signal and a density of shifts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

# Importing it disables the loggers that exist, so that this comes first.
import aspire  # noqa: F401
import numpy as np
from matplotlib.figure import Figure

from aspire_mom.checks import check_choice
from aspire_mom.files import contents_of, load_arrays, save_arrays
from aspire_mom.mra.checks import check_moments
from aspire_mom.mra.chi_squared import WhitenedMoments
from aspire_mom.mra.density import density_in_best_place
from aspire_mom.mra.least_squares import least_squares
from aspire_mom.mra.marching import march
from aspire_mom.mra.mixture_fit import fit_mixture
from aspire_mom.mra.moments import FourierMoments, forward_moments
from aspire_mom.mra.shift_ambiguity import centre_density, to_distribution
from aspire_mom.mra.spectral import spectral
from aspire_mom.threads import one_blas_thread

FORMAT = "aspire_mom.MRASolution.1"
logger = logging.getLogger(__name__)

Method = Literal["auto", "spectral", "marching", "least-squares", "mixture"]
# Noise for which least squares weights exact moments, one after the other: numbers of
# observations, and σ relative to the signal's root mean square. Strong noise leaves
# fewer local minima.
STAGES = (10**6, 1.0), (10**9, 0.1), (10**12, 0.0)
# Relative error of moments (eq. 22) up to which exact ones count as met.
MET = 1e-6
# χ² per degree of freedom above which least squares starts again elsewhere.
POOR = 2.0
RANDOM_STARTS = 20
NOT_MET = (
    "No signal and density were found that meet the moments to within their noise;"
    " what comes closest is returned."
)


@dataclass(frozen=True, eq=False)
class MRASolution:
    """
    A signal and a density of shifts.

    :param v: Signals (..., n), float64, in the units of the data.
    :param rho: Densities of shifts (..., n), float64, 0 or more, of sum one.
    """

    v: np.ndarray
    rho: np.ndarray

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """
        Write the solution to an .npz file, as arrays `v` and `rho`.

        :param path: File to write.
        :param overwrite: Replace an existing file.
        :raises ValueError: the name does not end in .npz.
        :raises FileExistsError: the file exists and `overwrite` is False.
        """
        save_arrays(path, FORMAT, {"v": self.v, "rho": self.rho}, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> MRASolution:
        """
        :param path: A file that :meth:`save` has written.
        :return: The solution.
        :raises FileNotFoundError: the file does not exist.
        :raises ValueError: the file is damaged, or holds something else.
        """
        arrays, _ = load_arrays(path, FORMAT)
        with contents_of(path):
            return cls(arrays["v"], arrays["rho"])

    def plot(self) -> Figure:
        """
        :return: A picture of the signal and of the density, of one problem.
        """
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

    Any (v(· - t), ρ(· + t)) has the same moments. The pair is returned whose ρ has its
    circular mean within half a sample of shift 0: shifting the data by t whole samples
    shifts v by t and leaves ρ as it is; reversing the data reverses both.

    Methods:

    - "auto": marching where the moments are exact, and least squares from other starts
      where marching does not meet them; "mixture" where they are noisy.
    - "mixture": v and ρ as one to three Gaussians each, fitted from the proposals of a
      trained network, if that explains the data better than regularised least squares.
      For exact moments the same as "auto".
    - "marching": frequency marching along the diagonals of the second moment.
    - "least-squares": regularised least squares over v and ρ from marching.
    - "spectral": Abbe et al. (2018).

    :param moments: Moments of one problem or of a batch, noise bias removed.
    :param method: One of the above.
    :raises TypeError: moments that are not numbers.
    :raises ValueError: an unknown method; shapes that do not match; moments that are
        not finite, not those of real signals, that do not belong together, whose noise
        bias is left or whose power is negative beyond noise; a constant signal, or a ρ
        that is uniform or has a period of n/3, n/4 or less, with which the two moments
        do not determine v. A v̂ that is 0 at most frequencies may leave v undetermined
        too, and is not refused.
    """

    def __init__(self, moments: FourierMoments, *, method: Method = "auto"):
        check_choice("method", method, get_args(Method))
        self.moments, self.method = check_moments(moments), method
        exact = self.moments.n_observations is None
        self._noise = (
            {}
            if exact
            else {
                "n_observations": self.moments.n_observations,
                "sigma": self.moments.sigma,
            }
        )

    @one_blas_thread()
    def estimate(self) -> MRASolution:
        """
        :return: v, of mean first[0]/√n, and ρ.
        """
        first, second = self.moments.first, self.moments.second
        if self.method == "spectral":
            v, rho = spectral(first, second, **self._noise)
        else:
            v, rho = march(first, second, **self._noise)
        if self.method not in ("spectral", "marching"):
            for i in np.ndindex(first.shape[:-1]):
                v[i], rho[i] = self._estimate_one(first[i], second[i], v[i], rho[i])
        # The mean is known best from the first moment alone.
        mean = first[..., :1].real / np.sqrt(first.shape[-1])
        return MRASolution(v + (mean - v.mean(-1, keepdims=True)), rho)

    def _estimate_one(self, first, second, v, rho) -> tuple[np.ndarray, np.ndarray]:
        """The pair of one problem, from what marching found."""
        if self.method == "least-squares":
            v, rho, _ = self._least_squares(first, second, v, rho)
        elif self._noise:
            fit = fit_mixture(first, second, **self._noise)
            if fit is not None and fit.good:
                return centre_density(fit.v, fit.rho)
            v, rho, chi_squared = self._least_squares(first, second, v, rho)
            n_values = len(v) * (len(v) + 3) / 2
            bic = chi_squared + (2 * len(v) - 1) * np.log(n_values)
            if fit is not None and fit.bic < bic:
                v, rho = fit.v, fit.rho
        else:
            return self._meet(first, second, v, rho)
        return centre_density(v, to_distribution(rho))

    def _meet(self, first, second, v, rho) -> tuple[np.ndarray, np.ndarray]:
        """The pair that marching found from exact moments, if it has them; else with
        another density; else from other starts."""

        def met(pair):
            # Relative to the power, since the first moment may be 0.
            made = forward_moments(*pair)
            off = np.linalg.norm(made[0] - first) / np.sqrt(np.trace(second).real)
            second_off = np.linalg.norm(made[1] - second) / np.linalg.norm(second)
            return max(off, second_off) < MET

        if met((v, rho)):
            return v, rho
        pair = density_in_best_place(v, first, second)
        if met(pair):
            return pair
        v, _, _ = self._least_squares(first, second, v, rho)
        pair = density_in_best_place(v, first, second)
        if not met(pair):
            logger.warning(NOT_MET)
        return pair

    def _least_squares(self, first, second, v, rho):
        """
        Least squares from marching, or, where that fails as it does for signals whose
        spectrum has gaps, from the spectral method and from random phases.
        """
        n, rng = len(first), np.random.default_rng(0)
        modulus = np.sqrt(np.maximum(np.diag(second).real, 0))
        noise = self._noise and [tuple(self._noise.values())]
        rms = np.linalg.norm(modulus) / np.sqrt(n)
        stages = [
            WhitenedMoments(first, second, *level)
            for level in noise or [(count, share * rms) for count, share in STAGES]
        ]
        best = None
        for i in range(RANDOM_STARTS + 2):
            if i == 1:
                v, rho = spectral(first, second, **self._noise)
            elif i > 1:
                phases = np.exp(1j * np.angle(np.fft.fft(rng.standard_normal(n))))
                v_hat = modulus * phases
                v_hat[0] = first[0]
                v = np.fft.ifft(v_hat, norm="ortho").real
                rho = rng.dirichlet(np.ones(n))
            if not v.any():
                continue
            for data in stages:
                v, rho, chi_squared = least_squares(data, v, rho)
            if best is None or chi_squared < best[2]:
                best = v, rho, chi_squared
            if best[2] < POOR * len(data.values):
                return best
        if self._noise:
            logger.warning(NOT_MET)
        return best


def solve(
    first: np.ndarray,
    second: np.ndarray,
    *,
    n_observations: int | None = None,
    sigma: float = 0.0,
    method: Method = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """
    :class:`MRAInversion` in one call.

    :param first: First moments (n,), or a batch (..., n), complex: E v̂_j(k), unitary
        DFT, `numpy.fft.fftfreq` order. A shift by s samples multiplies v̂(k) by
        exp(-2πi k s/n).
    :param second: Second moments (n, n), or a batch (..., n, n), complex: E v̂_j(k)
        conj v̂_j(l), noise bias removed.
    :param n_observations: N that they are averages over; None for exact moments.
    :param sigma: Standard deviation of the noise per sample, in v's units; it counts
        only with `n_observations`.
    :param method: See :class:`MRAInversion`.
    :return: v (..., n) and ρ (..., n).
    :raises TypeError: as :class:`MRAInversion`.
    :raises ValueError: as :class:`MRAInversion`.
    """
    moments = FourierMoments(first, second, n_observations, sigma)
    solution = MRAInversion(moments, method=method).estimate()
    return solution.v, solution.rho
