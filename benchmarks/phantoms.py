"""
Reconstructions of phantoms drawn at random, from noisy images at the paper's noise.

Centres, widths, heights and views are all redrawn with the seed; views are continuous
(not the solver's nodes), and the solver is told neither the number nor the widths of
the Gaussians. Beside them stands a random chain of 300 atoms, which is no mixture of a
few Gaussians. The paper's figure for its own phantom is 4.45 Å (Table 3).

    python benchmarks/phantoms.py                        # seeds 0 to 4, a chain
    python benchmarks/phantoms.py --seeds 100-109 --chains none
    python benchmarks/phantoms.py --priors gaussians harmonics fouriernet
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
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
from aspire_mom.phantoms import chain_phantom, gaussian_phantom
from aspire_mom.simulation import FastSimulation, WhiteNoise

L = 25
SIGMA = 0.5
PHANTOMS = {"gaussians": gaussian_phantom, "chain": chain_phantom}


def seeds(text: str) -> list[int]:
    """ "3", "0-4" or "none"."""
    if text == "none":
        return []
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def estimate(volume: Volume, n_images: int, seed: int) -> tuple[Moments, float]:
    """Moments of simulated images, and their SNR (as ASPIRE defines it)."""
    # Another stream than the phantom's, or views would point along its Gaussians.
    views = VonMisesFisherMixture.random(8, seed=seed + 1000)
    source = FastSimulation(
        n=n_images,
        vols=volume,
        angles=views.sample(n_images, seed=seed).angles.astype(volume.dtype),
        offsets=0,
        amplitudes=1,
        noise_adder=WhiteNoise((SIGMA / L) ** 2, seed=seed),
        seed=seed,
    )
    clean = source.clean_images[:500].asnumpy()
    grid = np.arange(L) - L // 2
    disc = np.hypot(grid[:, None], grid) < L / 2
    snr = np.mean(clean[:, disc] ** 2) / (SIGMA / L) ** 2
    return MomentEstimator(source, PolarBasis(L)).estimate(), float(snr)


def run(kind: str, seed: int, priors: list[str], n_images: int) -> list[dict]:
    """All rows of one phantom."""
    volume = PHANTOMS[kind](L, seed=seed)
    start = time.perf_counter()
    moments, snr = estimate(volume, n_images, seed)
    row = {"phantom": kind, "seed": seed, "snr": snr, "n_images": n_images}
    row["simulate_seconds"] = time.perf_counter() - start
    rows = []
    for prior in priors:
        start = time.perf_counter()
        search = SearchOptions(seed=seed)
        reconstruction = MomentInversion(moments, prior, search=search).estimate()
        seconds = time.perf_counter() - start
        comparison = compare(reconstruction.volume, volume)
        rows.append(
            {
                **row,
                "prior": prior,
                "angstrom": comparison.resolution(0.5),
                "shells": comparison.resolution_shells(0.5),
                "correlation": comparison.correlation,
                "fsc": comparison.fsc.tolist(),
                "seconds": seconds,
                "stage": reconstruction.history[-1]["stage"],
            }
        )
        print(format_row(rows[-1]), flush=True)
    return rows


def format_row(row: dict) -> str:
    """One line of the table."""
    return (
        f"{row['phantom']:9} {row['seed']:4d} {row['snr']:6.3f}  {row['prior']:10}"
        f" {row['angstrom']:6.2f} Å {row['shells']:6.2f} shells"
        f"  corr {row['correlation']:.3f} {row['seconds']:6.0f} s  FSC "
        + " ".join(f"{value:.2f}" for value in row["fsc"][1:])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--chains", default="0")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--priors", nargs="+", default=["gaussians"])
    parser.add_argument("--json", type=Path, help="append rows to this file")
    options = parser.parse_args()
    rows = []
    for kind, text in (("gaussians", options.seeds), ("chain", options.chains)):
        for seed in seeds(text):
            rows += run(kind, seed, options.priors, options.images)
            if options.json:
                with open(options.json, "a") as file:
                    file.writelines(
                        json.dumps(row) + "\n" for row in rows[-len(options.priors) :]
                    )
    summarise(rows)


def summarise(rows: list[dict]) -> None:
    """Medians over phantoms of a kind, per prior."""
    for kind, prior in sorted({(row["phantom"], row["prior"]) for row in rows}):
        mine = [r for r in rows if (r["phantom"], r["prior"]) == (kind, prior)]
        angstrom = np.median([row["angstrom"] for row in mine])
        seconds = np.median([row["seconds"] for row in mine])
        print(
            f"median over {len(mine)} {kind} phantoms, prior {prior}: {angstrom:.2f} Å"
            f" at FSC 0.5, {seconds:.0f} s (the paper's own phantom: 4.45 Å)"
        )


if __name__ == "__main__":
    main()
