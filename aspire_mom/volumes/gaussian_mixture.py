"""A volume as a sum of isotropic Gaussians."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import softplus

from aspire_mom.checks import check_integer, check_positive
from aspire_mom.volumes.base import FourierVolume

# Largest radius of centres in `with_gaussians`, relative to the support's.
MAX_RADIUS = 0.97
SMALLEST_WEIGHT = 1e-4


class GaussianMixture(FourierVolume):
    """
    A sum of isotropic Gaussians in a ball,

        V(k) = Σ_g w_g exp(-2π² σ_g² |k|²) exp(-2πi k·μ_g),

    smooth and, unless `signed`, non-negative. The second moment determines sums of
    Gaussians even where all views are equally likely (arXiv 2209.10531).

    :param n_gaussians: Number of Gaussians.
    :param support_radius: Radius of the ball that holds the centres, box units.
    :param sigma: Standard deviation of all Gaussians at the start, box units.
    :param signed: Let weights be negative, for maps whose solvent is not at zero.
    :param total: Scale of the initial weights, which sum to about `total`, or to about
        half of it if `signed`.
    :param seed: Seed of the random start.
    :raises ValueError: a number is out of range.
    """

    rings_at_once = True

    def __init__(
        self,
        n_gaussians: int = 16,
        *,
        support_radius: float = 0.4,
        sigma: float = 0.1,
        signed: bool = False,
        total: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        check_integer("n_gaussians", n_gaussians, 1)
        check_positive("sigma", sigma)
        check_positive("total", total)
        if not 0 < support_radius <= 0.5:
            raise ValueError(f"support_radius is {support_radius}, not in (0, 0.5]")
        generator = torch.Generator().manual_seed(seed)
        self.support_radius, self.signed = support_radius, signed
        self.scale = total / n_gaussians
        centres = 0.6 * torch.randn(n_gaussians, 3, generator=generator)
        weights = 0.54 + 0.2 * torch.randn(n_gaussians, generator=generator)
        self.centre_parameters = torch.nn.Parameter(centres)
        log_sigmas = torch.full((n_gaussians,), math.log(sigma))
        self.log_sigmas = torch.nn.Parameter(log_sigmas)
        self.weight_parameters = torch.nn.Parameter(weights)

    def __len__(self) -> int:
        return len(self.log_sigmas)

    @property
    def centres(self) -> Tensor:
        """Centres μ (n, 3), box units, xyz order, within the support."""
        u = self.centre_parameters
        return self.support_radius * u / torch.sqrt(1 + (u**2).sum(-1, keepdim=True))

    @property
    def sigmas(self) -> Tensor:
        """Standard deviations σ (n,), box units, at most 1."""
        # At σ = 1, V(k) is below 3e-9 w at all integer k but 0, so larger σ change
        # nothing. Without the bound, exp() could overflow and V(0) become NaN.
        return self.log_sigmas.clamp(max=0).exp()

    @property
    def weights(self) -> Tensor:
        """Weights w (n,), the integral of each Gaussian; they sum to V(0)."""
        w = self.weight_parameters
        return self.scale * (w if self.signed else softplus(w))

    def forward(self, k: Tensor) -> Tensor:
        phase = -2 * math.pi * k @ self.centres.T
        square = (k**2).sum(-1, keepdim=True)
        amplitude = self.weights * torch.exp(-2 * math.pi**2 * square * self.sigmas**2)
        real, imaginary = amplitude * phase.cos(), amplitude * phase.sin()
        return torch.complex(real.sum(-1), imaginary.sum(-1))

    def on_rings(self, directions: Tensor, radii: Tensor) -> Tensor:
        if not torch.equal(radii, torch.arange(len(radii)).to(radii)):
            return super().on_rings(directions, radii)
        phase = -2 * math.pi * directions @ self.centres.T
        decay = torch.exp(-2 * math.pi**2 * radii**2 * self.sigmas[:, None] ** 2)
        return RingSum.apply(phase, self.weights[:, None] * decay)

    @torch.no_grad()
    def grown(self, n_more: int, seed: int = 0) -> GaussianMixture:
        """
        Split the Gaussians of largest |w| σ in random directions; V hardly changes.

        :param n_more: Number of Gaussians to split, at most as many as there are.
        :param seed: Seed of the directions.
        :return: The larger mixture, on the same device.
        """
        w, sigma, centres = self.weights.clone(), self.sigmas.clone(), self.centres
        split = torch.argsort(w.abs() * sigma, descending=True)[:n_more]
        w[split] /= 2
        sigma[split] *= 0.75
        generator = torch.Generator().manual_seed(seed)
        offsets = torch.randn(n_more, 3, generator=generator).to(centres)
        offsets *= sigma[split, None] / offsets.norm(dim=1, keepdim=True)
        centres[split] -= offsets
        return self.with_gaussians(
            torch.cat((centres, centres[split] + 2 * offsets)),
            torch.cat((sigma, sigma[split])),
            torch.cat((w, w[split])),
        )

    @torch.no_grad()
    def with_gaussians(
        self, centres: Tensor, sigmas: Tensor, weights: Tensor
    ) -> GaussianMixture:
        """
        :param centres: Centres (n, 3), box units; moved inside the ball where outside.
        :param sigmas: Standard deviations (n,), box units.
        :param weights: Weights (n,), the integral of each Gaussian.
        :return: A mixture of these with this one's `support_radius` and `signed`, of
            the centres' dtype and on their device.
        """
        mixture = GaussianMixture(
            len(sigmas),
            support_radius=self.support_radius,
            signed=self.signed,
            total=self.scale * len(self),
        ).to(centres)
        unit = centres / self.support_radius
        unit = unit * (MAX_RADIUS / unit.norm(dim=1, keepdim=True)).clamp(max=1)
        spread = torch.sqrt(1 - (unit**2).sum(1, keepdim=True))
        w = weights / mixture.scale
        if not self.signed:
            w = w.clamp(min=SMALLEST_WEIGHT)
            w = w + torch.log(-torch.expm1(-w))  # the inverse of softplus
        mixture.centre_parameters.copy_(unit / spread)
        mixture.log_sigmas.copy_(sigmas.log())
        mixture.weight_parameters.copy_(w)
        return mixture


class RingSum(torch.autograd.Function):
    """
    Sums Σ_g a[g, r] exp(i r φ[n, g]) (n, n_rings), r = 0, 1, …, of real φ (n,
    n_gaussians) and a (n_gaussians, n_rings). The gradient keeps only φ and a.
    """

    @staticmethod
    def forward(ctx, phase: Tensor, amplitude: Tensor) -> Tensor:
        ctx.save_for_backward(phase, amplitude)
        of_rings = amplitude.T.contiguous()
        rings = [
            torch.complex(re @ of_rings[r], im @ of_rings[r])
            for r, re, im in _powers(phase, len(of_rings))
        ]
        return torch.stack(rings, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        phase, amplitude = ctx.saved_tensors
        g_re, g_im = gradient.real.T.contiguous(), gradient.imag.T.contiguous()
        of_rings = amplitude.T.contiguous()
        g_of_rings = torch.empty_like(of_rings)
        g_phase = torch.zeros_like(phase)
        for r, re, im in _powers(phase, len(of_rings)):
            g_of_rings[r] = re.T @ g_re[r] + im.T @ g_im[r]
            slope = g_im[r, :, None] * re - g_re[r, :, None] * im
            g_phase.addcmul_(slope, r * of_rings[r])
        return g_phase, g_of_rings.T


def _powers(phase: Tensor, n: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(r, cos rφ, sin rφ) for r = 0 … n - 1."""
    c, s = phase.cos(), phase.sin()
    re, im = torch.ones_like(c), torch.zeros_like(s)
    for r in range(n):
        if r:
            re, im = re * c - im * s, re * s + im * c
        yield r, re, im
