"""`aspire-mom refine` and `aspire-mom initial-model`: from moments back to images."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

import aspire_mom
from aspire_mom.cli import console
from aspire_mom.cli.moments import is_complete
from aspire_mom.cli.particles import (
    Angstrom,
    OrAngstrom,
    check_file,
    choice_options,
    downsample_option,
    ignore_ctf_option,
    ignore_shifts_option,
    opened,
    shift_std_option,
    unchecked_option,
)
from aspire_mom.cli.reconstruct import (
    PAGE,
    estimated,
    starts_option,
    symmetric,
    symmetry_option,
    write_results,
)

if TYPE_CHECKING:
    from aspire.source import ImageSource

    from aspire_mom import CorrectionOptions, Moments, Reconstruction, RefinedModel
    from aspire_mom.relion import Particles

RESULTS = ("volume.mrc", "volume_mirror.mrc", "half1.mrc", "half2.mrc")
RESULTS += ("particles.star", "refinement.npz", "refinement.json", "report.json")
WRITTEN = (*RESULTS, *PAGE, "fsc.png", "iterations.png", "signal.png")
WRITTEN += ("poses.png",)
# What the report has of the start's.
OF_START = ("verdict", "agreement_shells", "agreement_angstrom")
# Pixels that images are downsampled to by default: the rings of a first model fit.
EDGE = 64
rings_option = click.option(
    "--rings",
    type=OrAngstrom(click.IntRange(5, 24)),
    metavar="NUMBER|LENGTH",
    help="Fourier rings to refine to at most, or the resolution in Å of the last (8A)."
    "  [default: 24, or as many as the images have]",
)


@click.command(cls=console.Command)
@click.argument("result", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("particles", type=console.INPUT)
@console.out_option("Folder for the results.")
@choice_options
@ignore_ctf_option
@ignore_shifts_option
@unchecked_option
@rings_option
@console.device_option
@console.overwrite_option
def refine(
    result: Path,
    particles: Path,
    out: Path,
    rings: float | None,
    device: str,
    overwrite: bool,
    **options,
) -> None:
    """
    Refine the volume of RESULT, a folder that reconstruct wrote, against PARTICLES, the
    STAR or .cs file that its moments are of.

    Images are downsampled to the size of the volume. Give --ignore-ctf, --ignore-shifts
    and the choice of particles as for moments. The folder gets volume.mrc and its
    mirror image, the maps of both halves of the images, particles.star with the angles
    and origins of all images, report.json, and a page to look at, report.html, with a
    verdict in words and pictures. While it runs, progress is kept in
    checkpoint.pt there: the same command goes on where a killed one stopped. Several
    processes share the images where torchrun --no-python starts the command.

    \b
    Example:
        aspire-mom refine result particles.star -o refined
    """
    begun, processes = time.perf_counter(), aspire_mom.processes
    console.check_outputs([out / name for name in WRITTEN], overwrite)
    check_file(particles)
    device = processes.own_device(device)
    aspire_mom.checks.checked_device(device)
    found = aspire_mom.Reconstruction.load(result)
    start = _of_start(result / "report.json")
    L = found.volume.resolution
    read, source, corrections = opened(particles, None, L, **options)
    _check_box(read, found, result)
    out.mkdir(parents=True, exist_ok=True)
    with processes.joined(device):
        _tell(read)
        model = _refined(source, found, corrections, out, rings, device, overwrite)
        if processes.is_first():
            _finish(out, model, read, start, begun)


@click.command("initial-model", cls=console.Command)
@click.argument("particles", type=console.INPUT)
@console.out_option("Folder for the results.")
@choice_options
@downsample_option(8, f"  [default: {EDGE} pixels, if images have more]")
@shift_std_option
@ignore_ctf_option
@ignore_shifts_option
@unchecked_option
@symmetry_option
@starts_option
@rings_option
@console.run_options
def initial_model(
    particles: Path,
    out: Path,
    downsample: float | None,
    symmetry: str,
    starts: int | None,
    rings: float | None,
    seed: int,
    device: str,
    overwrite: bool,
    reference: str | None = None,
    **options,
) -> None:
    """
    Make an initial model from PARTICLES, a STAR or .cs file: moments, a start that has
    these moments, and its refinement against the images.

    The folder gets what the command refine writes: volume.mrc and its mirror image,
    half maps, particles.star with the angles and origins of all images, report.json,
    and a page to look at, report.html, with a verdict in words and pictures.
    moments.npz and the folder start, as moments and reconstruct write them, stay
    beside; `aspire-mom report OUT/start` draws a page on the start. --symmetry is
    looked for in the start, and imposed on it and in the refinement. If it is killed,
    the same command goes on where it stopped. Moments and checkpoints of other images
    or options are refused without --overwrite.

    Several processes share the images where torchrun --no-python starts the command.

    \b
    Examples:
        aspire-mom initial-model particles.star -o model
        aspire-mom initial-model Extract/job012/particles.star --shift-std 1.5 -o model
    """
    begun, processes = time.perf_counter(), aspire_mom.processes
    console.check_outputs([out / name for name in WRITTEN], overwrite)
    check_file(particles)
    aspire_mom.evaluation.symmetry_rotations(symmetry)
    device = processes.own_device(device)
    aspire_mom.checks.checked_device(device)
    read, source, corrections = opened(particles, downsample, EDGE, **options)
    start = out / "start"
    start.mkdir(parents=True, exist_ok=True)
    search = aspire_mom.SearchOptions(n_starts=starts, seed=seed)
    with processes.joined(device):
        _tell(read)
        moments = _moments(source, corrections, out / "moments.npz", overwrite)
        inversion = aspire_mom.MomentInversion(
            moments, search=search, device=device, checkpoint=start / "checkpoint.pt"
        )
        found = estimated(inversion.estimate, start / "checkpoint.pt", overwrite)
        if processes.is_first():
            found, report = symmetric(found, moments, symmetry)
            write_results(start, found, moments, report)
        found = processes.broadcast_object(found)
        model = _refined(source, found, corrections, out, rings, device, overwrite)
        if processes.is_first():
            of_start = _of_start(start / "report.json")
            _finish(out, model, read, of_start, begun, reference)
            aspire_mom.checkpoints.discard_checkpoint(start / "checkpoint.pt")


def _tell(particles: Particles) -> None:
    if aspire_mom.processes.is_first():
        click.echo(particles.summary(), err=True)


def _check_box(particles: Particles, found: Reconstruction, result: Path) -> None:
    """Check that the images can be downsampled to the volume's voxels."""
    L, size = found.volume.resolution, found.volume.pixel_size
    if particles.L < L:
        raise ValueError(
            f"the images have {particles.L} pixels along an edge, and the volume in"
            f" {result} {L}; they must have as many, or more"
        )
    box = particles.L * particles.pixel_size
    tolerance = aspire_mom.checks.PIXEL_SIZE_TOLERANCE
    if size is not None and not math.isclose(L * size, box, rel_tol=tolerance):
        raise ValueError(
            f"the images have an edge of {box:g} Å, and the volume in {result} one of"
            f" {L * size:g} Å; they must be the same"
        )


def _moments(
    source: ImageSource, corrections: CorrectionOptions, path: Path, overwrite: bool
) -> Moments:
    """Average moments, unless the file has those of the same images and options."""
    checkpoint = path.with_name(f"{path.name}.checkpoint")
    estimator = aspire_mom.MomentEstimator(
        source,
        aspire_mom.PolarBasis(source.L),
        corrections=corrections,
        streaming=aspire_mom.StreamingOptions(checkpoint=checkpoint),
    )
    try:
        if is_complete([path], estimator):
            return aspire_mom.Moments.load(path)
    except ValueError:
        if not overwrite:
            raise
    aspire_mom.processes.wait()  # until all processes have looked for the file
    moments = estimated(estimator.estimate, checkpoint, overwrite)
    if aspire_mom.processes.is_first():
        moments.save(path, overwrite=True)
        aspire_mom.checkpoints.discard_checkpoint(checkpoint)
    return moments


def _refined(
    source: ImageSource,
    found: Reconstruction,
    corrections: CorrectionOptions,
    out: Path,
    rings: float | None,
    device: str,
    overwrite: bool,
) -> RefinedModel:
    """Refine a reconstruction, keeping progress in the folder of the results."""
    checkpoint = out / "checkpoint.pt"
    if isinstance(rings, Angstrom):
        rings = 1 + math.ceil(source.L * source.pixel_size / rings)  # ring r: box / r
    refinement = aspire_mom.Refinement(
        source,
        found,
        n_rings=None if rings is None else int(rings),
        corrections=corrections,
        checkpoint=checkpoint,
        device=device,
    )
    return estimated(refinement.estimate, checkpoint, overwrite)


def _finish(
    out: Path,
    model: RefinedModel,
    read: Particles,
    start: dict,
    begun: float,
    reference: str | None = None,
) -> None:
    """Write all results, and say what comes of them. A reference is a map in the folder
    that the page compares the model with."""
    report: dict = {"seconds": round(time.perf_counter() - begun, 1)}
    if reference is not None:
        report["reference"] = reference
    write_model(out, model, read, start, report)
    aspire_mom.checkpoints.discard_checkpoint(out / "checkpoint.pt")
    aspire_mom.report.write_report(out)
    click.echo(report["verdict"])
    click.echo(f"{out / 'volume.mrc'} and its mirror, in {report['seconds']:.0f} s")
    click.echo(f"{out / 'report.html'} shows them")


def _of_start(path: Path) -> dict:
    """How far the starts agree, from the report of reconstruct if there is one."""
    if not path.is_file():
        return {}
    with aspire_mom.files.contents_of(path):
        report = json.loads(path.read_text())
        return {name: report.get(name) for name in OF_START}


def write_model(
    out: Path, model: RefinedModel, particles: Particles, start: dict, report: dict
) -> None:
    """Write a refined model, its mirror image, particles, and reports."""
    grid, size, L = aspire_mom.volumes.grid, model.volume.pixel_size, particles.L
    shells = start.get("agreement_shells")
    report |= {
        "verdict": model.verdict(shells),
        "failed": model.failed(shells),
        "shells": model.resolution_shells(),
        "angstrom": None if size is None else model.resolution(),
        "fsc": model.fsc.tolist(),
        "held_out_log_likelihood": model.held_out_log_likelihood,
        "n_images": len(particles),
        "box": model.volume.resolution,
        "pixel_size": size,
        "downsampled_from": L,
        "start": start,
        "settings": model.settings,
        "history": model.history,
    }
    with aspire_mom.files.staged(out) as folder:
        model.save(folder)
        model.save_star(folder / "particles.star", particles)
        mirrored = grid.mirror(model.volume)
        grid.save_map(mirrored, folder / "volume_mirror.mrc")
        aspire_mom.files.write_json(folder / "report.json", report)
