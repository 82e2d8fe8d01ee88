"""Moments without noise of batches of Gaussian mixtures, by spherical harmonics."""

import math

import numpy as np
import torch
from scipy.special import spherical_jn
from torch import Tensor, nn

from aspire_mom.rotations import (
    SphericalDesign,
    real_spherical_harmonics,
    viewing_rotations,
)

# Distances from the box's centre at which Bessel functions are tabulated. Linear
# interpolation between them is good to 1e-4 at ring 7.
FARTHEST, N_DISTANCES = 0.75, 1025


class ExactMoments(nn.Module):
    """
    Moments (eq. 20) of sums of Gaussians in the in-plane averaged polar basis, without
    noise, for a batch of volumes, each with several densities of views.

    A volume is expanded in real spherical harmonics on every ring,

        V(k) = Σ_lμ (-i)^l a_lμ(|k|) Y_lμ(k/|k|),
        a_lμ(r) = 4π Σ_g w_g exp(-2π² σ_g² r²) j_l(2π r |x_g|) Y_lμ(x_g/|x_g|),

    with real coefficients a. The polar coefficient c[m, r] of a view is a sum of the
    a_lμ(r) with l ≥ m and l - m even, with factors that depend on the direction only:
    one matrix product per order, for any number of Gaussians.

    :param n_rings: Rings 0 … n_rings - 1.
    :param max_order: Angular orders 0 … max_order.
    :param degree: Largest degree l.
    :param design_degree: Degree of the design of viewing directions.
    """

    radii: Tensor
    bessel: Tensor

    def __init__(
        self, n_rings: int, max_order: int, degree: int = 18, design_degree: int = 17
    ):
        super().__init__()
        self.n_rings, self.max_order, self.degree = n_rings, max_order, degree
        #: Viewing directions (n_points, 3); point j + n_points/2 is -(point j).
        self.points = SphericalDesign(design_degree).points
        half = self.points[: len(self.points) // 2]
        self.register_buffer("radii", torch.arange(n_rings).float())
        distances = np.linspace(0, FARTHEST, N_DISTANCES)
        x = 2 * np.pi * np.arange(n_rings) * distances[:, None]
        l = np.arange(degree + 1)[:, None, None]
        bessel = torch.from_numpy(spherical_jn(l, x)).float()
        self.register_buffer("bessel", bessel.transpose(0, 1).contiguous())
        for m, views in enumerate(_orders_of_views(half, max_order, degree)):
            self.register_buffer(f"views_{m}", views)

    def expand(self, centres: Tensor, sigmas: Tensor, weights: Tensor) -> Tensor:
        """
        :param centres: Centres (batch, n, 3), box units.
        :param sigmas: Standard deviations (batch, n).
        :param weights: Weights (batch, n).
        :return: a (batch, (degree + 1)², n_rings), float32, ordered l, μ.
        """
        distance = torch.linalg.vector_norm(centres, dim=-1)
        directions = centres / distance.clamp_min(1e-12)[..., None]
        # At the origin j_l = 0 for l > 0: the direction does not matter.
        at = (distance / FARTHEST * (N_DISTANCES - 1)).clamp(max=N_DISTANCES - 1.001)
        below = at.long()
        share = (at - below)[..., None, None].float()
        bessel = torch.lerp(self.bessel[below], self.bessel[below + 1], share)
        decay = torch.exp(-2 * math.pi**2 * (sigmas[..., None] * self.radii) ** 2)
        amplitude = (4 * math.pi * weights[..., None] * decay).float()
        parts = [
            y.float().transpose(1, 2) @ (bessel[:, :, l] * amplitude)
            for l, y in enumerate(real_spherical_harmonics(directions, self.degree))
        ]
        return torch.cat(parts, 1)

    def forward(self, a: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """
        :param a: Expansions (batch, (degree + 1)², n_rings).
        :param probabilities: Densities (batch, n_densities, n_points) on `points`.
        :return: First moment (batch, n_densities, n_rings) and second (batch,
            n_densities, max_order + 1, n_rings, n_rings), L, L² times `PolarBasis`'s.
        """
        # The points' second half is opposite to the first. Opposite views have the same
        # first moment and conjugate second moments.
        half, opposite = probabilities.float().chunk(2, -1)
        even, odd = half + opposite, half - opposite
        rows = a.transpose(1, 2)
        blocks = []
        for m in range(self.max_order + 1):
            chosen = _chosen(m, self.degree)
            c = rows[..., chosen] @ getattr(self, f"views_{m}")
            re, im = c[:, None].chunk(2, -1)
            if m == 0:
                first = (re @ even[..., None]).squeeze(-1)
            real = (re * even[:, :, None]) @ re.mT + (im * even[:, :, None]) @ im.mT
            cross = (im * odd[:, :, None]) @ re.mT
            blocks.append(torch.complex(real, cross - cross.mT))
        return torch.complex(first, torch.zeros_like(first)), torch.stack(blocks, 2)


def _chosen(m: int, degree: int) -> list[int]:
    """Indices lμ that contribute to order m; others have Y_lm = 0 on the equator."""
    return [i for l in range(m, degree + 1, 2) for i in range(l**2, (l + 1) ** 2)]


def _orders_of_views(half: np.ndarray, max_order: int, degree: int):
    """Matrices (lμ, 2 views) by m, from a_lμ(r) to Re, then Im c[m, r] of all views."""
    n_angles = 2 * degree + 2
    angles = 2 * np.pi * np.arange(n_angles) / n_angles
    circle = np.stack((np.cos(angles), np.sin(angles)))
    points = (viewing_rotations(half)[:, :, :2] @ circle).transpose(0, 2, 1)
    harmonics = real_spherical_harmonics(torch.from_numpy(points), degree)
    values = torch.cat([(-1j) ** l * y for l, y in enumerate(harmonics)], -1)
    orders = torch.fft.fft(values, dim=1) / n_angles
    for m in range(max_order + 1):
        c = orders[:, m, _chosen(m, degree)].T
        yield torch.cat((c.real, c.imag), 1).float()
