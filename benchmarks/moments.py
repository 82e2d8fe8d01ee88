"""
Moments from images: agreement with direct computation and with closed forms, error
against the number of images, images per second.

    python benchmarks/moments.py [--plot moments.png]

Noise is that of the paper's section 5.2, standard deviation 0.5 on plain-sum
projections of a unit-norm volume: variance (0.5/L)² per pixel in ASPIRE. The third
table needs 128,000 images per case: ASPIRE's clean projections with NumPy's white
noise added to them, of the same distribution as `WhiteNoiseAdder`'s, which takes about
1 ms per image; the first table uses `WhiteNoiseAdder` itself.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import reduce
from pathlib import Path

import numpy as np
from aspire.noise import WhiteNoiseAdder
from aspire.source import ArrayImageSource, ImageSource, Simulation
from aspire.utils import Rotation
from aspire.utils.logging import setConsoleLoggingLevel
from aspire.volume import Volume

from aspire_mom.bases import Basis, CartesianBasis, PolarBasis
from aspire_mom.moments import MomentEstimator, Moments, Noise
from aspire_mom.moments.moments import weighted_norm
from aspire_mom.phantoms import gaussian_phantom, gaussians_on_grid
from aspire_mom.rotations import (
    SphericalDesign,
    VonMisesFisherMixture,
    viewing_rotations,
)
from aspire_mom.volumes.grid import volume_at

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.references import moments as reference

# Sets of images that are merged one after another: moments of 500, 1,000, … 32,000.
SETS = (500, 500, 1000, 2000, 4000, 8000, 16000)
COUNTS = np.cumsum(SETS)
SEEDS = 4
# Four Gaussians that end within the box and within Nyquist, to 1e-5, at 24 and 25.
CENTRES = np.array([[2.1, -0.7, 1.4], [-2.8, 0.7, 0.3], [0, 2.8, -2.1], [0.7, -2, -1]])
SIGMAS, HEIGHTS = np.array([1.5, 1.8, 1.6, 1.7]), np.array([1.0, 1.5, 0.7, 2.0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--plot", metavar="PATH", help="draw error against N here")
    arguments = parser.parse_args()
    setConsoleLoggingLevel("WARNING")
    start = time.perf_counter()
    direct_agreement()
    closed_form_agreement()
    curves = {
        "25": error_against_count(25, 25),
        "32 -> 24": error_against_count(32, 24),
    }
    speed()
    if arguments.plot:
        plot(curves, arguments.plot)
    print(f"\n{time.perf_counter() - start:.0f} s in all")


def direct_agreement() -> None:
    """Table (a)."""
    print("Largest difference from moments computed image by image from the defining")
    print("sums, relative to the largest entry (40 noisy images)")
    print(f"{'L':9} {'basis':16} {'float32':>17} {'float64':>17}")
    for name, L, target in (("25", 25, 25), ("24", 24, 24), ("32 -> 24", 32, 24)):
        for basis in (CartesianBasis(target), PolarBasis(target)):
            columns = []
            for dtype in (np.float32, np.float64):
                source = noisy_simulation(L, 40, dtype)
                source = source if target == L else source.downsample(target)
                moments = MomentEstimator(
                    source, basis, noise=Noise(variance=0)
                ).estimate()
                first, second, *_ = reference.raw_moments(
                    source.images[:].asnumpy(), basis
                )
                columns += [
                    f"{largest_difference(moments.first, first):8.1e}",
                    f"{largest_difference(moments.second, second):8.1e}",
                ]
            print(f"{name:9} {type(basis).__name__:16}", *columns, flush=True)


def noisy_simulation(L: int, n: int, dtype: type) -> ImageSource:
    angles = Rotation.generate_random_rotations(n, seed=0, dtype=np.float64).angles
    return Simulation(
        vols=gaussian_phantom(L).astype(dtype),
        n=n,
        angles=angles.astype(dtype),
        offsets=0,
        amplitudes=1,
        noise_adder=WhiteNoiseAdder((0.5 / L) ** 2, seed=0),
    )


def closed_form_agreement() -> None:
    """Table (b)."""
    print("\nLargest difference from the closed-form moments of four Gaussians, views")
    print(
        "uniform, relative to the largest entry: of the images at an 864-point design,"
    )
    print("and of the volume's Fourier values on rings")
    print(f"{'L':9} {'images':>17} {'volume':>17}")
    directions, weights = reference.product_quadrature(50)
    for L in (24, 25):
        basis = PolarBasis(L)
        volume = gaussians_on_grid(CENTRES, SIGMAS, HEIGHTS, L, pixel_size=1.0)
        volume = volume.astype(np.float64)
        masses = HEIGHTS * SIGMAS**3
        masses *= volume.asnumpy().sum() / masses.sum()
        c = reference.gaussian_coefficients(
            CENTRES,
            SIGMAS,
            masses,
            L,
            viewing_rotations(directions),
            basis.n_rings,
            np.arange(basis.max_order + 1),
        )
        exact = average(c, weights, basis)
        views = viewing_rotations(SphericalDesign(41).points)
        images = volume.project(Rotation(views, gimble_lock_warnings=False))
        source = ArrayImageSource(images, pixel_size=1.0)
        estimate = MomentEstimator(source, basis, noise=Noise(variance=0)).estimate()
        of_volume = exact_moments(volume, views, np.full(len(views), 1 / 864), basis)
        columns = [
            f"{largest_difference(getattr(moments, name), getattr(exact, name)):8.1e}"
            for moments in (estimate, of_volume)
            for name in ("first", "second")
        ]
        print(f"{L:<9}", *columns, flush=True)


def exact_moments(
    volume: Volume, views: np.ndarray, weights: np.ndarray, basis: PolarBasis
) -> Moments:
    """In-plane averaged moments of clean projections, from the volume's slices."""
    return average(slice_coefficients(volume, views, basis), weights, basis)


def slice_coefficients(
    volume: Volume, views: np.ndarray, basis: PolarBasis
) -> np.ndarray:
    """Coefficients (views, orders, rings) of clean projections from slices."""
    n_angles = 2 * (basis.max_order + 8)
    theta = 2 * np.pi * np.arange(n_angles) / n_angles
    circle = np.stack((np.cos(theta), np.sin(theta)))
    directions = (views[:, :, :2] @ circle).transpose(0, 2, 1).reshape(-1, 3)
    k = np.arange(basis.n_rings)[:, None] * directions[:, None, :]
    values = volume_at(volume, k)
    values = values.reshape(len(views), n_angles, -1) / volume.resolution
    return np.fft.fft(values, axis=1)[:, : basis.max_order + 1] / n_angles


def average(c: np.ndarray, weights: np.ndarray, basis: PolarBasis) -> Moments:
    """Moments of coefficients (views, orders, rings)."""
    by_order = c.transpose(1, 2, 0)
    return Moments(
        first=by_order[0] @ weights,
        second=(by_order * weights) @ by_order.conj().transpose(0, 2, 1),
        basis=basis,
    )


def error_against_count(L: int, target: int) -> np.ndarray:
    """
    Table (c), for images of size L, downsampled to `target`.

    :return: Relative errors of both moments (SEEDS, counts, 2).
    """
    volume, basis = gaussian_phantom(L), PolarBasis(target)
    density = VonMisesFisherMixture.random(seed=0)
    directions, weights = reference.product_quadrature(60)
    weights = 4 * np.pi * weights * density.pdf(directions)
    exact = exact_moments(volume, viewing_rotations(directions), weights, PolarBasis(L))
    exact = on_fewer_pixels(exact, basis)
    errors, stated = [], []
    for seed in range(SEEDS):
        parts = noisy_moments(volume, density, basis, seed)
        merged = [reduce(Moments.merge, parts[: i + 1]) for i in range(len(SETS))]
        errors.append([exact.relative_error(m) for m in merged])
        stated.append([stated_error(m) for m in merged])
    errors = np.array(errors)
    rms, expected = (np.sqrt(np.mean(np.square(e), 0)) for e in (errors, stated))
    slopes = np.polyfit(np.log(COUNTS), np.log(rms), 1)[0]
    size = f"L = {L}" if target == L else f"L = {L} downsampled to {target}"
    print(f"\nRelative error (eq. 22) against exact moments, {size}, polar basis: root")
    print(f"mean square of {SEEDS} draws; in brackets what standard errors foretell")
    print(f"{'N':>6} {'first moment':>22} {'second moment':>22}")
    for count, *columns in zip(COUNTS, rms, expected, strict=True):
        first, second = (f"{e:11.5f} ({s:8.5f})" for e, s in zip(*columns, strict=True))
        print(f"{count:6} {first:>22} {second:>22}")
    print(f"{'slope':6} {slopes[0]:22.3f} {slopes[1]:22.3f}", flush=True)
    return errors


def on_fewer_pixels(moments: Moments, basis: PolarBasis) -> Moments:
    """Of downsampled images, whose Fourier values are (target/L)² times the former."""
    scale = (basis.L / moments.basis.L) ** 2
    M, R = basis.max_order + 1, basis.n_rings
    return Moments(
        scale * moments.first[:R], scale**2 * moments.second[:M, :R, :R], basis
    )


def noisy_moments(
    volume: Volume, density: VonMisesFisherMixture, basis: Basis, seed: int
) -> list[Moments]:
    """Moments of sets of fresh images, the noise variance estimated."""
    L, rng = volume.resolution, np.random.default_rng(seed)
    rotations = density.sample(sum(SETS), seed=seed).matrices.astype(np.float32)
    moments = []
    for part in np.split(rotations, COUNTS[:-1]):
        images = volume.project(Rotation(part, gimble_lock_warnings=False)).asnumpy()
        noise = rng.standard_normal(images.shape, dtype=np.float32)
        source = ArrayImageSource(images + 0.5 / L * noise, pixel_size=1.0)
        source = source if basis.L == L else source.downsample(basis.L)
        moments.append(MomentEstimator(source, basis).estimate())
    return moments


def stated_error(moments: Moments) -> tuple[float, ...]:
    basis = moments.basis
    return tuple(
        weighted_norm(error, weights) / weighted_norm(value, weights)
        for value, error, weights in (
            (moments.first, moments.first_error, basis.first_weights),
            (moments.second, moments.second_error, basis.second_weights),
        )
    )


def speed() -> None:
    """Table (d)."""
    print("\nImages per second, from memory, float32, all in all")
    print(
        f"{'L':>4} {'basis':16} {'images':>7} {'of wall time':>14} {'of CPU time':>14}"
    )
    rng = np.random.default_rng(0)
    for L, n in ((25, 16384), (63, 8192)):
        images = rng.standard_normal((n, L, L), dtype=np.float32)
        source = ArrayImageSource(images, pixel_size=1.0)
        for basis in (PolarBasis(L), CartesianBasis(L)):
            wall, cpu = time.perf_counter(), time.process_time()
            MomentEstimator(source, basis).estimate()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            name = type(basis).__name__
            print(f"{L:4} {name:16} {n:7} {n / wall:14.0f} {n / cpu:14.0f}", flush=True)


def largest_difference(values: np.ndarray, expected: np.ndarray) -> float:
    return np.abs(values - expected).max() / np.abs(expected).max()


def plot(curves: dict[str, np.ndarray], path: str) -> None:
    from matplotlib.figure import Figure

    axes = Figure(figsize=(6, 4.5), layout="constrained").subplots()
    for colour, (name, errors) in zip(("C0", "C1"), curves.items(), strict=True):
        for i, (moment, style) in enumerate((("first", "o--"), ("second", "s-"))):
            rms = np.sqrt(np.mean(errors[..., i] ** 2, axis=0))
            label = f"{moment} moment, L = {name}"
            axes.loglog(COUNTS, rms, style, color=colour, label=label)
    guide = rms[0] * np.sqrt(COUNTS[0] / COUNTS)
    axes.loglog(COUNTS, 0.6 * guide, "k:", label=r"$N^{-1/2}$")
    axes.set(xlabel="number of images N", ylabel="relative error (eq. 22)")
    axes.legend()
    axes.figure.savefig(path, dpi=150)
    print(f"\nplotted in {path}")


if __name__ == "__main__":
    main()
