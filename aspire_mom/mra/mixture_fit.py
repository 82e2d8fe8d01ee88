"""
The fit of a few Gaussians to noisy moments, from the proposals of a network.

A `MixtureEncoder` proposes 1, 2 or 3 Gaussians of equal mass for v and as many for ρ,
with several alternatives for each. From the likely ones χ² is minimised over centres,
widths and v's mass. Then the windows, at whose ends curves are cut off, are moved as
long as χ² decreases: they are whole numbers, which no gradient step changes. The fit of
least Bayesian information criterion is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import least_squares

from aspire_mom.mra.chi_squared import ShiftSampling, WhitenedMoments
from aspire_mom.mra.mixture_encoder import MARGIN, MIN_SIZE, WIDTHS
from aspire_mom.mra.moments import FourierMoments
from aspire_mom.mra.signals import all_shifts
from aspire_mom.mra.weights import pretrained

# A fit is good up to this many standard deviations of χ² above its mean.
MAX_CHI2_EXCESS = 2.0
# Least probability of an alternative, and of another number of Gaussians where a fit is
# good already; starts tried for each number until a fit is good.
MIN_PROBABILITY, MIN_COUNT_PROBABILITY, STARTS = 0.05, 0.25, 3
# Relative decrease of χ² at which fits stop: those compared, and the one returned.
ROUGH, FINE = 1e-3, 1e-10
# Other windows tried in a round, rounds, and the least decrease of χ² to accept one.
WINDOWS, ROUNDS, MIN_CHI2_GAIN = 2, 6, 3.0
# Another window is tried only if it changes the curve by a relative amount in between.
MIN_CHANGE, MAX_CHANGE = 1e-4, 0.5
# Standard deviations of a weak prior: of centres about the start, in units of n, of
# logarithms of widths about n/14, and of logarithms of masses.
PRIOR = 0.5, 0.5, 1.0
# The window of curves that wrap around and are nowhere cut off.
PERIODIC = -1


@dataclass(frozen=True, eq=False)
class _Mixture:
    # k Gaussians on a window of n samples, cut off at its ends. Parameters are
    # centres, log standard deviations, both in samples, and log masses, (3, k).
    parameters: np.ndarray
    window: int  # its first sample, or PERIODIC
    n: int
    density: bool  # whether the curve is divided by its sum

    @cached_property
    def _terms(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The Gaussians, scaled distances from their centres, and inverse widths."""
        n, j = self.n, np.arange(self.n)
        centres, widths, masses = self.parameters[..., None]
        if self.window == PERIODIC:
            distance = (j - centres + n / 2) % n - n / 2
        else:
            # Far outside, a Gaussian would vanish.
            least = self.window - 0.5 - 2 * MARGIN * n
            centres = np.clip(centres, least, least + (1 + 4 * MARGIN) * n)
            distance = np.where(j >= self.window, j, j + n) - centres
        widths = np.clip(widths, *np.log(np.multiply(WIDTHS, n)))
        z = distance * np.exp(-widths)
        return np.exp(masses - widths - z**2 / 2), z, np.exp(-widths)

    @cached_property
    def curve(self) -> np.ndarray:
        curve = self._terms[0].sum(0)
        return curve / curve.sum() if self.density else curve

    def derivatives(self) -> np.ndarray:
        # Derivatives of the curve by its parameters, (3k, n).
        terms, z, narrowness = self._terms
        by = np.concatenate((terms * z * narrowness, terms * (z**2 - 1), terms))
        if self.density:
            by = (by - by.sum(-1, keepdims=True) * self.curve) / terms.sum()
        return by

    def in_window(self, window: int) -> _Mixture:
        # The same Gaussians, cut off at the ends of another window.
        start, parameters = window - 0.5, self.parameters.copy()
        parameters[0] = start + (parameters[0] - start) % self.n
        return replace(self, parameters=parameters, window=window)


_Pair = tuple[_Mixture, _Mixture]


class MixtureFit(NamedTuple):
    """Fitted mixtures v and ρ, the errors from drawing shifts for this pair, and the
    derivatives of the whitened residuals by what was fitted, (m, P)."""

    pair: _Pair
    sampling: ShiftSampling
    jacobian: np.ndarray

    @property
    def good(self) -> bool:
        """Whether noise explains χ²."""
        m = len(self.jacobian)
        return self.sampling.chi_squared < m + MAX_CHI2_EXCESS * np.sqrt(2 * m)

    @property
    def bic(self) -> float:
        """Bayesian information criterion, up to a constant. The windows of v and ρ
        count as one parameter."""
        m, n_parameters = self.jacobian.shape
        return self.sampling.chi_squared + (n_parameters + 1) * np.log(m)


def fit_mixture(
    moments: FourierMoments,
) -> tuple[np.ndarray, np.ndarray, MixtureFit] | None:
    """
    :param moments: Moments of one problem, not exact.
    :return: v (n,), ρ (n,), and the best fit, which may be that of the data reversed or
        negated. None if n is too small for the network.
    """
    n, sign = len(moments.first), np.sign(moments.first[0].real)
    if n < MIN_SIZE or sign == 0:
        return None
    # Gaussians are positive, so data of negative mean are negated. Reversed data give
    # exactly the reversed answer, because one of the two is always reversed here.
    first, second = sign * moments.first, moments.second
    backward = (second[2, 1] * np.exp(-1j * np.angle(first[1]))).imag < 0
    if backward:
        first, second = first.conj(), second.conj()
    moments = replace(moments, first=first, second=second)
    data = WhitenedMoments(moments)
    probabilities, alternatives = _alternatives(moments)
    best = None
    for i in np.argsort(-probabilities):
        done = best is not None and best.good
        if done and probabilities[i] < MIN_COUNT_PROBABILITY:
            break
        starts = _starts(data, first[0].real * np.sqrt(n), *alternatives[i])
        for pair in starts[: 1 if done else STARTS]:
            fit = _fit_with_windows(data, pair)
            best = min((fit, best or fit), key=lambda fit: fit.bic)
            if fit.good:
                break
    best = _fit(data, best.pair, (ROUGH, FINE))
    v, rho = (mixture.curve for mixture in best.pair)
    if backward:
        v, rho = (np.roll(x[::-1], 1) for x in (v, rho))
    return sign * v, rho, best


@cache
def _encoder() -> torch.nn.Module:
    return pretrained("mixture").double()


def _alternatives(moments: FourierMoments) -> tuple[np.ndarray, list]:
    """Probabilities of 1, 2, … Gaussians, and for each number likely mixtures for v and
    for ρ in a window that begins at 0."""
    n = len(moments.first)
    inputs = moments.first, moments.second, moments.mean_variance, moments.sigma
    with torch.no_grad():
        counts, pairs = _encoder().hypotheses(
            *(torch.as_tensor(x)[None] for x in inputs)
        )

    def likely(hypotheses, density):
        centres, widths, log_p = (x[0].numpy() for x in hypotheses)
        parameters = (centres + 0.5) * n - 0.5, widths + np.log(n), 0 * widths
        chosen = log_p >= min(np.log(MIN_PROBABILITY), log_p.max())
        return [_Mixture(p, 0, n, density) for p in np.stack(parameters, 1)[chosen]]

    found = [(likely(v, False), likely(rho, True)) for v, rho in pairs]
    return counts[0].exp().numpy(), found


def _starts(data: WhitenedMoments, total: float, signals, densities) -> list[_Pair]:
    """Pairs in order of χ², v with a given sum, ρ in the window that fits the second
    moment best."""
    starts = []
    for v, rho in product(signals, densities):
        mass = np.array((0, 0, np.log(total / v.curve.sum())))
        v = replace(v, parameters=v.parameters + mass[:, None])
        # Row s of all_shifts(ρ) is ρ moved by s.
        powers = all_shifts(rho.curve) @ data.power_along_shifts(v.curve)
        move = np.array((np.argmax(powers), 0, 0))
        parameters = rho.parameters + move[:, None]
        rho = replace(rho, parameters=parameters, window=int(move[0]))
        starts.append((ShiftSampling(data, v.curve, rho.curve).chi_squared, (v, rho)))
    return [pair for _, pair in sorted(starts, key=lambda start: start[0])]


def _fit(data: WhitenedMoments, pair: _Pair, stops: tuple = (ROUGH,)) -> MixtureFit:
    """Minimise χ² from a pair, with Gaussians of equal masses."""
    n, k = pair[0].n, pair[0].parameters.shape[1]
    # Rows: all centres and widths, and the mass of v.
    every = np.eye(6 * k)
    mass_of_v = every[2 * k : 3 * k].sum(0, keepdims=True)
    directions = np.concatenate((every[: 2 * k], mass_of_v, every[3 * k : 5 * k]))
    start = np.stack([mixture.parameters for mixture in pair])
    spread = np.multiply(PRIOR, (n, 1, 1))[:, None] + np.zeros_like(start)
    expected = start.copy()
    expected[:, 1] = np.log(n / 14)

    def parameters_at(x):
        return start + (x @ directions).reshape(start.shape)

    def pair_at(x):
        both = zip(pair, parameters_at(x), strict=True)
        return tuple(replace(m, parameters=parameters) for m, parameters in both)

    def residuals(x):
        r = sampling.whiten(data.residuals(*(m.curve for m in pair_at(x))))
        return np.append(r, (parameters_at(x) - expected) / spread)

    def jacobian(x):
        v, rho = pair_at(x)
        by = v.curve, rho.curve, v.derivatives(), rho.derivatives()
        by = sampling.whiten(directions @ data.jacobian(*by))
        return np.hstack((by, directions / spread.ravel())).T

    x = np.zeros(len(directions))
    # Again with the covariance at what was found.
    for ftol in stops:
        sampling = ShiftSampling(data, *(m.curve for m in pair_at(x)))
        x = least_squares(residuals, x, jacobian, method="lm", ftol=ftol, max_nfev=40).x
    by, pair = jacobian(x)[: len(data.values)], pair_at(x)
    return MixtureFit(pair, ShiftSampling(data, *(m.curve for m in pair)), by)


def _fit_with_windows(data: WhitenedMoments, start: _Pair) -> MixtureFit:
    """Fit, and fit again with v's or ρ's window elsewhere, as long as that helps."""
    best = _fit(data, start)
    for _ in range(ROUNDS):
        for pair in _better_windows(data, best):
            fit = _fit(data, pair)
            if fit.sampling.chi_squared < best.sampling.chi_squared - MIN_CHI2_GAIN:
                best = fit
                break
        else:
            break
    return best


def _better_windows(data: WhitenedMoments, fit: MixtureFit) -> Iterator[_Pair]:
    """Pairs with one other window whose χ², minimised over the parameters to first
    order, is less than that of a fit."""
    v, rho = fit.pair
    pairs = []
    for window in range(PERIODIC, v.n):
        for old in fit.pair:
            new = old.in_window(window)
            change = np.linalg.norm(new.curve - old.curve) / np.linalg.norm(old.curve)
            if MIN_CHANGE < change < MAX_CHANGE:
                pairs.append((new, rho) if old is v else (v, new))
    if not pairs:
        return
    curves = (np.array([pair[i].curve for pair in pairs]) for i in (0, 1))
    r = fit.sampling.whiten(data.residuals(*curves))
    q = np.linalg.qr(fit.jacobian)[0]
    expected = ((r - r @ q @ q.T) ** 2).sum(-1)
    for i in np.argsort(expected)[:WINDOWS]:
        if expected[i] < fit.sampling.chi_squared - MIN_CHI2_GAIN:
            yield pairs[i]
