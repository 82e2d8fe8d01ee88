"""
Coloured noise, shifts and amplitudes: errors of both moments against exact ones, with
and without each correction.

    python benchmarks/corrections.py MAP.mrc [--pixel-size 2.5] [--images 20000]

Images are ASPIRE's projections from uniform views; errors are eq. 22, and in brackets
those of the second moment on the rings that carry 95 % of the power, weighted by r.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from aspire.image import Image
from aspire.noise import CustomNoiseAdder, LegacyNoiseEstimator
from aspire.operators import FunctionFilter
from aspire.source import ArrayImageSource
from aspire.utils import Rotation
from aspire.utils.logging import setConsoleLoggingLevel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from aspire_mom.bases import PolarBasis
from aspire_mom.cli.volumes import read_volume
from aspire_mom.inversion.forward import Shifts
from aspire_mom.moments import CorrectionOptions, MomentEstimator, Moments, Noise
from aspire_mom.moments.report import RingReport
from aspire_mom.rotations import viewing_rotations
from benchmarks.ctf import DEGREE, error_of, signal_power
from benchmarks.moments import exact_moments
from tests.references.moments import product_quadrature

SHIFT_STD = 1.5
AMPLITUDES = 0.3
# Falls by a factor of 11 from zero frequency to Nyquist; scaled to the SNR.
FALLING = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("map", type=Path, help="MRC file")
    parser.add_argument("--pixel-size", type=float, default=2.5)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--snr", type=float, default=0.05)
    arguments = parser.parse_args()
    setConsoleLoggingLevel("ERROR")
    start = time.perf_counter()
    volume = read_volume(arguments.map, arguments.pixel_size).astype(np.float32)
    basis, n = PolarBasis(volume.resolution), arguments.images
    directions, weights = product_quadrature(DEGREE)
    exact = exact_moments(volume, viewing_rotations(directions), weights, basis)
    rotations = Rotation.generate_random_rotations(n, seed=0).matrices
    clean = np.concatenate(
        [
            volume.project(Rotation(part, gimble_lock_warnings=False)).asnumpy()
            for part in np.array_split(rotations, max(n // 1000, 1))
        ]
    )
    variance = signal_power(clean) / arguments.snr
    print(f"{arguments.map.name}, {n} images, SNR {arguments.snr:g}")
    print(f"{'':44} {'M1':>8} {'M2':>8} {'(rings)':>9}")
    coloured_noise(clean, variance, exact)
    rng = np.random.default_rng(1)
    noise = np.sqrt(variance, dtype=np.float32) * rng.standard_normal(
        clean.shape, dtype=np.float32
    )
    shifts(clean, noise, exact, rng)
    amplitudes(clean, noise, exact, rng)
    print(f"{time.perf_counter() - start:.0f} s in all")


def coloured_noise(clean: np.ndarray, variance: float, exact: Moments) -> None:
    def falling(x, y):
        return 1 / (1 + (FALLING - 1) * (x**2 + y**2) / np.pi**2)

    size = 2 * clean.shape[-1]
    scale = variance / FunctionFilter(falling).evaluate_grid(size).mean()
    true = FunctionFilter(lambda x, y: scale * falling(x, y))
    adder = CustomNoiseAdder(true, seed=0)
    noisy = adder.forward(Image(clean), indices=np.arange(len(clean))).asnumpy()
    report("coloured noise taken as white", noisy, exact)
    given = report("  spectrum given", noisy, exact, noise=Noise(spectrum=true))
    seen = report(
        "  spectrum seen in the corners", noisy, exact, noise=Noise(spectrum="corners")
    )
    print(
        f"  power of rings off by {in_errors(given, exact):.1f} (given) and"
        f" {in_errors(seen, exact):.1f} (seen) standard errors, RMS"
    )
    legacy = LegacyNoiseEstimator(source_of(noisy)).filter
    report(
        "  spectrum of ASPIRE's estimator", noisy, exact, noise=Noise(spectrum=legacy)
    )


def shifts(
    clean: np.ndarray, noise: np.ndarray, exact: Moments, rng: np.random.Generator
) -> None:
    L = clean.shape[-1]
    offsets = SHIFT_STD * rng.standard_normal((len(clean), 2))
    noisy = Image(clean).shift(offsets.astype(np.float32)).asnumpy() + noise
    report("white noise, no shifts", clean + noise, exact)
    report(f"shifts of {SHIFT_STD:g} pixels left out", noisy, exact)
    std = SHIFT_STD / L
    model = Shifts(exact.basis.n_rings, exact.basis.max_order, max_std=std)
    first, second = model(
        torch.from_numpy(exact.first), torch.from_numpy(exact.second), std
    )
    shifted = replace(exact, first=first.numpy(), second=second.numpy())
    report("  modelled", noisy, shifted)
    report("  known and undone", noisy, exact, offsets=offsets)


def amplitudes(
    clean: np.ndarray, noise: np.ndarray, exact: Moments, rng: np.random.Generator
) -> None:
    factors = rng.uniform(1 - AMPLITUDES, 1 + AMPLITUDES, len(clean))
    noisy = clean * factors[:, None, None].astype(np.float32) + noise
    std = AMPLITUDES / np.sqrt(3)
    report(f"amplitudes of 1 ± {AMPLITUDES:g}, left out", noisy, exact)
    report(
        "  spread given", noisy, exact, corrections=CorrectionOptions(amplitude_std=std)
    )
    report(
        "  spread estimated",
        noisy,
        exact,
        corrections=CorrectionOptions(amplitude_std=None),
    )


def source_of(images: np.ndarray) -> ArrayImageSource:
    return ArrayImageSource(images, pixel_size=1.0)


def report(
    label: str, images: np.ndarray, exact: Moments, offsets=None, **options
) -> Moments:
    source = source_of(images)
    if offsets is not None:
        source = source.update(offsets=offsets)
    moments = MomentEstimator(source, exact.basis, **options).estimate()
    first, second = exact.relative_error(moments)
    print(f"{label:44} {first:8.4f} {second:8.4f} ({error_of(moments, exact):7.4f})")
    sys.stdout.flush()
    return moments


def in_errors(moments: Moments, exact: Moments) -> float:
    """How far the power of rings is off, in its standard errors, RMS over rings."""
    off = RingReport.of(replace(moments, second=moments.second - exact.second)).signal
    return np.sqrt(np.mean((off / RingReport.of(moments).error) ** 2))


if __name__ == "__main__":
    main()
