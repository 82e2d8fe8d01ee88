"""Sections of the page on a result: what they say, and their pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aspire_mom.evaluation import (
    fourier_coverage,
    plot_fsc,
    plot_isosurfaces,
    plot_moments,
    plot_slices,
    plot_views,
    sampling_compensation_factor,
)
from aspire_mom.moments.report import RingReport
from aspire_mom.refinement import RefinedModel
from aspire_mom.refinement.model import LEAST_SHARE, SHARE_RINGS
from aspire_mom.report.pictures import (
    plot_iterations,
    plot_probabilities,
    plot_residual,
    plot_share,
    plot_starts,
)
from aspire_mom.report.result import Result
from aspire_mom.report.surface import Surface
from aspire_mom.volumes.grid import mirror

# Starts that are listed one by one.
LISTED = 10


@dataclass(frozen=True)
class Picture:
    """
    :param file: Name of a PNG file in the folder.
    :param alt: What it shows, for those who cannot see it.
    :param caption: How to read it.
    """

    file: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Table:
    """
    :param caption: What the table holds.
    :param rows: Its rows, each of as many cells.
    :param head: Names of the columns; none for names and values.
    """

    caption: str
    rows: list[tuple]
    head: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """
    :param key: A name within the page.
    :param title: Its heading.
    :param text: Its paragraphs.
    :param pictures: Its pictures.
    :param tables: Its tables.
    :param surface: The surface for the view that turns.
    """

    key: str
    title: str
    text: list[str]
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    surface: Surface | None = None


def sections(result: Result, folder: Path) -> Iterator[Section]:
    """
    :param result: What there is to report on.
    :param folder: Folder in which pictures are drawn.
    :yield: The sections that the result has data for.
    """
    yield _surface(result, folder)
    yield _slices(result, folder)
    if result.model is not None or result.comparison is not None:
        yield _fsc(result, folder)
    yield _views(result, folder)
    if result.model is not None:
        if result.model.history:
            yield _iterations(result, folder)
        if result.model.typical_share() is not None:
            yield _signal(result.model, folder)
        if result.model.probabilities is not None:
            yield _poses(result.model.probabilities, folder)
    if result.reconstruction is not None and result.reconstruction.starts:
        yield _starts(result, folder)
    if result.moments is not None or _residual(result) is not None:
        yield _moments(result, folder)
    yield _settings(result)
    yield _files(result)


def resolution(shells: float, box: float | None) -> str:
    """
    :param shells: A resolution in shells.
    :param box: Edge of the box in Ångström, if known.
    :return: It in words, in Ångström if possible.
    """
    text = f"{shells:.1f} shells"
    return text if box is None else f"{box / shells:.3g} Å ({text})"


def _surface(result: Result, folder: Path) -> Section:
    volumes = {"volume": result.volume, "mirror": mirror(result.volume)}
    text = [
        "Images do not tell the hand of a molecule: the mirror image of this volume"
        " suits them as well."
    ]
    shown = result.volume
    if result.comparison is not None and result.reference is not None:
        shown = result.comparison.aligned
        volumes = {"reference": result.reference, "volume": shown}
        hand = "mirrored and turned" if result.comparison.mirrored else "turned"
        text.append(f"Here, the volume is {hand} onto the reference.")
    names = " and ".join(volumes)
    plot_isosurfaces([*volumes.values()], [*volumes], folder / "isosurfaces.png")
    picture = Picture(
        "isosurfaces.png",
        f"Surfaces of {names}, from the front, from the right and from above",
        "From the front, from the right and from above. Level: 3 standard deviations"
        " above the mean, at most half of the maximum.",
    )
    return Section("surface", "Surface", text, [picture], surface=Surface.of(shown))


def _slices(result: Result, folder: Path) -> Section:
    volumes, text = {"volume": result.volume}, []
    if result.comparison is not None and result.reference is not None:
        volumes = {"reference": result.reference, "volume": result.comparison.aligned}
    elif result.model is not None:
        halves, size = result.model.half_volumes, result.volume.pixel_size
        for i, voxels in enumerate(halves.asnumpy(), 1):
            volumes[f"half {i}"] = type(halves)(voxels, pixel_size=size)
        text = ["What is real is in the maps of both halves of the images."]
    else:
        volumes["mirror"] = mirror(result.volume)
    plot_slices([*volumes.values()], [*volumes], folder / "slices.png")
    picture = Picture(
        "slices.png",
        f"Three central slices of {', '.join(volumes)}",
        "Central slices, on one gray scale; what is dense is bright.",
    )
    return Section("slices", "Central slices", text, [picture])


def _fsc(result: Result, folder: Path) -> Section:
    text: list[str] = []
    pictures: list[Picture] = []
    if result.model is not None:
        model = result.model
        where = resolution(model.resolution_shells(), result.box)
        plot_fsc(model.fsc, result.box, folder / "fsc.png")
        text.append(
            f"Volumes of two halves of the images agree to {where} at an FSC of 0.143."
            " Both halves went out from the same start, of which they may share"
            " errors on the first shells."
        )
        caption = "Both halves of the images. A good curve stays high, then falls once."
        pictures.append(Picture("fsc.png", f"FSC of halves, to {where}", caption))
    if result.comparison is not None:
        comparison = result.comparison
        where = resolution(comparison.resolution_shells(0.5), comparison.box)
        comparison.plot(folder / "fsc_reference.png")
        text.append(
            f"The volume agrees with the reference to {where} at an FSC of 0.5, after"
            f" registration; their correlation is {comparison.correlation:.3f}."
        )
        alt = f"FSC of volume and reference, to {where}"
        pictures.append(Picture("fsc_reference.png", alt, "Volume and reference."))
    return Section("fsc", "Fourier shell correlation", text, pictures)


def _views(result: Result, folder: Path) -> Section:
    directions, density = result.views
    factor = sampling_compensation_factor(directions, density)
    least = fourier_coverage(directions, density).min()
    title = "recovered views" if result.model is None else "refined views"
    plot_views([(directions, density)], [title], folder / "views.png")
    text = [
        "How often the molecule is seen from each side. Views need not be uniform, but"
        " each direction of Fourier space must be seen by some.",
        f"Sampling compensation factor: {factor:.2f} (1 for uniform views, 0.81 for"
        " side views only). The direction of Fourier space that is seen least is seen"
        f" {least:.2g} times as often as the average one."
        + (" The map may be smeared along it." if least < 0.1 else ""),
    ]
    picture = Picture(
        "views.png",
        f"Map of the sphere with the density of {title}",
        "Density of viewing directions over that of uniform views; z is at the top, x"
        " in the middle.",
    )
    return Section("views", "Viewing directions", text, [picture])


def _iterations(result: Result, folder: Path) -> Section:
    assert result.model is not None  # as `sections` checks
    plot_iterations(result.model.history, folder / "iterations.png")
    last, likelihood = result.model.history[-1], result.model.held_out_log_likelihood
    text = [
        f"{len(result.model.history)} iterations, the last one of"
        f" {last['n_images']:,} images on {last['n_rings']} rings. Given the map of"
        f" the other half, an image's log-likelihood is {likelihood:.3g} more than that"
        " of noise alone; near 0, images do not support the map."
    ]
    picture = Picture(
        "iterations.png",
        "Shell to which halves agree and log-likelihood after each iteration",
        "Both should rise and then level off.",
    )
    return Section("refinement", "Refinement", text, [picture])


def _signal(model: RefinedModel, folder: Path) -> Section:
    share = model.signal_share
    assert share is not None  # as `sections` checks
    plot_share(share[: len(model.fsc)], SHARE_RINGS, LEAST_SHARE, folder / "signal.png")
    first, last = SHARE_RINGS
    text = [
        "How much of the images' signal on each ring, whose power their second moment"
        f" has, the model explains in the poses found. On rings {first} to {last}, as"
        f" far as the halves agree, the median is {model.typical_share():.0%}; right"
        " models explain nearly all."
    ]
    if (tries := model.settings.get("n_tries", 1)) > 1:
        text.append(
            f"The first model explained too little, so {tries} starts were refined."
            " If none of their models explains enough, this is the one that held-out"
            " images prefer."
        )
    picture = Picture(
        "signal.png",
        f"Share of the signal on each ring, median {model.typical_share():.0%}",
        "The rings that count are shaded; on weak outer ones, noise decides.",
    )
    return Section("signal", "Signal explained", text, [picture])


def _poses(probabilities: np.ndarray, folder: Path) -> Section:
    plot_probabilities(probabilities, folder / "poses.png")
    median, sharp = np.median(probabilities), np.mean(probabilities > 0.5)
    text = [
        "How sure each image is of its pose: the probability of the best one among"
        " those tried (rlnMaxValueProbDistribution in particles.star). Its median is"
        f" {median:.2g}; {sharp:.0%} of the images have one pose that is likelier than"
        " all others together. Low values are no fault: where images are noisy, all"
        " likely poses count."
    ]
    picture = Picture(
        "poses.png",
        f"Histogram of the probability of the best pose, median {median:.2g}",
        "Images with sharp posteriors are to the right.",
    )
    return Section("poses", "Sharpness of the poses", text, [picture])


def _starts(result: Result, folder: Path) -> Section:
    found, box = result.reconstruction, result.box
    assert found is not None  # as `sections` checks
    plot_starts(found.starts, found.history, folder / "starts.png")
    text, summary = [], result.start_summary
    if result.model is not None and summary.get("verdict"):
        text.append(summary["verdict"])
    shells = summary.get("agreement_shells")
    if shells is not None:
        text.append(
            f"The best start and the most similar one agree to"
            f" {resolution(shells, box)} at an FSC of 0.5. Below 4 shells, starts agree"
            " by their overall shape only."
        )
    rows = [
        (str(i), str(s["seed"]), f"{s['criterion']:.4g}", f"{s['loss']:.4g}")
        for i, s in enumerate(found.starts[:LISTED], 1)
    ]
    head = "rank", "seed", "criterion", "loss"
    table = Table("The best starts", rows, head)
    picture = Picture(
        "starts.png",
        f"Criterion of {len(found.starts)} starts, and loss of the best by stage",
        "Several starts near the best are a good sign. Dotted lines: rings were added,"
        " so losses on both sides are not comparable.",
    )
    return Section("starts", "Search from random starts", text, [picture], [table])


def _residual(result: Result) -> np.ndarray | None:
    found = result.reconstruction
    return None if found is None else found.second_residual


def _moments(result: Result, folder: Path) -> Section:
    text: list[str] = []
    pictures: list[Picture] = []
    found, residual = result.reconstruction, _residual(result)
    if result.moments is not None:
        report = RingReport.of(result.moments)
        plot_moments(result.moments, report, folder / "moments.png")
        verdict = report.verdict()
        text.append(f"{verdict[0].upper()}{verdict[1:]}.")
        picture = Picture(
            "moments.png",
            "First moment, power and signal to error of rings, and second moment",
            "What the images gave, without any orientation.",
        )
        pictures.append(picture)
    if found is not None and found.moment_errors is not None:
        first, second = found.moment_errors
        text.append(
            "First and second moment of the reconstruction differ from those of the"
            f" images, noise and all, by {first:.1%} and {second:.1%} of their norms."
        )
    if found is not None and residual is not None:
        plot_residual(residual, folder / "residual.png")
        median = np.median(residual[residual > 0])
        text.append(
            "On half of the rings and orders in use, the second moment differs by less"
            f" than {median:.2g} standard errors; 1 is the noise. More on some rings or"
            " orders tells what the model cannot explain."
        )
        picture = Picture(
            "residual.png",
            "Residual of the second moment on each ring and angular order",
            "Second moment of the reconstruction less that of the images, in standard"
            " errors: differences that noise explains are about 1 and less.",
        )
        pictures.append(picture)
    return Section("moments", "Moments", text, pictures)


def _settings(result: Result) -> Section:
    settings: dict[str, dict] = {}
    if result.reconstruction is not None:
        settings["Settings of the inversion"] = result.reconstruction.settings
    if result.moments is not None:
        moments = result.moments
        treated = {"images": moments.n_images, "corrections": moments.corrections}
        settings["Settings of the moments"] = treated
    if result.model is not None:
        settings["Settings of the refinement"] = result.model.settings
    tables = [
        Table(name, [(key, str(value)) for key, value in found.items()])
        for name, found in settings.items()
    ]
    return Section("settings", "Settings", [], tables=tables)


FILES = {
    "volume.mrc": "the volume",
    "volume_mirror.mrc": "its mirror image, the other hand",
    "half1.mrc": "the volume of one half of the images",
    "half2.mrc": "the volume of the other half",
    "particles.star": "images with angles, origins and half sets, for RELION",
    "moments.npz": "moments of the images",
    "reconstruction.npz": "density of views, and volumes of the starts",
    "refinement.npz": "density of views, and poses of the images",
    "start": "the start of the refinement",
    "truth.mrc": "the map that images of a demonstration were simulated of",
    "report.json": "figures of this page",
}


def _files(result: Result) -> Section:
    there = [(k, v) for k, v in FILES.items() if (result.folder / k).exists()]
    table = Table("Files in the folder", there)
    return Section("files", "Files", [], tables=[table])
