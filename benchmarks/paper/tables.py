"""
Tables 2 and 3 of the paper beside ours: errors of the moments (eq. 22) and resolutions,
from noisy images of the neural ground truth. The paper's configuration runs for as many
epochs as asked for (it has 10,000 at each of two learning rates), going on where the
last run stopped.

    python benchmarks/paper/tables.py --volume gaussians --epochs 500
    python benchmarks/paper/tables.py --volume gpcr --epochs 2
    python benchmarks/paper/tables.py --volume EMD-0409        # downloads the map
"""

from __future__ import annotations

import argparse
import time
from contextlib import suppress

from aspire.volume import Volume
from experiment import (
    CASES,
    folder,
    ground_truth,
    keep,
    moments,
    n_images,
    noise_floor,
    original,
    parser,
)

from aspire_mom import (
    MomentInversion,
    Moments,
    SearchOptions,
    compare,
    paper_inversion,
)
from aspire_mom.inversion import OptimizerStatus, StoppedByUser


def preset(
    options: argparse.Namespace, estimate: Moments
) -> tuple[Volume, tuple[float, float], dict]:
    """The paper's configuration: volume, eq. 22 errors, epochs and time so far."""
    stop_at = time.perf_counter() + 60 * options.minutes
    seen: list[tuple[int, float]] = []
    last: OptimizerStatus | None = None

    def status(now: OptimizerStatus) -> bool:
        nonlocal last
        last = now
        seen.append((now.step, time.perf_counter()))
        return now.step >= options.epochs or time.perf_counter() > stop_at

    inversion = paper_inversion(
        estimate,
        seed=options.seed,
        device=options.device,
        status=status,
        checkpoint=folder(options) / "preset.pt",
    )
    start = inversion.initial_candidate(options.seed)
    first, second = inversion.moment_errors(start.volume, start.density)
    print(f"  preset before its first epoch: moment errors {first:.4f} {second:.4f}")
    found = None
    with suppress(StoppedByUser):
        found = inversion.estimate()
    report = {"epochs": inversion.search.n_steps, "of": inversion.search.n_steps}
    if len(seen) > 1:
        (step, begun), (last_step, end) = seen[0], seen[-1]
        report["seconds_per_epoch"] = (end - begun) / (last_step - step)
    if found is not None:
        return found.volume, found.moment_errors, report
    report["epochs"] = last.step
    volume = last.volume.to_volume(estimate.basis.L, estimate.pixel_size)
    return volume, inversion.moment_errors(last.volume, last.density), report


def ours(
    options: argparse.Namespace, estimate: Moments
) -> tuple[Volume, tuple[float, float], dict]:
    """The package's default: one reconstruction, chosen without the truth."""
    start = time.perf_counter()
    search = SearchOptions(seed=options.seed)
    found = MomentInversion(estimate, search=search, device=options.device).estimate()
    seconds = time.perf_counter() - start
    return found.volume, found.moment_errors, {"seconds": seconds}


def report_on(name: str, volume: Volume, truths: dict[str, Volume]) -> dict:
    """Resolutions against each truth, printed."""
    resolutions = {}
    for label, truth in truths.items():
        found = compare(volume, truth)
        shells, angstrom = found.resolution_shells(0.5), found.resolution(0.5)
        resolutions[label] = {
            "shells": shells,
            "angstrom": angstrom,
            "correlation": found.correlation,
        }
        print(
            f"  Table 3, {name}, against the {label}: {angstrom:.2f} Å,"
            f" {shells:.2f} shells, correlation {found.correlation:.3f}",
            flush=True,
        )
    return resolutions


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--epochs", type=int, default=200, help="of the preset, in all"
    )
    options.add_argument("--minutes", type=float, default=1e6, help="for the preset")
    options.add_argument("--only", choices=["truth", "ours", "preset"])
    options = options.parse_args()
    case = CASES[options.volume]
    network, fit = ground_truth(options)
    volume = original(options.volume, options.seed)
    truth = network.to_volume(case.L, volume.pixel_size)
    print(
        f"{options.volume}, {case.L}³, box {case.L * volume.pixel_size:.0f} Å: neural"
        f" ground truth eq. 27 error {fit['error']:.4f} in {fit['seconds']:.0f} s"
        f" (paper {case.paper[4]})"
    )
    truths = {"neural ground truth": truth, "original map": volume}
    m1, m2, angstrom, box, _ = case.paper
    print(f"  {n_images(options)} images, σ = 0.5 (paper: 5,000,000)")
    print(
        f"  Table 2, paper: {m1} {m2}; Table 3: {angstrom} Å,"
        f" {box / angstrom:.1f} shells"
    )
    for name, method, basis in (
        ("preset", preset, "cartesian"),
        ("ours", ours, "polar"),
    ):
        if options.only not in (None, name):
            continue
        (estimate,) = moments(options, network, basis)
        found, errors, report = method(options, estimate)
        floor = noise_floor(estimate)
        print(
            f"  Table 2, {name}: {errors[0]:.4f} {errors[1]:.4f}, noise floor"
            f" {floor[0]:.4f} {floor[1]:.4f}; "
            + ", ".join(f"{k} {v:.4g}" for k, v in report.items())
        )
        found.save(str(folder(options) / f"{name}.mrc"), overwrite=True)
        report |= {"errors": errors, "floor": floor}
        report |= report_on(name, found, truths)
        keep(folder(options) / f"{name}.json", report)


if __name__ == "__main__":
    main()
