"""
One inversion's loss and gradient on several processes against one: `torchrun` splits
the quadrature's nodes. Prints relative differences and seconds per loss and gradient,
in single precision, where sums in another order differ by rounding, and in double. And
a short search for a grid, of which `torchrun` shares out the starts.

    python benchmarks/processes.py                  # 2 and 4 processes on this machine
    torchrun --nproc-per-node 8 benchmarks/processes.py --L 63
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from aspire_mom import (
    CartesianBasis,
    DiscreteDensity,
    FourierNet,
    GaussianMixture,
    MomentInversion,
    Moments,
    PolarBasis,
    SearchOptions,
    SO3Quadrature,
    SphericalDesign,
    processes,
)
from aspire_mom.bases import Basis
from aspire_mom.inversion import forward_model, grid_search

BASES = {"polar": PolarBasis, "cartesian": CartesianBasis}


def exact_moments(basis: Basis, quadrature: SO3Quadrature) -> Moments:
    """Moments of eight Gaussians and uniform views, in double precision, so that they
    don't depend on the number of processes."""
    truth = GaussianMixture(8, total=basis.L, seed=5).double()
    uniform = torch.full((len(quadrature),), 1 / len(quadrature), dtype=torch.float64)
    with torch.no_grad():
        made = forward_model(basis, quadrature).double()(truth, uniform)
    return Moments(*(m.numpy().astype(np.complex128) for m in made), basis)


def loss_and_gradients(
    kind: str, L: int, dtype: torch.dtype
) -> tuple[list[torch.Tensor], float]:
    """Of a FourierNet and free probabilities; seconds of a second evaluation."""
    quadrature = SO3Quadrature.product(SphericalDesign(5), 12)
    moments = exact_moments(BASES[kind](L), quadrature)
    volume = FourierNet(L / 2, hidden=32, scale=L).to(dtype)
    inversion = MomentInversion(
        moments, volume, DiscreteDensity(len(quadrature)).to(dtype), quadrature
    )
    problem, density = inversion.problem(inversion.n_rings), inversion.density
    parameters = [*volume.parameters(), *density.parameters()]
    for _ in range(2):
        start = time.perf_counter()
        for parameter in parameters:
            parameter.grad = None
        loss = problem.objective(volume, density)
        loss.backward()
        processes.combine_gradients(volume.parameters(), density.parameters())
        seconds = time.perf_counter() - start
    return [loss.detach(), *(p.grad for p in parameters)], seconds


def grid(L: int) -> tuple[list[torch.Tensor], float]:
    """Losses and volumes that a search of a few steps finds, from ten starts of which
    eight go on; its seconds. After many steps rounding would have grown."""
    quadrature = SO3Quadrature.product(SphericalDesign(20), 1)
    search = SearchOptions(n_starts=10, n_steps=5)
    inversion = MomentInversion(
        exact_moments(PolarBasis(L), quadrature), "grid", n_rings=5, search=search
    )
    start = time.perf_counter()
    with patch.object(grid_search, "LEVELS", ((1, 5, 1.0),)):
        found = inversion.estimate()
    seconds = time.perf_counter() - start
    losses = torch.tensor([start["loss"] for start in found.starts])
    return [losses, torch.tensor(found.start_volumes.asnumpy())], seconds


def compare_with_one(counts: list[int], L: int) -> None:
    """Run this script under torchrun with each number of processes."""
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, *counts):
            words = ["-m", "torch.distributed.run", "--standalone"]
            words += [f"--nproc-per-node={count}", __file__, f"--L={L}"]
            path = Path(folder) / f"{count}.pt"
            subprocess.run(
                [sys.executable, *words, f"--save={path}"],
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        one = torch.load(Path(folder) / "1.pt", weights_only=True)
        for count in counts:
            several = torch.load(Path(folder) / f"{count}.pt", weights_only=True)
            for kind in one:
                (alone, seconds), (split, split_seconds) = one[kind], several[kind]
                apart = relative(split[:1], alone[:1]), relative(split[1:], alone[1:])
                what = "volumes" if kind == "grid" else "gradients"
                print(
                    f"{kind}, L = {L}, {count} processes: loss {lowest(split):.6f},"
                    f" relative difference to one process {apart[0]:.1e}, of {what}"
                    f" {apart[1]:.1e}; {split_seconds:.2f} s, one process"
                    f" {seconds:.2f} s"
                )


def lowest(values: list[torch.Tensor]) -> float:
    """The loss, or the best of several starts."""
    return float(values[0].min())


def relative(values: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """‖a - b‖ / ‖b‖ of all values together."""
    a, b = (
        torch.cat([v.reshape(-1).double() for v in vs]) for vs in (values, expected)
    )
    return float((a - b).norm() / b.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--L", type=int, default=25)
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "WORLD_SIZE" not in os.environ:
        compare_with_one(options.counts, options.L)
        return
    with processes.joined(torch.device("cpu")):
        found = {
            f"{kind} {dtype}".replace("torch.", ""): loss_and_gradients(
                kind, options.L, dtype
            )
            for kind in BASES
            for dtype in (torch.float32, torch.float64)
        }
        found["grid"] = grid(options.L)
        if not processes.is_first():
            return
        if options.save:
            torch.save(found, options.save)
        else:
            for kind, (values, seconds) in found.items():
                print(f"{kind}: loss {lowest(values):.6f}, {seconds:.2f} s")


if __name__ == "__main__":
    main()
