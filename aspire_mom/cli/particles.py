"""Particles of a file: options that commands share, and how they are opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import aspire_mom
from aspire_mom.cli import console

if TYPE_CHECKING:
    from aspire_mom import CorrectionOptions
    from aspire_mom.relion import Particles, ParticleSource


class NumberOrAuto(click.ParamType):
    """A number, or "auto", which becomes None."""

    name = "number"

    def convert(self, value, param, ctx) -> float | None:
        try:
            return None if value == "auto" else float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)


CHOICE = (
    console.pixel_size_option,
    click.option(
        "--passthrough",
        type=console.INPUT,
        help="Passthrough file of a .cs file, for fields which that lacks.",
    ),
    click.option(
        "--data-folder",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Folder to which paths of stacks are relative.  [default: the file's,"
        " one above it, or the current one: the first in which the first stack is"
        " found]",
    ),
    click.option("--first", type=console.COUNT, help="Only this many particles."),
    click.option(
        "--random-subset", type=click.IntRange(1, 2), help="Only this _rlnRandomSubset."
    ),
    click.option(
        "--class", "class_number", type=console.COUNT, help="Only this _rlnClassNumber."
    ),
)
shift_std_option = click.option(
    "--shift-std",
    type=NumberOrAuto(),
    metavar="NUMBER|auto",
    default=0,
    help="Standard deviation along each axis, in pixels after --downsample, of shifts"
    " that the images still have. auto: it is found with the volume.",
)
ignore_ctf_option = click.option(
    "--ignore-ctf", is_flag=True, help="Take images with CTFs as if they had none."
)
ignore_shifts_option = click.option(
    "--ignore-shifts", is_flag=True, help="Take images with shifts as if centred."
)

unchecked_option = click.option(
    "--unchecked",
    is_flag=True,
    help="Take all images as they are: do not leave out outliers, or subtract a"
    " background that is not 0.",
)


def choice_options(command):
    """Add the options that `read_particles` has: which particles, and where."""
    for option in reversed(CHOICE):
        command = option(command)
    return command


def opened(
    particles: Path,
    *,
    passthrough: Path | None,
    data_folder: Path | None,
    pixel_size: float | None,
    first: int | None,
    random_subset: int | None,
    class_number: int | None,
    **corrections,
) -> tuple[Particles, CorrectionOptions]:
    """Read particles and check that images can be corrected as the options say."""
    read = aspire_mom.relion.read_particles(
        particles,
        pixel_size,
        passthrough=passthrough,
        data_folder=data_folder,
        first=first,
        random_subset=random_subset,
        class_number=class_number,
    )
    if not corrections["ignore_ctf"]:
        read.check_ctf()
    if not corrections["ignore_shifts"]:
        read.check_shifts()
    flipped = read.phase_flipped or None
    return read, aspire_mom.CorrectionOptions(phase_flipped=flipped, **corrections)


def check_file(particles: Path) -> None:
    """Check that particles can be read again, when poses are written beside it."""
    if not particles.is_file():
        raise ValueError(f"{particles} can be read only once; a file is needed")


def source_of(particles: Particles, L: int | None) -> ParticleSource:
    """Make an ASPIRE source of particles, downsampled to L pixels if it is given."""
    source = aspire_mom.relion.ParticleSource(particles)
    if L is None or L == source.L:
        return source
    if L > source.L:
        raise ValueError(f"--downsample is {L}; the images have {source.L} pixels")
    return source.downsample(L)
