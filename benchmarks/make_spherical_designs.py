"""
Compute the spherical designs that the package ships.

A symmetric design of odd degree t has N/2 points x_j and their antipodes, and only the
harmonics of even degree must vanish: t(t+1)/2 - 1 equations Σ_j Y_lm(x_j) = 0 in N
angles, of which three are a common rotation. So N = 2⌈(t² + t + 4)/4⌉ is the least that
counting allows (R. S. Womersley, "Efficient spherical designs with good geometric
properties", 2018), met or nearly met for all degrees here. The equations are solved by
a trust-region Gauss-Newton method from perturbed spirals, until a solution's points are
well separated or the starts are used up; then the best separated one is kept.

    python benchmarks/make_spherical_designs.py --max-degree 41

prints a table and writes the file. About ten minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares
from scipy.special import sph_harm_y_all
from scipy.stats import special_ortho_group
from tqdm import tqdm

from aspire_mom.rotations.sphere import DATA

SOLVED = 1e-13
# Displacement of the starting spiral's points, as a fraction of their spacing.
JITTER = 0.1
# Smallest angle between points that is good enough, as a fraction of the spacing of as
# many points in a hexagonal lattice.
SEPARATED = 0.72
# The paper's design, besides the smallest of each degree.
EXTRA = {13: [100]}


def unit_vectors(angles: np.ndarray) -> np.ndarray:
    """Points (n, 3) of polar angles and azimuths stacked as (2n,)."""
    polar, azimuth = angles.reshape(2, -1)
    sine = np.sin(polar)
    return np.stack((sine * np.cos(azimuth), sine * np.sin(azimuth), np.cos(polar)), 1)


def even_harmonics(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Degrees and orders (l, m), l = 2, 4, …, degree - 1 and 0 ≤ m ≤ l."""
    l, m = np.tril_indices(degree)
    keep = (l > 0) & (l % 2 == 0)
    return l[keep], m[keep]


def real_rows(values: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Rows Y_lm for m ≥ 0 as real harmonics, times √(4π)."""
    values = values * np.sqrt(4 * np.pi * np.where(m > 0, 2, 1))[:, None]
    return np.concatenate((values.real, values.imag[m > 0]))


def harmonic_means(angles: np.ndarray, degree: int) -> np.ndarray:
    """The equations: means of the real harmonics over the half design."""
    l, m = even_harmonics(degree)
    values = sph_harm_y_all(degree, degree, *angles.reshape(2, -1))
    return real_rows(values[l, m], m).mean(1)


def harmonic_residual(points: np.ndarray, degree: int) -> float:
    """Largest Weyl sum √(4π) |mean of Y_lm| over points (N, 3), 1 ≤ l ≤ degree."""
    x, y, z = points.T
    polar, azimuth = np.arctan2(np.hypot(x, y), z), np.arctan2(y, x)
    # Y_l(-m) is ±conj Y_lm, so m ≥ 0 is enough; m > l is zero.
    sums = sph_harm_y_all(degree, degree, polar, azimuth)[1:, : degree + 1].mean(-1)
    return float(np.sqrt(4 * np.pi) * np.abs(sums).max(initial=0))


def harmonic_gradients(angles: np.ndarray, degree: int) -> np.ndarray:
    """Jacobian of :func:`harmonic_means` (equations, 2n)."""
    l, m = even_harmonics(degree)
    _, slopes = sph_harm_y_all(degree, degree, *angles.reshape(2, -1), diff_n=1)
    slopes = slopes[l, m] * (2 / len(angles))
    return np.concatenate([real_rows(slopes[..., i], m) for i in range(2)], 1)


def spiral(n: int, rng: np.random.Generator) -> np.ndarray:
    """Angles (2n,) of a jittered, rotated Fibonacci spiral on a hemisphere."""
    z = 1 - (np.arange(n) + 0.5) / n
    golden = np.pi * (1 + np.sqrt(5)) * np.arange(n)
    points = unit_vectors(np.concatenate((np.arccos(z), golden)))
    points += JITTER * np.sqrt(2 * np.pi / n) * rng.normal(size=points.shape)
    # Away from the poles, where azimuths are no coordinates.
    x, y, z = special_ortho_group(3, seed=rng).rvs() @ points.T
    return np.concatenate((np.arctan2(np.hypot(x, y), z), np.arctan2(y, x)))


def separation(half: np.ndarray) -> float:
    """Smallest angle between two points of a symmetric design, degrees."""
    cosines = np.abs(half @ half.T)
    np.fill_diagonal(cosines, -1)
    return float(np.degrees(np.arccos(cosines.max())))


def solve(degree: int, n_points: int, starts: int, seed: int) -> np.ndarray | None:
    """Best separated of the solutions (N/2, 3), upper half sphere; None if none."""
    good = SEPARATED * np.degrees(np.sqrt(8 * np.pi / np.sqrt(3) / n_points))
    best = None
    for start in range(starts):
        rng = np.random.default_rng([seed, degree, n_points, start])
        angles = spiral(n_points // 2, rng)
        if degree > 1:
            angles = least_squares(
                harmonic_means,
                angles,
                harmonic_gradients,
                args=(degree,),
                x_scale="jac",
                ftol=1e-15,
                xtol=1e-15,
                gtol=1e-15,
                max_nfev=200,
            ).x
        half = unit_vectors(angles)
        half *= np.where(half[:, 2:] < 0, -1, 1)
        solved = harmonic_residual(np.concatenate((half, -half)), degree) < SOLVED
        if solved and (best is None or separation(half) > separation(best)):
            best = half
            if separation(best) > good:
                break
    return best


def first_size(degree: int) -> int:
    """Where the search for the smallest number of points begins."""
    if degree < 10:
        return (degree + 1) * (degree + 3) // 4  # no design has fewer (Delsarte)
    return 2 * -(-(degree**2 + degree + 4) // 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--max-degree", type=int, default=41)
    parser.add_argument("--starts", type=int, default=6, help="per number of points")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=DATA)
    options = parser.parse_args()
    designs = {}
    print("degree     N  residual  separation (degrees)  seconds")
    for degree in tqdm(range(1, options.max_degree + 1, 2)):
        begin = time.perf_counter()
        n_points, half = first_size(degree), None
        while half is None:
            half = solve(degree, n_points, options.starts, options.seed)
            n_points += 2
        found = [half]
        for n_points in EXTRA.get(degree, []):
            found.append(solve(degree, n_points, options.starts, options.seed))
        seconds = time.perf_counter() - begin
        for half in found:
            points = np.concatenate((half, -half))
            designs[f"{degree}_{len(points)}"] = half
            tqdm.write(
                f"{degree:6d} {len(points):5d} {harmonic_residual(points, degree):9.1e}"
                f"  {separation(half):20.2f}  {seconds:7.1f}"
            )
    np.savez_compressed(options.output, **designs)
    print(f"{options.output}: {options.output.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
