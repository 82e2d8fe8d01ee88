"""The whole method on the paper's third volume, from noisy images to an FSC."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

import aspire_mom
from aspire_mom.cli import console
from aspire_mom.cli.reconstruct import PAGE, RESULTS, agreement_of

if TYPE_CHECKING:
    from aspire.source import Simulation

L = 25
# The paper's σ = 0.5 is for projections that are plain sums of a volume of unit norm;
# ASPIRE divides projections by L.
SIGMA = 0.5 / L
FILES = (*RESULTS, *PAGE, "truth.mrc", "aligned.mrc", "moments.npz")
FILES += ("projections.png", "fsc_reference.png")


@click.command(cls=console.Command)
@console.out_option("Folder for the results.")
@click.option(
    "--images", type=console.COUNT, default=50_000, help="Number of images to simulate."
)
@console.run_options
def demo(out: Path, images: int, seed: int, device: str, overwrite: bool) -> None:
    """
    Simulate noisy images, reconstruct, and compare with the truth.

    The volume is four Gaussians on 25 x 25 x 25 voxels of 1 Å, seen from directions
    that are far from uniform at a signal-to-noise ratio of about 0.1. The folder gets
    volume.mrc (as found), aligned.mrc (turned onto truth.mrc), moments.npz,
    report.json, and a page to look at, report.html, with its pictures.

    \b
    Example:
        aspire-mom demo --out demo
    """
    console.check_outputs([out / name for name in FILES], overwrite)
    aspire_mom.checks.checked_device(device)
    simulation, times = aspire_mom.simulation, [time.perf_counter()]
    # With one seed for both, the density would peak in the directions of the Gaussians.
    truth = aspire_mom.phantoms.gaussian_phantom(L, seed=seed)
    density = aspire_mom.VonMisesFisherMixture.random(seed=seed + 1)
    rotations = density.sample(images, seed=seed + 2)
    noise = simulation.WhiteNoise(SIGMA**2, seed=seed + 3)
    source = simulation.simulate(truth, rotations, noise, seed + 2)
    moments = aspire_mom.MomentEstimator(source, aspire_mom.PolarBasis(L)).estimate()
    times.append(time.perf_counter())
    search = aspire_mom.SearchOptions(seed=seed)
    inversion = aspire_mom.MomentInversion(moments, search=search, device=device)
    found = inversion.estimate()
    times.append(time.perf_counter())
    comparison = aspire_mom.compare(found.volume, truth)
    times.append(time.perf_counter())
    steps = ("simulation and moments", "inversion", "comparison")
    seconds = np.diff(times).round(1).tolist()

    views = comparison.align_views(found.quadrature.views)
    true = found.quadrature.view_weights * density.pdf(views)
    # 500 images determine the SNR to a few per cent.
    snr = float(source.true_snr(sample_n=min(500, images)))
    report = {
        **comparison.summary(),
        "density_correlation": float(np.corrcoef(found.view_density, true)[0, 1]),
        "true_view_density": true.tolist(),
        **agreement_of(found, moments),
        "n_images": images,
        "snr": snr,
        "noise_variance": moments.noise_variance,
        "pixel_size": truth.pixel_size,
        "box": L,
        "seed": seed,
        "starts": found.starts,
        "settings": found.settings,
        "seconds": round(times[-1] - times[0], 1),
        "seconds_of_steps": dict(zip(steps, seconds, strict=True)),
    }
    with aspire_mom.files.staged(out) as folder:
        found.save(folder)
        moments.save(folder / "moments.npz")
        maps = {"truth": truth, "aligned": comparison.aligned}
        for name, volume in maps.items():
            aspire_mom.volumes.grid.save_map(volume, folder / f"{name}.mrc")
        _plot_projections(source, snr, folder / "projections.png")
        aspire_mom.files.write_json(folder / "report.json", report)
    aspire_mom.report.write_report(out)
    click.echo(console.format_metrics(report))
    click.echo(f"{out / 'report.html'} shows them")


def _plot_projections(source: Simulation, snr: float, path: Path) -> None:
    """Draw the first images without and with noise, each row on its own scale."""
    from matplotlib.figure import Figure

    n = min(6, source.n)
    figure = Figure(figsize=(1.5 * n + 0.4, 3.2), layout="constrained")
    shown = {"clean": source.projections, f"noisy, SNR {snr:.2f}": source.images}
    rows = figure.subplots(2, n, squeeze=False)
    for row, (title, images) in zip(rows, shown.items(), strict=True):
        pixels = images[:n].asnumpy()
        low, high = np.percentile(pixels, (0.5, 99.8))
        row[0].set_ylabel(title)
        for ax, image in zip(row, pixels, strict=True):
            ax.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower")
            ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=150)
