"""Errors and times of methods on problems drawn from a family."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from aspire_mom.mra.inversion import MRAInversion
from aspire_mom.mra.moments import FourierMoments, exact_moments, simulate_moments
from aspire_mom.mra.refine import predict
from aspire_mom.mra.shift_ambiguity import shift_error
from aspire_mom.mra.signals import GaussianFamily
from aspire_mom.mra.training import TEST
from aspire_mom.mra.weights import pretrained

Solver = Callable[[FourierMoments], tuple[np.ndarray, np.ndarray]]
# Encoders by method, as `pretrained` knows them.
NETWORKS = {"network": "mixture", "paper": "paper-{k}"}
HEADER = f"{'':<14}  {'ms':>9}" + "".join(
    f"  {name + ' mean':>9} {'median':>9} {'90 %':>9}" for name in ("v", "ρ")
)


@dataclass(frozen=True, eq=False)
class Scores:
    """
    How a method did, as a line under HEADER.

    :param v_errors: Errors of v, eq. 21, (count,).
    :param rho_errors: Errors of ρ (count,).
    :param milliseconds: Time per problem.
    """

    v_errors: np.ndarray
    rho_errors: np.ndarray
    milliseconds: float

    def __str__(self) -> str:
        parts = [f"{self.milliseconds:9.2f}"]
        for errors in (self.v_errors, self.rho_errors):
            median, high = np.quantile(errors, (0.5, 0.9))
            parts.append(f"{errors.mean():9.2e} {median:9.2e} {high:9.2e}")
        return "  ".join(parts)


def solver(method: str, k: int) -> Solver:
    """
    :param method: A method of :func:`solve`, "network" for the package's trained
        `MixtureEncoder` alone, or "paper" for the paper's, as trained for k Gaussians.
    :param k: Number of Gaussians, which only "paper" is told.
    :return: Function from moments to v and ρ.
    """
    if method in NETWORKS:
        encoder = pretrained(NETWORKS[method].format(k=k)).double()
        return lambda moments: predict(encoder, moments)

    def estimate(moments: FourierMoments) -> tuple[np.ndarray, np.ndarray]:
        solution = MRAInversion(moments, method=method).estimate()
        return solution.v, solution.rho

    return estimate


def draw_test(
    family: GaussianFamily,
    count: int,
    seed: int,
    n_observations: int | None = None,
    sigma: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, FourierMoments]:
    """
    Draw problems from a stream of random numbers that training does not use.

    :param family: Family of v and ρ.
    :param count: Number of problems.
    :param seed: Seed.
    :param n_observations: N; None for exact moments.
    :param sigma: Standard deviation of the noise.
    :return: v and ρ, (count, n), and their moments.
    """
    rng = np.random.default_rng((seed, TEST, family.k))
    v, rho = family.draw(count, rng)
    if n_observations is None:
        return v, rho, exact_moments(v, rho)
    return v, rho, simulate_moments(v, rho, n_observations, sigma, rng)


def score(
    solver: Solver,
    v: np.ndarray,
    rho: np.ndarray,
    moments: FourierMoments,
    batch_size: int = 1,
) -> Scores:
    """
    :param solver: Method.
    :param v: True signals (count, n).
    :param rho: True densities (count, n).
    :param moments: Their moments.
    :param batch_size: Problems that are solved at once.
    :return: Errors, and the time of the solver alone.
    """
    found, start = [], time.perf_counter()
    for i in range(0, len(v), batch_size):
        first, second = (x[i : i + batch_size] for x in (moments.first, moments.second))
        found.append(solver(replace(moments, first=first, second=second)))
    milliseconds = 1e3 * (time.perf_counter() - start) / len(v)
    v_found, rho_found = map(np.concatenate, zip(*found, strict=True))
    return Scores(shift_error(v, v_found), shift_error(rho, rho_found), milliseconds)
