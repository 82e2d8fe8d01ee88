"""
Multireference alignment without networks: errors (eq. 21) and times of the solvers, on
instances drawn afresh from the reference family (n = 41, k equal-weight Gaussians cut
off at the ends, mean of v one).

    python benchmarks/mra.py exact|noisy|em|equivariance [--count N] [--seed S]
                             [--sigma S ...] [--observations N ...]

exact: from exact moments; computed from spectra, and again from sums over all shifts,
whose rounding is larger. noisy: N = 10⁶, σ = 1, in density units and with v of unit
norm; moments drawn from their exact distribution. em: against EM on the same raw data,
started from a random signal. equivariance: largest changes of answers, relative to
their norm, that should not change, over random sizes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from aspire_mom.mra import (
    FourierMoments,
    GaussianFamily,
    estimate_moments,
    exact_moments,
    expectation_maximisation,
    observe,
    shift_error,
    simulate_moments,
    solve,
)
from aspire_mom.mra.moments import to_fourier
from aspire_mom.mra.signals import all_shifts

# Of which the median time is taken, against EM.
CALLS = 5
METHODS = ("spectral", "marching", "least-squares", "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("table", choices=("exact", "noisy", "em", "equivariance"))
    parser.add_argument("--count", type=int, help="instances per row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sigma", type=float, nargs="+", help="of em; 1 3 10 if not")
    parser.add_argument(
        "--observations", type=int, nargs="+", help="of em; 10⁵ 10⁶ if not"
    )
    arguments = parser.parse_args()
    start = time.perf_counter()
    table: Callable = globals()[arguments.table]
    defaults = {"exact": 2000, "noisy": 200, "em": 5, "equivariance": 50}
    options = {"sigmas": arguments.sigma, "sizes": arguments.observations}
    options = {name: given for name, given in options.items() if given}
    table(arguments.count or defaults[arguments.table], arguments.seed, **options)
    print(f"\n{time.perf_counter() - start:.0f} s in all")


def exact(count: int, seed: int) -> None:
    print(
        f"Exact moments, {count} instances a row, seed {seed}: mean (90th percentile,"
    )
    print("largest) error, time per instance; paper's networks on test data, k = 1, 2,")
    print("3: v 0.052, 0.170, 0.206, ρ 0.048, 0.141, 0.195")
    head = f"{'k':>2} {'moments':8} {'method':14} {'v':>28} {'ρ':>28}"
    print(f"{head} {'ms':>7} {'alone':>6}")
    for k in (1, 2, 3):
        v, rho = GaussianFamily(k).draw(count, np.random.default_rng((seed, k)))
        kinds = {"spectra": exact_moments(v, rho), "sums": summed_moments(v, rho)}
        for kind, moments in kinds.items():
            for method in METHODS:
                found, ms = timed(moments, method)
                errors = zip((v, rho), found, strict=True)
                cells = [spread(shift_error(*pair), np.mean) for pair in errors]
                alone = timed_alone(moments, method)
                print(
                    f"{k:2} {kind:8} {method:14} {cells[0]:>28} {cells[1]:>28}"
                    f" {ms:7.2f} {alone:6.1f}",
                    flush=True,
                )


def summed_moments(v: np.ndarray, rho: np.ndarray) -> FourierMoments:
    shifts = all_shifts(v)
    second = shifts.swapaxes(-1, -2) @ (rho[..., None] * shifts)
    return FourierMoments(*to_fourier((rho[:, None] @ shifts)[:, 0], second))


def noisy(count: int, seed: int) -> None:
    print(f"N = 10⁶, σ = 1, {count} instances a row, seed {seed}: median (90th")
    print("percentile, largest) error, time per instance")
    print(f"{'scale':8} {'k':>2} {'method':14} {'v':>28} {'ρ':>28} {'ms':>7}")
    for scale in ("density", "unit"):
        for k in (1, 2, 3):
            rng = np.random.default_rng((seed, k))
            v, rho = GaussianFamily(k, scale=scale).draw(count, rng)
            moments = simulate_moments(v, rho, 10**6, 1.0, rng)
            for method in METHODS:
                found, ms = timed(moments, method)
                errors = zip((v, rho), found, strict=True)
                cells = [spread(shift_error(*pair), np.median) for pair in errors]
                print(
                    f"{scale:8} {k:2} {method:14} {cells[0]:>28} {cells[1]:>28}"
                    f" {ms:7.1f}",
                    flush=True,
                )


def em(count: int, seed: int, sigmas=(1.0, 3.0, 10.0), sizes=(10**5, 10**6)) -> None:
    print(f"Against EM (tolerance 1e-5, at most 300 steps) on the same data, {count}")
    print(
        f"instances of k = 2 a row, seed {seed}: medians; processor time of solving, to"
    )
    print(
        "which one pass for the moments, in brackets, is to be added; then EM's error"
    )
    print("of v and of ρ divides a method's, and EM's time is divided by its")
    head = f"{'N':>8} {'σ':>3} {'method':9} {'v':>9} {'ρ':>9} {'s':>9} {'(pass)':>8}"
    print(f"{head} {'v/EM':>6} {'ρ/EM':>6} {'EM s/s':>7}")
    # Weights of networks are read once, in a first call.
    rng = np.random.default_rng(seed)
    timed(simulate_moments(*GaussianFamily(2).draw(1, rng), 10**6, 1.0, rng), "auto")
    for N in sizes:
        for sigma in sigmas:
            rows = {name: [] for name in ("EM", "marching", "auto")}
            for i in range(count if N == 10**5 else max(1, count // 2)):
                for name, row in against_em(N, sigma, (seed, i)).items():
                    rows[name].append(row)
            medians = {name: np.median(row, axis=0) for name, row in rows.items()}
            for name, (v, rho, seconds, reading) in medians.items():
                against = medians["EM"]
                print(
                    f"{N:8} {sigma:3g} {name:9} {v:9.5f} {rho:9.5f} {seconds:9.4f}"
                    f" {f'({reading:.2f})' if reading else '':>8}"
                    f" {v / against[0]:6.2f} {rho / against[1]:6.2f}"
                    f" {against[2] / seconds:7.0f}",
                    flush=True,
                )


def against_em(N: int, sigma: float, seed: tuple[int, int]) -> dict[str, tuple]:
    """Errors of v and ρ, seconds of solving, seconds of averaging, by method."""
    rng = np.random.default_rng(seed)
    v, rho = (x[0] for x in GaussianFamily(2).draw(1, rng))
    y = np.concatenate(list(observe(v, rho, N, sigma, rng)))
    rows, start = {}, time.process_time()
    moments = estimate_moments([y], sigma=sigma)
    reading = time.process_time() - start
    for method in ("marching", "auto"):
        times = []
        for _ in range(CALLS):
            found, ms = timed(moments, method, time.process_time)
            times.append(ms / 1000)
        errors = shift_error(v, found[0]), shift_error(rho, found[1])
        rows[method] = (*errors, np.median(times), reading)
    start = time.process_time()
    random = 1 + rng.standard_normal(len(v))
    found = expectation_maximisation(y, sigma, random, n_steps=300)
    seconds = time.process_time() - start
    rows["EM"] = shift_error(v, found[0]), shift_error(rho, found[1]), seconds, 0.0
    return rows


def equivariance(count: int, seed: int) -> None:
    print(
        f"Largest relative change over {count} problems of n = 20 to 101, seed {seed}"
    )
    print(f"{'moments':8} {'method':14} {'shifted':>9} {'reversed':>9} {'permuted':>9}")
    for noise in (None, {"n_observations": 20_000, "sigma": 1.0}):
        for method in ("marching", "auto"):
            changes = [
                one_equivariance(np.random.default_rng((seed, i)), noise, method)
                for i in range(count)
            ]
            print(
                f"{'noisy' if noise else 'exact':8} {method:14}",
                *(f"{c:9.1e}" for c in np.max(changes, axis=0)),
                flush=True,
            )


def one_equivariance(rng, noise, method) -> list[float]:
    n = rng.integers(20, 102)
    v, rho = (x[0] for x in GaussianFamily(rng.integers(1, 4), n=n).draw(1, rng))
    if noise:
        y = np.concatenate(list(observe(v, rho, 20_000, 1.0, rng)))
        data = [y, rng.permutation(y)]
        m, permuted = (estimate_moments([part], sigma=1.0) for part in data)
    else:
        m = permuted = exact_moments(v, rho)
    by = rng.integers(n)
    phase = np.exp(-2j * np.pi / n * by * np.arange(n))
    back = -np.arange(n) % n

    def answer(first, second):
        return solve(first, second, **(noise or {}), method=method)

    found = answer(m.first, m.second)
    moved = answer(m.first * phase, m.second * phase[:, None] * phase.conj())
    reversed_ = answer(m.first.conj(), m.second.conj())
    again = answer(permuted.first, permuted.second)
    return [
        max(change(np.roll(found[0], by), moved[0]), change(found[1], moved[1])),
        max(change(a[back], b) for a, b in zip(found, reversed_, strict=True)),
        max(change(a, b) for a, b in zip(found, again, strict=True)),
    ]


def change(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def timed(
    moments: FourierMoments, method: str, clock: Callable = time.perf_counter
) -> tuple[tuple, float]:
    """Answers and milliseconds per instance, all instances in one call."""
    start = clock()
    found = solve(
        moments.first,
        moments.second,
        n_observations=moments.n_observations,
        sigma=moments.sigma,
        method=method,
    )
    count = np.prod(moments.first.shape[:-1])
    return found, 1000 * (clock() - start) / count


def timed_alone(moments: FourierMoments, method: str) -> float:
    """Median milliseconds of 20 calls with one instance each."""
    times = []
    for first, second in zip(moments.first[:20], moments.second[:20], strict=True):
        times.append(timed(FourierMoments(first, second), method)[1])
    return float(np.median(times))


def spread(errors: np.ndarray, middle: Callable) -> str:
    tail = np.quantile(errors, 0.9), errors.max()
    return f"{middle(errors):.2e} ({tail[0]:.1e}, {tail[1]:.1e})"


if __name__ == "__main__":
    main()
