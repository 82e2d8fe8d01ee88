"""Encoder of moments in the polar basis: from moments to a volume and a density."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from aspire_mom.checks import check_integer
from aspire_mom.files import load_network, save_network

DATA = Path(__file__).with_name("data") / "start.npz"
# Added to relative errors of rings, and in quadrature to their RMS, so that logarithms
# are finite. Bound of the standardised features.
SOFTENING, CLIP = 1e-3, 5.0
SUPPORT_RADIUS = 0.4
# About the middle of the widths of Gaussians in training.
START_SIGMA = 0.07
# Radius of the object in boxes: ring r has signal up to the order 2π r OBJECT_RADIUS.
OBJECT_RADIUS = 0.4


class StartEncoder(nn.Module):
    """
    The encoder ξ_θ = (ξ_θ^v, ξ_θ^ρ) of section 4.2, trained on examples. It takes
    in-plane averaged moments of the innermost rings, and gives a mixture of Gaussians
    and a smooth log-density of views, in one frame.

    Moments of rings and orders have no translation symmetry, so this is a residual
    network of fully connected layers. Its features, which depend neither on the scale
    of the data nor on the size of the images, are

    - the logarithm of each ring's RMS, relative to the innermost,
    - the first moment over the RMS of its ring, and the second over that of both rings:
      real parts for r ≥ r', imaginary ones for r > r', up to the largest order that an
      object of radius 0.4 boxes has there,
    - the logarithm of the relative errors of the rings' powers,

    all standardised over the distribution of training problems.

    :param n_gaussians: Gaussians of the volume.
    :param n_rings: Rings in use.
    :param max_order: Angular orders in use.
    :param degree: Degree of the log-density.
    :param width: Width of the fully connected layers.
    :param n_blocks: Number of residual blocks.
    :param seed: Seed of the initial parameters.
    """

    training_info: dict
    real_entries: Tensor
    imaginary_entries: Tensor
    multiplicity: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        n_gaussians: int = 12,
        *,
        n_rings: int = 8,
        max_order: int = 16,
        degree: int = 6,
        width: int = 512,
        n_blocks: int = 5,
        seed: int = 0,
    ):
        super().__init__()
        self.settings = {"n_gaussians": n_gaussians, "n_rings": n_rings}
        self.settings |= {"max_order": max_order, "degree": degree}
        self.settings |= {"width": width, "n_blocks": n_blocks}
        check_integer("n_gaussians", n_gaussians, 1)
        self.n_gaussians, self.n_rings, self.max_order = n_gaussians, n_rings, max_order
        self.degree = degree
        real, imaginary = _feature_indices(n_rings, max_order)
        self.register_buffer("real_entries", real, persistent=False)
        self.register_buffer("imaginary_entries", imaginary, persistent=False)
        twice = torch.where(torch.arange(max_order + 1) == 0, 1.0, 2.0)
        self.register_buffer("multiplicity", twice[:, None], persistent=False)
        n_features = 3 * n_rings + real.shape[1] + imaginary.shape[1]
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("deviation", torch.ones(n_features))
        n_density = (degree + 1) ** 2 - 1
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.enter = nn.Linear(n_features, width)
            self.blocks = nn.Sequential(*(_Block(width) for _ in range(n_blocks)))
            self.leave = nn.Linear(width, 5 * n_gaussians + n_density)
            # Gaussians with equal centres would get equal gradients and stay together.
            self.leave.weight.data *= 0.1
            self.leave.bias.data.zero_()
            self.leave.bias.data[: 3 * n_gaussians].normal_(std=0.5)

    def save(
        self, path: str | Path, training_info: dict | None = None, **options
    ) -> None:
        """
        :param path: File to write (.npz).
        :param training_info: How it was trained, values that JSON can hold.
        :param options: `overwrite`, as for :func:`~aspire_mom.files.save_network`.
        """
        kind = type(self).__name__
        save_network(path, self, kind, self.settings, training_info, **options)

    @classmethod
    def load(cls, path: str | Path) -> StartEncoder:
        """
        :param path: A file that :meth:`save` has written.
        :return: The encoder, float32, for evaluation, with `training_info`.
        """
        return load_network(path, {cls.__name__: cls})

    def features(self, first: Tensor, second: Tensor, power_error: Tensor) -> Tensor:
        """
        :param first: First moments (batch, n_rings), complex.
        :param second: Second moments (batch, max_order + 1, n_rings, n_rings), complex.
        :param power_error: Standard errors of the rings' powers (batch, n_rings).
        :return: Features before they are standardised, (batch, n_features).
        """
        own = second.diagonal(dim1=-2, dim2=-1).real
        power = (self.multiplicity * own).sum(1)
        unit = power.amax(1, keepdim=True)
        power, error = power / unit, power_error / unit
        # Where noise dominates, entries become small instead of large.
        rms = (power.clamp_min(0) + error + SOFTENING**2).sqrt()
        scale = rms * unit.sqrt()
        m, r, s = self.real_entries
        real = second[:, m, r, s].real / (scale[:, r] * scale[:, s])
        m, r, s = self.imaginary_entries
        imaginary = second[:, m, r, s].imag / (scale[:, r] * scale[:, s])
        relative = (error / rms**2 + SOFTENING).log()
        parts = (rms / rms[:, :1]).log(), first.real / scale, relative, real, imaginary
        return torch.cat(parts, 1)

    @torch.no_grad()
    def standardise(self, *moments: Tensor) -> None:
        """
        Take the mean and standard deviation of features from a sample of problems.

        :param moments: Arguments of :meth:`features`.
        """
        features = self.features(*moments)
        self.mean.copy_(features.mean(0))
        self.deviation.copy_(features.std(0).clamp_min(1e-4))

    def forward(self, *moments: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """
        :param moments: Arguments of :meth:`features`.
        :return: Centres (batch, n_gaussians, 3), widths (batch, n_gaussians) and
            weights (batch, n_gaussians), which sum to one, in box units; coefficients
            of the log-density (batch, (degree + 1)² - 1) as `DiscreteDensity` has them.
        """
        features = self.features(*moments)
        standard = ((features - self.mean) / self.deviation).clamp(-CLIP, CLIP)
        x = self.blocks(self.enter(standard))
        n = self.n_gaussians
        sizes = (3 * n, n, n, self.leave.out_features - 5 * n)
        u, widths, heights, density = self.leave(x).split(sizes, 1)
        u = u.unflatten(1, (n, 3))
        centres = SUPPORT_RADIUS * u / (1 + u.square().sum(-1, keepdim=True)).sqrt()
        sigmas = START_SIGMA * widths.clamp(-2, 2).exp()
        return (centres, sigmas, heights.softmax(1)), density


@lru_cache(maxsize=1)
def pretrained() -> StartEncoder:
    """
    :return: The encoder that comes with the package, one for all callers: copy it
        before changing it. Its `training_info` has the command that made it, all
        settings, and the best validation loss.
    """
    return StartEncoder.load(DATA)


def _feature_indices(n_rings: int, max_order: int) -> tuple[Tensor, Tensor]:
    """Indices m, r, r' (3, n) of the entries used, of real and of imaginary parts."""
    reach = torch.ceil(2 * math.pi * OBJECT_RADIUS * torch.arange(n_rings)) + 1
    reach[0] = 0  # ring 0 is one point
    seen = torch.arange(max_order + 1)[:, None] <= reach
    both = seen[:, :, None] & seen[:, None]
    mixed = both.tril(-1)
    mixed[0] = False  # order 0 is real
    return both.tril().nonzero().T, mixed.nonzero().T


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.silu(self.linear(self.norm(x)))
