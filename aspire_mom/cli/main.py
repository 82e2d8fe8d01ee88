"""
The command `aspire-mom`.

Imports of anything slow are inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from aspire_mom.cli.console import (
    INPUT,
    OUTPUT,
    Group,
    LazyCommand,
    LazyGroup,
    Positive,
    check_device,
    device_option,
    estimated,
    figures,
    overwrite_option,
    pixel_size_option,
)

CHECKPOINT = "checkpoint.pt"

out_folder = click.option(
    "-o", "--out", type=OUTPUT, required=True, help="Folder for the results."
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(0, 2**31),
    default=0,
    show_default=True,
    help="Seed of all that is drawn at random.",
)


@click.group(
    cls=Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="aspire-mom")
@click.pass_context
def main(ctx: click.Context) -> None:
    """
    Ab initio cryo-EM volumes from image moments.

    Averages first and second moments over all images, without estimating any
    orientation, and finds a volume and a density of viewing directions that have these
    moments.

    \b
    See it work, in a few minutes:
        aspire-mom demo --out demo
    From images to a model, and how good it is where the truth is known:
        aspire-mom moments particles.star -o moments.npz
        aspire-mom inspect moments.npz
        aspire-mom reconstruct moments.npz -o result
        aspire-mom evaluate result/volume.mrc truth.mrc
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@main.command()
@out_folder
@click.option(
    "--images",
    type=click.IntRange(min=1),
    default=50_000,
    show_default=True,
    help="Number of images to simulate.",
)
@seed_option
@device_option
@overwrite_option
def demo(out: Path, images: int, seed: int, device: str, overwrite: bool) -> None:
    """
    Simulate noisy images, reconstruct, and compare with the truth.

    The volume is four Gaussians on 25 x 25 x 25 voxels of 1 Å, seen from directions
    that are far from uniform at a signal-to-noise ratio of about 0.1. The folder gets
    volume.mrc (as found), aligned.mrc (turned onto truth.mrc), moments.npz, pictures of
    images, slices, surfaces, views and FSC, and report.json.

    \b
    Example:
        aspire-mom demo --out demo
    """
    from aspire_mom.cli import demo as demonstration
    from aspire_mom.cli.outputs import check_outputs
    from aspire_mom.files import staged
    from aspire_mom.inversion import reconstruction

    files = reconstruction.FILES + demonstration.FILES
    check_outputs([out / name for name in files], overwrite)
    result = demonstration.run_demo(images, seed=seed, device=check_device(device))
    with staged(out) as folder:
        result.save(folder)
    click.echo(figures(result.report()))


@main.command()
@click.argument("volume", type=INPUT)
@click.option(
    "-o", "--out", type=OUTPUT, required=True, help="STAR file to write (.star)."
)
@click.option(
    "--images", type=click.IntRange(min=1), required=True, help="Number of images."
)
@click.option(
    "--snr",
    type=Positive(),
    required=True,
    help="Signal-to-noise ratio as ASPIRE defines it: mean square of the clean images"
    " within the inscribed disc over the noise variance.",
)
@click.option(
    "--views",
    type=click.Choice(["vmf", "uniform"]),
    default="vmf",
    show_default=True,
    help="Density of viewing directions: a random mixture of eight von Mises-Fisher"
    " distributions, or uniform.",
)
@pixel_size_option
@seed_option
@overwrite_option
def simulate(
    volume: Path,
    out: Path,
    images: int,
    snr: float,
    views: str,
    pixel_size: float | None,
    seed: int,
    overwrite: bool,
) -> None:
    """
    Simulate noisy particle images of VOLUME, an MRC file.

    Images have white noise, no CTF and no shifts; in-plane angles are uniform. The STAR
    file keeps the true angles. The images are in one stack beside it: N images of
    particles.star in particles_0_<N - 1>.mrcs.

    \b
    Example:
        aspire-mom simulate map.mrc --images 10000 --snr 0.1 -o particles.star
    """
    from aspire.noise import WhiteNoiseAdder

    from aspire_mom import VonMisesFisherMixture
    from aspire_mom.cli import demo as demonstration
    from aspire_mom.cli.outputs import (
        check_name,
        check_outputs,
        read_volume,
        simulated_stacks,
    )
    from aspire_mom.files import staged

    check_name(out, ".star")
    replaced = simulated_stacks(out) if overwrite and out.is_file() else []
    # As ASPIRE names the stack of a STAR file.
    stack = out.with_name(f"{out.stem}_0_{images - 1}.mrcs")
    check_outputs([out, stack], overwrite)
    molecule = read_volume(volume, pixel_size)
    if molecule.pixel_size is None:
        raise ValueError(f"{volume} has no voxel size; pass --pixel-size")
    density = VonMisesFisherMixture.random(seed=seed)
    if views == "uniform":
        density = VonMisesFisherMixture([[0, 0, 1]], [0], [1])
    noise = WhiteNoiseAdder.from_snr(snr, seed=seed + 2)
    source = demonstration.simulate(molecule, images, density, noise, seed + 1)
    with staged(out.parent) as folder:
        source.save(folder / out.name, save_mode="single")
    for path in set(replaced) - {stack}:
        path.unlink()
    click.echo(f"{images} images in {out}")


@main.command()
@click.argument("moments", type=INPUT)
@out_folder
@click.option(
    "--prior",
    type=click.Choice(["gaussians", "fouriernet", "harmonics", "paper"]),
    default="gaussians",
    show_default=True,
    help="What the volume is made of: a growing mixture of Gaussians, the paper's"
    " network, or ball harmonics; or the paper's own configuration throughout, which"
    " takes Cartesian moments and days.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="Epochs at each of the two learning rates of the paper's configuration."
    "  [default: 10000]",
)
@click.option(
    "--support-radius",
    type=Positive(),
    help="Radius in Å of a ball that holds the molecule.  [default: 0.4 boxes]",
)
@click.option(
    "--lowpass",
    type=Positive(),
    help="Remove what is finer than this many Å from the volumes that are written.",
)
@click.option(
    "--starts",
    type=click.IntRange(min=1),
    help="Number of random starts.  [default: by prior]",
)
@seed_option
@device_option
@overwrite_option
def reconstruct(
    moments: Path,
    out: Path,
    prior: str,
    epochs: int | None,
    support_radius: float | None,
    lowpass: float | None,
    starts: int | None,
    seed: int,
    device: str,
    overwrite: bool,
) -> None:
    """
    Find a volume and a density of views that have MOMENTS, an .npz file.

    The folder gets volume.mrc and volume_mirror.mrc, which moments cannot tell apart,
    the density of views (reconstruction.npz), pictures and report.json. While it runs,
    progress is kept in checkpoint.pt there: the same command goes on where a killed one
    stopped. A checkpoint of other moments or options is refused without --overwrite.

    Networks can use several processes, or GPUs with --device cuda, each of which
    evaluates a part of the views: start the command by torchrun --no-python.

    \b
    Examples:
        aspire-mom reconstruct moments.npz -o result --lowpass 20
        torchrun --nproc-per-node 4 --no-python \\
            aspire-mom reconstruct moments.npz -o result --prior fouriernet
    """
    from aspire_mom import (
        MomentInversion,
        Moments,
        SearchOptions,
        paper_inversion,
        processes,
    )
    from aspire_mom.cli.outputs import (
        RECONSTRUCTION_FILES,
        check_outputs,
        support_in_boxes,
        write_reconstruction,
    )
    from aspire_mom.files import staged
    from aspire_mom.volumes.filters import check_resolution

    start = time.perf_counter()
    check_outputs([out / name for name in RECONSTRUCTION_FILES], overwrite)
    estimate = Moments.load(moments)
    options = {}
    if support_radius is not None:
        radius = support_in_boxes(support_radius, estimate.basis.L, estimate.pixel_size)
        options["support_radius"] = radius
    if lowpass is not None:
        check_resolution(lowpass, estimate.basis.L, estimate.pixel_size)
    checkpoint = out / CHECKPOINT
    common = {"checkpoint": checkpoint}
    common["device"] = check_device(processes.own_device(device))
    if prior == "paper":
        if starts is not None or options:
            raise ValueError("--prior paper has no --starts and no --support-radius")
        inversion = paper_inversion(
            estimate, n_epochs=epochs or 10_000, seed=seed, **common
        )
    elif epochs is not None:
        raise ValueError("--epochs is for --prior paper only")
    else:
        search = SearchOptions(n_starts=starts, seed=seed)
        inversion = MomentInversion(estimate, prior, search=search, **options, **common)
    out.mkdir(parents=True, exist_ok=True)
    with processes.joined(inversion.device):
        reconstruction = estimated(inversion, overwrite)
        if not processes.is_first():
            return
    with staged(out) as folder:
        seconds = time.perf_counter() - start
        write_reconstruction(folder, reconstruction, estimate, seconds, lowpass)
    checkpoint.unlink(missing_ok=True)
    click.echo(f"{out / 'volume.mrc'} and its mirror, in {seconds:.0f} s")


@main.command()
@click.argument("volume", type=INPUT)
@click.argument("reference", type=INPUT)
@pixel_size_option
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
@click.option(
    "--plot", type=OUTPUT, help="Picture of the FSC to write (.png, .pdf or .svg)."
)
@overwrite_option
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
    the Fourier shell correlation (FSC) is taken.

    \b
    Example:
        aspire-mom evaluate result/volume.mrc truth.mrc --plot fsc.png
    """
    from aspire_mom import compare
    from aspire_mom.cli.outputs import check_name, check_outputs, read_volume
    from aspire_mom.files import staged

    start = time.perf_counter()
    if plot is not None:
        check_name(plot, ".png", ".pdf", ".svg")
        check_outputs([plot], overwrite)
    volumes = [read_volume(path, pixel_size) for path in (volume, reference)]
    if all(v.pixel_size is None for v in volumes):
        raise ValueError(
            f"neither {volume} nor {reference} has a voxel size; pass --pixel-size"
        )
    comparison = compare(*volumes)
    if plot is not None:
        with staged(plot.parent) as folder:
            comparison.plot(folder / plot.name)
    report = {**comparison.summary(), "seconds": time.perf_counter() - start}
    click.echo(json.dumps(report, indent=2) if as_json else figures(report))


main.add_command(
    LazyCommand(
        "moments",
        "aspire_mom.cli.moments",
        "Average moments of particles, a RELION STAR file.",
    )
)
main.add_command(
    LazyCommand(
        "inspect",
        "aspire_mom.cli.moments",
        "Tell what is in moments, and how many rings of them hold up.",
    )
)
main.add_command(
    LazyGroup(
        "mra",
        "aspire_mom.cli.mra",
        "Multireference alignment: signals shifted at random, under noise.",
    )
)
main.add_command(
    LazyCommand(
        "train",
        "aspire_mom.cli.train",
        "Train an encoder that starts reconstructions.",
    )
)
