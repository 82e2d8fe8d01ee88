"""Supervised training of encoders on random volumes and densities of views."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from scipy.special import exprel
from torch import Tensor

from aspire_mom.bases import PolarBasis
from aspire_mom.networks.errors import InvariantErrors, parity_transform
from aspire_mom.networks.exact import ExactMoments
from aspire_mom.networks.start_encoder import StartEncoder
from aspire_mom.training import TrainingSettings, train_network

# Streams of random numbers, none of which share numbers.
TRAINING, VALIDATION, STANDARDISATION = 0, 1, 2
# Several densities share a volume, since its expansion takes longer than the moments.
DENSITIES_PER_VOLUME = 4
# Fraction of problems without noise. For the others, ranges of log10 of the number of
# images, and of the noise power in c[0, 0] over V(0)², about 5 / (L² SNR).
EXACT_SHARE = 0.25
LOG_IMAGES, LOG_NOISE = (4.0, 6.0), (-3.0, 0.0)
# Ranges of mixtures, see `gaussian_phantom`: lengths in boxes, and factors on all radii
# and on all widths of a volume: molecules fill their boxes to different degrees.
N_GAUSSIANS = (3, 12)
CENTRES, SIGMAS, HEIGHTS = (0.08, 0.24), (0.06, 0.1), (1.0, 2.5)
SCALES, WIDTH_SCALES = (0.8, 1.5), (0.6, 1.2)
# The same of chains, see `chain_phantom`; BENDING is the spread of turns in a step.
N_ATOMS = (60, 200)
RADII, STEP, BENDING, SHORTEST_AXIS = (0.2, 0.4), 0.2, 0.6, 0.45
ATOM_SIGMAS, OFFSET = (0.02, 0.05), 0.015
# Ranges of `VonMisesFisherMixture.random`.
N_COMPONENTS, CONCENTRATIONS, DIRICHLET = 8, (2.0, 10.0), 5.0


@dataclass(frozen=True)
class Training(TrainingSettings):
    """
    Settings of a training, in which half of the volumes are Gaussian mixtures and half
    are chains. Every volume occurs with four densities of views, so `batch_size` and
    `validation_size` must be multiples of 8.

    :raises ValueError: a number is out of range, or a size is no multiple of 8.
    """

    def __post_init__(self):
        super().__post_init__()
        for name in ("batch_size", "validation_size"):
            value = getattr(self, name)
            if value % (2 * DENSITIES_PER_VOLUME):
                raise ValueError(f"{name} is {value}; it must be a multiple of 8")


class _Problems(NamedTuple):
    """Moments and standard errors as `StartEncoder` takes them, and volumes in their
    principal axes and densities as `InvariantErrors` takes them; V(0) = 1."""

    moments: tuple[Tensor, ...]
    truth: tuple[Tensor, Tensor]


def train(
    encoder: StartEncoder, training: Training, *, device: str = "cpu", **options
) -> float:
    """
    Minimise the errors of volumes and densities (see :class:`InvariantErrors`) over an
    encoder's parameters, as :func:`~aspire_mom.training.train_network` does.

    :param encoder: The encoder.
    :param training: Settings.
    :param device: Torch device.
    :param options: `checkpoint`, and `status`, which gets the errors "volume", the mean
        squared error of Fourier values over their power, and "density", the mean
        Kullback-Leibler divergence in nats.
    :return: The best validation loss, the sum of the two.
    """
    # An object of radius 0.4 boxes has degrees up to `reach` on the outermost ring. The
    # design must integrate products of two harmonics of the log-density.
    reach = math.ceil(0.8 * math.pi * (encoder.n_rings - 1))
    exact = ExactMoments(
        encoder.n_rings,
        encoder.max_order,
        degree=max(reach, encoder.max_order + 2),
        design_degree=max(17, 2 * encoder.degree),
    ).to(device)
    errors = InvariantErrors(encoder.n_rings, exact.points, encoder.degree).to(device)
    encoder.to(device)
    size, stream = training.validation_size, (STANDARDISATION,)
    encoder.standardise(*_draw_problems(training, size, stream, exact).moments)
    validation = _draw_problems(training, size, (VALIDATION,), exact)

    def loss(step: int) -> Tensor:
        size, stream = training.batch_size, (TRAINING, step)
        problems = _draw_problems(training, size, stream, exact)
        volume, density = errors(problems.truth, encoder(*problems.moments))
        return (volume + density).mean()

    def validate() -> tuple[float, dict[str, float]]:
        found = errors(validation.truth, encoder(*validation.moments))
        volume, density = (error.mean().item() for error in found)
        return volume + density, {"volume": volume, "density": density}

    return train_network(encoder, training, loss, validate, **options)


def _draw_problems(training, count, stream, exact: ExactMoments) -> _Problems:
    """Draw problems, float32, on the device of the forward model. The same stream
    (TRAINING and the step, VALIDATION or STANDARDISATION) gives the same ones."""
    rng = np.random.default_rng((training.seed, *stream))
    device = exact.radii.device
    expansions, targets = [], []
    n_volumes = count // DENSITIES_PER_VOLUME
    for draw in (_draw_mixtures, _draw_chains):
        volumes = draw(n_volumes // 2, rng).in_principal_axes()
        x, sigmas, w = (torch.from_numpy(a).float().to(device) for a in volumes)
        expansions.append(exact.expand(x, sigmas, w))
        targets.append(parity_transform(x, sigmas, w, exact.n_rings))
    p = torch.from_numpy(_draw_views(count, exact.points, rng)).float().to(device)
    shape = (n_volumes, DENSITIES_PER_VOLUME, -1)
    first, second = exact(torch.cat(expansions), p.reshape(shape))
    noisy = _add_noise(first.flatten(0, 1), second.flatten(0, 1), rng)
    volumes = torch.cat(targets).repeat_interleave(DENSITIES_PER_VOLUME, 0)
    return _Problems(noisy, (volumes, p))


def _add_noise(first: Tensor, second: Tensor, rng: Generator) -> tuple[Tensor, ...]:
    """Add the sampling noise of moments averaged over N images, and return them with
    the standard errors of the rings' powers. An entry, the mean of N products f_r conj
    f_r', has the variance E|f_r|² E|f_r'|² / N, noise included."""
    batch, n_orders, n_rings = second.shape[:3]
    device = second.device
    n_images = 10 ** rng.uniform(*LOG_IMAGES, batch)
    noise = 10 ** rng.uniform(*LOG_NOISE, batch)
    n_images[rng.random(batch) < EXACT_SHARE] = math.inf
    own = second.diagonal(dim1=-2, dim2=-1).real.clamp_min(0)
    floor = torch.from_numpy(noise[:, None, None] * _ring_noise(n_orders, n_rings))
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
    :return: Standard errors of the powers of orders ±m together, (batch, n_rings).
    """
    twice = torch.full((own_errors.shape[1], 1), 2.0).to(own_errors)
    twice[0] = 1
    return torch.linalg.vector_norm(twice * own_errors, dim=1)


@lru_cache(maxsize=2)
def _ring_noise(n_orders: int, n_rings: int) -> np.ndarray:
    """Power of white noise, E|c[m, r]|² / E|c[0, 0]|², nearly the same for any L."""
    basis = PolarBasis(2 * n_rings + 9, n_rings=n_rings, max_order=n_orders - 1)
    own = np.einsum("mrr->mr", basis.noise_second()).real
    return own / own[0, 0]


class _Mixtures(NamedTuple):
    """Sums of isotropic Gaussians with V(0) = 1: centres (batch, n, 3), standard
    deviations (batch, n) and shares of V(0) (batch, n), 0 for Gaussians not in use."""

    centres: np.ndarray
    sigmas: np.ndarray
    weights: np.ndarray

    def in_principal_axes(self) -> _Mixtures:
        # Turn each volume so that the second moment of its mass about the box's centre
        # is diagonal, largest along x. The axes' signs are arbitrary.
        weighted = self.weights[..., None] * self.centres
        second = np.swapaxes(weighted, 1, 2) @ self.centres
        # Widths of the Gaussians would add a multiple of the identity.
        axes = np.linalg.eigh(second)[1][..., ::-1]
        return _Mixtures(self.centres @ axes, self.sigmas, self.weights)


def _draw_mixtures(count: int, rng: Generator) -> _Mixtures:
    """Volumes like `aspire_mom.phantoms.gaussian_phantom`, more varied in size."""
    n = N_GAUSSIANS[1]
    directions = _directions((count, n), rng)
    radii = rng.uniform(*CENTRES, (count, n)) * rng.uniform(*SCALES, (count, 1))
    sigmas = rng.uniform(*SIGMAS, (count, n)) * rng.uniform(*WIDTH_SCALES, (count, 1))
    mass = rng.uniform(*HEIGHTS, (count, n)) * sigmas**3
    mass *= np.arange(n) < rng.integers(N_GAUSSIANS[0], n + 1, (count, 1))
    weights = mass / mass.sum(1, keepdims=True)
    return _Mixtures(directions * radii[..., None], sigmas, weights)


def _draw_chains(count: int, rng: Generator) -> _Mixtures:
    """Volumes like `aspire_mom.phantoms.chain_phantom`: persistent random walks in
    ellipsoids, of 60 to 200 equal atoms, a little off the box's centre."""
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
    return _Mixtures(atoms - middle + offset, sigmas, weights)


def _draw_views(count: int, points: np.ndarray, rng: Generator) -> np.ndarray:
    """Probabilities (count, n_points) like those of `VonMisesFisherMixture.random`."""
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
