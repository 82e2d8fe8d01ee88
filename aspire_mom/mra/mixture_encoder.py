"""An encoder from moments to a few Gaussians."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aspire_mom.checks import check_integer

# Highest frequency in use, where the reference family has no power left.
HIGHEST = 9
# Least σ relative to the mean, and least σ²/N and power relative to its square.
LEAST_LEVEL, LEAST_VARIANCE, LEAST_POWER = 1e-2, 1e-12, 1e-6
MIN_SIZE = 2 * HIGHEST + 1
# Bounds of standard deviations, and margin of centres beyond the window, in units of n.
WIDTHS, MARGIN = (1 / 40, 1 / 6), 1 / 20
# Gaussians in a curve: in training all orders of them are compared.
LARGEST = 5


class Hypotheses(NamedTuple):
    """
    Alternatives for a curve of k Gaussians of equal weight, on the window [-1/2, 1/2].

    :param centres: Centres (batch, alternatives, k).
    :param log_widths: Logarithms of standard deviations (batch, alternatives, k).
    :param log_probabilities: How likely each alternative is, (batch, alternatives).
    """

    centres: Tensor
    log_widths: Tensor
    log_probabilities: Tensor

    def curves(self, n: int) -> Tensor:
        """
        :param n: Sample points, the middles of n cells of the window.
        :return: Curves of sum one, cut off at the ends, (batch, alternatives, n).
        """
        like = {"dtype": self.centres.dtype, "device": self.centres.device}
        x = (torch.arange(n, **like) + 0.5) / n - 0.5
        scaled = (x - self.centres[..., None]) * torch.exp(-self.log_widths[..., None])
        terms = torch.exp(-0.5 * scaled**2 - self.log_widths[..., None])
        return terms.sum(-2) / terms.sum((-2, -1))[..., None]


class MixtureEncoder(nn.Module):
    """
    A residual network from moments to the parameters of k Gaussians for v and k for ρ.

    1. v and ρ each come in a window of their own; `predict` brings them to one shift.
    2. Moments are scaled to mean 1 and shifted to arg first[1] = 0. Features are
       log |v̂(k)|² and the coherences second[k, l]/(|v̂(k)| |v̂(l)|), for frequencies up
       to 9, and the noise level. One network serves every n from 19.
    3. Data with Im second[2, 1] < 0 are reversed, and centres reversed back, so that
       reversing the data reverses the answer exactly.
    4. Curves with different windows or Gaussians can look alike. The network gives
       several alternatives with probabilities, and answers with the likeliest.

    :param width: Width of the residual blocks.
    :param n_blocks: Residual blocks.
    :param most: Largest number of Gaussians.
    :param alternatives: Alternatives for each number of Gaussians.
    :param seed: Seed of the initial parameters.
    :raises ValueError: `most` is out of range.
    """

    n = None

    def __init__(
        self,
        *,
        width: int = 384,
        n_blocks: int = 4,
        most: int = 3,
        alternatives: int = 4,
        seed: int = 0,
    ):
        super().__init__()
        if not 1 <= most <= LARGEST:
            raise ValueError(f"most is {most}; it must be 1 to {LARGEST}")
        self.most, self.alternatives = most, alternatives
        self.settings = {"width": width, "n_blocks": n_blocks}
        self.settings |= {"most": most, "alternatives": alternatives}
        frequencies = range(1, HIGHEST + 1)
        pairs = [(k, l) for k in frequencies for l in range(max(-k, k - HIGHEST), k)]
        self.register_buffer("pairs", torch.tensor(pairs).T, persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            n_features = 2 * len(pairs) + HIGHEST + 2
            self.enter = nn.Linear(n_features, width)
            self.blocks = nn.ModuleList(_block(width) for _ in range(n_blocks))
            each = [alternatives * (2 * k + 1) for k in range(1, most + 1)]
            self.sizes = [size for size in each for _ in range(2)]
            self.leave = nn.Linear(width, sum(self.sizes) + most)
            # Alternatives must differ from the start.
            nn.init.normal_(self.leave.bias, std=0.5)

    def forward(
        self, first: Tensor, second: Tensor, mean_variance: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        :param first: First moments (batch, n), complex, n ≥ 19; means must not be 0.
        :param second: Second moments (batch, n, n), complex.
        :param mean_variance: σ²/N (batch,), real; 0 for exact moments.
        :param sigma: σ (batch,), real.
        :return: The likeliest v and ρ (of sum one), (batch, n), each in its own window.
        """
        n, rows = first.shape[-1], torch.arange(len(first), device=first.device)
        counts, pairs = self.hypotheses(first, second, mean_variance, sigma)
        curves = [
            h.curves(n)[rows, h.log_probabilities.argmax(-1)] for h in sum(pairs, ())
        ]
        curves = torch.stack(curves).unflatten(0, (-1, 2))
        v, rho = curves[counts.argmax(-1), :, rows].unbind(1)
        return first[:, :1].real * math.sqrt(n) * v, rho

    def hypotheses(self, *inputs: Tensor) -> tuple[Tensor, list[tuple]]:
        """
        :param inputs: Those of :meth:`forward`.
        :return: Log probabilities of 1, 2, … Gaussians, (batch, most), and for each of
            these numbers a pair of :class:`Hypotheses`, for v and for ρ.
        """
        check_integer("n", inputs[0].shape[-1], MIN_SIZE)
        features, direction = self._features(*inputs)
        x = self.enter(features)
        for block in self.blocks:
            x = x + block(x)
        *parts, counts = self.leave(x).split([*self.sizes, self.most], -1)
        low, high = map(math.log, WIDTHS)
        curves = []
        for part in parts:
            part = part.unflatten(-1, (self.alternatives, -1))
            k = part.shape[-1] // 2
            centres = (0.5 + MARGIN) * torch.tanh(part[..., :k])
            widths = (low + high) / 2 + (high - low) / 2 * torch.tanh(part[..., k:-1])
            log_p = part[..., -1].log_softmax(-1)
            curves.append(Hypotheses(centres * direction[:, None, None], widths, log_p))
        pairs = list(zip(curves[::2], curves[1::2], strict=True))
        return counts.log_softmax(-1), pairs

    def _features(self, first, second, mean_variance, sigma) -> tuple[Tensor, Tensor]:
        """Features (batch, n_features), and -1 for reversed data, else 1, (batch,)."""
        mean = first[:, :1].real
        variance = mean_variance[:, None] / mean**2
        level = sigma[:, None].abs() / mean.abs()
        power = second.diagonal(dim1=1, dim2=2).real[:, : HIGHEST + 1] / mean**2
        power = power.clamp_min(0) + variance.sqrt() * level + LEAST_POWER
        k, l = self.pairs
        entries = second[:, k, l] / mean**2
        # The first moment has the entries of column 0 with less noise.
        entries = torch.where(l == 0, first[:, k] / mean, entries)
        # Data may have a negative mean.
        angle = torch.angle(first[:, 1:2] / mean)
        turn = torch.polar(torch.ones_like(angle), -angle * (k - l))
        entries = entries * turn * (power[:, k] * power[:, l.abs()]).rsqrt()
        across = entries[:, (k == 2) & (l == 1)].imag
        direction = torch.where(across < 0, -1.0, 1.0).to(mean.dtype)
        features = (  # of order one
            entries.real,
            entries.imag * direction,
            power[:, 1:].log() / 4 + 1,
            variance.clamp_min(LEAST_VARIANCE).log() / 5 + 4,
            level.clamp_min(LEAST_LEVEL).log() / 2,
        )
        return torch.cat(features, 1), direction[:, 0]


def _block(width: int) -> nn.Sequential:
    first, last = nn.Linear(width, width), nn.Linear(width, width)
    return nn.Sequential(nn.LayerNorm(width), first, nn.SiLU(), last)
