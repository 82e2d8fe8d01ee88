"""Random volumes and simulated images, for demonstrations and benchmarks."""

from __future__ import annotations

import numpy as np
from aspire.noise import WhiteNoiseAdder
from aspire.source import Simulation
from aspire.utils import Rotation
from aspire.volume import Volume
from scipy.spatial.transform import Rotation as Rotations

from aspire_mom.checks import check_integer


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


def gaussian_phantom(
    L: int = 25, *, n_gaussians: int = 4, seed: int = 0, pixel_size: float = 1.0
) -> Volume:
    """
    Draw Gaussians that do not lie on one plane, like the paper's third volume (section
    5.2).

    At L = 25 centres lie 2 to 6 voxels from the origin and standard deviations are 1.5
    to 2.5 voxels; both scale with L. Amplitudes differ by a factor of at most 2.5.

    :param L: Voxels along an edge.
    :param n_gaussians: Number of Gaussians, at least 1.
    :param seed: Seed of the draw.
    :param pixel_size: Ångström per voxel.
    :return: ASPIRE `Volume` of unit norm, float32.
    :raises ValueError: `n_gaussians` is less than 1.
    """
    check_integer("n_gaussians", n_gaussians, 1)
    rng = np.random.default_rng(seed)
    scale = L / 25
    while True:
        directions = rng.standard_normal((n_gaussians, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        centres = directions * rng.uniform(2, 6, (n_gaussians, 1))
        # The thinnest extent of the centres tells whether they are nearly coplanar.
        spread = np.linalg.svd(centres - centres.mean(0), compute_uv=False)
        if n_gaussians < 4 or spread[-1] > 1.5:
            break
    sigmas = rng.uniform(1.5, 2.5, n_gaussians)
    amplitudes = rng.uniform(1, 2.5, n_gaussians)
    return gaussians_on_grid(centres * scale, sigmas * scale, amplitudes, L, pixel_size)


def chain_phantom(
    L: int = 25,
    *,
    n_atoms: int = 300,
    seed: int = 0,
    pixel_size: float = 1.0,
    sigma: float = 0.6,
) -> Volume:
    """
    Draw a compact chain of atoms, like a protein's: a persistent random walk held
    within a ball of 0.3 L, each atom a narrow Gaussian.

    :param L: Voxels along an edge.
    :param n_atoms: Number of atoms, at least 1.
    :param seed: Seed of the draw.
    :param pixel_size: Ångström per voxel.
    :param sigma: Standard deviation of an atom, in voxels.
    :return: ASPIRE `Volume` of unit norm, float32.
    :raises ValueError: `n_atoms` is less than 1.
    """
    check_integer("n_atoms", n_atoms, 1)
    rng = np.random.default_rng(seed)
    radius, step = 0.3 * L, 0.06 * L
    # A lopsided ellipsoid, so that the walk's envelope has no symmetry.
    axes = radius * rng.uniform(0.45, 1, 3)
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
    return _atoms_on_grid(atoms, frame, sigma, L, pixel_size)


def helix_bundle_phantom(
    L: int = 25,
    *,
    n_helices: int = 6,
    seed: int = 0,
    pixel_size: float = 1.0,
    sigma: float = 0.6,
) -> Volume:
    """
    Draw a bundle of helices, like a membrane protein's: rods of unequal length packed
    side by side, each tilted by up to about 25° against the bundle's axis, with 3.6
    atoms to a turn, and a small round domain at one end.

    :param L: Voxels along an edge.
    :param n_helices: Number of helices, at least 1.
    :param seed: Seed of the draw.
    :param pixel_size: Ångström per voxel.
    :param sigma: Standard deviation of an atom, in voxels.
    :return: ASPIRE `Volume` of unit norm, float32.
    :raises ValueError: `n_helices` is less than 1.
    """
    check_integer("n_helices", n_helices, 1)
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
    return _atoms_on_grid(atoms, frame, sigma, L, pixel_size)


def _atoms_on_grid(
    atoms: np.ndarray, frame: np.ndarray, sigma: float, L: int, pixel_size: float
) -> Volume:
    """Equal Gaussians about their own centre, turned."""
    atoms = (atoms - atoms.mean(0)) @ frame.T
    ones = np.ones(len(atoms))
    return gaussians_on_grid(atoms, sigma * ones, ones, L, pixel_size)


def simulate(
    volume: Volume, rotations: Rotation, noise: WhiteNoiseAdder, seed: int
) -> Simulation:
    """
    Simulate noisy projections without CTF, shifts or varying amplitudes.

    :param volume: One ASPIRE `Volume`, float32.
    :param rotations: ASPIRE `Rotation` with one rotation for each image.
    :param noise: Noise to add.
    :param seed: Seed of the `Simulation`.
    :return: ASPIRE `Simulation`.
    """
    return Simulation(
        vols=volume,
        n=len(rotations),
        angles=rotations.angles.astype(volume.dtype),
        offsets=0,
        amplitudes=1,
        noise_adder=noise,
        seed=seed,
    )
