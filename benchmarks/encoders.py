"""
Trained against untrained starts, and an encoder of the density against none.

Test volumes are bundles of helices, a family that the encoder was never trained on, and
maps that are given. Moments are those of noisy images (20,000 at an SNR of 1/16 by
default), or exact; views are mixtures of eight von Mises-Fisher distributions.

    python benchmarks/encoders.py starts
    python benchmarks/encoders.py starts --images 0          # exact moments
    python benchmarks/encoders.py starts --maps gpcr_gs_7cfn_63.mrc ribosome_70s_65.mrc
    python benchmarks/encoders.py inversions
    python benchmarks/encoders.py densities

starts: the Gaussian prior from the trained encoder's start and from a random one of as
many Gaussians, the same L-BFGS on the same loss, 8 rings at once. inversions: the
same through `MomentInversion`, one start each, which marches through the rings and
grows. densities: `FourierNet` with the paper's encoder as the density, and with one
free logit per node, the same steps of Adam.

Goal: the loss that the baseline of each pair ends with, and 1 %. Counts are evaluations
of loss and gradient; L-BFGS takes about 1.1 per iteration, Adam one. Those of
"inversions" are iterations, in steps of 20. Shells are where the FSC first falls below
0.5.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from aspire.volume import Volume

from aspire_mom import (
    DiscreteDensity,
    FourierNet,
    GaussianMixture,
    MomentEncoder,
    MomentEstimator,
    MomentInversion,
    Moments,
    PolarBasis,
    SearchOptions,
    SO3Quadrature,
    SphericalDesign,
    VonMisesFisherMixture,
    compare,
)
from aspire_mom.inversion import MomentLoss, OptimizerStatus, forward_model, predict
from aspire_mom.inversion.optimise import LBFGS_STEPS_PER_REPORT, minimise
from aspire_mom.inversion.start import cut_to_support
from aspire_mom.moments.report import ring_rms
from aspire_mom.networks import pretrained
from aspire_mom.phantoms import helix_bundle_phantom
from aspire_mom.simulation import WhiteNoise, simulate
from aspire_mom.volumes import FourierVolume
from aspire_mom.volumes.grid import volume_at

L = 25
SNR = 1 / 16
TOLERANCE = 1.01
SUPPORT_RADIUS, SIGMA = 0.4, 0.1
# Those that the encoder sees, and fewer for networks, which are slow.
RINGS, NETWORK_RINGS, NETWORK_STEPS = 8, 6, 400
ESTIMATED_RINGS = 12


@dataclass(frozen=True)
class Case:
    """A test volume and its moments."""

    name: str
    volume: Volume
    moments: Moments


@dataclass(frozen=True)
class Run:
    """Losses at every evaluation, and the resolution of the volume in the end."""

    losses: list[float]
    shells: float
    fsc: np.ndarray

    def count_to(self, goal: float) -> float:
        """Evaluations until the loss is the goal or less; infinite if it never is."""
        below = np.flatnonzero(np.array(self.losses) <= goal)
        return float(below[0] + 1) if len(below) else math.inf


def cases(options: argparse.Namespace) -> Iterator[Case]:
    for seed in range(options.first_seed, options.first_seed + options.count):
        volume = helix_bundle_phantom(L, n_helices=4 + seed % 5, seed=seed)
        yield Case(f"helices {seed}", volume, estimate(volume, options.images, seed))
    for path in options.maps:
        volume = Volume(Volume.load(path).asnumpy(), pixel_size=1.0)
        yield Case(path.stem, volume, estimate(volume, options.images, 0))


def estimate(volume: Volume, n_images: int, seed: int) -> Moments:
    """Moments of noisy images; exact ones where there are none."""
    # Another stream than the volume's, or views would follow its shape.
    views = VonMisesFisherMixture.random(8, seed=seed + 1000)
    basis = PolarBasis(volume.resolution, n_rings=ESTIMATED_RINGS)
    if n_images:
        noise = WhiteNoise.from_snr(SNR, seed=seed + 2)
        rotations = views.sample(n_images, seed=seed + 1)
        source = simulate(volume, rotations, noise, seed + 1)
        return MomentEstimator(source, basis).estimate()
    quadrature = SO3Quadrature.product(SphericalDesign(31), 1)
    p = torch.from_numpy(views.on(quadrature))
    with torch.no_grad():
        first, second = forward_model(basis, quadrature)(Known(volume), p)
    return Moments(first.numpy(), second.numpy(), basis)


class Known(FourierVolume):
    """A given volume, for exact moments."""

    def __init__(self, volume: Volume):
        super().__init__()
        self.volume = volume
        self.precision = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def on_rings(self, directions: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
        k = radii[:, None] * directions[:, None, :]
        return torch.from_numpy(volume_at(self.volume, k.numpy()))


def record(
    objective: Callable[[], torch.Tensor], parameters: list, **how
) -> list[float]:
    """Minimise, and return the loss at every evaluation with a gradient."""
    losses = []

    def watched() -> torch.Tensor:
        loss = objective()
        if torch.is_grad_enabled():
            losses.append(loss.item())
        return loss

    minimise(watched, parameters, **how)
    return losses


def finished(losses: list[float], volume, case: Case) -> Run:
    found = compare(volume.to_volume(case.volume.resolution), case.volume)
    return Run(losses, found.resolution_shells(0.5), found.fsc)


def starts(case: Case) -> tuple[Run, ...]:
    """The Gaussian prior from a trained and from a random start."""
    moments, n_rings = case.moments, RINGS
    quadrature = MomentInversion(moments, n_rings=n_rings).quadrature
    inner = cut_to_support(moments.basis, n_rings, SUPPORT_RADIUS)
    forward = forward_model(inner, quadrature)
    loss = MomentLoss(moments, inner, weighting="noise")

    def run(volume: GaussianMixture, density: DiscreteDensity) -> Run:
        def objective() -> torch.Tensor:
            return loss(*forward(volume, density())) + density.penalty()

        parameters = [*volume.parameters(), *density.parameters()]
        losses = record(objective, parameters, method="lbfgs", n_steps=400)
        return finished(losses, volume, case)

    trained, views = predict(moments, quadrature)
    told = finished([], trained, case)
    random = GaussianMixture(
        len(trained),
        support_radius=SUPPORT_RADIUS,
        sigma=SIGMA,
        signed=trained.signed,
        total=float(trained.weights.sum().detach()),
        seed=0,
    )
    uniform = DiscreteDensity(quadrature, degree=6)
    return told, run(random, uniform), run(trained, views)


def inversions(case: Case) -> tuple[Run, ...]:
    """`MomentInversion` as it comes, from one random and from the trained start."""

    def run(*start) -> Run:
        history = []
        inversion = MomentInversion(
            case.moments,
            *start,
            search=SearchOptions(n_starts=1),
            status=history.append,
        )
        reconstruction = inversion.estimate()
        found = compare(reconstruction.volume, case.volume)
        losses = by_iteration(history, f" {inversion.n_rings} rings")
        losses[-1] = reconstruction.history[-1]["loss"]
        return Run(losses, found.resolution_shells(0.5), found.fsc)

    start = predict(case.moments)
    return finished([], start[0], case), run(), run(*start)


def by_iteration(history: list[OptimizerStatus], last: str) -> list[float]:
    """Losses on the last level; infinite in iterations that did not report one."""
    losses, before = [], OptimizerStatus("", 0, 0, math.inf)
    for status in history:
        fresh = status.step - before.step * (status.stage == before.stage)
        # A stage that converged early reports all steps that it might have taken.
        fresh = min(fresh, LBFGS_STEPS_PER_REPORT)
        losses += [math.inf] * (fresh - 1)
        losses.append(status.loss if last in status.stage else math.inf)
        before = status
    return losses


def densities(case: Case) -> tuple[Run, ...]:
    """`FourierNet` with free logits, and with the paper's encoder."""
    moments, n_rings = case.moments, NETWORK_RINGS
    inner = cut_to_support(moments.basis, n_rings, SUPPORT_RADIUS)
    quadrature = MomentInversion(moments, "fouriernet", n_rings=n_rings).quadrature
    forward = forward_model(inner, quadrature)
    loss = MomentLoss(moments, inner, weighting="none")
    n_orders = inner.max_order + 1
    estimates = (
        torch.from_numpy(moments.first[:n_rings].astype(np.complex64)),
        torch.from_numpy(
            moments.second[:n_orders, :n_rings, :n_rings].astype(np.complex64)
        ),
    )
    scale = moments.basis.L * float(ring_rms(moments)[:3].max())

    def run(density: torch.nn.Module, *inputs: torch.Tensor) -> Run:
        volume = FourierNet(float(n_rings - 1), hidden=64, scale=scale, seed=0)

        def objective() -> torch.Tensor:
            return loss(*forward(volume, density(*inputs)))

        losses = record(
            objective,
            [*volume.parameters(), *density.parameters()],
            method="adam",
            n_steps=NETWORK_STEPS,
            learning_rates=(2e-3, 2e-4),
        )
        return finished(losses, volume, case)

    free = run(DiscreteDensity(len(quadrature)))
    encoder = MomentEncoder.polar(n_orders, n_rings, len(quadrature))
    return free, run(encoder, *estimates)


def milliseconds(moments: Moments) -> float:
    """Of one prediction, median of ten."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        predict(moments)
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def show(name: str, label: str, run: Run, count: float | None = None) -> None:
    fsc = " ".join(f"{value:.2f}" for value in run.fsc[1:9])
    loss = f"{run.losses[-1]:10.4g}" if run.losses else " " * 10
    counted = " " * 6 if count is None else f"{count:6.0f}"
    print(
        f"{name:20} {label:10} {loss} {counted} {run.shells:6.2f} shells  FSC {fsc}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("starts", "inversions", "densities"))
    parser.add_argument("--count", type=int, default=10, help="bundles of helices")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=20_000, help="0: exact moments")
    parser.add_argument("--maps", type=Path, nargs="*", default=[], help="MRC files")
    options = parser.parse_args()
    compared = {"starts": starts, "inversions": inversions, "densities": densities}
    labels = (
        ("free", "encoder") if options.what == "densities" else ("random", "trained")
    )
    if options.what != "densities":
        print(f"weights: {pretrained().training_info['command']}")
    print(f"{'volume':20} {'start':10} {'last loss':>10} {'to goal':>6}")
    table = []
    for case in cases(options):
        *told, baseline, other = compared[options.what](case)
        if told:
            show(case.name, "predicted", told[0])
            print(f"{case.name:20} one prediction: {milliseconds(case.moments):.1f} ms")
        goal = TOLERANCE * baseline.losses[-1]
        counts = [run.count_to(goal) for run in (baseline, other)]
        for label, run, count in zip(labels, (baseline, other), counts, strict=True):
            show(case.name, label, run, count)
        shells = [run.shells for run in (*told, baseline, other)]
        table.append([*counts, counts[0] / counts[1], *shells])
    names = [f"{labels[0]} to goal", f"{labels[1]} to goal", "ratio"]
    names += ["shells predicted"] if told else []
    names += [f"shells {label}" for label in labels]
    for name, value in zip(names, np.median(table, axis=0), strict=True):
        print(f"median of {len(table)}, {name}: {value:.2f}")
    columns = np.array(table)[:, -2:]
    better = int((columns[:, 1] > columns[:, 0]).sum())
    print(f"{labels[1]} resolves more than {labels[0]} on {better} of {len(table)}")


if __name__ == "__main__":
    main()
