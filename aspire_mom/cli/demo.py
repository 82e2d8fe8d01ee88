"""The whole method on a molecule of our own making, from noisy images to an FSC."""

from __future__ import annotations

import time
from pathlib import Path

import click

import aspire_mom
from aspire_mom.cli import console
from aspire_mom.cli.refine import WRITTEN, initial_model
from aspire_mom.cli.volumes import simulate

# The molecule, and what makes its model within a minute on two cores.
L, PIXEL_SIZE, SOLVENT, SNR = 32, 5.0, 0.8, 1 / 8
STARTS, RINGS = 3, 12


@click.command(cls=console.Command)
@console.out_option("Folder for the results.")
@click.option(
    "--images", type=console.COUNT, default=1_500, help="Number of images to simulate."
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

    The molecule is a phantom in solvent, helices and a round domain drawn at random, of
    32 x 32 x 32 voxels of 5 Å, seen from directions that are far from uniform at a
    signal-to-noise ratio of 1/8. The folder gets it as truth.mrc, the images as
    images.star, all that initial-model writes, and the comparison with the truth on the
    page to look at, report.html.

    \b
    Example:
        aspire-mom demo --out demo
    """
    begun, star, truth = time.perf_counter(), out / "images.star", out / "truth.mrc"
    console.check_outputs([star, truth, *(out / name for name in WRITTEN)], overwrite)
    aspire_mom.checks.checked_device(device)
    molecule = aspire_mom.phantoms.helix_bundle_phantom(
        L, solvent=SOLVENT, seed=seed, pixel_size=PIXEL_SIZE
    )
    with aspire_mom.files.staged(out) as folder:
        aspire_mom.volumes.grid.save_map(molecule, folder / truth.name)
    options = {"seed": seed, "overwrite": overwrite}
    context.invoke(simulate, volume=truth, out=star, images=images, snr=SNR, **options)
    context.invoke(
        initial_model,
        particles=star,
        out=out,
        starts=STARTS,
        rings=RINGS,
        device=device,
        reference=molecule,
        **options,
    )
    model = aspire_mom.RefinedModel.load(out)
    report = aspire_mom.compare(model.volume, molecule).summary()
    report["seconds"] = time.perf_counter() - begun
    click.echo(console.format_metrics(report))
