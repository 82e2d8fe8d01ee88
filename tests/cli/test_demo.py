"""The demonstration."""

import json

import pytest
from aspire.volume import Volume

from aspire_mom import compare
from aspire_mom.cli.demo import _are_there
from aspire_mom.cli.refine import WRITTEN
from aspire_mom.cli.volumes import read_volume
from aspire_mom.relion import read_particles
from tests.cli.conftest import draw_coarsely, run, succeed
from tests.cli.test_refine import make_quick


def shells_of(out):
    """Shells to which the volume agrees with the truth."""
    files = out / "volume.mrc", out / "truth.mrc"
    return compare(*(Volume.load(str(file)) for file in files)).resolution_shells(0.5)


def test_demo_with_few_images(tmp_path, monkeypatch):
    make_quick(monkeypatch)
    draw_coarsely(monkeypatch)
    monkeypatch.setattr("aspire_mom.cli.demo.L", 20)
    monkeypatch.setattr("aspire_mom.cli.demo.RINGS", 6)
    out = tmp_path / "demo"
    result = succeed("demo", "--out", out, "--images", 500, "--seed", 1)
    assert "resolution at FSC 0.5" in result.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["n_images"] == len(read_particles(out / "images.star")) == 500
    assert report["box"] == 20
    for _ in range(2):
        assert "agrees with the reference" in (out / "report.html").read_text()
        succeed("report", out)
    others = {"truth.mrc", "images.star", "images_0_499.mrcs", "moments.npz", "start"}
    others.add("fsc_reference.png")
    assert {path.name for path in out.iterdir()} == {*WRITTEN, *others}
    # Models without relation agree to about 3.
    assert shells_of(out) > 4
    assert run("demo", "--out", out).exit_code == 2
    # If it had been killed, another run would go on with these images, or refuse.
    files = out / "images.star", out / "truth.mrc"
    molecule = read_volume(files[1])
    assert _are_there(*files, molecule, 500)
    assert not _are_there(*files, molecule, 501)
    assert not _are_there(*files, 2 * molecule, 500)
    for name in WRITTEN:
        (out / name).unlink()
    assert "moments.npz exists" in run("demo", "--out", out, "--seed", 2).stderr


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_demo(tmp_path, seed):
    """Its data support the model, on all rings in use."""
    result = succeed("demo", "--out", tmp_path, "--seed", seed)
    assert "as far as the rings in use" in result.stdout
    assert shells_of(tmp_path) > 10
