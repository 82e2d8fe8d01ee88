"""The whole method on the paper's third volume, from noisy images to an FSC."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
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
from aspire_mom.inversion import MomentInversion, Reconstruction, SearchOptions
from aspire_mom.inversion.reconstruction import FILES as RECONSTRUCTION_FILES
from aspire_mom.moments import MomentEstimator, Moments
from aspire_mom.phantoms import gaussian_phantom, simulate
from aspire_mom.rotations import VonMisesFisherMixture

L = 25
# The paper's σ = 0.5, which is per pixel of projections that are plain sums of a volume
# of unit norm; ASPIRE divides projections by L.
SIGMA = 0.5 / L
SHOWN = 6
# Enough to know the SNR to a few per cent.
SNR_IMAGES = 500
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
    result = run_demo(images, seed=seed, device=device)
    with staged(out) as folder:
        result.save(folder)
    click.echo(console.figures(result.report()))


@dataclass(frozen=True, eq=False)
class Demo:
    """
    What went into a demonstration and what came out.

    :param truth: The volume that was projected, unit norm.
    :param density: The density of its viewing directions.
    :param source: The noisy images.
    :param moments: Their moments.
    :param reconstruction: What was recovered from them.
    :param comparison: How well it agrees with the truth.
    :param seconds: Wall-clock time of each step.
    """

    truth: Volume
    density: VonMisesFisherMixture
    source: Simulation
    moments: Moments
    reconstruction: Reconstruction
    comparison: Comparison
    seconds: dict[str, float]

    @cached_property
    def snr(self) -> float:
        """
        :return: Signal-to-noise ratio of the first images.
        """
        return float(self.source.true_snr(sample_n=min(SNR_IMAGES, self.source.n)))

    @cached_property
    def views(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        :return: Viewing directions (n, 3) of the recovered density, aligned with the
            truth, and the recovered and the true probability of each (n,).
        """
        quadrature = self.reconstruction.quadrature
        views = self.comparison.align_views(quadrature.views)
        true = quadrature.view_weights * self.density.pdf(views)
        return views, self.reconstruction.view_density, true / true.sum()

    def report(self) -> dict:
        """
        :return: All figures, ready for JSON: the comparison's summary, the correlation
            of the recovered density with the true one, and what the images were.
        """
        _, recovered, true = self.views
        return {
            **self.comparison.summary(),
            "density_correlation": float(np.corrcoef(recovered, true)[0, 1]),
            "n_images": self.source.n,
            "snr": self.snr,
            "noise_variance": self.moments.noise_variance,
            "pixel_size": self.truth.pixel_size,
            "box": L,
            "seed": self.reconstruction.seed,
            "starts": self.reconstruction.starts,
            "settings": self.reconstruction.settings,
            "seconds": round(sum(self.seconds.values()), 1),
            "seconds_of_steps": {k: round(v, 1) for k, v in self.seconds.items()},
        }

    def save(self, folder: Path) -> None:
        """
        Write `FILES`.

        :param folder: An existing, empty folder.
        """
        aligned, (views, recovered, true) = self.comparison.aligned, self.views
        self.reconstruction.save(folder)
        self.moments.save(folder / "moments.npz")
        self.truth.save(str(folder / "truth.mrc"))
        aligned.save(str(folder / "aligned.mrc"))
        self._plot_projections().savefig(folder / "projections.png", dpi=150)
        volumes, titles = [self.truth, aligned], ["truth", "reconstruction"]
        plot_slices(volumes, titles, folder / "slices.png")
        plot_isosurfaces(volumes, titles, folder / "isosurfaces.png")
        maps, titles = [(views, true), (views, recovered)], ["true", "recovered"]
        plot_views(maps, [f"{t} views" for t in titles], folder / "views.png")
        self.comparison.plot(folder / "fsc.png")
        write_json(folder / "report.json", self.report())

    def _plot_projections(self) -> Figure:
        """The first few images without and with noise, each row on its own scale."""
        n = min(SHOWN, self.source.n)
        figure = Figure(figsize=(1.5 * n + 0.4, 3.2), layout="constrained")
        for row, title, images in zip(
            figure.subplots(2, n, squeeze=False),
            ("clean", f"noisy, SNR {self.snr:.2f}"),
            (self.source.projections, self.source.images),
            strict=True,
        ):
            pixels = images[:n].asnumpy()
            low, high = np.percentile(pixels, (0.5, 99.8))
            row[0].set_ylabel(title)
            for ax, image in zip(row, pixels, strict=True):
                ax.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower")
                ax.set(xticks=[], yticks=[])
        return figure


def run_demo(n_images: int = 50_000, *, seed: int = 0, device: str = "cpu") -> Demo:
    """
    Simulate images of four Gaussians on 25³ voxels of 1 Å (section 5.2), seen from
    directions of a mixture of eight von Mises-Fisher distributions at the paper's noise
    level, and recover volume and density from their moments.

    :param n_images: Number of images.
    :param seed: Seed of everything drawn at random.
    :param device: torch device of the inversion.
    :return: The :class:`Demo`.
    """
    times = [time.perf_counter()]
    # Different seeds: with one, the views' means would lie on the Gaussians.
    truth = gaussian_phantom(L, seed=seed)
    density = VonMisesFisherMixture.random(seed=seed + 1)
    noise = WhiteNoiseAdder(SIGMA**2, seed=seed + 3)
    source = simulate(truth, density.sample(n_images, seed=seed + 2), noise, seed + 2)
    moments = MomentEstimator(source, PolarBasis(L)).estimate()
    times.append(time.perf_counter())
    search = SearchOptions(seed=seed)
    found = MomentInversion(moments, search=search, device=device).estimate()
    times.append(time.perf_counter())
    comparison = compare(found.volume, truth)
    times.append(time.perf_counter())
    steps = ("simulation and moments", "inversion", "comparison")
    seconds = dict(zip(steps, np.diff(times).tolist(), strict=True))
    return Demo(truth, density, source, moments, found, comparison, seconds)
