"""
How long it takes to open particles, beside ASPIRE's reader: a STAR file as RELION's
refinement writes it (26 columns, four optics groups), stacks of 128 x 128 pixels that
are sparse files. Times are of one process; each reader has a fresh one.

    python benchmarks/opening.py
"""

from __future__ import annotations

import argparse
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import mrcfile
import numpy as np
from aspire.source import RelionSource

from aspire_mom.relion import ParticleSource, read_particles

OPTICS = ["OpticsGroup", "OpticsGroupName", "AmplitudeContrast", "SphericalAberration"]
OPTICS += ["Voltage", "ImagePixelSize", "ImageSize"]


def write_stacks(folder: Path, n_stacks: int, each: int, edge: int = 128) -> list[str]:
    """Sparse stacks, and their names."""
    first = folder / "Extract" / "stack0000.mrcs"
    first.parent.mkdir()
    with mrcfile.new_mmap(first, (each, edge, edge), mrc_mode=2):
        pass
    size, start = first.stat().st_size, first.read_bytes()[:1024]
    paths = [first.with_name(f"stack{i:04d}.mrcs") for i in range(n_stacks)]
    for path in paths:
        with open(path, "wb") as file:
            file.write(start)
            file.truncate(size)
    return [f"Extract/{path.name}" for path in paths]


def head(name: str, columns: Iterable[str]) -> str:
    tags = "".join(f"_rln{column} #{i}\n" for i, column in enumerate(columns, 1))
    return f"\n# version 30001\n\ndata_{name}\n\nloop_\n{tags}"


def row(image: str, defocus: float, number: int, shift: np.ndarray) -> dict[str, str]:
    """A particle of a refinement, by RELION's columns."""
    return {
        "CoordinateX": "3277.000000",
        "CoordinateY": "983.000000",
        "ImageOriginalName": image,
        "MicrographName": image[7:],
        "CtfMaxResolution": "4.545000",
        "CtfFigureOfMerit": "0.089249",
        "DefocusU": f"{defocus:.6f}",
        "DefocusV": f"{defocus - 262.5:.6f}",
        "DefocusAngle": "-160.39000",
        "CtfBfactor": "0.000000",
        "CtfScalefactor": "1.000000",
        "PhaseShift": "0.000000",
        "AngleRot": "-102.30296",
        "AngleTilt": "82.318041",
        "AnglePsi": "124.706463",
        "ClassNumber": "1",
        "NormCorrection": "0.891387",
        "RandomSubset": f"{number % 2 + 1}",
        "LogLikeliContribution": "2.586789e+05",
        "MaxValueProbDistribution": "0.051189",
        "NrOfSignificantSamples": "450",
        "ImageName": image,
        "OpticsGroup": f"{number % 4 + 1}",
        "OriginXAngst": f"{shift[0]:.6f}",
        "OriginYAngst": f"{shift[1]:.6f}",
        "GroupNumber": "1",
    }


def write_star(path: Path, stacks: list[str], each: int, own_ctf: bool) -> None:
    shifts = np.random.default_rng(0).normal(size=(len(stacks) * each, 2))
    with open(path, "w") as file:
        file.write(head("optics", OPTICS))
        for group in range(1, 5):
            file.write(f"{group} opticsGroup{group} 0.1 2.7 300.0 1.06 128\n")
        for i, shift in enumerate(shifts):
            image = f"{i % each + 1:06d}@{stacks[i // each]}"
            defocus = 10_000 + (0.013 * i if own_ctf else 13 * (i // each))
            values = row(image, defocus, i, shift)
            if i == 0:
                file.write(head("particles", values))
            file.write(f"{' '.join(values.values())}\n")


def measure(reader: str, star: Path) -> None:
    """Print what one reader takes, in this process."""
    logging.getLogger("aspire").setLevel(logging.WARNING)

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    before, start, cpu = peak(), time.perf_counter(), time.process_time()

    def tell(what: str) -> None:
        print(
            f"{what}: {time.perf_counter() - start:.1f} s"
            f" ({time.process_time() - cpu:.1f} s of CPU), {peak() - before:.2f} GB",
            flush=True,
        )

    if reader == "aspire":
        RelionSource(star)
        tell("  ASPIRE's RelionSource")
        return
    particles = read_particles(star)
    tell("  read and stacks checked")
    particles.summary()
    tell("  and summed up")
    ParticleSource(particles)
    tell("  and opened")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--stacks", type=int, default=1000)
    parser.add_argument("--each", type=int, default=1000, help="images in a stack")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        stacks = write_stacks(Path(folder), options.stacks, options.each)
        star = Path(folder) / "particles.star"
        for own_ctf in (False, True):
            write_star(star, stacks, options.each, own_ctf)
            n = len(stacks) * options.each
            defoci = "defocus per particle" if own_ctf else "defocus per stack"
            print(
                f"{n:,} particles in {len(stacks):,} stacks, {defoci},"
                f" {star.stat().st_size / 1e6:.0f} MB",
                flush=True,
            )
            for reader in ("aspire-mom", "aspire"):
                command = [sys.executable, __file__, "--measure", reader, str(star)]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
