"""The neural Fourier volume of Khoo, Paul & Sharon."""

import math

import numpy as np
import torch
from aspire.volume import Volume
from torch import Tensor
from torch.nn.utils import skip_init

from aspire_mom.checks import check_integer, check_positive
from aspire_mom.volumes.base import FourierVolume
from aspire_mom.volumes.grid import volume_transform

# First-layer frequencies are 2π times points drawn from a ball of this radius (boxes).
FIRST_RADIUS = 0.2
# The log-amplitude starts with the term -ENVELOPE (|k| / band limit)².
ENVELOPE = 6.0
# Output weights start uniform within ± OUTPUT_GAIN √(6 / hidden), those of the latent
# variable within ± LATENT_GAIN / √(its length).
OUTPUT_GAIN = LATENT_GAIN = 0.1
# Rotated frequencies at the band limit may exceed it by rounding.
ROUNDING = 1e-4


class FourierNet(FourierVolume):
    """
    The neural Fourier volume v̂_φ of Khoo, Paul & Sharon (eq. A.1), after the
    FourierNet of CryoAI (Levy et al. 2022, arXiv 2203.08138),

        V(k) = s exp(e(k)) (p(k) + i q(k)),

    where e, p and q are real networks with sine activations (SIREN, Sitzmann et al.
    2020). Since p + iq can cross zero smoothly, so can V.

    For V(-k) = conj V(k), as real volumes need, e and p are even and q is odd: the
    first layer of an even network is cos(Wk); the odd network has sines and no biases.
    The paper does not state sizes and initial values. The rows of W are 2π times points
    drawn uniformly from a ball of radius 0.2 boxes, since a point at x contributes
    exp(-2πi k·x). The term -c|k/K|² of e, with c trained from 6, lets power decay from
    the start. Beyond the band limit, where the network is not trained, V is zero.

    With an encoder, the latent variable z_v = ξ_θ^v(M̂¹, M̂²) is a further input
    (section 4.2), the same at all k. To keep the symmetry, z_v shifts the arguments of
    the hidden sines in even networks, and scales them in the odd one.

    :param band_limit: K, cycles per box: the largest |k| of the data, L/2 for rings in
        an L-pixel image, L/√2 with the corners of its transform.
    :param hidden: Width of the hidden layers.
    :param layers: Number of hidden layers.
    :param omega: Factor ω in the hidden sines. Initial hidden parameters are divided by
        it, so that ω sets how fast the optimiser changes V, not the initial V.
    :param scale: s, the largest |V| of the data, which is V(0) for non-negative
        volumes. :meth:`fit` sets it.
    :param encoder: ξ_θ^v, from moments to z_v, such as a `LatentEncoder`.
    :param seed: Seed of the initial parameters.
    """

    scale: Tensor
    latent: Tensor | None

    def __init__(
        self,
        band_limit: float,
        *,
        hidden: int = 128,
        layers: int = 3,
        omega: float = 5.0,
        scale: float = 1.0,
        encoder: torch.nn.Module | None = None,
        seed: int = 0,
    ):
        super().__init__()
        check_positive("band_limit", band_limit)
        check_positive("scale", scale)
        check_integer("hidden", hidden, 1)
        check_integer("layers", layers, 1)
        self.band_limit = float(band_limit)
        n_latent = 0 if encoder is None else encoder.n_outputs
        sizes = hidden, layers, omega, n_latent, torch.Generator().manual_seed(seed)
        self.encoder, self.latent = encoder, None
        self.envelope, self.real = _Siren(False, *sizes), _Siren(False, *sizes)
        self.imaginary = _Siren(True, *sizes)
        self.decay = torch.nn.Parameter(torch.tensor(ENVELOPE))
        self.register_buffer("scale", torch.tensor(float(scale)))

    def encode(self, first: Tensor, second: Tensor) -> None:
        """
        Set z_v for all later evaluations, if there is an encoder.

        :param first: First moment, of the shape that the encoder was made for, complex.
        :param second: Second moment.
        """
        if self.encoder is not None:
            self.latent = self.encoder(first, second)

    def variables(self) -> list[Tensor]:
        # z_v in place of its encoder's parameters.
        networks = (self.envelope, self.real, self.imaginary)
        own = [self.decay, *(p for net in networks for p in net.parameters())]
        return [*own] if self.latent is None else [*own, self.latent]

    def forward(self, k: Tensor) -> Tensor:
        """
        :param k: Frequencies (..., 3), xyz order, cycles per box.
        :return: V(k), shape (...), complex; zero for |k| > band_limit.
        :raises ValueError: there is an encoder, but :meth:`encode` was not called.
        """
        if self.encoder is not None and self.latent is None:
            raise ValueError("z_v is not known yet; call encode(first, second) first")
        z = self.latent
        radius2 = k.square().sum(-1) / self.band_limit**2
        amplitude = torch.exp(self.envelope(k, z) - self.decay * radius2)
        amplitude = torch.where(radius2 <= 1 + ROUNDING, self.scale * amplitude, 0)
        real, imaginary = self.real(k, z), self.imaginary(k, z)
        return torch.complex(amplitude * real, amplitude * imaginary)

    def __getstate__(self) -> dict:
        # z_v belongs to the graph that computed it, so it cannot be copied.
        return {**self.__dict__, "latent": None}

    def fit(self, volume: Volume, **options) -> float:
        """
        :param volume: One ASPIRE `Volume`, whose largest |V| becomes the scale.
        :param options: Options of :meth:`FourierVolume.fit`.
        :return: :meth:`relative_error`.
        :raises ValueError: there is an encoder, which one volume cannot train.
        """
        if self.encoder is not None:
            raise ValueError("a FourierNet with an encoder cannot fit a volume")
        self.scale.fill_(np.abs(volume_transform(volume)).max())
        return super().fit(volume, **options)


# A real network of sines, even or odd in k, from (..., 3) to (...).
class _Siren(torch.nn.Module):
    def __init__(self, odd, hidden, layers, omega, n_latent, generator):
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
        self.latent = None
        if n_latent:
            self.latent = skip_init(torch.nn.Linear, n_latent, hidden, bias=False)
        bound = math.sqrt(6 / hidden)
        with torch.no_grad():
            for parameter in self.hidden.parameters():
                parameter.uniform_(-bound / omega, bound / omega, generator=generator)
            self.last.weight.uniform_(-bound, bound, generator=generator)
            self.last.weight.mul_(OUTPUT_GAIN)
            if self.latent is not None:
                bound = LATENT_GAIN / math.sqrt(n_latent)
                self.latent.weight.uniform_(-bound, bound, generator=generator)

    def forward(self, k: Tensor, z: Tensor | None) -> Tensor:
        phases = k @ self.first.T
        values = torch.sin(phases) if self.odd else torch.cos(phases)
        by_latent = 0 if self.latent is None else self.latent(z)
        for layer in self.hidden:
            before = layer(values)
            # An odd network stays odd when scaled, but not when shifted.
            before = before * (1 + by_latent) if self.odd else before + by_latent
            values = torch.sin(self.omega * before)
        return self.last(values).squeeze(-1)
