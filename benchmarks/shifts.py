"""
Residual shifts that are left out, given, and found by the inversion: their standard
deviation beside the true one, and the resolution of what is recovered.

    python benchmarks/shifts.py MAP.mrc --pixel-size 2.5
    python benchmarks/shifts.py phantom --stds 1.5 0.6 0

Shifts are Gaussian and unknown to the estimator; views are random mixtures of von
Mises-Fisher distributions. "phantom" stands for the four Gaussians of the first example
of the gallery, at its noise (50,000 images, unless said otherwise). A standard
deviation of 0 shows what looking for shifts that are not there costs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from aspire.utils.logging import setConsoleLoggingLevel
from aspire.volume import Volume

from aspire_mom import (
    MomentEstimator,
    MomentInversion,
    Moments,
    PolarBasis,
    SearchOptions,
    VonMisesFisherMixture,
    compare,
)
from aspire_mom.cli.volumes import read_volume
from aspire_mom.moments import CorrectionOptions
from aspire_mom.phantoms import gaussian_phantom
from aspire_mom.simulation import FastSimulation, WhiteNoise

# The paper's noise (section 5.2): ASPIRE divides projections by L.
L = 25
SIGMA = 0.5 / L


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("map", help='MRC file, or "phantom"')
    parser.add_argument("--pixel-size", type=float, default=2.5)
    parser.add_argument(
        "--stds", type=float, nargs="+", default=[1.5, 0.0], help="pixels"
    )
    parser.add_argument("--images", type=int)
    parser.add_argument("--snr", type=float, default=1 / 16)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    setConsoleLoggingLevel("ERROR")
    for seed in range(arguments.seeds):
        if arguments.map == "phantom":
            volume = gaussian_phantom(L, seed=seed)
            noise = WhiteNoise(SIGMA**2, seed=seed + 3)
            n = arguments.images or 50_000
        else:
            volume = read_volume(Path(arguments.map), arguments.pixel_size)
            noise = WhiteNoise.from_snr(arguments.snr, seed=seed + 3)
            n = arguments.images or 20_000
        for std in arguments.stds:
            moments = estimate(volume, n, std, noise, seed)
            print(f"{arguments.map} seed {seed}, {n} images, shifts of {std:g} pixels")
            cases = {"left out": 0.0, "given": std, "found": None}
            if std == 0:
                del cases["given"]
            for name, told in cases.items():
                report(name, moments.with_corrections(shift_std=told), volume, seed)


def estimate(
    volume: Volume, n: int, std: float, noise: WhiteNoise, seed: int
) -> Moments:
    """Moments of images whose shifts the estimator does not undo."""
    views = VonMisesFisherMixture.random(seed=seed + 1)
    rng = np.random.default_rng(seed + 4)
    source = FastSimulation(
        n=n,
        vols=volume,
        angles=views.sample(n, seed=seed + 2).angles.astype(volume.dtype),
        offsets=std * rng.standard_normal((n, 2)),
        amplitudes=1,
        noise_adder=noise,
        seed=seed + 2,
    )
    basis = PolarBasis(volume.resolution)
    return MomentEstimator(
        source, basis, corrections=CorrectionOptions(ignore_shifts=True)
    ).estimate()


def report(name: str, moments: Moments, volume: Volume, seed: int) -> None:
    start = time.perf_counter()
    found = MomentInversion(moments, search=SearchOptions(seed=seed)).estimate()
    seconds = time.perf_counter() - start
    comparison = compare(found.volume, volume)
    stds = " ".join(f"{s.get('shift_std', 0):.2f}" for s in found.starts[1:])
    print(
        f"  {name:9} {found.shift_std:5.2f} pixels (other starts {stds})"
        f" {comparison.resolution(0.5):6.2f} Å"
        f" {comparison.resolution_shells(0.5):5.2f} shells"
        f"  criterion {found.starts[0]['criterion']:.0f} {seconds:4.0f} s"
        f"  FSC {' '.join(f'{value:.2f}' for value in comparison.fsc[1:9])}",
        flush=True,
    )


if __name__ == "__main__":
    main()
