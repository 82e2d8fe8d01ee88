"""
Passes over many images: killed and resumed, shared out over processes, on a full disk,
and one over a million images.

    python benchmarks/streaming.py kills        # SIGKILL at 30 random instants
    python benchmarks/streaming.py processes    # 2 and 4 processes against one
    python benchmarks/streaming.py disk         # needs the right to mount a tmpfs
    python benchmarks/streaming.py million      # time, memory, error

Images are clean projections of a volume, 2,000 of them drawn at random again and again,
with fresh white noise, so that their exact moments are those of the projections. The
volume is the GPCR-Gs map in `../shared/data` where that is, else four Gaussians.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from aspire.image import Image
from aspire.source import ArrayImageSource, ImageSource
from aspire.utils import Rotation
from aspire.utils.logging import setConsoleLoggingLevel
from aspire.volume import Volume

from aspire_mom import MomentEstimator, Moments, PolarBasis, processes
from aspire_mom.moments import Noise, StreamingOptions
from aspire_mom.moments.moments import weighted_norm
from aspire_mom.phantoms import gaussian_phantom

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
MAP = SHARED / "gpcr_gs_7cfn_63.mrc"
N_VIEWS = 2000
BLOCK = 256
KILLS = 30
# Standard deviation of the noise per pixel, with projections scaled to a mean square of
# 1: a signal-to-noise ratio of 1/16.
NOISE = 4.0


class NoisyViews(ImageSource):
    """
    Clean images drawn at random, with fresh noise; image i is the same however it is
    asked for, and costs little more than its random numbers.

    :param clean: Clean images (views, L, L), float32.
    :param n: Number of images.
    :param log: File to note in which images are read.
    """

    def __init__(self, clean: np.ndarray, n: int, log: Path | None = None):
        super().__init__(L=clean.shape[-1], n=n, dtype=np.float32, pixel_size=2.5)
        self.clean = clean
        self.views = np.random.default_rng(1).integers(len(clean), size=n)
        self.log = log

    def _images(self, indices: np.ndarray) -> Image:
        if self.log and len(indices) == BLOCK:
            with open(self.log, "a") as log:
                log.write(f"{processes.rank()} {indices[0]}\n")
        images = np.empty((len(indices), self.L, self.L), np.float32)
        blocks = indices // BLOCK
        for block in np.unique(blocks):
            noise = np.random.Generator(np.random.SFC64([2, block])).standard_normal(
                (BLOCK, self.L, self.L), dtype=np.float32
            )
            noise *= NOISE
            own = blocks == block
            images[own] = noise[indices[own] % BLOCK]
        images += self.clean[self.views[indices]]
        return Image(images, pixel_size=self.pixel_size)


def clean_projections(n_views: int = N_VIEWS) -> np.ndarray:
    """(n_views, L, L) float32, of mean square 1."""
    volume = Volume.load(MAP) if MAP.is_file() else gaussian_phantom(63)
    rotations = Rotation.generate_random_rotations(n_views, seed=0, dtype=np.float32)
    images = volume.astype(np.float32).project(rotations).asnumpy()
    return images / np.sqrt(np.mean(images**2, dtype=np.float64)).astype(np.float32)


def work(options: argparse.Namespace) -> None:
    """The pass that is killed, split or starved of room."""
    source = NoisyViews(clean_projections(100), options.images, options.batches)
    print("ready", flush=True)
    estimator = MomentEstimator(
        source,
        PolarBasis(source.L),
        streaming=StreamingOptions(
            batch_size=BLOCK,
            checkpoint=options.checkpoint,
            checkpoint_seconds=options.every,
        ),
    )
    with processes.joined(torch.device("cpu")):
        moments = estimator.estimate()
        if processes.is_first():
            moments.save(options.save, overwrite=True)


def command(folder: Path, n: int, *words: str, save: str = "found.npz") -> list[str]:
    return [
        *(__file__, "work", f"--images={n}", f"--save={folder / save}"),
        *words,
    ]


def kills(options: argparse.Namespace) -> None:
    n, rng = options.images, random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, log = folder / "sums", folder / "read"
        python = [sys.executable]
        started = start(python + command(folder, n, save="unbroken.npz"))
        begun = time.perf_counter()
        assert started.wait() == 0
        seconds = time.perf_counter() - begun
        print(f"unbroken: {n} images in {seconds:.1f} s", flush=True)
        words = [f"--checkpoint={checkpoint}", f"--batches={log}", "--every=0.2"]
        killed, repeated, runs, partial = 0, [], 0, 0
        while killed < KILLS:
            worker = start(python + command(folder, n, *words))
            try:
                worker.wait(rng.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                worker.send_signal(signal.SIGKILL)
                worker.wait()
                killed += 1
                partial += any(folder.glob("*.part"))
                continue
            runs, again = finish(folder, worker, checkpoint, log, n, runs)
            repeated.append(again)
        last = start(python + command(folder, n, *words))
        last.wait()
        runs, again = finish(folder, last, checkpoint, log, n, runs)
        repeated.append(again)
    print(
        f"{killed} kills, {partial} of them while the checkpoint was being written;"
        f" {runs} results, all the same as the unbroken one to the last bit"
    )
    print(
        f"images read more than once: {sum(repeated)} of {runs * n}"
        f" ({sum(repeated) / killed:.0f} per kill; one interval of 0.2 s is about"
        f" {0.2 * n / seconds:.0f} and the batches of {BLOCK} being computed and read)"
    )


def start(words: list[str], **options) -> subprocess.Popen:
    """Start a worker and wait until it is about to read images."""
    worker = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        **options,
    )
    while "ready" not in worker.stdout.readline():
        if worker.poll() is not None:
            raise RuntimeError(f"{' '.join(words)} failed")
    return worker


def finish(
    folder: Path,
    worker: subprocess.Popen,
    checkpoint: Path,
    log: Path,
    n: int,
    runs: int,
) -> tuple[int, int]:
    """Compare a result with the unbroken one; the number of runs and images reread."""
    assert worker.returncode == 0
    found, unbroken = (
        Moments.load(folder / f"{name}.npz") for name in ("found", "unbroken")
    )
    for name in ("first", "second", "first_error", "second_error", "noise_variance"):
        assert np.array_equal(getattr(found, name), getattr(unbroken, name)), name
    read = len(log.read_text().splitlines()) * BLOCK
    for file in (checkpoint, log, folder / "found.npz"):
        file.unlink()
    return runs + 1, read - n // BLOCK * BLOCK


def split(options: argparse.Namespace) -> None:
    """
    Several processes against one, and what a killed torchrun leaves. Numbers of single
    precision add up in double without rounding until there are very many of them, so
    that differences of 0 are no mistake.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in (1, *options.counts):
            log, begun = folder / f"batches-{count}", time.perf_counter()
            words = [f"--batches={log}"]
            run = run_torch(folder, count, options.images, *words, save=f"{count}.npz")
            assert run.wait() == 0
            seconds = time.perf_counter() - begun
            ranks = [line.split()[0] for line in log.read_text().splitlines()]
            shares = [ranks.count(str(rank)) for rank in range(count)]
            print(
                f"{count} process(es): whole batches {shares}, {seconds:.0f} s with"
                " imports",
                flush=True,
            )
        one = Moments.load(folder / "1.npz")
        for count in options.counts:
            several = Moments.load(folder / f"{count}.npz")
            apart = [
                np.abs(getattr(several, key) - getattr(one, key)).max()
                / np.abs(getattr(one, key)).max()
                for key in ("first", "second", "first_error", "second_error")
            ]
            print(
                f"{count} processes against one: largest difference relative to the"
                f" largest entry: {' '.join(f'{a:.1e}' for a in apart)} (first and"
                " second moment and their errors)"
            )
        checkpoint = folder / "sums"
        parent = run_torch(
            folder, 2, 100 * options.images, f"--checkpoint={checkpoint}", "--every=0"
        )
        parent.stdout.readline()
        while len(list(folder.glob("sums.*-of-2"))) < 2:
            time.sleep(0.05)
        parent.kill()
        parent.wait()
        killed = time.time()
        time.sleep(5)
        written = max(file.stat().st_mtime for file in folder.glob("sums.*"))
        print(
            "torchrun killed: its two processes wrote for"
            f" {max(written - killed, 0):.2f} s more"
        )


def run_torch(folder: Path, count: int, n: int, *words: str, save: str = "found.npz"):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={count}"]
    return start(launcher + command(folder, n, *words, save=save))


def disk(options: argparse.Namespace) -> None:
    """A checkpoint of 2.4 MB on a disk of 4 MB: a second does not fit beside it."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
        subprocess.run(mount, check=True)
        try:
            checkpoint = Path(folder) / "sums"
            words = [f"--checkpoint={checkpoint}", "--every=0"]
            with tempfile.TemporaryDirectory() as other:
                run = subprocess.run(
                    [sys.executable, *command(Path(other), options.images, *words)],
                    capture_output=True,
                    text=True,
                )
            print(f"status {run.returncode}: {run.stderr.strip().splitlines()[-1]}")
            size = checkpoint.stat().st_size
            print(f"left on the disk: {os.listdir(folder)}, of {size} bytes")
        finally:
            subprocess.run(["umount", folder], check=True)


def million(options: argparse.Namespace) -> None:
    clean = clean_projections()
    source, basis = NoisyViews(clean, options.images), PolarBasis(clean.shape[-1])
    exact = MomentEstimator(
        ArrayImageSource(clean.astype(np.float64), pixel_size=2.5),
        basis,
        noise=Noise(variance=0),
    ).estimate()
    begun, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        streaming = StreamingOptions(
            batch_size=options.batch_size, checkpoint=f"{folder}/sums"
        )
        moments = MomentEstimator(source, basis, streaming=streaming).estimate()
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    peak = memory()
    errors = moments.relative_error(exact)
    stated = [
        weighted_norm(getattr(moments, f"{name}_error"), weights)
        / weighted_norm(getattr(exact, name), weights)
        for name, weights in (
            ("first", basis.first_weights),
            ("second", basis.second_weights),
        )
    ]
    print(
        f"{options.images} images of {source.L} x {source.L}, drawn as they are read,"
        f" SNR 1/{NOISE**2:.0f}: {seconds:.0f} s ({cpu:.0f} s of CPU time),"
        f" {options.images / seconds:.0f} images/s"
    )
    print(f"peak memory above the interpreter with its imports: {peak - BARE:.0f} MB")
    print(
        f"noise variance {moments.noise_variance:.6f} (true {NOISE**2:.0f}); relative"
        f" errors of the moments {errors[0]:.2e} and {errors[1]:.2e}; standard errors"
        f" foretell {stated[0]:.2e} and {stated[1]:.2e}"
    )


def memory() -> float:
    """Largest memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


BARE = memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    for name, function, n in (
        ("kills", kills, 20_000),
        ("processes", split, 10_000),
        ("disk", disk, 10_000),
        ("million", million, 1_000_000),
        ("work", work, 10_000),
    ):
        one = commands.add_parser(name, help=function.__doc__)
        one.add_argument("--images", type=int, default=n, help="number of images")
        one.set_defaults(function=function)
    one.add_argument("--save", type=Path)
    one.add_argument("--checkpoint", type=Path)
    one.add_argument("--batches", type=Path)
    one.add_argument("--every", type=float, default=60)
    commands.choices["million"].add_argument("--batch-size", type=int, default=256)
    commands.choices["processes"].add_argument(
        "--counts", type=int, nargs="+", default=[2, 4]
    )
    options = parser.parse_args()
    setConsoleLoggingLevel("WARNING")
    options.function(options)


if __name__ == "__main__":
    main()
