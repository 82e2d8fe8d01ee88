"""`aspire-mom simulate` and `aspire-mom evaluate`, which read volumes."""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import mrcfile
import numpy as np

import aspire_mom
from aspire_mom import mrc
from aspire_mom.cli import console

if TYPE_CHECKING:
    from aspire.volume import Volume

# Sums of squares of larger values overflow in single precision.
LARGEST = 1e15


@click.command(cls=console.Command)
@click.argument("volume", type=console.INPUT)
@console.out_option("STAR file to write (.star).", ".star")
@click.option("--images", type=console.COUNT, required=True, help="Number of images.")
@click.option(
    "--snr",
    type=console.Positive(),
    required=True,
    help="Signal-to-noise ratio as ASPIRE defines it: mean square of the clean images"
    " within the inscribed disc over the noise variance.",
)
@click.option(
    "--views",
    type=click.Choice(["vmf", "uniform"]),
    default="vmf",
    help="Density of viewing directions: a random mixture of eight von Mises-Fisher"
    " distributions, or uniform.",
)
@click.option(
    "--defocus",
    type=click.FloatRange(0.05, 100),
    nargs=2,
    metavar="LEAST MOST",
    help="Give images CTFs of 50 defoci from LEAST to MOST µm, with 0.05 µm of"
    " astigmatism.  [default: no CTF]",
)
@click.option(
    "--shift-std",
    type=click.FloatRange(0),
    default=0,
    help="Standard deviation of shifts along each axis, in pixels.",
)
@click.option(
    "--amplitude-std",
    type=click.FloatRange(0, 0.5),
    default=0,
    help="Standard deviation of the images' amplitudes, relative to their mean.",
)
@console.pixel_size_option
@console.seed_option
@console.overwrite_option
def simulate(
    volume: Path,
    out: Path,
    images: int,
    snr: float,
    views: str,
    defocus: tuple[float, float] | None,
    shift_std: float,
    amplitude_std: float,
    pixel_size: float | None,
    seed: int,
    overwrite: bool,
) -> None:
    """
    Simulate noisy particle images of VOLUME, an MRC file.

    Images have white noise; in-plane angles are uniform. By default there are no CTFs,
    no shifts, and equal amplitudes. The STAR file keeps the true angles, CTFs (300 kV,
    Cs 2.7 mm, amplitude contrast 0.1) and shifts. Other commands remove shifts that
    they know; with their --ignore-shifts and --shift-std, shifts are unknown to them.
    The images are in one stack beside the STAR file: N images of particles.star in
    particles_0_<N - 1>.mrcs.

    \b
    Examples:
        aspire-mom simulate map.mrc --images 10000 --snr 0.1 -o particles.star
        aspire-mom simulate map.mrc --images 10000 --snr 0.1 --defocus 0.8 3
            --shift-std 1.5 -o particles.star
    """
    if not out.name.isprintable() or set(out.name) & set(" @#'\""):
        raise ValueError(
            f"{str(out)!r} cannot be the name: images are named number@stack after it,"
            " so it must have no space, @, #, quotation mark or control character"
        )
    # As ASPIRE names the stack of a STAR file.
    stack = out.with_name(f"{out.stem}_0_{images - 1}.mrcs")
    stacks = re.compile(re.escape(out.stem) + r"_0_\d+\.mrcs")
    old = out.parent.iterdir() if overwrite and out.is_file() else []
    old = {path for path in old if stacks.fullmatch(path.name)}
    console.check_outputs([out, stack], overwrite)
    filters = None
    if defocus:
        least, most = defocus
        if not least <= most:
            raise ValueError(f"defocus is {least:g} {most:g} µm; the least comes first")
        groups = aspire_mom.simulation.defocus_groups
        filters = groups(1e4 * least, 1e4 * most, seed=seed)
    (molecule,) = read_volumes([volume], pixel_size)
    mixture = aspire_mom.VonMisesFisherMixture
    density = mixture.random(seed=seed)
    if views == "uniform":
        density = mixture(np.eye(3)[2:], np.zeros(1), np.ones(1))
    noise = aspire_mom.simulation.WhiteNoise.from_snr(snr, seed=seed + 2)
    rotations = density.sample(images, seed=seed + 1)
    source = aspire_mom.simulation.simulate(
        *(molecule, rotations, noise, seed + 1),
        filters=filters,
        shift_std=shift_std,
        amplitude_std=amplitude_std,
    )
    with aspire_mom.files.staged(out.parent) as folder:
        source.save(folder / out.name, save_mode="single")
    for path in old - {stack}:
        path.unlink()
    click.echo(f"{images} images in {out}")


@click.command(cls=console.Command)
@click.argument("volume", type=console.INPUT)
@click.argument("reference", type=console.INPUT)
@console.pixel_size_option
@console.report_options
def evaluate(
    volume: Path,
    reference: Path,
    pixel_size: float | None,
    as_json: bool,
    plot: Path | None,
    overwrite: bool,
) -> None:
    """
    Compare VOLUME with REFERENCE, both MRC files.

    VOLUME is registered to REFERENCE over all rotations, both hands and shifts before
    the Fourier shell correlation (FSC) is taken, of which --plot makes a picture.

    \b
    Example:
        aspire-mom evaluate result/volume.mrc truth.mrc --plot fsc.png
    """
    start = time.perf_counter()
    console.check_outputs([plot] if plot else [], overwrite)
    comparison = aspire_mom.compare(*read_volumes([volume, reference], pixel_size))
    if plot is not None:
        with aspire_mom.files.staged(plot.parent) as folder:
            comparison.plot(folder / plot.name)
    report = {**comparison.summary(), "seconds": time.perf_counter() - start}
    text = json.dumps(report, indent=2) if as_json else console.format_metrics(report)
    click.echo(text)


# What mrcfile and decompressors raise for damaged files.
READING = (ValueError, EOFError, OSError, MemoryError, OverflowError, zlib.error)


def read_volume(path: Path, pixel_size: float | None = None) -> Volume:
    """Read an MRC file of one cubic volume as float32 [z, y, x], whatever the order of
    its axes, perhaps without pixel size; headers may deviate from the format."""
    from aspire.volume import Volume

    checks = aspire_mom.checks
    try:
        opened = mrcfile.open(path, mode="r", permissive=True)
        with opened as file, np.errstate(divide="ignore", invalid="ignore"):
            voxels, header = file.data, file.header
            sizes = np.nan_to_num(file.voxel_size.item(), posinf=0, neginf=0)
    except READING as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} cannot be read as MRC: {error}") from error
    if voxels is None:
        raise ValueError(f"{path} is cut short, or no MRC file")
    if voxels.ndim == 4 and len(voxels) == 1:  # as `Volume.save` has it
        voxels = voxels[0]
    if voxels.ndim != 3 or len(set(voxels.shape)) != 1:
        shape = " x ".join(map(str, voxels.shape))
        raise ValueError(f"{path} holds {shape} values; a volume must be cubic")
    if mrc.is_image_stack(path, header):
        raise ValueError(f"{path} holds a stack of {len(voxels)} images, not a volume")
    voxels = voxels.view(mrc.value_type(path, header))
    if not (np.abs(voxels) < LARGEST).all():
        raise ValueError(f"{path} holds values that are NaN, or {LARGEST:g} or more")
    if np.ptp(voxels) == 0:
        raise ValueError(f"{path} is {voxels.flat[0]} in all its voxels")
    equal = np.allclose(sizes, sizes[0], rtol=checks.PIXEL_SIZE_TOLERANCE, atol=0)
    angles = np.array(header["cellb"].item())
    if not equal or not (np.isclose(angles, 90) | (angles == 0)).all():
        edges = " x ".join(f"{edge:g}" for edge in sizes)
        raise ValueError(
            f"{path} has voxels of {edges} Å in a cell with angles of"
            f" {header['cellb']}°; they must be cubes"
        )
    size = checks.agreed_pixel_size(path, float(sizes[0]) or None, pixel_size)
    axes = mrc.check_axes(path, header)
    voxels = np.transpose(voxels, [axes.index(axis) for axis in (3, 2, 1)])
    return Volume(np.ascontiguousarray(voxels, dtype=np.float32), pixel_size=size)


def read_volumes(paths: Iterable[Path], pixel_size: float | None) -> list[Volume]:
    """Read volumes of which at least one must have a pixel size."""
    volumes = [read_volume(path, pixel_size) for path in paths]
    if all(volume.pixel_size is None for volume in volumes):
        names = " and ".join(map(str, paths))
        raise ValueError(f"no voxel size in {names}; pass pixel_size")
    return volumes
