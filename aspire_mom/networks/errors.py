"""
Errors of volumes and densities that do not depend on the signs of the axes.

Moments determine a volume and its density of views up to a rotation and handedness. In
the frame of the volume's principal axes eight choices remain, S = diag(±1, ±1, ±1).
If det S = 1, v(Sx) seen from R equals v seen from SR. If det S = -1, S' = -S is a
rotation and V(Sk) = conj V(S'k): v(Sx) seen from R equals v seen from S'R, turned by π
in the plane, which does not change in-plane averaged moments. So (v, ρ) has the moments
of v(Sx) with views ρ(det(S) S d).
"""

import itertools
import math

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from aspire_mom.rotations import log_density_harmonics

#: The eight sign changes (8, 3).
AXIS_SIGNS = np.array(list(itertools.product((1, -1), repeat=3)))
#: The same for viewing directions (8, 3): diagonals of rotations.
VIEW_SIGNS = AXIS_SIGNS * AXIS_SIGNS.prod(1, keepdims=True)
# No rotation, and rotations about one axis.
ANGLES = np.deg2rad([[-60], [-30], [30], [60], [90]])
VECTORS = np.concatenate((np.zeros((1, 3)), np.kron(np.eye(3), ANGLES)))
AXIS_ROTATIONS = Rotation.from_rotvec(VECTORS).as_matrix()
# Rings on which the rotation is chosen. Added in quadrature to the RMS of shells,
# relative to V(0), so that weak shells weigh less.
COARSE_RINGS, ADDED_RMS = 4, 3e-3


def parity_transform(
    centres: Tensor, sigmas: Tensor, weights: Tensor, n_rings: int
) -> Tensor:
    """
    Split V(k) of sums of Gaussians at integer frequencies into eight parts, even or odd
    in each axis. A part has a factor of -i for each axis in which it is odd.

    :param centres: Centres (batch, n, 3), box units, xyz order.
    :param sigmas: Standard deviations (batch, n).
    :param weights: Weights (batch, n).
    :param n_rings: Frequencies 0 … n_rings - 1 on each axis.
    :return: Real parts (batch, 8, n_rings³): parity even or odd in x, y, z as
        `AXIS_SIGNS` lists 1 and -1; frequencies kx, ky, kz, the last fastest.
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


class InvariantErrors(nn.Module):
    """
    Errors of predictions for the best of the eight choices of signs, after the best
    rotation about one principal axis by 0°, ±30°, ±60° or 90°: two nearly equal moments
    of inertia hardly determine the axes. The rotation is chosen on the inner shells.

    :param n_rings: Number of rings; shells 1 … n_rings - 1 are compared.
    :param points: Viewing directions (n_points, 3) of the densities.
    :param degree: Degree of the log-densities (see `DiscreteDensity`).
    """

    shells: Tensor
    coarse_shells: Tensor
    signs: Tensor
    harmonics: Tensor
    view_signs: Tensor
    turns: Tensor
    view_turns: Tensor

    def __init__(self, n_rings: int, points: np.ndarray, degree: int):
        super().__init__()
        self.n_rings, self.n_coarse = n_rings, min(COARSE_RINGS, n_rings)
        harmonics = log_density_harmonics(points, degree)
        own = (harmonics**2).sum(0)
        flipped = [log_density_harmonics(points * s, degree) for s in VIEW_SIGNS]
        view_signs = torch.stack([(f * harmonics).sum(0) / own for f in flipped])
        turned = [log_density_harmonics(points @ t, degree) for t in AXIS_ROTATIONS]
        view_turns = torch.stack([harmonics.T @ t / own[:, None] for t in turned])
        odd = AXIS_SIGNS < 0
        for name, values in {
            "shells": _shells(n_rings),
            "coarse_shells": _shells(self.n_coarse),
            # Sign of each parity part (column) under each flip (row).
            "signs": np.where(odd[:, None] & odd, -1, 1).prod(-1),
            "harmonics": harmonics,
            "view_signs": view_signs.round(),
            "turns": AXIS_ROTATIONS,
            "view_turns": view_turns,
        }.items():
            self.register_buffer(name, torch.as_tensor(values).float())

    def forward(
        self, truth: tuple[Tensor, Tensor], prediction: tuple[tuple, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """
        :param truth: :func:`parity_transform` of volumes; densities (batch, n_points).
        :param prediction: Centres, widths and weights of volumes, and coefficients of
            log-densities (batch, (degree + 1)² - 1).
        :return: Squared errors of Fourier values relative to the power of their shell,
            mean over shells, and Kullback-Leibler divergences of the densities, in
            nats, both (batch,), for the choice of lowest sum.
        """
        target, probabilities = truth
        (centres, sigmas, weights), coefficients = self._align(truth, prediction)
        parts = parity_transform(centres, sigmas, weights, self.n_rings)
        volume = self._volume_errors(parts, target, self.shells)
        density = self._divergence(probabilities, coefficients)
        rows, best = torch.arange(len(volume)), (volume + density).argmin(1)
        return volume[rows, best], density[rows, best]

    def _align(self, truth, prediction):
        """Return the prediction after the best rotation."""
        target, probabilities = truth
        (centres, sigmas, weights), coefficients = prediction
        n_turns, n = len(self.turns), self.n_coarse
        turned = torch.einsum("tij,bgj->btgi", self.turns, centres)
        turned_views = torch.einsum("tij,bj->bti", self.view_turns, coefficients)
        with torch.no_grad():
            parts = parity_transform(
                turned.flatten(0, 1),
                sigmas.repeat_interleave(n_turns, 0),
                weights.repeat_interleave(n_turns, 0),
                n,
            )
            inner = target.unflatten(2, (self.n_rings,) * 3)[..., :n, :n, :n].flatten(2)
            inner = inner.repeat_interleave(n_turns, 0)
            volume = self._volume_errors(parts, inner, self.coarse_shells)
            probabilities = probabilities.repeat_interleave(n_turns, 0)
            density = self._divergence(probabilities, turned_views.flatten(0, 1))
            best = (volume + density).amin(1).unflatten(0, (-1, n_turns)).argmin(1)
        chosen = torch.arange(len(best), device=best.device), best
        return (turned[chosen], sigmas, weights), turned_views[chosen]

    def _volume_errors(self, parts: Tensor, target: Tensor, shells: Tensor) -> Tensor:
        """Relative errors (batch, 8) by flip."""
        power = parts.square().sum(1) @ shells
        target_power = target.square().sum(1) @ shells
        cross = self.signs @ ((parts * target) @ shells)
        errors = (power + target_power)[:, None] - 2 * cross
        scale = target_power + ADDED_RMS**2 * shells.sum(0)
        return (errors / scale[:, None]).mean(-1)

    def _divergence(self, probabilities: Tensor, coefficients: Tensor) -> Tensor:
        """Σ p log(p/q) (batch, 8) of densities q turned by each flip."""
        n_points = probabilities.shape[1]
        negative_entropy = (probabilities * (n_points * probabilities).log()).sum(1)
        logits = coefficients @ self.harmonics.T
        log_partition = torch.logsumexp(logits, 1) - math.log(n_points)
        expected = coefficients * (probabilities @ self.harmonics)
        divergence = (negative_entropy + log_partition)[:, None]
        return divergence - expected @ self.view_signs.T


def _shells(n_rings: int) -> Tensor:
    """Matrix (n_rings³, n_rings - 1) that sums an octant of frequencies over shells. A
    frequency counts twice for every axis on which it is not 0."""
    axis = np.arange(n_rings)
    k = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    shell = np.round(np.linalg.norm(k, axis=1))
    multiplicity = 2.0 ** (k > 0).sum(1)
    shells = (shell[:, None] == np.arange(1, n_rings)) * multiplicity[:, None]
    return torch.from_numpy(shells).float()
