"""
Images per second of M1 and M2 in the polar basis, from memory and from stacks on disk,
beside ASPIRE's coefficients of the same images and beside physical limits.

    OMP_NUM_THREADS=1 python benchmarks/throughput.py
    python benchmarks/throughput.py --sizes 63 --images 8192      # all cores
    python benchmarks/throughput.py --device cuda
    python benchmarks/throughput.py --checks                      # what they cost

The moments' batches are computed on as many cores as OMP_NUM_THREADS and the machine
allow, each with one thread; ASPIRE's coefficients use threads of their own libraries,
and polar coefficients alone, as one calls them, those of BLAS. With --device cuda a GPU
sums the moments' batches up: CPU times are then what is left to the CPU, and the last
line, of the CPU's arithmetic, is left out.

CTFs are one per image: 300 kV, defocus 1 to 2.5 µm, 4 Å pixels, astigmatic ones with up
to 600 Å between the largest and the smallest defocus.

With --checks, passes that look for outliers and backgrounds, as they do by default, and
passes that do not, neither in a sample nor in the pass, take turns in one run.

Times are of CPU and of the wall: where other programs run, the former tell more. Each
is the best of several runs, set-up apart, which is once per run of a program.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from unittest import mock

import mrcfile
import numpy as np
from aspire.basis import FLEBasis2D, FPSWFBasis2D
from aspire.image import Image
from aspire.operators import CTFFilter
from aspire.source import ArrayImageSource, ImageSource, RelionSource
from aspire.utils.logging import setConsoleLoggingLevel
from finufft import Plan

from aspire_mom import MomentEstimator, Moments, PolarBasis
from aspire_mom.bases.polar_transform import polar_transform
from aspire_mom.moments import StreamingOptions
from aspire_mom.moments.preparation import Preparation
from aspire_mom.threads import n_workers

RUNS = 3


def best(function: Callable[[], object], n: int) -> tuple[float, float]:
    """CPU and wall seconds per image, of n images; the first run sets things up."""
    function()
    times = []
    for _ in range(RUNS):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    return tuple(np.min(times, axis=0) / n)


def row(name: str, seconds: tuple[float, float], of: tuple[float, float]) -> None:
    """:param of: Seconds of the moments from memory."""
    cpu, wall = seconds
    print(f"  {name:44} {1 / cpu:9.0f} {1 / wall:9.0f} {cpu / of[0]:10.2f}", flush=True)


def throughput(L: int, n: int, device: str) -> None:
    images = np.random.default_rng(0).standard_normal((n, L, L), dtype=np.float32)
    basis = PolarBasis(L)
    source = ArrayImageSource(images, pixel_size=1.0)
    print(f"\nL = {L}, {n} images, images per second of CPU time and of wall time, and")
    print("CPU time over that of the moments from memory")
    ours = best(lambda: moments(source, basis, device), n)
    row("M1 + M2, in memory", ours, ours)
    for name, astigmatism in (("radial", 0), ("astigmatic", 600)):
        seen = with_ctfs(images, astigmatism)
        row(
            f"M1 + M2, in memory, {name} CTFs",
            best(lambda seen=seen: MomentEstimator(seen, basis).estimate(), n),
            ours,
        )
    with tempfile.TemporaryDirectory() as folder:
        star = write_stack(Path(folder), images)
        on_disk = RelionSource(star, pixel_size=1.0)
        row(
            "M1 + M2, from .mrcs, float32",
            best(lambda: moments(on_disk, basis, device), n),
            ours,
        )
        stack = star.with_suffix(".mrcs")
        cold, warm = read_speed(stack, cold=True), read_speed(stack, cold=False)
    few = images[:512]
    row(
        "polar coefficients alone",
        best(lambda: basis.coefficients(few), len(few)),
        ours,
    )
    row("bare batched NUFFT onto half rings", bare_transform(basis, few), ours)
    for ours_of_aspire in (FPSWFBasis2D, FLEBasis2D):
        other = ours_of_aspire((L, L), dtype=np.float32)
        some = Image(images[:256])
        row(
            f"ASPIRE's {ours_of_aspire.__name__}.evaluate_t",
            best(lambda other=other, some=some: other.evaluate_t(some), 256),
            ours,
        )
    disk_limits(basis, cold, warm)
    if device == "cpu":
        arithmetic_limits(basis, ours)


def moments(source: ImageSource, basis: PolarBasis, device: str) -> Moments:
    streaming = StreamingOptions(device=device)
    return MomentEstimator(source, basis, streaming=streaming).estimate()


def checks(L: int, n: int, device: str) -> None:
    """Print the speed of passes with checks over that without."""
    images = np.random.default_rng(0).standard_normal((n, L, L), dtype=np.float32)
    basis, times = PolarBasis(L), {"with": [], "without": []}
    source = ArrayImageSource(images, pixel_size=1.0)
    for _ in range(2 * RUNS + 1):
        for name, found in times.items():
            off = mock.patch.object(Preparation, "of", return_value=Preparation())
            with off if name == "without" else nullcontext():
                cpu = time.process_time()
                moments(source, basis, device)
                found.append(time.process_time() - cpu)
    # The first sets things up.
    fastest, medians = (
        [function(found[1:]) for found in times.values()] for function in (min, median)
    )
    print(
        f"L = {L}, {n} images: {n / fastest[0]:.0f} images per second of CPU time with"
        f" checks, {n / fastest[1]:.0f} without; ratio of the fastest"
        f" {fastest[1] / fastest[0]:.3f}, of the medians {medians[1] / medians[0]:.3f}",
        flush=True,
    )


def with_ctfs(images: np.ndarray, astigmatism: float) -> ArrayImageSource:
    """:param astigmatism: Largest difference of defocus, Å."""
    rng = np.random.default_rng(0)
    source = ArrayImageSource(images, pixel_size=4.0)
    source.unique_filters = [
        CTFFilter(
            voltage=300,
            defocus_u=defocus + difference / 2,
            defocus_v=defocus - difference / 2,
            defocus_ang=angle,
            Cs=2.7,
            alpha=0.1,
        )
        for defocus, difference, angle in rng.uniform(
            (1e4, 0, 0), (2.5e4, astigmatism, np.pi), (len(images), 3)
        )
    ]
    source.filter_indices = np.arange(len(images))
    return source


def bare_transform(basis: PolarBasis, images: np.ndarray) -> tuple[float, float]:
    """Its best batch size, input already complex, output not looked at."""
    found = []
    for size in (32, 64, 128, 256, 512):
        plan = Plan(2, (basis.L, basis.L), size, eps=1e-6, isign=-1, dtype="complex64")
        kx, ky = basis.half_rings
        plan.setpts(ky.astype(np.float32), kx.astype(np.float32))
        batch = images[:size].astype(np.complex64)
        found.append(best(lambda plan=plan, batch=batch: plan.execute(batch), size))
    return min(found)


def write_stack(folder: Path, images: np.ndarray) -> Path:
    with mrcfile.new(folder / "particles.mrcs") as file:
        file.set_data(images)
    star = folder / "particles.star"
    rows = "\n".join(f"{i + 1:06d}@particles.mrcs" for i in range(len(images)))
    star.write_text(f"data_\n\nloop_\n_rlnImageName #1\n{rows}\n")
    return star


def read_speed(path: Path, cold: bool) -> float:
    """Bytes per second of reading a file, out of the page cache or into it first."""
    with open(path, "rb", buffering=0) as file:
        if cold:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        block, size = bytearray(1 << 20), 0
        start = time.perf_counter()
        while count := file.readinto(block):
            size += count
        return size / (time.perf_counter() - start)


def disk_limits(basis: PolarBasis, cold: float, warm: float) -> None:
    size = 4 * basis.L**2
    print(
        f"  disk: {cold / 1e6:.0f} MB/s with an empty page cache,"
        f" {warm / 1e6:.0f} MB/s from it: {cold / size:.0f} and {warm / size:.0f}"
        " images/s of float32"
    )


def arithmetic_limits(basis: PolarBasis, ours: tuple[float, float]) -> None:
    transform = polar_transform(basis.L, basis.n_rings, basis.max_order, "float32")
    # Four products of real numbers, one for squares, on the rings that orders reach.
    orders = np.arange(basis.max_order + 1)[:, None]
    products = 8 * np.sum(np.sum(transform.reach >= orders, axis=1) ** 2)
    coefficients = 16 * transform.down[0].size * (transform.half + 1)
    coefficients += sum(8 * waves.size for *_, waves in transform.across)
    coefficients += sum(2 * m.size for _, ms in transform.angular for m in ms)
    flops = coefficients + products
    peak = gemm_speed()
    print(
        f"  arithmetic: {coefficients / 1e6:.1f} Mflop per image for coefficients,"
        f" {products / 1e6:.1f} for products; single-precision products of 1024 x 1024"
        f" matrices run at {peak / 1e9:.0f} Gflop per second of CPU time:"
        f" {peak / flops:.0f} images/s, of which"
        f" {flops / ours[0] / peak:.0%} are reached"
    )


def gemm_speed() -> float:
    a = np.ones((1024, 1024), np.float32)
    b = a.copy()
    return 2 * 1024**3 / best(lambda: a @ b, 1)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[63, 128])
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--device", default="cpu", help="of the moments' sums")
    parser.add_argument("--checks", action="store_true", help="only what they cost")
    options = parser.parse_args()
    setConsoleLoggingLevel("WARNING")
    threads = os.environ.get("OMP_NUM_THREADS", "as many as cores")
    at_once = n_workers() if options.device == "cpu" else 1
    print(f"threads: {threads}; batches at once: {at_once} on {options.device}")
    for L in options.sizes:
        measure = checks if options.checks else throughput
        measure(L, options.images, options.device)


if __name__ == "__main__":
    main()
