"""Random volumes and views that encoders are trained on, many at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy.special import exprel

# Ranges of `gaussian_phantom` and `chain_phantom`, in boxes, and by how much the whole
# is larger or smaller: molecules fill their boxes to different degrees.
N_GAUSSIANS = (3, 12)
CENTRES, SIGMAS, HEIGHTS = (0.08, 0.24), (0.06, 0.1), (1.0, 2.5)
SCALES, WIDTH_SCALES = (0.8, 1.5), (0.6, 1.2)
N_ATOMS = (60, 200)
RADII, STEP, STIFFNESS, SHORTEST_AXIS = (0.2, 0.4), 0.2, 0.6, 0.45
ATOM_SIGMAS, OFFSET = (0.02, 0.05), 0.015
# Those of `VonMisesFisherMixture.random`.
N_COMPONENTS, CONCENTRATIONS, DIRICHLET = 8, (2.0, 10.0), 5.0


@dataclass(frozen=True)
class Mixtures:
    """
    Sums of isotropic Gaussians with V(0) = 1, in the units of `FourierVolume`.

    :param centres: (batch, n, 3), xyz order, float64.
    :param sigmas: Standard deviations (batch, n).
    :param weights: Shares of V(0) (batch, n), summing to one; 0 where a volume has
        fewer Gaussians than the batch's largest.
    """

    centres: np.ndarray
    sigmas: np.ndarray
    weights: np.ndarray

    def in_principal_axes(self) -> Mixtures:
        """
        The same volumes, each turned so that the second moment of its mass about the
        box's centre is diagonal, largest along x and smallest along z. Eight choices of
        the axes' signs are left; here they are arbitrary.
        """
        weighted = self.weights[..., None] * self.centres
        second = np.swapaxes(weighted, 1, 2) @ self.centres
        # Isotropic widths add a multiple of 1, which turns no axis.
        axes = np.linalg.eigh(second)[1][..., ::-1]
        return Mixtures(self.centres @ axes, self.sigmas, self.weights)


def draw_mixtures(count: int, rng: Generator) -> Mixtures:
    """
    Volumes like `aspire_mom.phantoms.gaussian_phantom`, of 3 to 12 Gaussians, larger or
    smaller, and with wider or narrower Gaussians.

    :param count: Number of volumes.
    :param rng: Where the draws come from.
    :return: The volumes.
    """
    n = N_GAUSSIANS[1]
    directions = _directions((count, n), rng)
    radii = rng.uniform(*CENTRES, (count, n)) * rng.uniform(*SCALES, (count, 1))
    sigmas = rng.uniform(*SIGMAS, (count, n)) * rng.uniform(*WIDTH_SCALES, (count, 1))
    mass = rng.uniform(*HEIGHTS, (count, n)) * sigmas**3
    mass *= np.arange(n) < rng.integers(N_GAUSSIANS[0], n + 1, (count, 1))
    return Mixtures(
        directions * radii[..., None], sigmas, mass / mass.sum(1, keepdims=True)
    )


def draw_chains(count: int, rng: Generator) -> Mixtures:
    """
    Volumes like `aspire_mom.phantoms.chain_phantom`: persistent random walks within
    lopsided ellipsoids, of 60 to 200 equal atoms, a little off the box's centre.

    :param count: Number of volumes.
    :param rng: Where the draws come from.
    :return: The volumes.
    """
    radius = rng.uniform(*RADII, (count, 1))
    axes = radius * rng.uniform(SHORTEST_AXIS, 1, (count, 3))
    step = STEP * radius
    atoms = np.zeros((count, N_ATOMS[1], 3))
    heading = rng.standard_normal((count, 3))
    for i in range(1, N_ATOMS[1]):
        wiggle = STIFFNESS * rng.standard_normal((count, 3))
        heading = _unit(_unit(heading) + wiggle)
        new = atoms[:, i - 1] + step * heading
        outside = np.linalg.norm(new / axes, axis=1, keepdims=True)
        new /= np.maximum(outside, 1)
        turned = -new + rng.standard_normal((count, 3))
        heading = np.where(outside > 1, turned, heading)
        atoms[:, i] = new
    length = rng.integers(N_ATOMS[0], N_ATOMS[1] + 1, (count, 1))
    weights = (np.arange(N_ATOMS[1]) < length) / length
    middle = (weights[..., None] * atoms).sum(1, keepdims=True)
    offset = OFFSET * rng.standard_normal((count, 1, 3))
    sigmas = rng.uniform(*ATOM_SIGMAS, (count, 1)) * np.ones(N_ATOMS[1])
    return Mixtures(atoms - middle + offset, sigmas, weights)


def draw_views(count: int, points: np.ndarray, rng: Generator) -> np.ndarray:
    """
    Densities like `VonMisesFisherMixture.random` on the points of a design, as its
    method `on` has them.

    :param count: Number of densities.
    :param points: Unit vectors (n_points, 3) of equal quadrature weights.
    :param rng: Where the draws come from.
    :return: Probabilities (count, n_points), rows summing to one.
    """
    means = _directions((count, N_COMPONENTS), rng)
    kappa = rng.uniform(*CONCENTRATIONS, (count, N_COMPONENTS, 1))
    weights = rng.dirichlet(np.full(N_COMPONENTS, DIRICHLET), count)[..., None]
    peaks = weights / (4 * math.pi * exprel(-2 * kappa))
    density = (peaks * np.exp(kappa * (means @ points.T - 1))).sum(1)
    return density / density.sum(1, keepdims=True)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _directions(shape: tuple[int, ...], rng: Generator) -> np.ndarray:
    return _unit(rng.standard_normal((*shape, 3)))
