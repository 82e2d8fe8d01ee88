"""
Third moments in the polar basis: cost of a pass beside the first two moments, error
from astigmatism, agreement with exact moments, also behind CTFs and with known shifts,
and what eigenvectors keep within a memory budget.

    OMP_NUM_THREADS=1 python benchmarks/third.py [--map MAP.mrc] [--images N]
    python benchmarks/third.py --only passes astigmatism
    python benchmarks/third.py --only ctfs --map MAP.mrc --ctf-images 2000 --snr 0.0625

Views are drawn from the 864 points of a spherical design and turned by angles drawn
uniformly, so that exact moments are sums over 864 slices of the volume; images are
ASPIRE's projections with white noise added, 0.5 per pixel for a volume of unit norm and
plain-sum projections (the paper's). Times are CPU times, the best of several.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from aspire.image import Image
from aspire.operators import CTFFilter
from aspire.source import ArrayImageSource
from aspire.utils import Rotation
from aspire.utils.logging import setConsoleLoggingLevel
from aspire.volume import Volume

from aspire_mom.bases import PolarBasis
from aspire_mom.moments import MomentEstimator, Moments, Noise, ThirdMomentBasis
from aspire_mom.moments.ctf import TransferFunctions, radial_part
from aspire_mom.moments.moments import weighted_norm
from aspire_mom.phantoms import chain_phantom, gaussian_phantom
from aspire_mom.rotations import SphericalDesign, viewing_rotations

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.ctf import ctfs, filtered, projections, signal_power, source_of
from benchmarks.moments import average, slice_coefficients
from benchmarks.throughput import with_ctfs

BATCH = 512
PILOT = 4000
PIXEL_SIZE = 5.6  # Å, of images with CTFs
SETS = 6  # of N/32, N/32, N/16, … N/2 images, merged one after another


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--map", type=Path, help="a real map to add to the phantom")
    parser.add_argument("--images", type=int, default=32_000, help="of the phantom")
    parser.add_argument("--map-images", type=int, default=16_000)
    parser.add_argument("--ctf-images", type=int, default=500, help="fewest with CTFs")
    parser.add_argument("--snr", type=float, default=1, help="of those")
    sections = ("passes", "astigmatism", "ctfs", "compressed")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections)
    arguments = parser.parse_args()
    setConsoleLoggingLevel("WARNING")
    start = time.perf_counter()
    volume = chain_phantom(63)
    if arguments.map:
        volume = Volume.load(arguments.map)
    if "passes" in arguments.only:
        passes()
    if "astigmatism" in arguments.only:
        astigmatism(volume)
    if "ctfs" in arguments.only:
        convergence(volume, arguments.ctf_images, arguments.snr)
    if "compressed" in arguments.only:
        compressed(arguments)
    print(f"\n{time.perf_counter() - start:.0f} s in all")


def passes() -> None:
    """Cost of whole passes, with third moments of 8 rings or within a budget."""
    print("CPU time per image of a pass at L = 63 over images in memory, float32")
    print(f"{'CTFs':12} {'third':>9} {'1st + 2nd':>11} {'and third':>11} {'ratio':>6}")
    images = np.random.default_rng(0).standard_normal((2048, 63, 63), dtype=np.float32)
    basis, plain = PolarBasis(63), ArrayImageSource(images, pixel_size=4.0)
    clean = ArrayImageSource(
        projections(chain_phantom(63), 600, seed=0), pixel_size=4.0
    )
    pilot = MomentEstimator(clean, basis, noise=Noise(variance=0)).estimate()
    rings, vectors = ThirdMomentBasis.rings(basis), ThirdMomentBasis.from_moments(pilot)
    for name, source, kept in (
        ("none", plain, rings),
        ("radial", with_ctfs(images, 0), rings),
        ("astigmatic", with_ctfs(images, 600), rings),
        ("none", plain, vectors),
    ):
        estimators = [MomentEstimator(source, basis, third=t) for t in (None, kept)]
        two, three = best(*(e.estimate for e in estimators), rounds=5)
        columns = (f"{1e6 * t / len(images):8.0f} µs" for t in (two, three))
        print(f"{name:12} {kept.nbytes / 1e6:6.2f} MB", *columns, f"{three / two:6.2f}")


def astigmatism(volume: Volume, n: int = 20) -> None:
    """Error from taking astigmatic CTFs as radial, of clean images behind all of 50."""
    basis = PolarBasis(volume.resolution)
    kept, none = ThirdMomentBasis.rings(basis), np.zeros(basis.second_shape)
    clean = projections(volume, n, seed=0)
    expected, _ = kept.finish(kept.sums(basis.coefficients(clean)), n, none)
    clean = np.repeat(clean, 50, axis=0)
    print(
        f"\nRelative error of the third moment of {kept.n_rings} rings, L ="
        f" {basis.L}, {PIXEL_SIZE} Å pixels, from"
    )
    print("taking astigmatic CTFs of 1 to 2.5 µm as radial")
    for difference in (250, 500, 1000, 2000, 4000):
        source = source_of(clean, ctfs(50, difference), PIXEL_SIZE, 0)
        H = TransferFunctions(source, basis).of_images(np.arange(len(clean)))
        sums = kept.sums(basis.coefficients(clean, H**2), radial_part(H))
        error = kept.finish(sums, len(clean), none)[0] - expected
        share = weighted_norm(error, kept.weights) / weighted_norm(
            expected, kept.weights
        )
        print(f"{difference / 1e4:6.3f} µm {share:9.1e}", flush=True)


def convergence(volume: Volume, n: int, snr: float) -> None:
    """Error at n, 4n and 16n images, and what is left of it without noise."""
    views = viewing_rotations(SphericalDesign(41).points)
    basis = PolarBasis(volume.resolution)
    kept = ThirdMomentBasis.rings(basis)
    inner = basis.cut(kept.n_rings, kept.max_order)
    of_inner = ThirdMomentBasis.rings(inner)
    exact = exact_third(of_inner, slice_coefficients(volume, views, inner))
    few = next(noisy_images(volume, views, 0.0))[:40]
    variance = signal_power(few) / snr
    print(
        f"\nRelative error of the third moment of {kept.n_rings} rings, SNR {snr:.3g},"
    )
    print("in brackets what its standard errors foretell, and floor without noise")
    counts = n, 4 * n, 16 * n
    print(f"{'':20}", *(f"{f'N = {count}':>17}" for count in counts), f"{'floor':>8}")

    def relative(values: np.ndarray, expected: np.ndarray) -> float:
        return weighted_norm(values, kept.weights) / weighted_norm(
            expected, kept.weights
        )

    for name, filters, shift_std in (
        ("no CTF", [], 0),
        ("CTFs", ctfs(50, 500), 0),
        ("CTFs, known shifts", ctfs(50, 500), 1.5),
    ):
        stream = noisy_images(volume, views, 0.0)
        rng = np.random.default_rng(1)

        def moments(clean, variance, filters=filters, std=shift_std, rng=rng):
            source = behind(clean, variance, filters, std, rng)
            noise = Noise(variance=variance)
            return MomentEstimator(source, basis, noise=noise).estimate()

        merged, columns = None, []
        for count in counts:
            while merged is None or merged.n_images < count:
                missing = count - (merged.n_images if merged else 0)
                part = moments(next(stream)[:missing], variance)
                merged = part if merged is None else merged.merge(part)
            error = relative(merged.third - exact, exact)
            foretold = relative(merged.third_error, exact)
            columns.append(f"{error:8.4f} ({foretold:6.4f})")
        every = moments(np.repeat(few, max(len(filters), 1), axis=0), 0.0)
        alone = moments(few, 0.0, filters=[], std=0)
        floor = relative(every.third - alone.third, alone.third)
        print(f"{name:20}", *columns, f"{floor:8.1e}", flush=True)


def behind(
    clean: np.ndarray,
    variance: float,
    filters: list[CTFFilter],
    shift_std: float,
    rng: np.random.Generator,
) -> ArrayImageSource:
    """Images behind CTFs and shifts, which act in a box twice as large, and noise."""
    n, L = len(clean), clean.shape[-1]
    pad = (L + 1) // 2
    wide = np.pad(clean, ((0, 0), (pad, pad), (pad, pad)))
    offsets = shift_std * rng.standard_normal((n, 2)).astype(np.float32)
    wide = filtered(wide, filters, PIXEL_SIZE) if filters else wide
    if shift_std:
        wide = Image(wide).shift(offsets).asnumpy()
    noise = rng.standard_normal(clean.shape, dtype=np.float32)
    images = wide[:, pad : pad + L, pad : pad + L] + np.float32(variance**0.5) * noise
    source = source_of(images, filters, PIXEL_SIZE, 0)
    source.offsets = offsets
    return source


def compressed(arguments: argparse.Namespace) -> None:
    """Compression to eigenvectors: budgets and accuracy."""
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


def best(*calls: Callable[[], object], rounds: int = 15) -> list[float]:
    """Least CPU time of each, taken in turns, since other jobs may be running."""
    times = np.full(len(calls), np.inf)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start = time.process_time()
            call()
            times[i] = min(times[i], time.process_time() - start)
    return times.tolist()


def budgets(name: str, c: np.ndarray, basis: PolarBasis) -> None:
    """What eigenvectors and rings keep within budgets."""
    p = np.full(len(c), 1 / len(c))
    exact, total = average(c, p, basis), norm_of_all(c, basis)
    of_rings = [ThirdMomentBasis.rings(basis, n + 1) for n in range(basis.n_rings)]
    whole = of_rings[-1]
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
            max((k for k in of_rings if k.nbytes <= budget), key=lambda k: k.size),
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
    """Error of compressed moments as the number of images grows."""
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
