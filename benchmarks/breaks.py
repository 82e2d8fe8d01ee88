"""
A refinement killed at random instants and run again, and one on two processes, each
against one that ran through: how far the volumes and half volumes are apart.

    python benchmarks/breaks.py [--images 1000] [--kills 10]

Images are of a random chain of atoms at 33 pixels, at a signal-to-noise ratio of 1/4;
refinements start from its first five shells.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from aspire.utils.logging import setConsoleLoggingLevel

from aspire_mom import (
    Reconstruction,
    RefinedModel,
    Refinement,
    SO3Quadrature,
    SphericalDesign,
    VonMisesFisherMixture,
    processes,
)
from aspire_mom.phantoms import chain_phantom
from aspire_mom.simulation import WhiteNoise, simulate
from aspire_mom.volumes.grid import low_pass

L, PIXEL_SIZE, SNR, SHELLS = 33, 4.0, 1 / 4, 5


def work(folder: Path, n_images: int) -> None:
    """The refinement, which goes on from its checkpoint."""
    setConsoleLoggingLevel("WARNING")
    truth = chain_phantom(L, seed=3, pixel_size=PIXEL_SIZE)
    rotations = VonMisesFisherMixture.random(8, seed=1).sample(n_images, seed=2)
    source = simulate(truth, rotations, WhiteNoise.from_snr(SNR, seed=4), 2)
    quadrature = SO3Quadrature.product(SphericalDesign(13), 1)
    density = np.full(len(quadrature), 1 / len(quadrature))
    start = low_pass(truth, L * PIXEL_SIZE / SHELLS)
    found = Reconstruction(start, density, quadrature, [], [], {"n_rings": 6}, 0)
    refinement = Refinement(source, found, checkpoint=folder / "checkpoint.pt")
    with processes.joined(torch.device("cpu")):
        model = refinement.estimate()
        if processes.is_first():
            model.save(folder / "model", overwrite=True)


def worker(folder: Path, n_images: int, n_processes: int = 1) -> subprocess.Popen:
    words = [__file__, f"--images={n_images}", f"--work={folder}"]
    if n_processes > 1:
        torchrun = "-m", "torch.distributed.run", "--standalone"
        words = [*torchrun, f"--nproc-per-node={n_processes}", *words]
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, *words],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen) -> None:
    if process.wait():
        raise RuntimeError(f"{process.args} failed")


def apart(folder: Path, whole: RefinedModel) -> float:
    """The largest ‖a - b‖ / ‖b‖ of the volume and the half volumes."""
    found = RefinedModel.load(folder / "model")
    pairs = (
        (getattr(model, name).asnumpy() for model in (found, whole))
        for name in ("volume", "half_volumes")
    )
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.images)
        return
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), random.Random(0)
        begun = time.perf_counter()
        finished(worker(folder / "whole", options.images))
        seconds = time.perf_counter() - begun
        whole = RefinedModel.load(folder / "whole" / "model")
        print(f"unbroken: {len(whole.history)} iterations, {seconds:.0f} s", flush=True)
        killed, distances, broken = 0, [], folder / "broken"
        while killed < options.kills or not distances:
            process = worker(broken, options.images)
            try:
                more = rng.uniform(0, seconds / 2) if killed < options.kills else None
                process.wait(more)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
                continue
            finished(process)
            distances.append(apart(broken, whole))
            shutil.rmtree(broken)
        print(
            f"{killed} kills, {len(distances)} results, at most {max(distances):.1e}"
            " apart from the unbroken one",
            flush=True,
        )
        finished(worker(folder / "two", options.images, 2))
        print(f"two processes: {apart(folder / 'two', whole):.1e} apart")


if __name__ == "__main__":
    main()
