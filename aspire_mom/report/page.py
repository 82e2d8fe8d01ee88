"""One self-contained HTML page on the results in a folder."""

from __future__ import annotations

from base64 import b64encode
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from aspire.volume import Volume
from jinja2 import Environment
from PIL import Image

from aspire_mom.files import contents_of, staged
from aspire_mom.report.result import Result
from aspire_mom.report.sections import Section, resolution, sections

PAGE = "report.html"
STATES = {
    True: ("bad", "Failed: do not trust this model"),
    False: ("good", "The data support this model"),
    None: ("open", "How far to trust this model"),
}


def write_report(folder: str | Path, reference: Volume | None = None) -> Path:
    """
    Write report.html and its pictures (.png) to a folder of results, over those of an
    earlier report. The page holds its pictures, style and script, and asks no other
    host for anything.

    :param folder: Folder that holds what `Reconstruction.save` or `RefinedModel.save`
        wrote, or a command of aspire-mom; report.json, moments.npz and the start of a
        refinement are used where they are there.
    :param reference: ASPIRE `Volume` of the same box, to compare the model with; a
        finer one is downsampled. By default that of what `demo` wrote.
    :return: The page.
    :raises FileNotFoundError: There is no such folder, or it lacks a file.
    :raises ValueError: It holds no results, or damaged ones, or the reference does not
        fit.
    """
    folder = Path(folder)
    result = Result.load(folder, reference)
    with staged(folder) as stage:
        # Errors of plots and texts are those of numbers in files that were edited.
        with contents_of(folder):
            text = _render(result, [*sections(result, stage)], stage)
        (stage / PAGE).write_text(text, encoding="utf-8")
    return folder / PAGE


def _embedded(folder: Path, file: str) -> dict[str, str | int]:
    """A PNG file as text, in fewer colours, and its size on the page."""
    contents = BytesIO()
    with Image.open(folder / file) as image:
        width, height = image.size
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(contents, "PNG", optimize=True)
    data = b64encode(contents.getvalue()).decode("ascii")
    # Drawn at 150 dots per inch, for sharp screens.
    return {"data": data, "width": width * 2 // 3, "height": height * 2 // 3}


def _render(result: Result, found: list[Section], folder: Path) -> str:
    template = files("aspire_mom.report") / "template"
    css, js, page = (
        (template / name).read_text(encoding="utf-8")
        for name in ("page.css", "surface.js", "page.html")
    )
    environment = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    state, headline = STATES[result.failed]
    return environment.from_string(page).render(
        name=result.folder.absolute().name,
        kind="Refined model" if result.model else "Reconstruction from moments",
        state=state,
        headline=headline,
        verdict=_verdict(result),
        facts=_facts(result),
        sections=found,
        embedded=partial(_embedded, folder),
        css=css,
        js=js,
        version=_version(),
        date=date.today().isoformat(),
    )


def _verdict(result: Result) -> list[str]:
    sentences = [result.verdict] if result.verdict else []
    if result.comparison is not None:
        shells = result.comparison.resolution_shells(0.5)
        where = resolution(shells, result.comparison.box)
        sentences.append(f"It agrees with the reference to {where} at an FSC of 0.5.")
    return sentences or ["Nothing is recorded that tells."]


def _facts(result: Result) -> list[tuple[str, str]]:
    """The main figures, as far as they are known."""
    summary, volume = result.summary, result.volume
    facts = {}
    if result.model is not None:
        shells = result.model.resolution_shells()
        facts["Halves agree to"] = resolution(shells, result.box)
    agreement = result.start_summary.get("agreement_shells")
    if agreement is not None:
        facts["Starts agree to"] = resolution(agreement, result.box)
    if summary.get("n_images"):
        facts["Images"] = f"{summary['n_images']:,}"
    facts["Box"] = f"{volume.resolution} voxels"
    if volume.pixel_size is not None:
        facts["Box"] += f" of {volume.pixel_size:.3g} Å"
    if "seconds" in summary:
        seconds = summary["seconds"]
        long = seconds >= 100
        facts["Time"] = f"{seconds / 60:.0f} min" if long else f"{seconds:.0f} s"
    return [*facts.items()]


def _version() -> str:
    try:
        return version("aspire-mom")
    except PackageNotFoundError:  # run from a source tree
        return ""
