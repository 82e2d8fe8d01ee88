"""
Images per second that `FastSimulation` draws, beside ASPIRE's `Simulation`, and the
largest difference of their clean images.

    python benchmarks/simulation.py MAP.mrc [--images 8192] [--threads 2]

CTFs and shifts are as those of `benchmarks/grid.py`.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from aspire.noise import WhiteNoiseAdder
from aspire.source import Simulation
from aspire.utils.logging import setConsoleLoggingLevel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from aspire_mom.simulation import FastSimulation, WhiteNoise, defocus_groups
from benchmarks.grid import read_unit_volume

BATCH = 1024
# ASPIRE's images that are timed, and compared with.
ASPIRE_IMAGES = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("map", type=Path, help="MRC file")
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    setConsoleLoggingLevel("WARNING")
    volume, n = read_unit_volume(options.map), options.images
    shifts = np.random.default_rng(0).normal(scale=1.5, size=(n, 2))
    ctfs = defocus_groups(8e3, 3e4)
    plain = {"vols": volume, "n": n, "amplitudes": 1, "offsets": 0}
    cases = {
        "no CTF": plain,
        "CTFs and shifts": plain | {"unique_filters": ctfs, "offsets": shifts},
    }
    for name, case in cases.items():
        ours = FastSimulation(**case, noise_adder=WhiteNoise(1.0))
        theirs = Simulation(**case, noise_adder=WhiteNoiseAdder(1.0))
        expected, found = (
            source.clean_images[:ASPIRE_IMAGES].asnumpy() for source in (theirs, ours)
        )
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        slow = rate(theirs, ASPIRE_IMAGES, 1)
        fast = rate(ours, n, options.threads)
        print(
            f"{name}, {volume.resolution} pixels: {fast:.0f} images/s in"
            f" {options.threads} threads, ASPIRE {slow:.0f} in one"
            f" ({fast / slow:.0f} times); clean images differ by {error:.1e}",
            flush=True,
        )


def rate(source: Simulation, n: int, n_threads: int) -> float:
    """Images per second, of the first n."""
    start = time.perf_counter()
    with ThreadPoolExecutor(n_threads) as pool:
        batches = (slice(i, min(i + BATCH, n)) for i in range(0, n, BATCH))
        for future in [pool.submit(source.images.__getitem__, b) for b in batches]:
            future.result()
    return n / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
