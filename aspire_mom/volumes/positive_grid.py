"""A non-negative volume on a coarse grid, behind a radial gain."""

import math

import torch
from torch import Tensor

from aspire_mom.checks import check_integer
from aspire_mom.volumes.base import FourierVolume
from aspire_mom.volumes.gaussian_mixture import RingSum

# Standard deviation of the grid's Gaussians in units of its spacing.
RELATIVE_SIGMA = 0.6
# β and w of the flat solvent at the start, and the range of w, in cycles per box.
START_BETA, START_WIDTH = 0.9, 2.0
MIN_WIDTH, MAX_WIDTH = 0.5, 5.5
MAX_BETA = 0.999


class PositiveGrid(FourierVolume):
    """
    Narrow Gaussians of non-negative weights on a cubic grid in a ball, behind a radial
    gain,

        V(k) = g(|k|) exp(-2π² σ² |k|²) Σ_i x_i² exp(-2πi k·μ_i).

    For a given gain it is linear in the weights x_i². Real maps are non-negative only
    behind such a gain: that of a flat solvent (Moews & Kretsinger 1975), and of what
    masks and filters do to low frequencies. At |k| = r = 0, 1, … n_rings - 1 it is

        g(r) = (1 - β exp(-r²/2w²)) exp(a_r),

    log g is linear in between, and constant beyond.

    Parameters: `roots` (n_points,), the x_i; `solvent` (2,), from which β and w follow;
    and `log_gains` (n_rings,), the a_r, which start at 0.

    :param n_rings: Rings that V is meant for, at least 2; the grid has 2 n_rings - 1
        points along an edge of the box.
    :param support_radius: Radius in boxes of the ball that holds the points.
    :param seed: Seed of the random weights at the start.
    :raises ValueError: A number is out of range.
    """

    points: Tensor
    rings_at_once = True

    def __init__(self, n_rings: int, *, support_radius: float = 0.4, seed: int = 0):
        super().__init__()
        check_integer("n_rings", n_rings, 2)
        if not 0 < support_radius <= 0.5:
            raise ValueError(
                f"support_radius is {support_radius} boxes; it must lie in (0, 0.5]"
            )
        self.n_rings, self.support_radius = n_rings, support_radius
        edge = 2 * n_rings - 1
        self.sigma = RELATIVE_SIGMA / edge
        axis = (torch.arange(edge) - n_rings + 1) / edge
        points = torch.cartesian_prod(axis, axis, axis)
        points = points[points.norm(dim=1) <= support_radius]
        self.register_buffer("points", points)
        generator = torch.Generator().manual_seed(seed)
        roots = 0.5 + 0.25 * torch.rand(len(points), generator=generator)
        self.roots = torch.nn.Parameter(roots)
        width = (START_WIDTH - MIN_WIDTH) / (MAX_WIDTH - MIN_WIDTH)
        solvent = torch.tensor((START_BETA, width))
        self.solvent = torch.nn.Parameter(solvent.logit())
        self.log_gains = torch.nn.Parameter(torch.zeros(n_rings))

    def forward(self, k: Tensor) -> Tensor:
        cosines, sines = self.functions(k)
        gain, weights = self.gain(k.norm(dim=-1)), self.roots**2
        return torch.complex(gain * (cosines @ weights), gain * (sines @ weights))

    def on_rings(self, directions: Tensor, radii: Tensor) -> Tensor:
        if not torch.equal(radii, torch.arange(len(radii)).to(radii)):
            return super().on_rings(directions, radii)
        phase = -2 * math.pi * directions @ self.points.T
        amplitude = self.gain(radii) * self.decay(radii)
        return RingSum.apply(phase, (self.roots**2)[:, None] * amplitude)

    def functions(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """
        :param k: Frequencies (..., 3), xyz order, cycles per box.
        :return: Real and imaginary part of the Fourier transform of each point's
            Gaussian, of weight 1, (..., n_points).
        """
        phase = -2 * math.pi * k @ self.points.T
        decay = self.decay(k.norm(dim=-1, keepdim=True))
        return decay * phase.cos(), decay * phase.sin()

    def decay(self, radii: Tensor) -> Tensor:
        """
        :param radii: |k| (...), cycles per box.
        :return: exp(-2π² σ² |k|²), of every point's Gaussian.
        """
        return torch.exp(-2 * (math.pi * self.sigma * radii) ** 2)

    def gain(self, radii: Tensor) -> Tensor:
        """
        :param radii: |k| (...), cycles per box.
        :return: Gains (...).
        """
        place = radii.clamp(max=self.n_rings - 1)
        below = place.long().clamp(max=self.n_rings - 2)
        share = place - below
        log_gains = log_ring_gains(self.solvent, self.log_gains)
        low, high = log_gains[below], log_gains[below + 1]
        return torch.exp((1 - share) * low + share * high)


def log_ring_gains(solvent: Tensor, log_gains: Tensor) -> Tensor:
    """
    :param solvent: Parameters `solvent` (..., 2) of grids.
    :param log_gains: Their parameters `log_gains` (..., n_rings).
    :return: log g(r) (..., n_rings).
    """
    # At β = 1 the logarithm would be infinite.
    beta, share = (MAX_BETA * torch.sigmoid(solvent))[..., None].unbind(-2)
    width = MIN_WIDTH + (MAX_WIDTH - MIN_WIDTH) * share
    r = torch.arange(log_gains.shape[-1], device=log_gains.device)
    return torch.log(1 - beta * torch.exp(-(r**2) / (2 * width**2))) + log_gains
