"""Sums of Gaussians moved by moving their centres: no interpolation, no voxels."""

import numpy as np
from aspire.volume import Volume


def blobs(
    L,
    *,
    seed=0,
    rotation=None,
    mirrored=False,
    shift=(0, 0, 0),
    dtype=np.float64,
    pixel_size=None,
):
    """
    30 Gaussians in a ball of 0.22 L, without symmetry; reflected in z, then rotated,
    then shifted by voxels (xyz). From L = 24 on what leaves the box or the Fourier
    grid is below 1e-3 of an amplitude.
    """
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(30, 3))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    centres *= 0.22 * np.cbrt(rng.uniform(size=(30, 1)))
    heights, sigmas = rng.uniform(0.5, 1.5, 30), rng.uniform(0.05, 0.06, 30)
    if mirrored:
        centres = centres * (1, 1, -1)
    if rotation is not None:
        centres = centres @ rotation.T
    centres = L * centres + np.asarray(shift)
    voxels = np.arange(L) - L // 2
    x, y, z = (
        np.exp(-((voxels - centres[:, [i]]) ** 2) / (2 * (L * sigmas[:, None]) ** 2))
        for i in range(3)
    )
    grid = np.einsum("g,gz,gy,gx->zyx", heights, z, y, x, optimize=True)
    return Volume(grid.astype(dtype), pixel_size=pixel_size)


def motion_back(rotation, mirrored, shift=(0, 0, 0)):
    """The rotation and shift that undo the motion of `blobs`, mirror first."""
    J = np.diag([1, 1, -1 if mirrored else 1])
    back = J @ rotation.T @ J
    return back, -back @ J @ np.asarray(shift)


def angle_between(a, b):
    """Angle of the rotation between two rotation matrices, degrees."""
    # By the chord: arccos of the trace has no accuracy near 0.
    chord = np.linalg.norm(np.asarray(a, float) - b) / np.sqrt(8)
    return np.degrees(2 * np.arcsin(min(chord, 1)))
