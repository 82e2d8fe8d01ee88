"""
Errors of volumes and densities that no choice of axes' signs changes.

Moments determine a volume and its density of views up to a rotation and the hand. In
the frame of the volume's principal axes eight choices are left, S = diag(±1, ±1, ±1).
A volume v(Sx) is seen from R as v is from SR. Where S is improper, S = -S', its Fourier
values are V(-S'k) = conj V(S'k), so that it is seen from R as v is from S'R but turned
by π in the plane, which in-plane averaged moments do not notice. So (v, ρ) has the
moments of v(Sx) with views ρ(det(S) S d).
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn

from aspire_mom.quadrature import real_spherical_harmonics

#: The eight sign changes (8, 3).
FLIPS = np.array(list(itertools.product((1, -1), repeat=3)))
#: What they do to viewing directions (8, 3): diagonals of rotations.
VIEW_FLIPS = FLIPS * FLIPS.prod(1, keepdims=True)
# Fourier values below this share of V(0) count for little, their shells for less.
FAINT = 3e-3


def parity_transform(
    centres: Tensor, sigmas: Tensor, weights: Tensor, n_rings: int
) -> Tensor:
    """
    Fourier transforms of Gaussian sums on integer frequencies, split by parity: V(k) is
    the sum over its eight parts, times -i for each axis in which a part is odd, and
    changing the sign of x, y or z changes the sign of the parts that are odd in it.

    :param centres: Centres (batch, n, 3), box units, xyz order.
    :param sigmas: Standard deviations (batch, n).
    :param weights: Weights (batch, n).
    :param n_rings: Frequencies 0 … n_rings - 1 on each axis.
    :return: Real parts (batch, 8, n_rings³): parity even or odd in x, y, z as `FLIPS`
        lists 1 and -1; frequencies kx, ky, kz, the last fastest.
    """
    batch, n = sigmas.shape
    k = torch.arange(n_rings, device=centres.device, dtype=centres.dtype)
    phase = 2 * math.pi * centres[..., None] * k
    decay = torch.exp(-2 * math.pi**2 * (sigmas[..., None] * k) ** 2)
    waves = torch.stack((phase.cos(), phase.sin()), 3) * decay[:, :, None, None]
    x, y, z = waves.flatten(3).unbind(2)
    xy = (weights[..., None] * x)[..., None] * y[:, :, None]
    parts = xy.reshape(batch, n, -1).mT @ z
    parts = parts.reshape(batch, *(2, n_rings) * 3).permute(0, 1, 3, 5, 2, 4, 6)
    return parts.reshape(batch, 8, -1)


class GaugeFreeErrors(nn.Module):
    """
    Errors of predictions under the best of the eight choices of signs.

    :param n_rings: Shells 1 … n_rings - 1 are compared.
    :param points: Viewing directions (n_points, 3) that densities are given on.
    :param degree: Degree of the log-densities (see `DiscreteDensity`).
    """

    def __init__(self, n_rings: int, points: np.ndarray, degree: int):
        super().__init__()
        self.n_rings = n_rings
        axis = np.arange(n_rings)
        k = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        shell = np.round(np.linalg.norm(k, axis=1))
        # An octant stands for all frequencies: each for 2 per axis where it is not 0.
        multiplicity = 2.0 ** (k > 0).sum(1)
        shells = (shell[:, None] == np.arange(1, n_rings)) * multiplicity[:, None]
        self.register_buffer("shells", torch.from_numpy(shells).float())
        self.register_buffer("signs", torch.from_numpy(_characters()).float())
        harmonics = log_density_harmonics(points, degree)
        self.register_buffer("harmonics", harmonics.float())
        flipped = [log_density_harmonics(points * s, degree) for s in VIEW_FLIPS]
        own = (harmonics**2).sum(0)
        view_signs = torch.stack([(f * harmonics).sum(0) / own for f in flipped])
        self.register_buffer("view_signs", view_signs.round().float())

    def forward(
        self, truth: tuple[Tensor, Tensor], found: tuple[tuple[Tensor, ...], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        :param truth: :func:`parity_transform` (batch, 8, n_rings³) of volumes, and
            densities (batch, n_points).
        :param found: Centres, widths and weights of volumes, and coefficients of
            log-densities (batch, (degree + 1)² - 1).
        :return: For the signs that make the sum of the first two least: squared error
            of Fourier values on each shell over their power, mean over shells; the
            Kullback-Leibler divergence of the density, in nats; correlations of Fourier
            values on each shell (batch, n_rings - 1). All but the last are (batch,).
        """
        target, probabilities = truth
        gaussians, coefficients = found
        parts = parity_transform(*gaussians, self.n_rings)
        power = parts.square().sum(1) @ self.shells
        wanted = target.square().sum(1) @ self.shells
        cross = self.signs @ ((parts * target) @ self.shells)
        counts = self.shells.sum(0)
        errors = (power + wanted)[:, None] - 2 * cross
        volume = (errors / (wanted + FAINT**2 * counts)[:, None]).mean(-1)
        density = self._divergence(probabilities, coefficients)
        best = (volume + density).argmin(1, keepdim=True)
        alike = cross.take_along_dim(best[..., None], 1)[:, 0] / (power * wanted).sqrt()
        return (
            volume.take_along_dim(best, 1)[:, 0],
            density.take_along_dim(best, 1)[:, 0],
            alike.detach(),
        )

    def _divergence(self, probabilities: Tensor, coefficients: Tensor) -> Tensor:
        """Σ p log(p/q) (batch, 8) of densities q turned by each flip."""
        n_points = probabilities.shape[1]
        entropy = (probabilities * (n_points * probabilities).log()).sum(1)
        logits = coefficients @ self.harmonics.T
        normalisation = torch.logsumexp(logits, 1) - math.log(n_points)
        expected = coefficients * (probabilities @ self.harmonics)
        return (entropy + normalisation)[:, None] - expected @ self.view_signs.T


def log_density_harmonics(directions: np.ndarray, degree: int) -> Tensor:
    """
    :param directions: Unit vectors (n, 3).
    :param degree: Largest degree.
    :return: √(4π) Y_lm, l = 1 … degree, (n, (degree + 1)² - 1), float64: what
        `DiscreteDensity` multiplies its coefficients with.
    """
    directions = torch.tensor(directions)
    harmonics = list(real_spherical_harmonics(directions, degree))[1:]
    return math.sqrt(4 * math.pi) * torch.cat(harmonics, 1)


def _characters() -> np.ndarray:
    """Sign of each parity part (column) under each flip (row), (8, 8)."""
    odd = FLIPS < 0
    return np.where(odd[:, None] & odd, -1, 1).prod(-1)
