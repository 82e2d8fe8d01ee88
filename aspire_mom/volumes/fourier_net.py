"""The neural Fourier volume of Khoo, Paul & Sharon."""

from __future__ import annotations

import math

import numpy as np
import torch
from aspire.volume import Volume
from torch import Tensor
from torch.nn.utils import skip_init

from aspire_mom.checks import check_integer, check_positive
from aspire_mom.volumes.base import FourierVolume, volume_transform

# First-layer waves are those of points in a ball this large (box units) ...
FIRST_RADIUS = 0.2
# ... the envelope starts as exp(-ENVELOPE (|k| / band limit)²) ...
ENVELOPE = 6.0
# ... and output weights are this much smaller than a SIREN's hidden ones.
OUTPUT_GAIN = 0.1
# Rotated frequencies at the band limit may exceed it by rounding.
ROUNDING = 1e-4


class FourierNet(FourierVolume):
    """
    The neural Fourier volume v̂_φ of Khoo, Paul & Sharon (eq. A.1), after the
    FourierNet of CryoAI (Levy et al. 2022, arXiv 2203.08138),

        V(k) = s exp(e(k)) (p(k) + i q(k)),

    a real log-amplitude e and a complex modulant p + iq, each a network with sine
    activations (SIREN, Sitzmann et al. 2020). A real amplitude times exp(ib) would
    not do: V vanishes on curves about which its phase winds, and so the paper allows
    complex a and b; in Cartesian form the modulant crosses zero smoothly.

    Real volumes need V(-k) = conj V(k). CryoAI evaluates half of the space and
    reflects it, which tears V at the dividing plane; averaging f(k) and conj f(-k)
    is smooth and evaluates everything twice. Here e and p are even and q is odd by
    construction, smooth and evaluated once: the first layer of an even
    network is cos(Wk), and an odd network has sines and no biases.

    The paper leaves open, and here are: three networks of three hidden layers, 128
    wide, with ω = 5. The first layer is not scaled by ω: its rows are 2π times points
    drawn uniformly from a ball of radius 0.2 boxes, since exp(-2πi k·x) is what a
    point at x contributes, whatever the band limit. The log-amplitude holds
    -c|k/K|² with c trained from 6, so that power decays from the start, which halves
    the error of a fit to four Gaussians at 25³ (0.015 for 0.030 after 700 steps of
    Adam).

    V is zero beyond the band limit: a network says nothing of what it never saw.

    :param band_limit: K, cycles per box: the largest |k| that the data have, L/2 for
        rings in an L-pixel image, L/√2 where the corners of its transform count.
    :param hidden: Width of the hidden layers.
    :param layers: Number of hidden layers.
    :param omega: Factor ω in the hidden sines. The initial hidden weights are divided
        by it, so that it sets how fast V changes under the optimiser.
    :param scale: s, the magnitude of the data: max |V|, which is V(0) where the
        volume is nowhere negative. :meth:`fit` sets it.
    :param seed: Seed of the initial weights.
    """

    def __init__(
        self,
        band_limit: float,
        *,
        hidden: int = 128,
        layers: int = 3,
        omega: float = 5.0,
        scale: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        check_positive("band_limit", band_limit)
        check_integer("hidden", hidden, 1)
        check_integer("layers", layers, 1)
        self.band_limit = float(band_limit)
        generator = torch.Generator().manual_seed(seed)
        networks = [
            _Siren(odd, hidden, layers, omega, generator)
            for odd in (False, False, True)
        ]
        self.envelope, self.real, self.imaginary = networks
        self.decay = torch.nn.Parameter(torch.tensor(ENVELOPE))
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, k: Tensor) -> Tensor:
        """
        Fourier values.

        :param k: Frequencies (..., 3), xyz order, cycles per box, real dtype of the
            parameters.
        :return: V(k), shape (...), complex; zero for |k| > band_limit.
        """
        radius2 = k.square().sum(-1) / self.band_limit**2
        amplitude = self.scale * torch.exp(self.envelope(k) - self.decay * radius2)
        amplitude = torch.where(radius2 <= 1 + ROUNDING, amplitude, 0)
        return torch.complex(amplitude * self.real(k), amplitude * self.imaginary(k))

    def fit(self, volume: Volume, **options) -> float:
        """
        :meth:`FourierVolume.fit`, after setting the scale to the volume's max |V|.

        :param volume: One ASPIRE `Volume`.
        :param options: Those of :func:`fit_volume`.
        :return: ‖to_volume(L) - v‖/‖v‖.
        """
        self.scale.fill_(np.abs(volume_transform(volume)).max())
        return super().fit(volume, **options)


class _Siren(torch.nn.Module):
    """A real network of sines, even or odd in k, from (..., 3) to (...)."""

    def __init__(
        self,
        odd: bool,
        hidden: int,
        layers: int,
        omega: float,
        generator: torch.Generator,
    ):
        super().__init__()
        self.odd, self.omega = odd, omega
        points = torch.randn(hidden, 3, generator=generator)
        radii = FIRST_RADIUS * torch.rand(hidden, 1, generator=generator) ** (1 / 3)
        points = points * (radii / torch.linalg.norm(points, dim=1, keepdim=True))
        self.first = torch.nn.Parameter(2 * math.pi * points)
        self.hidden = torch.nn.ModuleList(
            skip_init(torch.nn.Linear, hidden, hidden, bias=not odd)
            for _ in range(layers - 1)
        )
        self.last = skip_init(torch.nn.Linear, hidden, 1, bias=False)
        bound = math.sqrt(6 / hidden)
        with torch.no_grad():
            for parameter in self.hidden.parameters():
                parameter.uniform_(-bound / omega, bound / omega, generator=generator)
            self.last.weight.uniform_(-bound, bound, generator=generator)
            self.last.weight.mul_(OUTPUT_GAIN)

    def forward(self, k: Tensor) -> Tensor:
        phases = k @ self.first.T
        values = torch.sin(phases) if self.odd else torch.cos(phases)
        for layer in self.hidden:
            values = torch.sin(self.omega * layer(values))
        return self.last(values).squeeze(-1)
