"""
A simulated RELION set with CTFs and shifts through `aspire-mom moments`: time, and
error against exact moments; and on through `aspire-mom reconstruct`.

    python benchmarks/relion_set.py MAP.mrc [--pixel-size 2.5] [--images 20000]
    python benchmarks/relion_set.py MAP.mrc --reconstruct

Images are ASPIRE's: astigmatic CTFs of 20 micrographs, shifts of 1.5 pixels along each
axis that the STAR file tells, white noise; written by ASPIRE in stacks of 1,000.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from aspire.utils.logging import setConsoleLoggingLevel
from aspire.volume import Volume

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from aspire_mom import Moments, PolarBasis, compare
from aspire_mom.cli.volumes import read_volume
from aspire_mom.rotations import viewing_rotations
from aspire_mom.simulation import FastSimulation, WhiteNoise
from benchmarks.ctf import DEGREE, ctfs, error_of
from benchmarks.moments import exact_moments
from tests.references.moments import product_quadrature

SHIFT_STD = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("map", type=Path, help="MRC file")
    parser.add_argument("--pixel-size", type=float, default=2.5)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--snr", type=float, default=0.05)
    parser.add_argument("--reconstruct", action="store_true")
    arguments = parser.parse_args()
    setConsoleLoggingLevel("ERROR")
    volume = read_volume(arguments.map, arguments.pixel_size).astype(np.float32)
    directions, weights = product_quadrature(DEGREE)
    basis = PolarBasis(volume.resolution)
    exact = exact_moments(volume, viewing_rotations(directions), weights, basis)
    n, rng = arguments.images, np.random.default_rng(0)
    source = FastSimulation(
        vols=volume,
        n=n,
        offsets=SHIFT_STD * rng.standard_normal((n, 2)),
        amplitudes=1,
        unique_filters=ctfs(20, astigmatism=300),
        noise_adder=WhiteNoise.from_snr(arguments.snr, seed=0),
        seed=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        star, out = Path(folder) / "particles.star", Path(folder) / "moments.npz"
        start = time.perf_counter()
        source.save(str(star), batch_size=1000)
        print(f"{n} images simulated and written in {elapsed(start)}", flush=True)
        start = time.perf_counter()
        print(command("moments", star, "--resume", "-o", out))
        seconds = elapsed(start)
        moments = Moments.load(out)
        first, second = exact.relative_error(moments)
        print(f"moments in {seconds}; error of M1 {first:.4f}, of M2 {second:.4f}, on")
        print(f"rings that carry 95 % of the power {error_of(moments, exact):.4f}")
        if arguments.reconstruct:
            reconstruct(out, volume)


def reconstruct(moments: Path, volume: Volume) -> None:
    """By default settings, as with particles of one's own."""
    folder, start = moments.parent / "result", time.perf_counter()
    command("reconstruct", moments, "-o", folder)
    seconds = elapsed(start)
    found = compare(read_volume(folder / "volume.mrc"), volume)
    print(
        f"volume in {seconds}: {found.resolution(0.5):.1f} Å at FSC 0.5,"
        f" {found.resolution_shells(0.5):.2f} shells"
    )


def command(*words: object) -> str:
    """`aspire-mom …` in a process of its own; what it says, without progress bars."""
    program = [sys.executable, "-c", "from aspire_mom.cli.main import main; main()"]
    done = subprocess.run(
        [*program, *map(str, words)], capture_output=True, text=True, check=True
    )
    said = [line for line in done.stderr.splitlines() if "%|" not in line]
    return "\n".join([*said, done.stdout.strip()])


def elapsed(start: float) -> str:
    return f"{time.perf_counter() - start:.1f} s"


if __name__ == "__main__":
    main()
