"""The whole method on the paper's third volume, from noisy images to an FSC."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from aspire.noise import WhiteNoiseAdder
from aspire.source import Simulation
from aspire.volume import Volume
from matplotlib.figure import Figure

from aspire_mom.bases import PolarBasis
from aspire_mom.checks import checked_device
from aspire_mom.cli.console import (
    COUNT,
    Command,
    check_outputs,
    device_option,
    figures,
    out_option,
    overwrite_option,
    seed_option,
)
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
from aspire_mom.phantoms import gaussian_phantom
from aspire_mom.rotations import VonMisesFisherMixture

L = 25
# The paper's σ = 0.5, which is per pixel of projections that are plain sums of a volume
# of unit norm; ASPIRE divides projections by L.
SIGMA = 0.5 / L
SHOWN = 6
# Enough to know the SNR to a few per cent.
SNR_IMAGES = 500
FILES = (
    *RECONSTRUCTION_FILES,
    "truth.mrc",
    "aligned.mrc",
    "moments.npz",
    "projections.png",
    "slices.png",
    "isosurfaces.png",
    "views.png",
    "fsc.png",
    "report.json",
)


@click.command(cls=Command)
@out_option("Folder for the results.")
@click.option(
    "--images",
    type=COUNT,
    default=50_000,
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
    check_outputs([out / name for name in FILES], overwrite)
    checked_device(device)
    result = run_demo(images, seed=seed, device=device)
    with staged(out) as folder:
        result.save(folder)
    click.echo(figures(result.report()))


@dataclass(frozen=True, eq=False)
class Demo:
    """
    What went into a demonstration and what came out.

    :param truth: The volume that was projected, unit norm.
    :param density: The density of its views.
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

    @property
    def views(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Viewing directions (n, 3) of the recovered density, aligned with the truth, and
        the recovered and the true probability of each (n,).
        """
        quadrature = self.reconstruction.quadrature
        views = aligned_views(quadrature.views, self.comparison)
        recovered = self.reconstruction.density.reshape(-1, quadrature.n_inplane).sum(1)
        true = quadrature.view_weights * self.density.pdf(views)
        return views, recovered, true / true.sum()

    def report(self) -> dict:
        """
        All figures, ready for JSON.

        :return: The comparison's summary, the correlation of the recovered density of
            views with the true one, and what the images were.
        """
        _, recovered, true = self.views
        return {
            **self.comparison.summary(),
            "density_correlation": float(np.corrcoef(recovered, true)[0, 1]),
            "n_images": self.source.n,
            "snr": float(self.source.true_snr(sample_n=min(SNR_IMAGES, self.source.n))),
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
        self.reconstruction.save(folder)
        self.moments.save(folder / "moments.npz")
        self.truth.save(str(folder / "truth.mrc"))
        self.comparison.aligned.save(str(folder / "aligned.mrc"))
        plot_projections(self.source, folder / "projections.png")
        volumes = [self.truth, self.comparison.aligned]
        titles = ["truth", "reconstruction"]
        plot_slices(volumes, titles, folder / "slices.png")
        plot_isosurfaces(volumes, titles, folder / "isosurfaces.png")
        views, recovered, true = self.views
        plot_views(
            [(views, true), (views, recovered)],
            ["true views", "recovered views"],
            folder / "views.png",
        )
        self.comparison.plot(folder / "fsc.png")
        write_json(folder / "report.json", self.report())


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
    start = time.perf_counter()
    # Different seeds, since one stream would put the views' means on the Gaussians.
    truth = gaussian_phantom(L, seed=seed)
    density = VonMisesFisherMixture.random(seed=seed + 1)
    source = simulate(
        truth, n_images, density, WhiteNoiseAdder(SIGMA**2, seed=seed + 3), seed + 2
    )
    moments = MomentEstimator(source, PolarBasis(L)).estimate()
    averaged = time.perf_counter()
    inversion = MomentInversion(moments, search=SearchOptions(seed=seed), device=device)
    reconstruction = inversion.estimate()
    inverted = time.perf_counter()
    comparison = compare(reconstruction.volume, truth)
    seconds = {
        "simulation and moments": averaged - start,
        "inversion": inverted - averaged,
        "comparison": time.perf_counter() - inverted,
    }
    return Demo(truth, density, source, moments, reconstruction, comparison, seconds)


def simulate(
    volume: Volume,
    n_images: int,
    density: VonMisesFisherMixture,
    noise: WhiteNoiseAdder,
    seed: int,
) -> Simulation:
    """
    Noisy projections without CTF or shifts, as moments need them.

    :param volume: One ASPIRE `Volume`, float32.
    :param n_images: Number of images.
    :param density: Density of their rotations.
    :param noise: Noise to add.
    :param seed: Seed of the rotations.
    :return: ASPIRE `Simulation`.
    """
    angles = density.sample(n_images, seed=seed).angles
    return Simulation(
        vols=volume,
        n=n_images,
        angles=angles.astype(volume.dtype),
        offsets=0,
        amplitudes=1,
        noise_adder=noise,
        seed=seed,
    )


def aligned_views(views: np.ndarray, comparison: Comparison) -> np.ndarray:
    """
    Viewing directions of a reconstruction as those of its reference.

    With reference(x) = volume(J Rᵀ x), the image of the volume at rotation Q is that of
    the reference at R Q, or at R J Q J where the volume was mirrored (J = diag(1, 1,
    -1)): its viewing direction is R J Q J e_z = -R J (Q e_z).

    :param views: Unit vectors (n, 3), xyz order, viewing directions Q[:, 2].
    :param comparison: How the volume lies to the reference.
    :return: Unit vectors (n, 3), float64.
    """
    if comparison.mirrored:
        views = views * (-1, -1, 1)
    return views @ comparison.rotation.matrices[0].T.astype(np.float64)


def plot_projections(source: Simulation, path: Path) -> Figure:
    """
    The first few images without and with noise, each row on its own gray scale.

    :param source: The images.
    :param path: Image file to write.
    :return: matplotlib `Figure`.
    """
    snr = source.true_snr(sample_n=min(SNR_IMAGES, source.n))
    rows = {"clean": source.projections, f"noisy, SNR {snr:.2f}": source.images}
    n = min(SHOWN, source.n)
    figure = Figure(figsize=(1.5 * n + 0.4, 3.2), layout="constrained")
    axes = figure.subplots(2, n, squeeze=False)
    for row, (title, images) in zip(axes, rows.items(), strict=True):
        pixels = images[:n].asnumpy()
        low, high = np.percentile(pixels, (0.5, 99.8))
        row[0].set_ylabel(title)
        for ax, image in zip(row, pixels, strict=True):
            ax.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower")
            ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=150)
    return figure
