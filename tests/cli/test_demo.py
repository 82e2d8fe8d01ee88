"""The demonstration, and the geometry behind its picture of views."""

import json

import numpy as np
import pytest
from aspire.volume import Volume
from scipy.spatial.transform import Rotation

from aspire_mom import compare
from aspire_mom.cli import demo as demonstration
from aspire_mom.phantoms import gaussian_phantom
from aspire_mom.volumes.filters import mirror
from tests.cli.conftest import quick_inversion, run, succeed


@pytest.mark.parametrize("mirrored", [False, True])
def test_aligned_views_show_the_same_images(mirrored):
    """Projections of a moved volume are those of the reference, seen from the aligned
    directions and turned in-plane."""
    L = 25
    reference = gaussian_phantom(L, seed=0)
    moved = mirror(reference) if mirrored else reference
    # A quarter turn about z and one about x, exact on the grid.
    voxels = np.rot90(np.rot90(moved.asnumpy()[0], axes=(1, 2)), axes=(0, 1))
    volume = Volume(np.ascontiguousarray(voxels))
    comparison = compare(volume, reference)
    assert comparison.mirrored == mirrored

    Q = Rotation.random(6, rng=3).as_matrix().astype(np.float32)
    views = demonstration.aligned_views(Q[:, :, 2], comparison)
    assert np.allclose(np.linalg.norm(views, axis=1), 1, atol=1e-5)
    assert not np.allclose(views, Q[:, :, 2], atol=0.1)
    seen = volume.project(Q).asnumpy()
    for view, image in zip(views, seen, strict=True):
        azimuth, polar = np.arctan2(view[1], view[0]), np.arccos(view[2])
        angles = np.radians(np.arange(0, 360, 2))
        euler = np.stack(np.broadcast_arrays(azimuth, polar, angles), 1)
        turned = Rotation.from_euler("ZYZ", euler).as_matrix().astype(np.float32)
        candidates = reference.project(turned).asnumpy().reshape(len(angles), -1)
        norms = np.linalg.norm(candidates, axis=1) * np.linalg.norm(image)
        correlations = candidates @ image.ravel() / norms
        assert correlations.max() > 0.999
        # The views' opposites would show mirror images.
        opposite = turned @ np.diag([1, -1, -1]).astype(np.float32)
        wrong = reference.project(opposite).asnumpy().reshape(len(angles), -1)
        assert (wrong @ image.ravel() / norms).max() < 0.995


def test_demo_with_few_images(tmp_path, monkeypatch):
    quick = quick_inversion(n_starts=1, n_steps=40, max_gaussians=6)
    monkeypatch.setattr(demonstration, "MomentInversion", quick)
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
    for name in demonstration.FILES:
        assert (out / name).stat().st_size > 0
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
