"""Draw random volumes, for demonstrations and benchmarks."""

from __future__ import annotations

import numpy as np
from aspire.volume import Volume
from scipy.ndimage import gaussian_filter
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


def helix_bundle_phantom(
    L: int = 25,
    *,
    n_helices: int = 7,
    solvent: float = 0.0,
    seed: int = 0,
    pixel_size: float = 1.0,
) -> Volume:
    """
    Draw a bundle of helices, like a membrane protein's: rods of unequal length side by
    side, each tilted by up to about 25°, with 3.6 atoms to a turn, and a small round
    domain at one end. Atoms are Gaussians of standard deviation 0.024 L.

    :param L: Voxels along an edge.
    :param n_helices: Number of helices.
    :param solvent: Contrast that solvent takes away at low resolution, 0 to 1: this
        share of the volume, smoothed by a Gaussian of standard deviation L / 12, is
        subtracted.
    :param seed: Seed of the draw.
    :param pixel_size: Ångström per voxel.
    :return: ASPIRE `Volume` of unit norm, float32.
    """
    rng = np.random.default_rng(seed)
    spacing, rise, radius = 0.1 * L, 0.015 * L, 0.023 * L
    rods = []
    for i in range(n_helices):
        # Sunflower packing, jittered: neighbours are about one spacing apart.
        r, turn = 0.55 * spacing * np.sqrt(i + 0.5), 2.4 * i
        foot = r * np.array([np.cos(turn), np.sin(turn)])
        foot += 0.15 * spacing * rng.standard_normal(2)
        n_atoms = int(rng.integers(14, 27))
        along = rise * (np.arange(n_atoms) - n_atoms / 2)
        phase = np.deg2rad(100) * np.arange(n_atoms)
        atoms = np.stack((radius * np.cos(phase), radius * np.sin(phase), along), 1)
        tilt = Rotations.from_rotvec([*(0.2 * rng.standard_normal(2)), 0])
        shift = [*foot, 0.04 * L * rng.standard_normal()]
        rods.append(tilt.apply(atoms) + shift)
    domain = 0.04 * L * rng.standard_normal((int(rng.integers(20, 50)), 3))
    domain += [*(0.08 * L * rng.standard_normal(2)), 0.25 * L]
    atoms = np.concatenate((*rods, domain))
    frame = Rotations.random(rng=rng).as_matrix()
    atoms = (atoms - atoms.mean(0)) @ frame.T
    ones, sigma = np.ones(len(atoms)), 0.024 * L
    protein = gaussians_on_grid(atoms, sigma * ones, ones, L, pixel_size)
    if not solvent:
        return protein
    blurred = gaussian_filter(protein.asnumpy()[0], L / 12)
    voxels = protein.asnumpy()[0] - np.float32(solvent) * blurred
    return Volume(voxels / np.linalg.norm(voxels), pixel_size=pixel_size)
