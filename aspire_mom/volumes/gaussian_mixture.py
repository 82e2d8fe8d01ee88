"""A volume as a sum of isotropic Gaussians."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from aspire_mom.volumes.base import FourierVolume


class GaussianMixture(FourierVolume):
    def __init__(
        self,
        n_gaussians: int = 64,
        *,
        support_radius: float = 0.4,
        sigma: float = 0.05,
        signed: bool = False,
        total: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.support_radius = support_radius
        self.signed = signed
        directions = torch.randn(n_gaussians, 3, generator=generator)
        self.centre_parameters = torch.nn.Parameter(0.6 * directions)
        self.log_sigmas = torch.nn.Parameter(
            torch.full((n_gaussians,), math.log(sigma))
        )
        share = total / n_gaussians
        self.register_buffer("share", torch.tensor(share))
        self.weight_parameters = torch.nn.Parameter(
            0.54 + 0.2 * torch.randn(n_gaussians, generator=generator)
        )

    @property
    def centres(self) -> Tensor:
        u = self.centre_parameters
        return self.support_radius * u / torch.sqrt(1 + (u**2).sum(-1, keepdim=True))

    @property
    def masses(self) -> Tensor:
        w = self.weight_parameters
        return self.share * (w if self.signed else softplus(w))

    def forward(self, k: Tensor) -> Tensor:
        phase = -2 * math.pi * k @ self.centres.T
        decay = (
            -2 * math.pi**2 * (k**2).sum(-1, keepdim=True) * (2 * self.log_sigmas).exp()
        )
        amplitude = self.masses * decay.exp()
        return torch.complex(
            (amplitude * phase.cos()).sum(-1), (amplitude * phase.sin()).sum(-1)
        )

    def on_rings(self, directions: Tensor, radii: Tensor) -> Tensor:
        phase = -2 * math.pi * directions @ self.centres.T
        decay = -2 * math.pi**2 * radii**2 * (2 * self.log_sigmas).exp()[:, None]
        amplitude = self.masses[:, None] * decay.exp()
        return RingSum.apply(phase, amplitude)


class RingSum(torch.autograd.Function):
    """Σ_g amplitude[g, r] exp(i r phase[n, g]) for r = 0 … n_rings - 1, by powers."""

    @staticmethod
    def forward(ctx, phase: Tensor, amplitude: Tensor) -> Tensor:
        ctx.save_for_backward(phase, amplitude)
        c, s = phase.cos(), phase.sin()
        re, im = torch.ones_like(c), torch.zeros_like(s)
        out = []
        for r in range(amplitude.shape[1]):
            if r:
                re, im = re * c - im * s, re * s + im * c
            out.append(torch.complex(re @ amplitude[:, r], im @ amplitude[:, r]))
        return torch.stack(out, 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        phase, amplitude = ctx.saved_tensors
        c, s = phase.cos(), phase.sin()
        re, im = torch.ones_like(c), torch.zeros_like(s)
        gre, gim = grad.real.contiguous(), grad.imag.contiguous()
        gamp = torch.empty_like(amplitude)
        gphase = torch.zeros_like(phase)
        for r in range(amplitude.shape[1]):
            if r:
                re, im = re * c - im * s, re * s + im * c
                # d/dphase of (re + i im) = i r (re + i im)
                gphase += (gim[:, [r]] * re - gre[:, [r]] * im) * (r * amplitude[:, r])
            gamp[:, r] = re.T @ gre[:, r] + im.T @ gim[:, r]
        return gphase, gamp
