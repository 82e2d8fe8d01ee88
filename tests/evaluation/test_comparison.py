import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from aspire.volume import Volume
from scipy.spatial.transform import Rotation as Rotations

from aspire_mom.evaluation import Comparison, compare, fourier_shell_correlation
from aspire_mom.rotations import (
    SO3Quadrature,
    SphericalDesign,
    VonMisesFisherMixture,
)
from aspire_mom.volumes.grid import mirror
from tests.evaluation.blobs import blobs

ROTATION = Rotations.from_euler("ZYZ", [0.4, 1.3, -2.1]).as_matrix()


@pytest.fixture(scope="module")
def comparison():
    """A volume half right, of the other hand, turned and shifted."""
    motion = {"rotation": ROTATION, "mirrored": True, "shift": (0.5, 0, -0.4)}
    volume = blobs(33, **motion) + 0.8 * blobs(33, seed=1, **motion)
    volume = Volume(3 * volume.asnumpy().astype(np.float32), pixel_size=2.5)
    return compare(volume, blobs(33, dtype=np.float32))


@pytest.mark.parametrize(("L", "dtype"), [(32, np.float32), (33, np.float64)])
def test_a_moved_copy_agrees(L, dtype):
    copy = blobs(L, rotation=ROTATION, mirrored=True, dtype=dtype, pixel_size=2.0)
    reference = blobs(L, dtype=dtype, pixel_size=2.0)
    comparison = compare(copy, reference)
    assert comparison.mirrored
    assert comparison.correlation == pytest.approx(1, abs=1e-5)
    assert comparison.relative_error < 1e-3
    # From shell L/4 on Gaussians this wide have next to no power left.
    np.testing.assert_allclose(comparison.fsc[: L // 4], 1, atol=1e-4)
    assert comparison.aligned.dtype == dtype
    difference = (comparison.aligned - reference).asnumpy()
    assert abs(difference).max() < 1e-3 * reference.asnumpy().max()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("L", [14, 15])
def test_white_noise_agrees_with_itself(L, mirrored):
    """It has power up to the last frequency, and for even sizes on Nyquist planes."""
    voxels = np.random.default_rng(L).standard_normal((L, L, L))
    volume = Volume(voxels, pixel_size=2.0)
    comparison = compare(mirror(volume) if mirrored else volume, volume)
    assert comparison.mirrored == mirrored
    assert comparison.correlation == pytest.approx(1, abs=1e-4)
    assert comparison.relative_error < 0.01


def test_figures_are_those_of_the_aligned_volume(comparison):
    reference = blobs(33, dtype=np.float32)
    expected = blobs(33) + 0.8 * blobs(33, seed=1)
    u, v = (w.asnumpy()[0].astype(float) for w in (3 * expected, reference))
    aligned = comparison.aligned.asnumpy()[0]
    # The other half pulls the best fit away from the true motion a little.
    assert np.linalg.norm(aligned - u) < 0.2 * np.linalg.norm(u)
    u = aligned.astype(float)
    cosine = np.sum(u * v) / np.sqrt(np.sum(u**2) * np.sum(v**2))
    assert comparison.correlation == pytest.approx(cosine, rel=1e-12)
    error = np.sqrt(np.sum((u - v) ** 2) / np.sum(v**2))
    assert comparison.relative_error == pytest.approx(error, rel=1e-12)
    assert 1.5 < error < 6
    fsc = fourier_shell_correlation(comparison.aligned, reference)
    np.testing.assert_array_equal(comparison.fsc, fsc)
    assert 0.5 < fsc[2] < 0.999


@pytest.mark.parametrize(("L", "mirrored"), [(20, False), (21, True)])
def test_motions_of_the_volume_leave_the_figures(L, mirrored):
    """Of volumes that agree in part, so that the figures are not all one."""
    motion = {"rotation": ROTATION, "mirrored": mirrored}
    volume = blobs(L) + 0.5 * blobs(L, seed=1)
    moved = blobs(L, **motion) + 0.5 * blobs(L, seed=1, **motion)
    first, second = compare(volume, blobs(L)), compare(moved, blobs(L))
    assert second.correlation == pytest.approx(first.correlation, abs=1e-4)
    assert second.relative_error == pytest.approx(first.relative_error, abs=1e-3)
    # Beyond shell L/4 the Gaussians' power is within interpolation error.
    shells = slice(L // 4)
    np.testing.assert_allclose(second.fsc[shells], first.fsc[shells], atol=5e-3)
    assert first.correlation < 0.99


def test_scale_matters_to_the_relative_error_alone():
    volume, reference = blobs(17, rotation=ROTATION), blobs(17)
    first = compare(volume, reference)
    for scale in (0.003, 700.0):
        second = compare(scale * volume, reference)
        assert second.correlation == pytest.approx(first.correlation, abs=1e-6)
        np.testing.assert_allclose(second.fsc[:5], first.fsc[:5], atol=1e-5)
        assert second.relative_error == pytest.approx(
            abs(scale - 1), abs=0.01 * (1 + scale)
        )


@pytest.mark.parametrize(("L", "mirrored"), [(24, True), (25, False)])
def test_aligned_rotations_give_the_same_images(L, mirrored):
    """
    Images of a mirrored and rotated volume are those of the reference at the aligned
    orientations, which follow from the known rotation.
    """
    reference = blobs(L, dtype=np.float32)
    volume = blobs(L, rotation=ROTATION, mirrored=mirrored, dtype=np.float32)
    comparison = compare(volume, reference)
    assert comparison.mirrored == mirrored
    Q = Rotations.random(6, rng=np.random.default_rng(3)).as_matrix()
    aligned = comparison.align_rotations(Q)
    J = np.diag([1, 1, -1 if mirrored else 1])
    np.testing.assert_allclose(aligned, J @ ROTATION.T @ Q @ J, atol=2e-3)
    np.testing.assert_allclose(np.linalg.det(aligned), 1, atol=1e-6)

    seen = volume.project(Q.astype(np.float32)).asnumpy()
    expected = reference.project(aligned.astype(np.float32)).asnumpy()
    assert np.linalg.norm(seen - expected) < 0.01 * np.linalg.norm(expected)
    # Without the change of hand, or without the rotation, they would differ.
    for wrong in (aligned @ np.diag([1, -1, -1]), Q):
        other = reference.project(wrong.astype(np.float32)).asnumpy()
        assert np.linalg.norm(seen - other) > 0.1 * np.linalg.norm(seen)

    views = comparison.align_views(Q[:, :, 2])
    np.testing.assert_allclose(views, aligned[:, :, 2], atol=1e-12)
    assert views.dtype == aligned.dtype == np.float64


def test_a_density_is_aligned_with_its_views(comparison):
    """A density on a volume's own views is, on the aligned ones, that of the truth."""
    density = VonMisesFisherMixture.random(3, seed=1)
    quadrature = SO3Quadrature.product(SphericalDesign(9), 1)
    views = comparison.align_views(quadrature.views)
    back = views @ comparison.rotation.matrices[0]  # views of the mirrored volume
    own = VonMisesFisherMixture(
        density.means @ comparison.rotation.matrices[0] * (-1, -1, 1),
        density.concentrations,
        density.weights,
    )
    assert comparison.mirrored
    np.testing.assert_allclose(back * (-1, -1, 1), quadrature.views, atol=1e-6)
    np.testing.assert_allclose(density.pdf(views), own.pdf(quadrature.views), rtol=1e-4)


def test_resolution_in_angstrom_and_shells(comparison):
    assert comparison.pixel_size == comparison.aligned.pixel_size == 2.5
    for cutoff in (0.5, 0.143):
        shell = comparison.resolution_shells(cutoff)
        assert comparison.resolution(cutoff) == pytest.approx(33 * 2.5 / shell)
    shell = comparison.resolution_shells(0.9)
    below = int(np.ceil(shell))
    assert comparison.fsc[below] < 0.9 <= comparison.fsc[below - 1]
    with pytest.raises(ValueError, match="cutoff must lie between 0 and 1, not 3"):
        comparison.resolution(3)


def test_no_angstrom_without_pixel_size():
    comparison = compare(blobs(9), blobs(9))
    assert comparison.pixel_size is None
    with pytest.raises(ValueError, match="neither volume has a pixel size"):
        comparison.resolution()
    summary = comparison.summary()
    assert summary["resolution_0.5_angstrom"] is None
    assert summary["resolution_0.5_shells"] > 1


def test_summary_is_saved_as_json(comparison, tmp_path):
    comparison.save(tmp_path / "comparison.json")
    saved = json.loads((tmp_path / "comparison.json").read_text())
    assert saved == comparison.summary()
    assert set(saved) == {
        "resolution_0.5_angstrom",
        "resolution_0.143_angstrom",
        "resolution_0.5_shells",
        "resolution_0.143_shells",
        "fsc",
        "correlation",
        "relative_error",
        "mirrored",
        "rotation",
        "shift",
        "pixel_size",
    }
    assert saved["mirrored"] is True
    assert saved["resolution_0.5_angstrom"] == comparison.resolution(0.5)
    np.testing.assert_allclose(saved["rotation"], comparison.rotation.matrices[0])
    np.testing.assert_array_equal(saved["shift"], comparison.shift)
    np.testing.assert_array_equal(saved["fsc"], comparison.fsc)


def test_saved_and_loaded(comparison, tmp_path):
    path = tmp_path / "comparison.json"
    comparison.save(path)
    loaded = Comparison.load(path)
    assert loaded.summary() == comparison.summary()
    assert loaded.aligned.pixel_size == comparison.pixel_size
    voxels = comparison.aligned.asnumpy().astype(np.float32)
    np.testing.assert_array_equal(loaded.aligned.asnumpy(), voxels)
    path.unlink()
    with pytest.raises(FileExistsError, match=r"comparison\.mrc exists; pass"):
        comparison.save(path)
    comparison.save(path, overwrite=True)
    with pytest.raises(FileExistsError, match=r"comparison\.json exists"):
        comparison.save(path)
    with pytest.raises(ValueError, match=r"must end in \.json"):
        comparison.save(tmp_path / "comparison")


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON"])
def test_what_is_no_saved_comparison(text, tmp_path):
    path = tmp_path / "comparison.json"
    with pytest.raises(FileNotFoundError):
        Comparison.load(path)
    path.write_text(text)
    with pytest.raises(ValueError, match="comparison.json"):
        Comparison.load(path)


def test_a_comparison_is_frozen(comparison):
    with pytest.raises(FrozenInstanceError):
        comparison.correlation = 1.0


def test_inputs_are_left_alone():
    volume, reference = blobs(9, rotation=ROTATION), blobs(9, pixel_size=2)
    before = volume.asnumpy().copy()
    compare(volume, reference)
    np.testing.assert_array_equal(volume.asnumpy(), before)
    assert volume.pixel_size is None


def test_volumes_with_a_symmetry_group_are_accepted():
    voxels = mirror(blobs(9)).asnumpy()
    comparison = compare(Volume(voxels, symmetry_group="C2"), blobs(9))
    assert comparison.mirrored


def test_unfit_volumes_are_refused_at_once():
    bad = blobs(9).asnumpy().copy()
    bad[0, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="reference holds NaN or infinity"):
        compare(blobs(9), Volume(bad))
    with pytest.raises(TypeError, match="volume must be an ASPIRE Volume"):
        compare(bad, blobs(9))
