import numpy as np
import pytest

from aspire_mom.phantoms import (
    chain_phantom,
    gaussian_phantom,
    gaussians_on_grid,
    helix_bundle_phantom,
)

SIZES = pytest.mark.parametrize("L", [24, 25])
PHANTOMS = pytest.mark.parametrize(
    "make", [gaussian_phantom, chain_phantom, helix_bundle_phantom]
)


def axes(L):
    axis = np.arange(L) - L // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return x, y, z


@SIZES
def test_gaussians_point_by_point(L):
    centres = np.array([[3.0, -2, 1], [0, 4, -5]])
    sigmas, heights = np.array([1.5, 2.0]), np.array([1.0, 3.0])
    x, y, z = axes(L)
    expected = sum(
        h * np.exp(-((x - c[0]) ** 2 + (y - c[1]) ** 2 + (z - c[2]) ** 2) / (2 * s**2))
        for c, s, h in zip(centres, sigmas, heights, strict=True)
    )
    volume = gaussians_on_grid(centres, sigmas, heights, L, pixel_size=1.5)
    np.testing.assert_allclose(
        volume.asnumpy()[0], expected / np.linalg.norm(expected), atol=1e-7
    )
    assert volume.pixel_size == 1.5
    assert volume.asnumpy().flags.c_contiguous


@SIZES
@PHANTOMS
def test_phantoms_have_unit_norm_fit_the_ball_and_repeat(make, L):
    volume = make(L, seed=3, pixel_size=2.0)
    voxels = volume.asnumpy()[0]
    assert volume.dtype == np.float32
    assert volume.pixel_size == 2.0
    assert np.linalg.norm(voxels) == pytest.approx(1, rel=1e-5)
    outside = np.sqrt(sum(axis**2 for axis in axes(L))) > L // 2
    assert voxels[outside].sum() < 0.01 * voxels.sum()
    np.testing.assert_array_equal(voxels, make(L, seed=3).asnumpy()[0])
    assert np.abs(voxels - make(L, seed=4).asnumpy()[0]).max() > 0.01


@PHANTOMS
def test_phantoms_have_no_mirror_symmetry_in_their_axes(make):
    """Three distinct principal moments, so reflections in them are not hidden."""
    voxels = make(25).asnumpy()[0].astype(np.float64)
    positions = np.stack([axis.ravel() for axis in axes(25)])
    weights = voxels.ravel() / voxels.sum()
    centred = positions - (positions @ weights)[:, None]
    moments, frame = np.linalg.eigh((centred * weights) @ centred.T)
    assert np.all(np.diff(moments) > 0.05 * moments[-1])
    third = ((frame.T @ centred) ** 3) @ weights
    assert np.all(np.abs(third) > 1e-3 * moments[-1] ** 1.5)


def test_size_scales_the_gaussian_phantom():
    """The same shape at twice the sampling."""
    coarse, fine = gaussian_phantom(25).asnumpy()[0], gaussian_phantom(75).asnumpy()[0]
    # Voxel j of 25, at j - 12, is voxel 3 j + 1 of 75, at 3 (j - 12).
    picked = fine[1::3, 1::3, 1::3]
    np.testing.assert_allclose(
        picked / np.linalg.norm(picked), coarse, atol=1e-6 * coarse.max() + 1e-7
    )
