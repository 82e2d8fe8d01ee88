"""The whole method on a molecule of our own making, from noisy images to an FSC."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

import aspire_mom
from aspire_mom.cli import console
from aspire_mom.cli.refine import WRITTEN, initial_model
from aspire_mom.cli.volumes import read_volume, simulate

if TYPE_CHECKING:
    from aspire.volume import Volume

# The molecule, and what makes its model within a minute on two cores.
L, PIXEL_SIZE, SOLVENT, SNR = 32, 5.0, 0.8, 1 / 8
STARTS, RINGS = 3, 12


@click.command(cls=console.Command)
@console.out_option("Folder for the results.")
@click.option(
    "--images",
    type=click.IntRange(min=4),
    default=1_500,
    help="Number of images to simulate.",
)
@console.run_options
@click.pass_context
def demo(
    context: click.Context,
    out: Path,
    images: int,
    seed: int,
    device: str,
    overwrite: bool,
) -> None:
    """
    Simulate noisy images, make an initial model of them, and compare with the truth.

    The molecule is a phantom, helices and a round domain drawn at random, in solvent
    and a box of 32 x 32 x 32 voxels of 5 Å. It is seen from directions that are far
    from uniform at a signal-to-noise ratio of 1/8. The folder gets truth.mrc, the
    images in images.star, and all that initial-model writes; the page to look at,
    report.html, compares the model with the truth. If it is killed, the same command
    goes on where it stopped.

    \b
    Example:
        aspire-mom demo --out demo
    """
    begun, star, truth = time.perf_counter(), out / "images.star", out / "truth.mrc"
    console.check_outputs([out / name for name in WRITTEN], overwrite)
    aspire_mom.checks.checked_device(device)
    molecule = aspire_mom.phantoms.helix_bundle_phantom(
        L, solvent=SOLVENT, seed=seed, pixel_size=PIXEL_SIZE
    )
    options = {"seed": seed, "overwrite": overwrite}
    if not _are_there(star, truth, molecule, images):
        names = "moments.npz", "truth.mrc", "images.star", f"images_0_{images - 1}.mrcs"
        console.check_outputs([out / name for name in names], overwrite)
        with aspire_mom.files.staged(out) as folder:
            aspire_mom.volumes.grid.save_map(molecule, folder / truth.name)
        context.invoke(
            simulate, volume=truth, out=star, images=images, snr=SNR, **options
        )
    context.invoke(
        initial_model,
        particles=star,
        out=out,
        starts=STARTS,
        rings=RINGS,
        device=device,
        reference=truth.name,
        **options,
    )
    model = aspire_mom.RefinedModel.load(out)
    report = aspire_mom.compare(model.volume, molecule).summary()
    report["seconds"] = time.perf_counter() - begun
    click.echo(console.format_metrics(report))


def _are_there(star: Path, truth: Path, molecule: Volume, images: int) -> bool:
    """Whether a run that was killed has simulated these images."""
    if not (star.is_file() and truth.is_file()):
        return False
    voxels = read_volume(truth).asnumpy()
    same = np.array_equal(voxels, molecule.asnumpy())
    return same and len(aspire_mom.relion.read_particles(star)) == images
