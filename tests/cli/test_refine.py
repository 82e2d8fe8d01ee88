"""`aspire-mom refine` and `initial-model`: what they write, and how they go on."""

import json
from dataclasses import replace

import numpy as np
import pytest
from aspire.source import RelionSource
from aspire.volume import Volume

from aspire_mom import MomentInversion, Moments, RefinedModel, Refinement
from aspire_mom.cli.refine import RESULTS, WRITTEN
from aspire_mom.inversion.reconstruction import FILES
from aspire_mom.phantoms import chain_phantom
from aspire_mom.relion import ParticleSource
from aspire_mom.report import write_report
from aspire_mom.volumes.grid import mirror
from tests.cli.conftest import draw_coarsely, run, succeed

L, PIXEL_SIZE, IMAGES = 25, 4.0, 300
ITERATIONS = "aspire_mom.refinement.iteration.Iterations"
FEW = ("--starts", 1, "--rings", 6)


def make_quick(patch):
    """Few steps of the search, and few iterations."""

    def inversion(moments, *, search, **options):
        search = replace(search, n_steps=10, max_gaussians=4)
        return MomentInversion(moments, search=search, n_rings=5, **options)

    patch.setattr("aspire_mom.MomentInversion", inversion)
    patch.setitem(Refinement.__init__.__kwdefaults__, "n_iterations", 2)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without pages, too."""
    make_quick(monkeypatch)
    monkeypatch.setattr("aspire_mom.report.write_report", lambda *args: None)


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refine")
    chain_phantom(L, seed=3, pixel_size=PIXEL_SIZE).save(str(folder / "map.mrc"))
    star = folder / "particles.star"
    options = ("--images", IMAGES, "--snr", 1, "-o", star)
    succeed("simulate", folder / "map.mrc", *options)
    return star


@pytest.fixture(scope="module")
def finished(particles, tmp_path_factory):
    """A whole job."""
    out = tmp_path_factory.mktemp("whole") / "model"
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        draw_coarsely(patch)
        patch.setattr("aspire_mom.report.write_report", write_report)
        told = succeed("initial-model", particles, "-o", out, *FEW)
    return out, told


def test_whole_job_writes_all(finished, particles):
    out, told = finished
    names = {path.name for path in out.iterdir()}
    others = {"moments.npz", "moments.png", "residual.png", "start"}
    assert names == {*WRITTEN, *others}
    start = {path.name for path in (out / "start").iterdir()}
    assert start == {*FILES, "volume_mirror.mrc", "report.json"}
    assert Moments.load(out / "moments.npz").n_images == IMAGES
    model = RefinedModel.load(out)
    other = Volume.load(str(out / "volume_mirror.mrc"))
    np.testing.assert_array_equal(other.asnumpy(), mirror(model.volume).asnumpy())
    source = RelionSource(out / "particles.star")
    np.testing.assert_allclose(source.rotations, model.rotations.matrices, atol=1e-5)
    for name in ("fsc", "slices", "isosurfaces", "views", "iterations", "poses"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "report.html shows them" in told.stdout
    assert "300 in 1 stack" in told.stderr


def test_report(finished):
    out, told = finished
    report = json.loads((out / "report.json").read_text())
    assert report["verdict"] == told.stdout.splitlines()[0]
    assert report["failed"] == ("no model" in report["verdict"])
    assert "The halves of the images agree to" in report["verdict"]
    start = json.loads((out / "start" / "report.json").read_text())
    assert report["start"]["verdict"] == start["verdict"]
    assert report["shells"] * report["angstrom"] == pytest.approx(L * PIXEL_SIZE)
    assert len(report["fsc"]) == report["history"][-1]["n_rings"] <= 6
    assert report["n_images"] == IMAGES
    assert report["settings"]["n_rings"] == 6


def test_finished_results_are_not_replaced(finished, particles):
    out, _ = finished
    refused = run("initial-model", particles, "-o", out, *FEW)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr


def test_refine_does_the_last_step(finished, particles, tmp_path):
    """From the same start the same model."""
    out, _ = finished
    again = tmp_path / "again"
    succeed("refine", out / "start", particles, "-o", again, "--rings", 6)
    names = {path.name for path in again.iterdir()}
    assert names == {*RESULTS}
    ours, theirs = RefinedModel.load(again), RefinedModel.load(out)
    voxels = theirs.volume.asnumpy()
    assert np.allclose(ours.volume.asnumpy(), voxels, atol=1e-4 * voxels.max())
    reports = [json.loads((p / "report.json").read_text()) for p in (again, out)]
    assert reports[0]["verdict"] == reports[1]["verdict"]


def test_refine_downsamples_to_the_volume(particles, tmp_path):
    small = ("--downsample", 16)
    first = tmp_path / "first"
    succeed("initial-model", particles, "-o", first, *FEW, *small)
    assert RefinedModel.load(first).volume.resolution == 16
    # A folder without a report will do.
    (first / "start" / "report.json").unlink()
    second = tmp_path / "second"
    succeed("refine", first / "start", particles, "-o", second, "--rings", 6)
    assert RefinedModel.load(second).volume.resolution == 16
    assert json.loads((second / "report.json").read_text())["start"] == {}


def test_boxes_that_do_not_fit(finished, star, tmp_path):
    out, _ = finished
    refused = run("refine", out / "start", star, "-o", tmp_path / "out")
    assert "the images have 12 pixels along an edge" in refused.stderr
    small = Volume.load(str(out / "start" / "volume.mrc"))
    other = tmp_path / "particles"
    other.mkdir()
    small.pixel_size = 5.0
    small.save(str(other / "map.mrc"))
    path = other / "p.star"
    succeed("simulate", other / "map.mrc", "--images", 5, "--snr", 1, "-o", path)
    refused = run("refine", out / "start", path, "-o", tmp_path / "out")
    assert "an edge of 125 Å" in refused.stderr
    assert "one of 100 Å" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_symmetry_is_imposed_from_the_start_on(particles, tmp_path):
    refused = run("initial-model", particles, "-o", tmp_path, "--symmetry", "C0")
    assert refused.exit_code == 2
    assert "symmetry is 'C0'; it must be C1, C2" in refused.stderr
    assert not list(tmp_path.iterdir())
    succeed("initial-model", particles, "-o", tmp_path, *FEW, "--symmetry", "C4")
    report = json.loads((tmp_path / "start" / "report.json").read_text())
    assert "agrees with its symmetric copies to" in report["verdict"]
    model = RefinedModel.load(tmp_path)
    assert model.settings["symmetry"] == "C4"
    voxels = model.volume.asnumpy()[0]
    turned = np.rot90(voxels, axes=(1, 2))
    np.testing.assert_allclose(voxels, turned, atol=0.02 * abs(voxels).max())


@pytest.mark.parametrize("stage", ["moments", "start", "refinement", "results"])
def test_killed_job_goes_on(stage, finished, particles, tmp_path, monkeypatch):
    """The same command repeats no finished stage, and ends at the same model."""
    target = {
        "moments": "aspire_mom.MomentEstimator.estimate",
        "start": "aspire_mom.inversion.grid_search.minimise_batch",
        "refinement": "aspire_mom.refinement.refinement.Refinement._final",
        "results": "aspire_mom.cli.refine.write_model",
    }[stage]
    command = ("initial-model", particles, "-o", tmp_path, *FEW)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(target, killed)
        stopped = run(*command)
    assert stopped.exit_code == 2
    assert "interrupted" in stopped.stderr
    assert not (tmp_path / "volume.mrc").exists()
    # Each finished stage would fail if it ran again.
    done = {
        "start": ["moments"],
        "refinement": ["moments", "start"],
        "results": ["moments", "start", "refinement"],
    }.get(stage, [])
    with monkeypatch.context() as patch:
        if "moments" in done:
            patch.setattr("aspire_mom.MomentEstimator.estimate", killed)
        if "start" in done:
            patch.setattr("aspire_mom.inversion.grid_search.minimise_batch", killed)
        if "refinement" in done or stage == "refinement":
            patch.setattr(f"{ITERATIONS}.next", killed)
        succeed(*command)
    ours, theirs = (RefinedModel.load(path) for path in (tmp_path, finished[0]))
    voxels = theirs.volume.asnumpy()
    assert np.allclose(ours.volume.asnumpy(), voxels, atol=1e-4 * voxels.max())
    assert not list(tmp_path.rglob("*checkpoint*"))


def test_other_options_are_refused_and_overwritten(particles, tmp_path, monkeypatch):
    """What a killed job left is of its own images and options."""

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    command = ("initial-model", particles, "-o", tmp_path, *FEW)
    with monkeypatch.context() as patch:
        patch.setattr("aspire_mom.Refinement._final", killed)
        run(*command)
    fewer = run(*command, "--first", 200)
    assert "n_images is 300, not 200" in fewer.stderr
    assert "--overwrite" in fewer.stderr
    seed = run(*command, "--seed", 1)
    assert "start/checkpoint.pt is a checkpoint of other" in seed.stderr
    assert "or pass --overwrite" in seed.stderr
    succeed(*command, "--first", 200, "--seed", 1, "--overwrite")
    assert len(RefinedModel.load(tmp_path).offsets) == 200
    report = json.loads((tmp_path / "start" / "report.json").read_text())
    assert (report["seed"], report["n_images"]) == (1, 200)


def test_a_stack_that_vanishes_is_named(particles, tmp_path, monkeypatch):
    def gone(self, indices):
        raise FileNotFoundError(2, "No such file or directory", "p_0.mrcs")

    command = ("initial-model", particles, "-o", tmp_path, *FEW)
    with monkeypatch.context() as patch:
        patch.setattr(ParticleSource, "_images", gone)
        stopped = run(*command)
    assert stopped.exit_code == 2
    assert "p_0.mrcs" in stopped.stderr
    succeed(*command)


def test_unusable_device_is_refused_at_once(particles, tmp_path):
    refused = run("initial-model", particles, "-o", tmp_path / "o", "--device", "meta")
    assert refused.exit_code == 2
    assert "meta" in refused.stderr
    assert not (tmp_path / "o").exists()
