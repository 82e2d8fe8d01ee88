"""`aspire-mom reconstruct`: a volume and a density of views from moments."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import aspire_mom
from aspire_mom.cli import console

if TYPE_CHECKING:
    from aspire_mom import Moments, Reconstruction

Found = TypeVar("Found")
RESULTS = ("volume.mrc", "reconstruction.npz", "reconstruction.json", "report.json")
# Of `write_report`.
PAGE = ("report.html", "slices.png", "isosurfaces.png", "views.png", "starts.png")
PAGE += ("moments.png", "residual.png")
WRITTEN = (*RESULTS, "volume_mirror.mrc", *PAGE)
starts_option = click.option(
    "--starts",
    type=console.COUNT,
    help="Number of random starts.  [default: 16 for gaussians, 64 for grid, 4 for"
    " harmonics, 1 for fouriernet]",
)
symmetry_option = click.option(
    "--symmetry",
    default="C1",
    help="Symmetry to impose on what is found without one: C2, …, D2, …, T, O or I; C1"
    " is none.",
)


@click.command(cls=console.Command)
@click.argument("moments", type=console.INPUT)
@console.out_option("Folder for the results.")
@click.option(
    "--prior",
    type=click.Choice(["gaussians", "grid", "fouriernet", "harmonics", "paper"]),
    help="Volume model: growing Gaussian mixture, a non-negative grid, the paper's"
    " network (FourierNet), or ball harmonics. The grid uses third moments and suits"
    " real maps. paper selects the paper's complete configuration; it requires"
    " Cartesian moments and runs for hours.  [default: grid for images with CTFs, and"
    " where moments have signal on 10 rings or show that the molecule lies in solvent,"
    " if there are third moments of rings; else gaussians]",
)
@click.option(
    "--epochs",
    type=console.COUNT,
    help="Epochs at each of the two learning rates of the paper's configuration."
    "  [default: 10000]",
)
@click.option(
    "--support-radius",
    type=console.Positive(),
    help="Radius in Å of a ball that holds the molecule.  [default: 0.4 boxes]",
)
@click.option(
    "--lowpass", type=console.Positive(), help="Low-pass filter volumes to this many Å."
)
@symmetry_option
@starts_option
@console.run_options
def reconstruct(
    moments: Path,
    out: Path,
    prior: str | None,
    epochs: int | None,
    support_radius: float | None,
    lowpass: float | None,
    symmetry: str,
    starts: int | None,
    seed: int,
    device: str,
    overwrite: bool,
) -> None:
    """
    Find a volume and a density of views that have MOMENTS, an .npz file.

    The folder gets volume.mrc, its mirror image volume_mirror.mrc, which has the same
    moments, the density of views (reconstruction.npz), report.json, and a page to look
    at, report.html, with its pictures. While
    it runs, progress is kept in checkpoint.pt there: the same command goes on where a
    killed one stopped. A checkpoint of other moments or options is refused without
    --overwrite.

    Networks and the grid can use several processes, or GPUs with --device cuda, each
    of which evaluates a part of the views, or fits a part of the grid's starts: start
    the command by torchrun --no-python.

    \b
    Examples:
        aspire-mom reconstruct moments.npz -o result --lowpass 20
        torchrun --nproc-per-node 4 --no-python \\
            aspire-mom reconstruct moments.npz -o result --prior fouriernet
    """
    from aspire_mom.volumes import grid

    start = time.perf_counter()
    console.check_outputs([out / name for name in WRITTEN], overwrite)
    aspire_mom.evaluation.symmetry_rotations(symmetry)
    estimate = aspire_mom.Moments.load(moments)
    if lowpass is not None:
        grid.check_resolution(lowpass, estimate.basis.L, estimate.pixel_size)
    checkpoint, processes = out / "checkpoint.pt", aspire_mom.processes
    options: dict[str, Any] = {"device": processes.own_device(device)}
    options["checkpoint"] = checkpoint
    if prior == "paper":
        if starts or support_radius:
            raise ValueError("--prior paper has no --starts and no --support-radius")
        options |= {"n_epochs": epochs or 10_000, "seed": seed}
        inversion = aspire_mom.paper_inversion(estimate, **options)
    elif epochs:
        raise ValueError("--epochs is for --prior paper only")
    else:
        if support_radius:
            options["support_radius"] = _in_boxes(support_radius, estimate)
        options["search"] = aspire_mom.SearchOptions(n_starts=starts, seed=seed)
        inversion = aspire_mom.MomentInversion(estimate, prior, **options)
    out.mkdir(parents=True, exist_ok=True)
    with processes.joined(inversion.device):
        found = estimated(inversion.estimate, checkpoint, overwrite)
        if not processes.is_first():
            return
    found, report = symmetric(found, estimate, symmetry)
    seconds = time.perf_counter() - start
    if lowpass is not None:
        found = replace(found, volume=grid.low_pass(found.volume, lowpass))
    report |= {"seconds": round(seconds, 1), "lowpass_angstrom": lowpass}
    write_results(out, found, estimate, report)
    checkpoint.unlink(missing_ok=True)
    aspire_mom.report.write_report(out)
    click.echo(report["verdict"])
    click.echo(f"{out / 'volume.mrc'} and its mirror, in {seconds:.0f} s")
    click.echo(f"{out / 'report.html'} shows them")


def _in_boxes(radius: float, moments: Moments) -> float:
    """Convert the radius of the support from Ångström to boxes."""
    if moments.pixel_size is None:
        raise ValueError("--support-radius needs a pixel size; the moments have none")
    box = moments.basis.L * moments.pixel_size
    if radius > box / 2:
        raise ValueError(f"--support-radius is {radius}; half the box is {box / 2:g} Å")
    return radius / box


def estimated(
    estimate: Callable[[], Found], checkpoint: Path, overwrite: bool
) -> Found:
    """Estimate from a checkpoint; with `overwrite`, anew if that is another's."""
    with console.resumable(checkpoint):
        try:
            return estimate()
        except aspire_mom.checkpoints.InvalidCheckpoint as error:
            if not overwrite:
                raise ValueError(f"{error}, or pass --overwrite") from error
        aspire_mom.processes.wait()  # until all processes have read the checkpoint
        aspire_mom.checkpoints.discard_checkpoint(checkpoint)
        aspire_mom.processes.wait()  # until it is gone for all of them
        return estimate()


def write_results(
    out: Path, found: Reconstruction, moments: Moments, report: dict
) -> None:
    """Write a reconstruction from moments, its mirror image, and reports."""
    report |= {
        "n_images": moments.n_images,
        "noise_variance": moments.noise_variance,
        "box": moments.basis.L,
        "pixel_size": moments.pixel_size,
    }
    names = ("seed", "moment_errors", "shift_std", "settings", "starts", "history")
    report |= {name: getattr(found, name) for name in names}
    with aspire_mom.files.staged(out) as folder:
        found.save(folder)
        aspire_mom.volumes.grid.save_map(found.mirror, folder / "volume_mirror.mrc")
        aspire_mom.files.write_json(folder / "report.json", report)


def symmetric(
    found: Reconstruction, moments: Moments, symmetry: str
) -> tuple[Reconstruction, dict[str, Any]]:
    """
    :param found: A reconstruction.
    :param moments: The moments that it is of.
    :param symmetry: Symmetry to impose.
    :return: The reconstruction with the symmetry, and how far its starts agree.
    """
    # Before, as copies of a symmetry make starts alike.
    report = agreement_of(found, moments)
    if symmetry != "C1":
        found = found.with_symmetry(symmetry)
        report["verdict"] += " " + found.settings["symmetry_verdict"]
    return found, report


def agreement_of(found: Reconstruction, moments: Moments) -> dict:
    """How far the starts agree, for report.json."""
    agreement = aspire_mom.evaluation.starts_agreement(
        found.start_volumes, found.settings["n_rings"], moments
    )
    return {
        "agreement_shells": agreement.shells,
        "agreement_angstrom": agreement.angstrom,
        "verdict": agreement.verdict,
        "failed": agreement.failed,
    }
