"""Draw random volumes, for demonstrations and benchmarks."""

from __future__ import annotations

import numpy as np
from aspire.volume import Volume
from scipy.spatial.transform import Rotation as Rotations


def gaussians_on_grid(
    centres: np.ndarray,
    sigmas: np.ndarray,
    amplitudes: np.ndarray,
    L: int,
    pixel_size: float | None = None,
) -> Volume:
    """
    Sample a sum of isotropic Gaussians at voxel centres, scaled to unit Frobenius norm.

    :param centres: Centres (n, 3) in voxels from voxel L//2, xyz order.
    :param sigmas: Standard deviations (n,) in voxels.
    :param amplitudes: Heights (n,) before scaling.
    :param L: Voxels along an edge.
    :param pixel_size: Ångström per voxel.
    :return: ASPIRE `Volume` [z, y, x], float32.
    """
    axis = np.arange(L) - L // 2
    x, y, z = (
        np.exp(-((axis - centres[:, [i]]) ** 2) / (2 * sigmas[:, None] ** 2))
        for i in range(3)
    )
    grid = np.einsum("g,gz,gy,gx->zyx", amplitudes, z, y, x, optimize=True)
    grid /= np.linalg.norm(grid)
    # einsum may leave another order of axes in memory, which finufft warns of.
    return Volume(grid.astype(np.float32, order="C"), pixel_size=pixel_size)


def gaussian_phantom(L: int = 25, *, seed: int = 0, pixel_size: float = 1.0) -> Volume:
    """
    Draw four Gaussians that are not coplanar, like the paper's third volume (section
    5.2): at L = 25, 2 to 6 voxels off the origin and 1.5 to 2.5 wide, scaled by L.

    :param L: Voxels along an edge.
    :param seed: Seed of the draw.
    :param pixel_size: Ångström per voxel.
    :return: ASPIRE `Volume` of unit norm, float32.
    """
    rng, scale, thickness = np.random.default_rng(seed), L / 25, 0.0
    while thickness <= 1.5:  # until the centres lie well off one plane
        directions = rng.standard_normal((4, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        centres = directions * rng.uniform(2, 6, (4, 1))
        thickness = np.linalg.svd(centres - centres.mean(0), compute_uv=False)[-1]
    sigmas = rng.uniform(1.5, 2.5, 4)
    amplitudes = rng.uniform(1, 2.5, 4)
    return gaussians_on_grid(centres * scale, sigmas * scale, amplitudes, L, pixel_size)


def chain_phantom(L: int = 25, *, seed: int = 0, pixel_size: float = 1.0) -> Volume:
    """
    Draw a compact chain of 300 atoms, like a protein's: a persistent random walk held
    within a ball of 0.3 L, each atom a Gaussian of standard deviation 0.6 voxels.

    :param L: Voxels along an edge.
    :param seed: Seed of the draw.
    :param pixel_size: Ångström per voxel.
    :return: ASPIRE `Volume` of unit norm, float32.
    """
    rng, n_atoms, step = np.random.default_rng(seed), 300, 0.06 * L
    # An ellipsoid of unequal axes: its only rotational symmetries are 2-fold.
    axes = 0.3 * L * rng.uniform(0.45, 1, 3)
    frame = Rotations.random(rng=rng).as_matrix()
    atoms = np.zeros((n_atoms, 3))
    heading = rng.standard_normal(3)
    for i in range(1, n_atoms):
        heading = heading / np.linalg.norm(heading) + 0.6 * rng.standard_normal(3)
        new = atoms[i - 1] + step * heading / np.linalg.norm(heading)
        outside = np.linalg.norm(new / axes)
        if outside > 1:
            new /= outside
            heading = -new + rng.standard_normal(3)
        atoms[i] = new
    atoms = (atoms - atoms.mean(0)) @ frame.T
    ones = np.ones(n_atoms)
    return gaussians_on_grid(atoms, 0.6 * ones, ones, L, pixel_size)
