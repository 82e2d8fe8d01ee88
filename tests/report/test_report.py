"""The page on a folder of results: what it holds, and what it needs."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from aspire.utils import Rotation
from aspire.volume import Volume
from PIL import Image

from aspire_mom import Reconstruction, RefinedModel, SphericalDesign
from aspire_mom.evaluation import comparison
from aspire_mom.phantoms import chain_phantom
from aspire_mom.report import sections, write_report
from aspire_mom.report.surface import Surface
from aspire_mom.rotations import SO3Quadrature
from tests.cli.conftest import run, succeed

L, SIZE = 17, 4.0
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Elements of a page; every one that is opened must be closed in turn."""

    def __init__(self, path):
        super().__init__()
        self.open, self.elements, self.text = [], [], path.read_text(encoding="utf-8")
        self.feed(self.text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self):
        return [h["id"] for h in self.all("h2")]


@pytest.fixture(autouse=True)
def _blank_pictures(monkeypatch):
    """Blank ones take no time; the tests of the commands draw."""

    def blank(*args):
        Image.new("RGB", (90, 60)).save(args[-1])

    for module in (sections, comparison):
        for name in vars(module):
            if name.startswith("plot_"):
                monkeypatch.setattr(module, name, blank)


def volume(seed=3, size=SIZE):
    return chain_phantom(L, seed=seed, pixel_size=size)


def reconstruction(size=SIZE):
    quadrature = SO3Quadrature.product(SphericalDesign(5), 4)
    return Reconstruction(
        volume=volume(size=size),
        density=np.full(len(quadrature), 1 / len(quadrature)),
        quadrature=quadrature,
        history=[{"stage": "start 3", "n_rings": r, "loss": 2.5} for r in (4, 6)],
        starts=[{"seed": s, "criterion": 9.5 + s, "loss": 2.5} for s in range(3)],
        settings={"volume": "gaussians", "n_rings": 6},
        seed=0,
        moment_errors=(0.1, 0.2),
        second_residual=np.ones((9, 8)),
    )


def refined(**changes):
    rng = np.random.default_rng(0)
    n, directions = 60, SphericalDesign(5).points
    halves = np.concatenate([volume(s).asnumpy() for s in (3, 4)])
    found = RefinedModel(
        volume=volume(),
        half_volumes=Volume(halves, pixel_size=SIZE),
        directions=directions,
        density=np.full(len(directions), 1 / len(directions)),
        rotations=Rotation.generate_random_rotations(n, seed=1, dtype=np.float64),
        offsets=np.zeros((n, 2)),
        halves=np.arange(n) % 2 + 1,
        fsc=np.array([1, 1, 0.9, 0.9, 0.7, 0.5, 0.1]),
        noise=np.ones(7),
        history=[
            {"n_rings": 6, "n_images": n, "shells": s, "log_likelihood": s}
            for s in (4.5, 5.5)
        ],
        settings={"n_rings": 7},
        held_out_log_likelihood=3.0,
        probabilities=rng.uniform(0, 1, n),
    )
    return replace(found, **changes)


def test_reconstruction(tmp_path):
    reconstruction().save(tmp_path)
    page = Page(write_report(tmp_path))
    assert page.sections == [
        *("verdict", "surface", "slices", "views", "starts"),
        *("moments", "settings", "files"),
    ]
    # There is no report.json.
    assert "Nothing is recorded that tells" in page.text
    assert page.all("section")[0]["class"] == "verdict open"
    assert "differs by less than 1 standard errors" in page.text
    assert "gaussians" in page.text
    names = {"isosurfaces", "slices", "views", "starts", "residual"}
    assert {p.stem for p in tmp_path.glob("*.png")} == names


@pytest.mark.parametrize("failed", [True, False, None])
def test_verdict_of_a_reconstruction(tmp_path, failed):
    reconstruction().save(tmp_path)
    report = {"verdict": "<What limits it>", "failed": failed, "agreement_shells": 5.2}
    (tmp_path / "report.json").write_text(json.dumps({**report, "seconds": 200}))
    page = Page(write_report(tmp_path))
    state = {True: "bad", False: "good", None: "open"}[failed]
    assert page.all("section")[0]["class"] == f"verdict {state}"
    # At the top, before all that invites trust.
    assert page.text.index("&lt;What limits it&gt;") < page.text.index("Surface")
    assert "<dd>13.1 Å (5.2 shells)</dd>" in page.text
    assert "<dd>3 min</dd>" in page.text


def test_refined_model_with_its_start(tmp_path):
    refined().save(tmp_path)
    start = {"agreement_shells": 4.5, "verdict": "The starts agree."}
    (tmp_path / "report.json").write_text(json.dumps({"start": start, "n_images": 60}))
    reconstruction().save(tmp_path / "start")
    page = Page(write_report(tmp_path))
    assert page.sections == [
        *("verdict", "surface", "slices", "fsc", "views", "refinement", "poses"),
        *("starts", "moments", "settings", "files"),
    ]
    assert page.all("section")[0]["class"] == "verdict good"
    assert "half 2" in page.text
    assert "The starts agree." in page.text
    poor = refined(held_out_log_likelihood=0.0)
    poor.save(tmp_path, overwrite=True)
    page = Page(write_report(tmp_path))
    assert page.all("section")[0]["class"] == "verdict bad"
    assert "Failed: do not trust this model" in page.text
    assert "support no model" in page.text


def test_share_of_the_signal(tmp_path):
    share = np.array([np.nan, 1, 1, 1, 0.9, 0.7, 0.1])
    settings = {"n_rings": 7, "n_tries": 2}
    refined(signal_share=share, settings=settings).save(tmp_path)
    page = Page(write_report(tmp_path))
    assert "signal" in page.sections
    assert "the median is 90%" in page.text
    assert "2 starts were refined" in page.text
    # On rings on which the halves do not agree it tells nothing.
    unknown = np.array([np.nan, 1, 1, 1, np.nan, np.nan, 0.9])
    refined(signal_share=unknown).save(tmp_path, overwrite=True)
    assert "signal" not in Page(write_report(tmp_path)).sections


def test_models_of_earlier_versions(tmp_path):
    """They keep neither probabilities nor the start."""
    refined(probabilities=None).save(tmp_path)
    page = Page(write_report(tmp_path))
    assert {"poses", "starts", "moments"}.isdisjoint(page.sections)
    assert {"fsc", "refinement"} <= set(page.sections)


def test_nothing_else_is_needed(tmp_path):
    refined().save(tmp_path)
    path = write_report(tmp_path, volume())
    page = Page(path)
    assert path.stat().st_size < 2e6
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    images = page.all("img")
    assert len(images) == 7
    for image in images:
        assert image["alt"]
        head, data = image["src"].split(",")
        assert head == "data:image/png;base64"
        with Image.open(BytesIO(base64.b64decode(data))) as picture:
            assert picture.size == (90, 60)
        assert (image["width"], image["height"]) == ("60", "40")
    for _, attributes in page.elements:
        assert "style" not in attributes
        for name in ("src", "href", "action"):
            assert re.match("#|data:", attributes.get(name) or "#")
    assert not re.search("https?:", page.text)
    policy = page.all("meta")[2]["content"]
    assert policy.startswith("default-src 'none'")
    script = page.text[page.text.rindex("<script>") :]
    assert not re.search("fetch|XMLHttp|import|eval", script)


def test_page_can_be_used_without_sight_or_mouse(tmp_path):
    reconstruction().save(tmp_path)
    page = Page(write_report(tmp_path))
    assert page.all("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for link in page.all("a"):
        assert link["href"][1:] in ids
    # Controls stand in labels.
    assert len(page.all("label")) == len(page.all("input")) == 4
    # Shown only by the script that draws it.
    view = next(f for f in page.all("figure") if f.get("id") == "view")
    assert "hidden" in view


def test_reference(tmp_path):
    """A finer map of the same box, mirrored and turned."""
    finer = chain_phantom(2 * L + 1, seed=3, pixel_size=SIZE * L / (2 * L + 1))
    replace(reconstruction(), volume=finer.downsample(L)).save(tmp_path)
    flipped = finer.asnumpy()[:, ::-1].copy()
    finer = Volume(flipped, pixel_size=finer.pixel_size)
    page = Page(write_report(tmp_path, finer))
    assert "fsc" in page.sections
    assert "mirrored and turned onto the reference" in page.text
    correlation = re.search(r"correlation is (\d\.\d+)", page.text)[1]
    assert float(correlation) > 0.95
    with pytest.raises(ValueError, match="pixel size of 4.0 Å and reference one of 5"):
        write_report(tmp_path, volume(size=5.0))


def test_names_and_settings_are_escaped(tmp_path):
    folder = tmp_path / "<b>R&D"
    first = reconstruction(size=None)
    first.settings["volume"] = "<script>alert(1)</script>"
    first.save(folder)
    page = Page(write_report(folder))
    assert "<h1>&lt;b&gt;R&amp;D</h1>" in page.text
    assert "alert(1)" in page.text
    assert "<script>alert" not in page.text


def damaged_reference(folder):
    (folder / "report.json").write_text('{"reference": "truth.mrc"}')
    (folder / "truth.mrc").write_text("x")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (damaged_reference, "truth.mrc"),
        (lambda p: (p / "reconstruction.npz").unlink(), "holds no results"),
        (lambda p: (p / "volume.mrc").unlink(), "volume.mrc"),
        (lambda p: (p / "reconstruction.json").write_text("{"), "cannot be used"),
        (lambda p: (p / "report.json").write_text("[1]"), "holds no dictionary"),
        (lambda p: (p / "report.json").write_text('{"seconds": "x"}'), "damaged"),
        (lambda p: (p / "moments.npz").write_text("x"), "moments.npz is damaged"),
    ],
)
def test_damaged_folders_are_named(tmp_path, break_it, message):
    reconstruction().save(tmp_path)
    break_it(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    failed = run("report", tmp_path)
    assert failed.exit_code == 2
    assert message in failed.stderr
    assert failed.stderr.strip().count("\n") == 0
    assert {path.name for path in tmp_path.iterdir()} == before


def test_missing_folder(tmp_path):
    failed = run("report", tmp_path / "none")
    assert failed.exit_code == 2
    assert "none: no such folder" in failed.stderr


def test_command(tmp_path):
    reconstruction().save(tmp_path / "r")
    volume().save(str(tmp_path / "map.mrc"))
    said = succeed("report", tmp_path / "r", "--reference", tmp_path / "map.mrc")
    assert said.stdout.strip() == str(tmp_path / "r" / "report.html")
    assert (tmp_path / "r" / "fsc_reference.png").exists()
    succeed("report", tmp_path / "r")


def test_surface_holds_the_volume():
    voxels = np.zeros((20, 20, 20), dtype=np.float32)
    voxels[4:8, 8:12, 8:12] = 1  # z below the middle
    surface = Surface.of(Volume(voxels))
    data = np.frombuffer(base64.b64decode(surface.voxels), np.uint8)
    fine = data.reshape([surface.size] * 3) / 255 * surface.highest
    inside = np.argwhere(fine > surface.level).mean(0) / surface.size
    np.testing.assert_allclose(inside, [0.3, 0.5, 0.5], atol=0.02)
    assert fine.max() == pytest.approx(surface.highest)
    # The farthest corner is half a voxel within (-6, 2, 2).
    assert 0.28 < surface.radius < 0.36
