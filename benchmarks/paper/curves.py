"""
The paper's configuration against the default, on moments of the same images and on the
same machine: time to each error of the moments (eq. 22) and to each resolution. Prints
the curves, draws them, and the ratio of times at the paper's quality: 20,000 epochs at
the measured seconds per epoch, over the default's time to 4.45 Å (Table 3).

    python benchmarks/paper/curves.py --epochs 200
"""

from __future__ import annotations

import time
from contextlib import suppress

import numpy as np
from aspire.volume import Volume
from experiment import CASES, folder, ground_truth, keep, moments, noise_floor, parser
from matplotlib.figure import Figure

from aspire_mom import (
    MomentInversion,
    Moments,
    SearchOptions,
    compare,
    paper_inversion,
)
from aspire_mom.inversion import OptimizerStatus, StoppedByUser

EPOCHS = 20_000
# A curve gets a point where the moments are better met than ever by this factor.
BETTER = 0.95


class Curve:
    """Points (seconds, error of the second moment, resolution in Å) of a method."""

    def __init__(self, inversion: MomentInversion, truth: Volume, seconds: float):
        self.inversion, self.truth = inversion, truth
        self.start, self.points, self.last = time.perf_counter() - seconds, [], None

    def __call__(self, now: OptimizerStatus) -> None:
        """Measuring does not count: the clock stands still meanwhile."""
        reached = time.perf_counter()
        self.last = now.step, reached - self.start
        _, error = self.inversion.moment_errors(now.volume, now.density)
        if not self.points or error < BETTER * self.points[-1][1]:
            L = self.truth.resolution
            found = compare(now.volume.to_volume(L, self.truth.pixel_size), self.truth)
            self.points.append((self.last[1], error, found.resolution(0.5)))
        self.start += time.perf_counter() - reached

    def seconds_to(self, angstrom: float) -> float | None:
        """Time of the first point at a resolution or better."""
        times = [s for s, _, resolution in self.points if resolution <= angstrom]
        return times[0] if times else None


def default_curve(estimate: Moments, truth: Volume, seed: int, device: str) -> Curve:
    """The default inversion; moments compared on all rings, in-plane averaged."""
    start = time.perf_counter()
    search = SearchOptions(seed=seed)
    inversion = MomentInversion(estimate, search=search, device=device)
    curve = Curve(inversion, truth, time.perf_counter() - start)
    inversion.status = curve
    inversion.estimate()
    return curve


def preset_curve(estimate: Moments, truth: Volume, epochs: int, **options) -> Curve:
    """The paper's configuration, for the first epochs."""
    start = time.perf_counter()
    inversion = paper_inversion(estimate, **options)
    curve = Curve(inversion, truth, time.perf_counter() - start)

    def status(now: OptimizerStatus) -> bool:
        curve(now)
        return now.step >= epochs

    inversion.status = status
    with suppress(StoppedByUser):
        inversion.estimate()
    return curve


def draw(curves: dict[str, Curve], floors: dict[str, float], path) -> None:
    """Both curves: error of the second moment, and resolution, over time."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for i, (name, curve) in enumerate(curves.items()):
        seconds, errors, resolutions = np.array(curve.points).T
        axes[0].loglog(seconds, errors, "o-", ms=3, color=f"C{i}", label=name)
        axes[0].axhline(floors[name], ls=":", color=f"C{i}")
        axes[1].semilogx(seconds, resolutions, "o-", ms=3, color=f"C{i}", label=name)
    axes[0].set(xlabel="seconds", ylabel="eq. 22 error of M² (dotted: noise)")
    axes[1].set(xlabel="seconds", ylabel="resolution at FSC 0.5 (Å)")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--epochs", type=int, default=200)
    options = options.parse_args()
    case, out = CASES[options.volume], folder(options)
    network, _ = ground_truth(options)
    truth = network.to_volume(case.L, case.pixel_size)
    cartesian, polar = moments(options, network, "cartesian", "polar")
    common = {"seed": options.seed, "device": options.device}
    curves = {
        "default": default_curve(polar, truth, **common),
        "paper's configuration": preset_curve(
            cartesian, truth, options.epochs, **common
        ),
    }
    floors = {
        "default": noise_floor(polar)[1],
        "paper's configuration": noise_floor(cartesian)[1],
    }
    for name, curve in curves.items():
        print(f"{name}: noise floor of M² {floors[name]:.4f}")
        for seconds, error, resolution in curve.points:
            print(f"  {seconds:8.1f} s  M² {error:.4f}  {resolution:6.2f} Å")
    epochs, seconds = curves["paper's configuration"].last
    each, goal = seconds / epochs, case.paper[2]
    print(f"paper's configuration: {each:.2f} s per epoch over {epochs} epochs")
    if reached := curves["default"].seconds_to(goal):
        print(
            f"{EPOCHS:,} epochs take {EPOCHS * each:,.0f} s; the default has {goal} Å"
            f" after {reached:.1f} s: {EPOCHS * each / reached:,.0f} times sooner"
        )
    else:
        print(f"the default did not reach {goal} Å")
    keep(out / "curves.json", {name: c.points for name, c in curves.items()})
    draw(curves, floors, out / "curves.png")


if __name__ == "__main__":
    main()
