"""`aspire-mom moments` and `aspire-mom inspect`: moments from the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

import aspire_mom
from aspire_mom.cli import console
from aspire_mom.cli.particles import (
    LEAST_PIXELS,
    NumberOrAuto,
    choice_options,
    downsample_option,
    ignore_ctf_option,
    ignore_shifts_option,
    opened,
    shift_std_option,
    unchecked_option,
)

if TYPE_CHECKING:
    from aspire_mom import MomentEstimator

BASES = {"polar": "PolarBasis", "cartesian": "CartesianBasis"}


@click.command(cls=console.Command)
@click.argument("particles", type=console.INPUT)
@console.out_option("Moments file to write (.npz).", ".npz")
@choice_options
@downsample_option(LEAST_PIXELS)
@click.option(
    "--basis",
    type=click.Choice(list(BASES)),
    default="polar",
    help="polar: Fourier rings, averaged over in-plane angles. cartesian: all Fourier"
    " pixels, for reconstruct --prior paper; its second moment has L⁴ entries.",
)
@click.option(
    "--noise",
    type=click.Choice(["white", "coloured"]),
    default="white",
    help="Noise model: white, or coloured with a radial power spectrum.",
)
@shift_std_option
@click.option(
    "--amplitude-std",
    type=NumberOrAuto(),
    metavar="NUMBER|auto",
    default=0,
    help="Standard deviation of the images' amplitudes relative to their mean, divided"
    " out of the second moment. auto: estimate it from the images' pixel sums.",
)
@click.option(
    "--no-third",
    is_flag=True,
    help="Leave out third moments, which reconstruct --prior grid uses. There are none"
    " with --basis cartesian and --device cuda.",
)
@click.option(
    "--halves",
    is_flag=True,
    help="Also write moments of both halves, in files ending in _half1 and _half2.",
)
@ignore_ctf_option
@ignore_shifts_option
@unchecked_option
@click.option(
    "--batch-size",
    type=console.COUNT,
    default=512,
    help="Images per batch. Each core holds one batch; reduce it if memory is short.",
)
@console.device_option
@click.option(
    "--resume",
    is_flag=True,
    help="Save partial sums to OUT.checkpoint, and resume from that file if it exists."
    " If all outputs exist and were made from the same images with the same settings,"
    " do nothing (unless --overwrite).",
)
@console.overwrite_option
def moments(
    particles: Path,
    out: Path,
    downsample: float | None,
    basis: str,
    noise: str,
    no_third: bool,
    halves: bool,
    batch_size: int,
    device: str,
    resume: bool,
    overwrite: bool,
    **options,
) -> None:
    """
    Average the moments of PARTICLES, a STAR or .cs file, in one pass.

    PARTICLES may be of RELION 3.0 to 5, or of cryoSPARC, with --passthrough for fields
    that are in another file. Angles in the file are not used; CTFs are corrected for
    and origins centred. A summary of the particle file (particles, CTFs, shifts) is
    printed to stderr before averaging starts. The noise is estimated from the pixels
    outside the inscribed disc, and its share of the second moment is removed.

    Several processes share the images where torchrun --no-python starts the command.
    With --device cuda each sums up on a GPU: polar moments only, without third moments
    and astigmatic CTFs.

    \b
    Examples:
        aspire-mom moments particles.star -o moments.npz --resume
        aspire-mom moments Refine3D/job020/run_data.star --downsample 64 \\
            --noise coloured --halves -o moments.npz
        torchrun --nproc-per-node 4 --no-python \\
            aspire-mom moments particles.star -o moments.npz
    """
    files, processes = aspire_mom.files, aspire_mom.processes
    outputs = [out]
    if halves:
        outputs += [out.with_stem(f"{out.stem}_half{i}") for i in (1, 2)]
    console.check_outputs(outputs, overwrite or resume)
    read, source, corrections = opened(particles, downsample, **options)
    images_basis = getattr(aspire_mom, BASES[basis])(source.L)
    # Sums in double precision, and the complex numbers that come of them.
    n_bytes = (8 * len(outputs) + 16) * math.prod(images_basis.second_shape)
    aspire_mom.checks.check_memory(f"a second moment in {images_basis}", n_bytes)
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    estimator = aspire_mom.MomentEstimator(
        source,
        images_basis,
        noise=aspire_mom.Noise(spectrum="corners" if noise == "coloured" else None),
        corrections=corrections,
        third=None if no_third else "auto",
        streaming=aspire_mom.StreamingOptions(
            batch_size=batch_size,
            checkpoint=checkpoint if resume else None,
            device=device,
        ),
    )
    if resume and not overwrite and is_complete(outputs, estimator):
        # A run killed after saving its outputs may have left its checkpoint.
        aspire_mom.checkpoints.discard_checkpoint(checkpoint)
        click.echo(f"{out} is already complete; nothing to do")
        return
    with processes.joined("cpu"):
        if processes.is_first():
            click.echo(read.summary(), err=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        with console.resumable(checkpoint if resume else None):
            estimates = (
                estimator.estimate_with_halves() if halves else [estimator.estimate()]
            )
        if not processes.is_first():
            return
        with files.staged(out.parent) as folder:
            for path, estimate in zip(outputs, estimates, strict=True):
                estimate.save(folder / path.name)
        if resume:
            aspire_mom.checkpoints.discard_checkpoint(checkpoint)
        click.echo(f"{estimates[0]}; {estimates[0].corrections}; in {out}")


def is_complete(outputs: list[Path], estimator: MomentEstimator) -> bool:
    """Whether all outputs exist; raise if one was made with other settings or from
    other images. A killed run may have written only some."""
    for half, path in enumerate(outputs):
        if path.is_file():
            try:
                estimator.check_compatible(aspire_mom.Moments.load(path), half=half)
            except ValueError as error:
                raise ValueError(
                    f"{error}; pass --overwrite to replace {path}"
                ) from error
    return all(path.is_file() for path in outputs)


@click.command(cls=console.Command)
@click.argument("moments", type=console.INPUT)
@click.argument("other", type=console.INPUT, required=False)
@console.report_options
def inspect(
    moments: Path, other: Path | None, as_json: bool, plot: Path | None, overwrite: bool
) -> None:
    """
    Report signal and noise of MOMENTS (.npz) on each Fourier ring, and the highest ring
    with significant signal.

    The table has one line per ring: signal power and its ratio to its standard error,
    power of the noise that was removed, and whether the ring has significant signal.
    With OTHER, moments of other images, both are merged, and the table also has the
    correlation between the two.

    \b
    Examples:
        aspire-mom inspect moments.npz --plot moments.png
        aspire-mom inspect half1.npz half2.npz
    """
    from aspire_mom.evaluation import plot_moments
    from aspire_mom.moments.report import RingReport

    console.check_outputs([plot] if plot else [], overwrite)
    paths = [path for path in (moments, other) if path]
    if particles := [path for path in paths if path.suffix in (".star", ".cs")]:
        raise ValueError(
            f"{particles[0]} lists particles, of which there must be moments first:"
            f" aspire-mom moments {particles[0]} -o moments.npz"
        )
    halves = [aspire_mom.Moments.load(path) for path in paths]
    whole = halves[0] if other is None else halves[0].merge(halves[1])
    report = RingReport.of(whole, halves if other is not None else None)
    if plot is not None:
        with aspire_mom.files.staged(plot.parent) as folder:
            plot_moments(whole, report, folder / plot.name)
    click.echo(json.dumps(report.summary(), indent=2) if as_json else report.table())
