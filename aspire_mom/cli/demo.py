"""The whole method on the paper's third volume, from noisy images to an FSC."""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np
from aspire.noise import WhiteNoiseAdder
from aspire.source import Simulation
from aspire.volume import Volume
from matplotlib.figure import Figure

from aspire_mom.bases import PolarBasis
from aspire_mom.checks import checked_device
from aspire_mom.cli import console
from aspire_mom.evaluation import (
    Comparison,
    compare,
    plot_isosurfaces,
    plot_slices,
    plot_views,
)
from aspire_mom.files import staged, write_json
from aspire_mom.inversion import MomentInversion, SearchOptions
from aspire_mom.inversion.reconstruction import FILES as RECONSTRUCTION_FILES
from aspire_mom.moments import MomentEstimator
from aspire_mom.phantoms import gaussian_phantom, simulate
from aspire_mom.rotations import VonMisesFisherMixture

L = 25
# The paper's σ = 0.5 is for projections that are plain sums of a volume of unit norm;
# ASPIRE divides projections by L.
SIGMA = 0.5 / L
SHOWN = 6
# Enough to know the SNR to a few per cent.
SNR_IMAGES = 500
STEPS = ("simulation and moments", "inversion", "comparison")
PICTURES = ("projections", "slices", "isosurfaces", "views", "fsc")
FILES = (
    *RECONSTRUCTION_FILES,
    *("truth.mrc", "aligned.mrc", "moments.npz", "report.json"),
    *(f"{name}.png" for name in PICTURES),
)


@click.command(cls=console.Command)
@console.out_option("Folder for the results.")
@click.option(
    "--images",
    type=console.COUNT,
    default=50_000,
    help="Number of images to simulate.",
)
@console.seed_option
@console.device_option
@console.overwrite_option
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
    console.check_outputs([out / name for name in FILES], overwrite)
    checked_device(device)
    times = [time.perf_counter()]
    # Different seeds: with one, the views' means would lie on the Gaussians.
    truth = gaussian_phantom(L, seed=seed)
    density = VonMisesFisherMixture.random(seed=seed + 1)
    noise = WhiteNoiseAdder(SIGMA**2, seed=seed + 3)
    source = simulate(truth, density.sample(images, seed=seed + 2), noise, seed + 2)
    moments = MomentEstimator(source, PolarBasis(L)).estimate()
    times.append(time.perf_counter())
    search = SearchOptions(seed=seed)
    found = MomentInversion(moments, search=search, device=device).estimate()
    times.append(time.perf_counter())
    comparison = compare(found.volume, truth)
    times.append(time.perf_counter())
    seconds = dict(zip(STEPS, np.diff(times).round(1).tolist(), strict=True))

    views = comparison.align_views(found.quadrature.views)
    true = found.quadrature.view_weights * density.pdf(views)
    snr = float(source.true_snr(sample_n=min(SNR_IMAGES, images)))
    report = {
        **comparison.summary(),
        "density_correlation": float(np.corrcoef(found.view_density, true)[0, 1]),
        "n_images": images,
        "snr": snr,
        "noise_variance": moments.noise_variance,
        "pixel_size": truth.pixel_size,
        "box": L,
        "seed": seed,
        "starts": found.starts,
        "settings": found.settings,
        "seconds": round(times[-1] - times[0], 1),
        "seconds_of_steps": seconds,
    }
    with staged(out) as folder:
        found.save(folder)
        moments.save(folder / "moments.npz")
        truth.save(str(folder / "truth.mrc"))
        comparison.aligned.save(str(folder / "aligned.mrc"))
        _plot_projections(source, snr).savefig(folder / "projections.png", dpi=150)
        _plot_result(folder, comparison, truth, views, (true, found.view_density))
        write_json(folder / "report.json", report)
    click.echo(console.format_metrics(report))


def _plot_result(
    folder: Path,
    comparison: Comparison,
    truth: Volume,
    views: np.ndarray,
    densities: tuple[np.ndarray, np.ndarray],
) -> None:
    """Draw volumes, FSC, and the true and the recovered density at the views (n, 3)."""
    volumes, titles = [truth, comparison.aligned], ["truth", "reconstruction"]
    plot_slices(volumes, titles, folder / "slices.png")
    plot_isosurfaces(volumes, titles, folder / "isosurfaces.png")
    maps = [(views, density) for density in densities]
    plot_views(maps, ["true views", "recovered views"], folder / "views.png")
    comparison.plot(folder / "fsc.png")


def _plot_projections(source: Simulation, snr: float) -> Figure:
    """Draw the first images without and with noise, each row on its own scale."""
    n = min(SHOWN, source.n)
    figure = Figure(figsize=(1.5 * n + 0.4, 3.2), layout="constrained")
    for row, title, images in zip(
        figure.subplots(2, n, squeeze=False),
        ("clean", f"noisy, SNR {snr:.2f}"),
        (source.projections, source.images),
        strict=True,
    ):
        pixels = images[:n].asnumpy()
        low, high = np.percentile(pixels, (0.5, 99.8))
        row[0].set_ylabel(title)
        for ax, image in zip(row, pixels, strict=True):
            ax.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower")
            ax.set(xticks=[], yticks=[])
    return figure
