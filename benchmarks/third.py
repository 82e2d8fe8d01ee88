"""
Third moments in the polar basis: what fits into a memory budget, agreement with exact
moments, cost beside the first two moments.

    python benchmarks/third.py [--map MAP.mrc] [--images N]

Views are drawn from the 864 points of a spherical design and turned by angles drawn
uniformly, so that exact moments are sums over 864 slices of the volume; images are
ASPIRE's projections with white noise added, 0.5 per pixel for a volume of unit norm and
plain-sum projections (the paper's). Times are CPU times, the best of several.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from aspire.source import ArrayImageSource
from aspire.utils import Rotation
from aspire.utils.logging import setConsoleLoggingLevel
from aspire.volume import Volume

from aspire_mom.bases import PolarBasis
from aspire_mom.moments import MomentEstimator, Moments, Noise, ThirdMomentBasis
from aspire_mom.moments.moments import weighted_norm
from aspire_mom.phantoms import chain_phantom, gaussian_phantom
from aspire_mom.rotations import SphericalDesign, viewing_rotations

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.moments import average, slice_coefficients

BATCH = 512
PILOT = 4000
SETS = 6  # of N/32, N/32, N/16, … N/2 images, merged one after another


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--map", type=Path, help="a real map to add to the phantom")
    parser.add_argument("--images", type=int, default=32_000, help="of the phantom")
    parser.add_argument("--map-images", type=int, default=16_000)
    arguments = parser.parse_args()
    setConsoleLoggingLevel("WARNING")
    start = time.perf_counter()
    cost()
    volumes = {"four Gaussians at 25": (gaussian_phantom(25), arguments.images)}
    if arguments.map:
        voxels = Volume.load(arguments.map).asnumpy()[0].astype(np.float64)
        volume = Volume((voxels / np.linalg.norm(voxels)).astype(np.float32))
        volumes[arguments.map.stem] = volume, arguments.map_images
    for name, (volume, n_images) in volumes.items():
        basis = PolarBasis(volume.resolution)
        views = viewing_rotations(SphericalDesign(41).points)
        c = slice_coefficients(volume, views, basis)
        budgets(name, c, basis)
        accuracy(name, volume, views, c, basis, n_images)
    print(f"\n{time.perf_counter() - start:.0f} s in all")


def cost() -> None:
    """Table (a)."""
    print("Cost of third moments with errors within the default budget, float32, from")
    print("memory, beside the first two")
    print(
        f"{'L':>4} {'numbers':>8} {'MB':>6} {'1st + 2nd':>11} {'third':>10}"
        f" {'ratio':>5} {'GFLOP/s':>8} {'of peak':>8} {'memory':>8}"
    )
    rng = np.random.default_rng(0)
    for L in (63, 128):
        basis = PolarBasis(L)
        rotations = Rotation.generate_random_rotations(600, seed=0, dtype=np.float32)
        clean = chain_phantom(L).project(rotations)
        source = ArrayImageSource(clean, pixel_size=1.0)
        pilot = MomentEstimator(source, basis, noise=Noise(variance=0)).estimate()
        kept = ThirdMomentBasis.from_moments(pilot)
        images = rng.standard_normal((BATCH, L, L), dtype=np.float32)
        c = basis.coefficients(images)
        square = rng.standard_normal((1024, 2048), dtype=np.float32).view(np.complex64)
        two, third, peak = best(
            lambda basis=basis, images=images: basis.sums(images),
            lambda kept=kept, c=c: kept.sums(c),
            lambda square=square: square @ square,
        )
        rate = BATCH * flops(kept) / third
        peak = 8 * 1024**3 / peak
        print(
            f"{L:4} {kept.counts.sum():8} {kept.nbytes / 1e6:6.1f}"
            f" {1e3 * two / BATCH:8.3f} ms"
            f" {1e3 * third / BATCH:7.3f} ms"
            f" {1 + third / two:5.2f}"
            f" {rate / 1e9:8.0f} {rate / peak:8.0%} {memory(kept, c) / 1e6:5.0f} MB",
            flush=True,
        )


def flops(kept: ThirdMomentBasis) -> float:
    """Of one image: compression, products of two factors, matrix products."""
    q, rings = kept.counts, kept.basis.n_rings
    products = sum(q[m2] * q[m1 + m2] for m1, m2 in kept.pairs)
    return 8 * q.sum() * rings + 6 * products + 8 * kept.size


def best(*calls: Callable[[], object], rounds: int = 15) -> list[float]:
    """Least CPU time of each, taken in turns, since other jobs may be running."""
    times = np.full(len(calls), np.inf)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start = time.process_time()
            call()
            times[i] = min(times[i], time.process_time() - start)
    return times.tolist()


def memory(kept: ThirdMomentBasis, c: np.ndarray) -> int:
    """Largest size of what one batch's sums need and return."""
    tracemalloc.start()
    kept.sums(c)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def budgets(name: str, c: np.ndarray, basis: PolarBasis) -> None:
    """Table (b)."""
    p = np.full(len(c), 1 / len(c))
    exact, total = average(c, p, basis), norm_of_all(c, basis)
    whole = ThirdMomentBasis.rings(basis, basis.n_rings, budget_bytes=10**12)
    print(
        f"\n{name}: share of the exact third moment's squared norm that is lost within"
    )
    print(f"a budget; on all {basis.n_rings} rings it is {whole.nbytes / 1e6:.0f} MB")
    print(f"{'budget':>8} {'eigenvectors':>13} {'orders':>7} {'lost':>9}", end="")
    print(f" {'rings':>6} {'lost':>9}")
    for budget in (10**6, 4 * 10**6, 16 * 10**6, 64 * 10**6):
        columns = []
        for kept in (
            ThirdMomentBasis.from_moments(exact, budget_bytes=budget),
            ThirdMomentBasis.rings(basis, budget_bytes=budget),
        ):
            share = weighted_norm(exact_third(kept, c), kept.weights) / total
            columns.append((kept, max(1 - share**2, 0)))
        (vectors, lost), (rings, ring_lost) = columns
        print(
            f"{budget / 1e6:5.0f} MB {vectors.counts.sum():13} {vectors.max_order:7}"
            f" {lost:9.1e} {rings.counts[0]:6} {ring_lost:9.1e}",
            flush=True,
        )


def exact_third(kept: ThirdMomentBasis, c: np.ndarray) -> np.ndarray:
    """Third moment of coefficients (views, orders, rings), all views alike."""
    views = torch.from_numpy(np.ascontiguousarray(c.transpose(1, 2, 0)))
    p = torch.full((len(c),), 1 / len(c), dtype=torch.float64)
    return kept.of_views(views, p).numpy()


def norm_of_all(c: np.ndarray, basis: PolarBasis) -> float:
    """
    Norm of the third moment of all rings and orders without making it: its square is
    the mean over pairs of views i, j and over turns α of ⟨f_i, turned f_j⟩³.
    """
    M = basis.max_order
    weighted = np.ascontiguousarray((c * basis.areas).transpose(1, 0, 2))
    others = np.ascontiguousarray(c.conj().transpose(1, 2, 0))
    n_angles = 3 * M + 1
    total = 0.0
    for start in range(0, len(c), 32):
        orders = (weighted[:, start : start + 32] @ others).transpose(1, 2, 0)
        inner = n_angles * np.fft.irfft(orders, n_angles)
        total += np.sum(inner**3) / n_angles
    return float(np.sqrt(total) / len(c))


def accuracy(
    name: str,
    volume: Volume,
    views: np.ndarray,
    c: np.ndarray,
    basis: PolarBasis,
    n_images: int,
) -> None:
    """Table (c)."""
    variance = (0.5 / volume.resolution) ** 2
    noise = variance * basis.noise_second()
    stream = noisy_images(volume, views, variance)
    pilot = MomentEstimator(
        ArrayImageSource(next_images(stream, PILOT), pixel_size=1.0),
        basis,
        noise=Noise(variance=variance),
    ).estimate()
    kept = ThirdMomentBasis.from_moments(pilot)
    exact = exact_third(kept, c)
    share = weighted_norm(exact, kept.weights) / norm_of_all(c, basis)
    print(
        f"\n{name}: relative error of the third moment, in brackets what its standard"
    )
    print(f"errors foretell. {kept.counts.sum()} eigenvectors of orders up to")
    print(
        f"{kept.max_order} stand out in {PILOT} images, {kept.nbytes / 1e6:.3f} MB,"
        f" {share**2:.4f} of the whole"
    )
    print(f"{'N':>7} {'error':>10} {'foretold':>11} {'bias not removed':>17}")
    merged, rows = None, []
    for i in range(SETS):
        images = next_images(stream, n_images >> min(SETS - i, SETS - 1))
        part = third_moments(kept, images, noise)
        merged = part if merged is None else merged.merge(part)
        mean = kept.vectors[0].T @ merged.first.real
        share = {"third": np.zeros(kept.size), "third_first": mean}
        bias = -kept.finish(share, 1, noise)[0]
        errors = [
            weighted_norm(value, kept.weights) / weighted_norm(exact, kept.weights)
            for value in (
                merged.third - exact,
                merged.third_error,
                merged.third + bias - exact,
            )
        ]
        rows.append((merged.n_images, errors[0]))
        print(
            f"{merged.n_images:7} {errors[0]:10.4f} ({errors[1]:9.4f})"
            f" {errors[2]:17.4f}",
            flush=True,
        )
    slope = np.polyfit(*np.log(np.array(rows)).T, 1)[0]
    print(f"{'slope':>7} {slope:10.3f}", flush=True)


def noisy_images(
    volume: Volume, views: np.ndarray, variance: float
) -> Iterator[np.ndarray]:
    """Batches of fresh images, without end."""
    rng = np.random.default_rng(0)
    while True:
        angles = rng.uniform(0, 2 * np.pi, BATCH)
        turns = np.zeros((BATCH, 3, 3))
        turns[:, 0, 0] = turns[:, 1, 1] = np.cos(angles)
        turns[:, 1, 0], turns[:, 0, 1] = np.sin(angles), -np.sin(angles)
        turns[:, 2, 2] = 1
        rotations = views[rng.integers(len(views), size=BATCH)] @ turns
        rotations = Rotation(rotations.astype(np.float32), gimble_lock_warnings=False)
        images = volume.project(rotations).asnumpy()
        noise = rng.standard_normal(images.shape, dtype=np.float32)
        yield images + np.float32(np.sqrt(variance)) * noise


def next_images(stream: Iterator[np.ndarray], n: int) -> np.ndarray:
    batches = [next(stream) for _ in range(-(-n // BATCH))]
    return np.concatenate(batches)[:n]


def third_moments(
    kept: ThirdMomentBasis, images: np.ndarray, noise: np.ndarray
) -> Moments:
    """Moments of images, the third one in `kept`, batch after batch."""
    totals: dict[str, np.ndarray] = {}
    for start in range(0, len(images), BATCH):
        c = kept.basis.coefficients(images[start : start + BATCH])
        for key, value in kept.sums(c).items():
            exact = value.astype(np.result_type(value, np.float64))
            totals[key] = totals.get(key, 0) + exact
    third, error = kept.finish(totals, len(images), noise)
    source = ArrayImageSource(images, pixel_size=1.0)
    moments = MomentEstimator(source, kept.basis, noise=Noise(variance=0)).estimate()
    return Moments(
        moments.first,
        moments.second - noise,
        kept.basis,
        n_images=len(images),
        third=third,
        third_basis=kept,
        third_error=error,
    )


if __name__ == "__main__":
    main()
