"""Draw training problems: volumes and densities of views with their moments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.random import Generator
from scipy.special import exprel
from torch import Tensor

from aspire_mom.bases import PolarBasis
from aspire_mom.networks.errors import parity_transform
from aspire_mom.networks.exact import ExactMoments
from aspire_mom.training import TrainingSettings

# Streams of random numbers, none of which share numbers.
TRAINING, VALIDATION, STANDARDISATION = 0, 1, 2
# Expanding a volume costs more than moments of another density of its views.
DENSITIES_PER_VOLUME = 4
# Fraction of problems without noise. For the others, ranges of log10 of the number of
# images, and of the noise power in c[0, 0] over V(0)², about 5 / (L² SNR).
EXACT_SHARE = 0.25
LOG_IMAGES, LOG_NOISE = (4.0, 6.0), (-3.0, 0.0)
# Ranges of `gaussian_phantom` and `chain_phantom`, in boxes, and of the scale of the
# whole, because molecules fill their boxes to different degrees.
N_GAUSSIANS = (3, 12)
CENTRES, SIGMAS, HEIGHTS = (0.08, 0.24), (0.06, 0.1), (1.0, 2.5)
SCALES, WIDTH_SCALES = (0.8, 1.5), (0.6, 1.2)
N_ATOMS = (60, 200)
# BENDING is the standard deviation of the change of direction in a step.
RADII, STEP, BENDING, SHORTEST_AXIS = (0.2, 0.4), 0.2, 0.6, 0.45
ATOM_SIGMAS, OFFSET = (0.02, 0.05), 0.015
# Ranges of `VonMisesFisherMixture.random`.
N_COMPONENTS, CONCENTRATIONS, DIRICHLET = 8, (2.0, 10.0), 5.0


@dataclass(frozen=True)
class Training(TrainingSettings):
    """
    Half of the volumes are Gaussian mixtures, half are chains, and each is seen by four
    densities: `batch_size` and `validation_size` are multiples of 8.

    :raises ValueError: a number is out of range, or a size is no multiple of 8.
    """

    def __post_init__(self):
        super().__post_init__()
        for name in ("batch_size", "validation_size"):
            value = getattr(self, name)
            if value % (2 * DENSITIES_PER_VOLUME):
                raise ValueError(f"{name} is {value}; it must be a multiple of 8")


@dataclass(frozen=True)
class Problems:
    """
    Moments with the volumes and densities to find, in units in which V(0) = 1.

    :param moments: First and second moments and standard errors of the rings' powers,
        as `StartEncoder` takes them.
    :param truth: `parity_transform` of the volumes, turned to their principal axes, and
        densities, as `InvariantErrors` takes them.
    """

    moments: tuple[Tensor, Tensor, Tensor]
    truth: tuple[Tensor, Tensor]


def draw_problems(
    training: Training, count: int, stream: tuple[int, ...], exact: ExactMoments
) -> Problems:
    """
    :param training: Settings with the seed.
    :param count: Number of problems, a multiple of 8.
    :param stream: Stream of random numbers: TRAINING with the step, VALIDATION or
        STANDARDISATION.
    :param exact: Forward model, on the device to use.
    :return: The problems, float32; the same stream gives the same ones.
    """
    rng = np.random.default_rng((training.seed, *stream))
    device = exact.radii.device
    expansions, targets = [], []
    n_volumes = count // DENSITIES_PER_VOLUME
    for draw in (draw_mixtures, draw_chains):
        volumes = draw(n_volumes // 2, rng).in_principal_axes()
        arrays = (volumes.centres, volumes.sigmas, volumes.weights)
        x, sigmas, w = (torch.from_numpy(a).float().to(device) for a in arrays)
        expansions.append(exact.expand(x, sigmas, w))
        targets.append(parity_transform(x, sigmas, w, exact.n_rings))
    p = torch.from_numpy(draw_views(count, exact.points, rng)).float().to(device)
    shape = (n_volumes, DENSITIES_PER_VOLUME, -1)
    first, second = exact(torch.cat(expansions), p.reshape(shape))
    noisy = add_noise(first.flatten(0, 1), second.flatten(0, 1), rng)
    volumes = torch.cat(targets).repeat_interleave(DENSITIES_PER_VOLUME, 0)
    return Problems(noisy, (volumes, p))


def add_noise(
    first: Tensor, second: Tensor, rng: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Add the sampling noise of moments averaged over N images: an entry, the mean of N
    products f_r conj f_r', has the variance E|f_r|² E|f_r'|² / N, noise included.

    :param first: Exact first moments (batch, n_rings), complex.
    :param second: Exact second moments (batch, max_order + 1, n_rings, n_rings).
    :param rng: Random numbers.
    :return: Noisy moments, and standard errors of the rings' powers (batch, n_rings).
    """
    batch, n_orders, n_rings = second.shape[:3]
    device = second.device
    n_images = 10 ** rng.uniform(*LOG_IMAGES, batch)
    noise = 10 ** rng.uniform(*LOG_NOISE, batch)
    n_images[rng.random(batch) < EXACT_SHARE] = math.inf
    own = second.diagonal(dim1=-2, dim2=-1).real.clamp_min(0)
    floor = torch.from_numpy(noise[:, None, None] * ring_noise(n_orders, n_rings))
    raw = own + floor.float().to(device)
    share = torch.from_numpy(n_images**-0.5).float().to(device)
    error = share[:, None, None, None] * (raw[..., None] * raw[..., None, :]).sqrt()
    parts = rng.standard_normal((2, *second.shape), dtype=np.float32)
    scatter = torch.complex(*torch.from_numpy(parts).to(device))
    # Hermitian, of unit variance; entries on the diagonal are real.
    scatter = (scatter + scatter.mH) / 2
    second = second + error * scatter
    of_first = torch.from_numpy(rng.standard_normal(first.shape, dtype=np.float32))
    first = first + share[:, None] * raw[:, 0].sqrt() * of_first.to(device)
    return first, second, power_errors(error.diagonal(dim1=-2, dim2=-1))


def power_errors(own_errors: Tensor) -> Tensor:
    """
    :param own_errors: Standard errors of E|c[m, r]|², (batch, max_order + 1, n_rings).
    :return: Standard errors of the powers, sums over positive and negative orders,
        (batch, n_rings).
    """
    twice = torch.full((own_errors.shape[1], 1), 2.0).to(own_errors)
    twice[0] = 1
    return torch.linalg.vector_norm(twice * own_errors, dim=1)


@lru_cache(maxsize=2)
def ring_noise(n_orders: int, n_rings: int) -> np.ndarray:
    """
    :param n_orders: Number of orders.
    :param n_rings: Number of rings.
    :return: Power of white noise, E|c[m, r]|² / E|c[0, 0]|² (n_orders, n_rings), which
        hardly depends on the images' size.
    """
    basis = PolarBasis(2 * n_rings + 9, n_rings=n_rings, max_order=n_orders - 1)
    own = np.einsum("mrr->mr", basis.noise_second()).real
    return own / own[0, 0]


@dataclass(frozen=True)
class Mixtures:
    """
    Sums of isotropic Gaussians with V(0) = 1, in the units of `FourierVolume`.

    :param centres: (batch, n, 3), xyz order, float64.
    :param sigmas: Standard deviations (batch, n).
    :param weights: Shares of V(0) (batch, n), summing to one; 0 beyond the number of
        a volume's Gaussians.
    """

    centres: np.ndarray
    sigmas: np.ndarray
    weights: np.ndarray

    def in_principal_axes(self) -> Mixtures:
        """
        Turn each volume so that the second moment of its mass about the box's centre is
        diagonal, largest along x and smallest along z. The axes' signs are arbitrary.

        :return: The turned volumes.
        """
        weighted = self.weights[..., None] * self.centres
        second = np.swapaxes(weighted, 1, 2) @ self.centres
        # Widths of the Gaussians would add a multiple of the identity.
        axes = np.linalg.eigh(second)[1][..., ::-1]
        return Mixtures(self.centres @ axes, self.sigmas, self.weights)


def draw_mixtures(count: int, rng: Generator) -> Mixtures:
    """
    :param count: Number of volumes.
    :param rng: Random numbers.
    :return: Volumes like `aspire_mom.phantoms.gaussian_phantom`, of 3 to 12 Gaussians,
        of more varied size and width.
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
    :param count: Number of volumes.
    :param rng: Random numbers.
    :return: Volumes like `aspire_mom.phantoms.chain_phantom`: persistent random walks
        in ellipsoids, of 60 to 200 equal atoms, a little off the box's centre.
    """
    radius = rng.uniform(*RADII, (count, 1))
    axes = radius * rng.uniform(SHORTEST_AXIS, 1, (count, 3))
    step = STEP * radius
    atoms = np.zeros((count, N_ATOMS[1], 3))
    heading = rng.standard_normal((count, 3))
    for i in range(1, N_ATOMS[1]):
        bend = BENDING * rng.standard_normal((count, 3))
        heading = _unit(_unit(heading) + bend)
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
    :param count: Number of densities, which are like `VonMisesFisherMixture.random`.
    :param points: Unit vectors (n_points, 3) of equal quadrature weights.
    :param rng: Random numbers.
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
