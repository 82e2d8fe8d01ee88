"""Errors and times of methods on problems drawn from a family."""

import time
from dataclasses import replace

import numpy as np

from aspire_mom.mra.inversion import solve
from aspire_mom.mra.moments import FourierMoments, exact_moments, simulate_moments
from aspire_mom.mra.refine import predict
from aspire_mom.mra.shift_ambiguity import shift_error
from aspire_mom.mra.signals import GaussianFamily
from aspire_mom.mra.training import TEST
from aspire_mom.mra.weights import pretrained

# Encoders by method, as `pretrained` knows them.
NETWORKS = {"network": "mixture", "paper": "paper-{k}"}
HEADER = f"{'':<14}  {'ms':>9}" + "".join(
    f"  {name + ' mean':>9} {'median':>9} {'90 %':>9}" for name in ("v", "ρ")
)


def draw_test(
    family: GaussianFamily,
    count: int,
    seed: int,
    n_observations: int | None = None,
    sigma: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, FourierMoments]:
    """
    Draw problems that training does not use.

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
    method: str,
    k: int,
    v: np.ndarray,
    rho: np.ndarray,
    moments: FourierMoments,
    batch_size: int = 1,
) -> str:
    """
    :param method: A method of :func:`solve`, "network" for the package's trained
        `MixtureEncoder` alone, or "paper" for the paper's, as trained for k Gaussians.
    :param k: Number of Gaussians, which only "paper" is told.
    :param v: True signals (count, n).
    :param rho: True densities (count, n).
    :param moments: Their moments.
    :param batch_size: Problems that are solved at once.
    :return: The columns of HEADER: milliseconds per problem, and errors (eq. 21).
    """
    name = NETWORKS.get(method)
    encoder = pretrained(name.format(k=k)).double() if name else None
    found, start = [], time.perf_counter()
    for i in range(0, len(v), batch_size):
        first, second = (x[i : i + batch_size] for x in (moments.first, moments.second))
        part = replace(moments, first=first, second=second)
        if encoder:
            found.append(predict(encoder, part))
        else:
            noise = {"n_observations": part.n_observations, "sigma": part.sigma}
            found.append(solve(first, second, **noise, method=method))
    columns = [f"{1e3 * (time.perf_counter() - start) / len(v):9.2f}"]
    for truth, parts in zip((v, rho), zip(*found, strict=True), strict=True):
        errors = shift_error(truth, np.concatenate(parts))
        median, high = np.quantile(errors, (0.5, 0.9))
        columns.append(f"{errors.mean():9.2e} {median:9.2e} {high:9.2e}")
    return "  ".join(columns)
