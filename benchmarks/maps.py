"""
Real maps, through star and mrcs files on disk: simulate → moments → reconstruct →
evaluate, with every prior, and every start's criterion beside its FSC.

    python benchmarks/maps.py gpcr_gs_7cfn_63.mrc --pixel-size 2.5
    python benchmarks/maps.py ribosome_70s_65.mrc --pixel-size 5 --seeds 3
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from aspire.volume import Volume

from aspire_mom import MomentInversion, Moments, SearchOptions, compare


def command(*words: object) -> float:
    """Run `aspire-mom …`, of this interpreter's environment, and return its seconds."""
    start = time.perf_counter()
    script = Path(sys.executable).with_name("aspire-mom")
    subprocess.run([script, *map(str, words)], check=True, capture_output=True)
    return time.perf_counter() - start


def run(options: argparse.Namespace, seed: int, priors: list[str]) -> dict[str, float]:
    """Resolutions in shells of one simulated data set, per prior."""
    path, size = options.map, options.pixel_size
    with tempfile.TemporaryDirectory() as folder:
        star, npz = Path(folder) / "particles.star", Path(folder) / "moments.npz"
        simulate = command(
            *("simulate", path, "--images", options.images, "--snr", options.snr),
            *("--views", "vmf", "--pixel-size", size, "--seed", seed, "-o", star),
        )
        estimate = command("moments", star, "-o", npz)
        moments = Moments.load(npz)
    print(
        f"{path.name} seed {seed}: {moments.n_images} images at SNR {options.snr:.4f},"
        f" simulated in {simulate:.0f} s, moments in {estimate:.0f} s"
    )
    reference = Volume(Volume.load(path).asnumpy(), pixel_size=size)
    resolutions = {}
    for prior in priors:
        start = time.perf_counter()
        search = SearchOptions(seed=seed)
        reconstruction = MomentInversion(moments, prior, search=search).estimate()
        seconds = time.perf_counter() - start
        print(f"  {prior}: {seconds:.0f} s, {reconstruction.history[-1]['stage']}")
        for i, entry in enumerate(reconstruction.starts):
            found = compare(reconstruction.start_volumes[i], reference)
            shells = found.resolution_shells(0.5)
            resolutions.setdefault(prior, shells)
            fsc = " ".join(f"{value:.2f}" for value in found.fsc[1:11])
            print(
                f"    start {entry['seed']:3d}  criterion {entry['criterion']:9.1f}"
                f"  {shells:5.2f} shells {found.resolution(0.5):6.1f} Å"
                f"  corr {found.correlation:.3f}  FSC {fsc}",
                flush=True,
            )
    return resolutions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("map", type=Path)
    parser.add_argument("--pixel-size", type=float, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--snr", type=float, default=1 / 16)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--priors",
        nargs="+",
        default=["gaussians"],
        help="first seed: all of these; later seeds: the first only",
    )
    options = parser.parse_args()
    found = []
    for i in range(options.seeds):
        priors = options.priors if i == 0 else options.priors[:1]
        seed = options.first_seed + i
        found.append(run(options, seed, priors)[options.priors[0]])
    box = Volume.load(options.map).resolution * options.pixel_size
    median = np.median(found)
    print(
        f"{options.map.name}, prior {options.priors[0]}: median over {len(found)} seeds"
        f" {median:.2f} shells, {box / median:.1f} Å at FSC 0.5"
    )


if __name__ == "__main__":
    main()
