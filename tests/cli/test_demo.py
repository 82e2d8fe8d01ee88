"""The demonstration."""

import json

import pytest
from aspire.volume import Volume

from aspire_mom import compare
from aspire_mom.relion import read_particles
from tests.cli.conftest import draw_coarsely, run, search_quickly, succeed


def shells_of(out):
    """Shells to which the volume agrees with the truth."""
    files = out / "volume.mrc", out / "truth.mrc"
    return compare(*(Volume.load(str(file)) for file in files)).resolution_shells(0.5)


def test_demo_with_few_images(tmp_path, monkeypatch):
    search_quickly(monkeypatch, n_starts=1, n_steps=20)
    draw_coarsely(monkeypatch)
    monkeypatch.setattr("aspire_mom.cli.demo.RINGS", 6)
    out = tmp_path / "demo"
    result = succeed("demo", "--out", out, "--images", 500, "--seed", 1)
    assert "resolution at FSC 0.5" in result.stdout
    assert "agree to" in result.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["n_images"] == len(read_particles(out / "images.star")) == 500
    assert report["box"] == 32
    page = (out / "report.html").read_text()
    assert "agrees with the reference" in page
    assert shells_of(out) > 2
    before = (out / "images.star").read_bytes()
    assert run("demo", "--out", out).exit_code == 2
    assert (out / "images.star").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_demo(tmp_path, seed):
    """Its data support the model, on all rings in use."""
    result = succeed("demo", "--out", tmp_path, "--seed", seed)
    assert "as far as the rings in use" in result.stdout
    assert shells_of(tmp_path) > 10
