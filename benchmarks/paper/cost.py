"""
Seconds per loss and gradient, and peak memory, of the paper's configuration and of the
polar basis, with the paper's network and with the default prior, at several image
sizes, each measured in a process of its own.

    python benchmarks/paper/cost.py
    python benchmarks/paper/cost.py --sizes 25 31 47 63 79 95
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from aspire_mom import (
    CartesianBasis,
    MomentInversion,
    Moments,
    PolarBasis,
    paper_inversion,
)

METHODS = {
    "preset": (CartesianBasis, "the paper's configuration"),
    "fouriernet": (PolarBasis, "polar basis, FourierNet"),
    "gaussians": (PolarBasis, "polar basis, default"),
}


def moments(basis, seed: int = 0) -> Moments:
    """Of random blurred images: what they show does not matter to time and memory."""
    rng = np.random.default_rng(seed)
    axis = np.arange(basis.L) - basis.L // 2
    envelope = np.exp(-np.add.outer(axis**2, axis**2) / (0.2 * basis.L) ** 2)
    images = (1 + 0.5 * rng.standard_normal((64, basis.L, basis.L))) * envelope
    first, second, _ = basis.finish(basis.sums(images.astype(np.float32)))
    return Moments(first / 64, second / 64, basis)


def measure(method: str, L: int, repeats: int) -> None:
    """Print seconds per loss and gradient, and this process's largest memory."""
    estimate = moments(METHODS[method][0](L))
    before = peak_memory()
    if method == "preset":
        inversion = paper_inversion(estimate)
    else:
        inversion = MomentInversion(estimate, method, n_rings=(L + 1) // 2)
    problem = inversion.problem(inversion.n_rings)
    start = inversion.initial_candidate(0)
    parameters = [*start.volume.parameters(), *start.density.parameters()]
    # Adam's state is part of what a run needs.
    optimizer = torch.optim.Adam(parameters, lr=1e-6)
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        optimizer.zero_grad()
        problem.objective(start.volume, start.density).backward()
        optimizer.step()
        times.append(time.perf_counter() - begun)
    peak = peak_memory()
    print(
        f"n = {L:3d}  {METHODS[method][1]:28} {min(times):8.3f} s per step"
        f"  {peak:5.2f} GB at most, {before:.2f} GB with the moments read",
        flush=True,
    )


def peak_memory() -> float:
    """Largest memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[25, 31, 63])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for L in options.sizes:
        for method in options.methods:
            if options.here:
                measure(method, L, options.repeats)
                continue
            words = [f"--sizes={L}", f"--methods={method}", "--here"]
            words += [f"--repeats={options.repeats}"]
            subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()
