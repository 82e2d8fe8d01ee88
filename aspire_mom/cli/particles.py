"""Particles of a file: options that commands share, and how they are opened."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

import click

import aspire_mom
from aspire_mom.cli import console

if TYPE_CHECKING:
    from aspire_mom import CorrectionOptions
    from aspire_mom.relion import Particles, ParticleSource


# Pixels along an edge that moments need at least.
LEAST_PIXELS = 4


class NumberOrAuto(click.ParamType):
    """A number, or "auto", which becomes None."""

    name = "number"

    def convert(self, value, param, ctx) -> float | None:
        try:
            return None if value == "auto" else float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)


class Angstrom(float):
    """A length in Å where an option counts pixels or rings."""


class OrAngstrom(click.ParamType):
    """A value of another type, or a length in Å: a positive number with A or Å."""

    def __init__(self, other: click.ParamType):
        self.other, self.name = other, f"{other.name} or length"

    def convert(self, value, param, ctx):
        number = normalize("NFC", str(value)).rstrip("AÅ")
        if number == str(value):
            return self.other.convert(value, param, ctx)
        return Angstrom(console.Positive().convert(number, param, ctx))


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
    type=OrAngstrom(NumberOrAuto()),
    metavar="NUMBER|LENGTH|auto",
    default=0,
    help="Standard deviation along each axis of shifts that the images still have, in"
    " pixels after --downsample or as a length in Å (3A). auto: it is found with the"
    " volume.",
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
    help="Take all images as they are: do not leave out outliers, subtract a background"
    " that is not 0, or invert the contrast where there are no CTFs.",
)


def choice_options(command):
    """Add the options that `read_particles` has: which particles, and where."""
    for option in reversed(CHOICE):
        command = option(command)
    return command


def downsample_option(least: int, default: str = ""):
    """Return the option `--downsample`, of this many pixels or more."""
    return click.option(
        "--downsample",
        type=OrAngstrom(click.IntRange(least)),
        metavar="NUMBER|LENGTH",
        help="Fourier-crop to this many pixels, or to as many as a resolution in Å"
        f" takes (12A).{default}",
    )


def opened(
    particles: Path,
    downsample: float | None,
    most: int | None = None,
    *,
    passthrough: Path | None,
    data_folder: Path | None,
    pixel_size: float | None,
    first: int | None,
    random_subset: int | None,
    class_number: int | None,
    **corrections,
) -> tuple[Particles, ParticleSource, CorrectionOptions]:
    """
    Read particles, and check that images can be corrected as the options say. The
    source has images downsampled as the option says, or else to `most` pixels.
    """
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
    source = aspire_mom.relion.ParticleSource(read)
    L = int(downsample or min(most or read.L, read.L))
    typed = f"{L}"
    if isinstance(downsample, Angstrom):  # the resolution of Nyquist is two pixels
        L = 2 * math.ceil(read.L * read.pixel_size / downsample)
        typed = f"{downsample:g} Å, {L} pixels"
    if downsample and not LEAST_PIXELS <= L <= read.L:
        raise ValueError(
            f"--downsample is {typed}; the images have {read.L} pixels, and at least"
            f" {LEAST_PIXELS} are needed"
        )
    if L < read.L:
        source = source.downsample(L)
    if isinstance(corrections.get("shift_std"), Angstrom):
        corrections["shift_std"] /= source.pixel_size
    return read, source, aspire_mom.CorrectionOptions(**corrections)


def check_file(particles: Path) -> None:
    """Check that particles can be read again, when poses are written beside it."""
    if not particles.is_file():
        raise ValueError(f"{particles} can be read only once; a file is needed")
