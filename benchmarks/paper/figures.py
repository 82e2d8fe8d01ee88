"""
Figures 5 to 10 of the paper as ours, without a window: views drawn from eight von
Mises-Fisher distributions and the 100-point 13-design; clean and noisy projections; the
neural ground truth beside what was reconstructed (after `tables.py`).

    python benchmarks/paper/figures.py --volume gaussians
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from aspire.volume import Volume
from experiment import CASES, folder, ground_truth, original, parser, source, views
from matplotlib.figure import Figure

from aspire_mom import SphericalDesign, VonMisesFisherMixture, compare
from aspire_mom.evaluation import plot_isosurfaces

SAMPLES = 1000


def figure_5(density: VonMisesFisherMixture, seed: int, path: Path) -> None:
    """Views by component, and the design, on the sphere."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    left, right = (figure.add_subplot(1, 2, i, projection="3d") for i in (1, 2))
    counts = np.random.default_rng(seed).multinomial(SAMPLES, density.weights)
    for i, count in enumerate(counts):
        one = VonMisesFisherMixture(
            density.means[[i]], density.concentrations[[i]], [1.0]
        )
        if count:
            directions = one.sample(count, seed=seed + i).matrices[:, :, 2]
            left.scatter(*directions.T, s=5, color=f"C{i}")
    left.set_title(f"{SAMPLES} views of {len(counts)} von Mises-Fisher components")
    design = SphericalDesign(13, n_points=100)
    right.scatter(*design.points.T, s=14, color="C0")
    right.set_title("100-point 13-design")
    for ax in (left, right):
        ax.set_box_aspect((1, 1, 1))
        ax.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1], zticks=[-1, 0, 1])
    figure.savefig(path, dpi=150)


def figure_6(options, truth: Volume, path: Path) -> None:
    """A clean projection and its noisy counterpart, each on its own gray scale."""
    images = source(options, truth)
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots(2, 4)
    pairs = (("clean", images.clean_images[:4]), ("σ = 0.5", images.images[:4]))
    for row, (name, stack) in zip(axes, pairs, strict=True):
        for ax, image in zip(row, stack.asnumpy(), strict=True):
            ax.imshow(image, cmap="gray", origin="lower")
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    figure.savefig(path, dpi=150)


def figure_8(out: Path, truth: Volume, path: Path) -> None:
    """Ground truth and reconstructions, registered, as surfaces."""
    volumes, titles = [truth], ["neural ground truth"]
    for name, title in (("preset", "paper's configuration"), ("ours", "default")):
        if (out / f"{name}.mrc").is_file():
            found = Volume.load(str(out / f"{name}.mrc"))
            comparison = compare(Volume(found.asnumpy()), truth)
            volumes.append(comparison.aligned)
            titles.append(f"{title}, {comparison.resolution(0.5):.1f} Å")
    plot_isosurfaces(volumes, titles, path)


def main() -> None:
    options = parser(__doc__).parse_args()
    case, out = CASES[options.volume], folder(options)
    network, _ = ground_truth(options)
    pixel_size = original(options.volume, options.seed).pixel_size
    truth = network.to_volume(case.L, pixel_size)
    figure_5(views(options), options.seed, out / "figure_5.png")
    figure_6(options, truth, out / "figure_6.png")
    figure_8(out, truth, out / "figure_8.png")
    print(*(out / f"figure_{i}.png" for i in (5, 6, 8)), sep="\n")


if __name__ == "__main__":
    main()
