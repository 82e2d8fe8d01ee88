"""The demonstration."""

import json

import pytest
from aspire.volume import Volume

from aspire_mom import compare
from aspire_mom.cli.demo import FILES
from tests.cli.conftest import draw_coarsely, run, search_quickly, succeed


def test_demo_with_few_images(tmp_path, monkeypatch):
    search_quickly(monkeypatch, n_starts=1, n_steps=40, max_gaussians=6)
    draw_coarsely(monkeypatch)
    out = tmp_path / "demo"
    result = succeed("demo", "--out", out, "--images", 1000, "--seed", 1)
    assert "resolution at FSC 0.5" in result.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["n_images"] == 1000
    assert report["correlation"] > 0.5
    assert len(report["fsc"]) == 13
    # The paper's σ on a unit-norm volume gives an SNR of 0.06 to 0.10 or so.
    assert 0.02 < report["snr"] < 0.2
    assert report["noise_variance"] == pytest.approx(0.02**2, rel=0.01)
    for key in ("resolution_0.5_angstrom", "resolution_0.143_angstrom", "seconds"):
        assert report[key] > 0
    assert isinstance(report["mirrored"], bool)
    assert {path.name for path in out.iterdir()} == set(FILES)
    again = compare(
        Volume.load(str(out / "volume.mrc")), Volume.load(str(out / "truth.mrc"))
    )
    assert again.correlation == pytest.approx(report["correlation"], abs=1e-3)
    assert run("demo", "--out", out).exit_code == 2


@pytest.mark.slow
def test_demo(tmp_path):
    """The density of views is recovered with the volume, in the right frame."""
    succeed("demo", "--out", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["correlation"] > 0.95
    # The paper's figure for its own four Gaussians (Table 3).
    assert report["resolution_0.5_angstrom"] < 4.45
    # In any other frame it would be about 0.
    assert report["density_correlation"] > 0.5
