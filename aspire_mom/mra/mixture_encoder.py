"""An encoder that knows what signals look like: from moments to a few Gaussians."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Highest frequency looked at: Gaussians of the reference family are gone there.
HIGHEST = 9
# Powers are told apart above this share of the mean's, about what float32 leaves.
LEAST_POWER = 1e-6
# Noise below this is not told apart, relative to the mean: σ, and σ²/N.
LEAST_LEVEL, LEAST_SHARE = 1e-2, 1e-12
MIN_SIZE = 2 * HIGHEST + 1
# Bounds of standard deviations, and margin of centres beyond the window, in units of n.
WIDTHS, MARGIN = (1 / 40, 1 / 6), 1 / 20
# Gaussians in a curve: in training all orders of them are compared.
LARGEST = 5


class Hypotheses(NamedTuple):
    """
    Alternatives for a curve of k Gaussians of equal weight, in units of the window,
    which is [-1/2, 1/2].

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

    def likeliest(self) -> Hypotheses:
        """
        :return: The alternatives in order of their probability, likeliest first.
        """
        order = self.log_probabilities.argsort(dim=-1, descending=True, stable=True)
        rows = torch.arange(len(order), device=order.device)[:, None]
        return Hypotheses(*(x[rows, order] for x in self))


class MixtureEncoder(nn.Module):
    """
    Moments to the parameters of k Gaussians for v and k for ρ by a residual network;
    no step of it solves for anything.

    What makes it easy to learn is what the network does not have to:

    1. Errors are free of shifts, and so are answers: v and ρ each come in a window of
       their own, in which the family has them cut off at the ends, so that positions
       are what the family draws. Bringing them to one shift is left to `predict`.
    2. Moments are scaled to mean 1 and shifted to arg first[1] = 0, and what is told
       are powers |v̂(k)|², in logarithms, and coherences
       second[k, l]/(|v̂(k)| |v̂(l)|), of modulus |ρ̃(k - l)|, for frequencies up to 9,
       powers being kept above noise. Those depend on n hardly at all, so that one set
       of weights serves every n from 19, and how large noise is, is told as well.
    3. Data whose reversal has the positive Im second[2, 1] are reversed, and centres
       reversed back, so that reversing the data reverses the answer, exactly.
    4. One curve can look like another whose window begins elsewhere, or whose Gaussians
       are others. A network that must give one answer gives something in between;
       this one gives several, each with its probability, and its answer is the
       likeliest. Training maximises the likelihood of errors, see
       :func:`aspire_mom.mra.training.loss`.

    :param width: Width of the residual blocks.
    :param n_blocks: Residual blocks.
    :param most: Largest number of Gaussians.
    :param alternatives: Alternatives for each number of Gaussians.
    :param seed: Seed of the initial weights.
    :raises ValueError: `most` is out of range.
    """

    #: For any number of samples from 19.
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
        self.settings = {
            "width": width,
            "n_blocks": n_blocks,
            "most": most,
            "alternatives": alternatives,
        }
        pairs = [
            (k, l)
            for k in range(1, HIGHEST + 1)
            for l in range(max(-k, k - HIGHEST), k)
        ]
        self.register_buffer("pairs", torch.tensor(pairs).T, persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            n_features = 2 * len(pairs) + HIGHEST + 2
            self.enter = nn.Linear(n_features, width)
            self.blocks = nn.ModuleList(
                nn.Sequential(
                    nn.LayerNorm(width),
                    nn.Linear(width, width),
                    nn.SiLU(),
                    nn.Linear(width, width),
                )
                for _ in range(n_blocks)
            )
            sizes = [alternatives * (2 * k + 1) for k in range(1, most + 1)]
            self.sizes = [size for size in sizes for _ in range(2)]
            self.leave = nn.Linear(width, sum(self.sizes) + most)
            # Alternatives are to differ from the start.
            nn.init.normal_(self.leave.bias, std=0.5)

    def forward(
        self, first: Tensor, second: Tensor, share: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        :param first: First moments (batch, n), complex; means must not be 0.
        :param second: Second moments (batch, n, n), complex.
        :param share: σ²/N (batch,), real; 0 for exact moments.
        :param sigma: σ (batch,), real.
        :return: v (batch, n) and ρ (batch, n), which sums to one: the likeliest, each
            in its own window.
        :raises ValueError: n is less than 19.
        """
        n = first.shape[-1]
        counts, pairs = self.hypotheses(first, second, share, sigma)
        curves = torch.stack(
            [
                torch.stack([h.likeliest().curves(n)[:, 0] for h in pair])
                for pair in pairs
            ]
        )
        rows = torch.arange(len(first), device=first.device)
        v, rho = curves[counts.argmax(-1), :, rows].unbind(1)
        return first[:, :1].real * math.sqrt(n) * v, rho

    def hypotheses(
        self, first: Tensor, second: Tensor, share: Tensor, sigma: Tensor
    ) -> tuple[Tensor, list[tuple[Hypotheses, Hypotheses]]]:
        """
        :param first: As in :meth:`forward`.
        :param second: As in :meth:`forward`.
        :param share: As in :meth:`forward`.
        :param sigma: As in :meth:`forward`.
        :return: Log probabilities of 1, 2, … Gaussians, (batch, most), and for each of
            these numbers the alternatives for v and for ρ.
        :raises ValueError: fewer than 19 samples.
        """
        n = first.shape[-1]
        if n < MIN_SIZE:
            raise ValueError(
                f"n is {n}; this encoder is for at least {MIN_SIZE} samples"
            )
        features, direction = self._features(first, second, share, sigma)
        x = self.enter(features)
        for block in self.blocks:
            x = x + block(x)
        *parts, counts = self.leave(x).split([*self.sizes, self.most], -1)
        curves = [self._hypotheses(part, direction) for part in parts]
        pairs = list(zip(curves[::2], curves[1::2], strict=True))
        return counts.log_softmax(-1), pairs

    def _hypotheses(self, part: Tensor, direction: Tensor) -> Hypotheses:
        part = part.unflatten(-1, (self.alternatives, -1))
        k = part.shape[-1] // 2
        low, high = (math.log(width) for width in WIDTHS)
        return Hypotheses(
            (0.5 + MARGIN) * torch.tanh(part[..., :k]) * direction[:, None, None],
            (low + high) / 2 + (high - low) / 2 * torch.tanh(part[..., k:-1]),
            part[..., -1].log_softmax(-1),
        )

    def _features(
        self, first: Tensor, second: Tensor, share: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the network is told, and -1 for data that it is told reversed, or 1."""
        mean = first[:, :1].real
        share, level = share[:, None] / mean**2, sigma[:, None].abs() / mean.abs()
        power = second.diagonal(dim1=1, dim2=2).real[:, : HIGHEST + 1] / mean**2
        power = power.clamp_min(0) + share.sqrt() * level + LEAST_POWER
        k, l = self.pairs
        entries = second[:, k, l] / mean**2
        # The first moment says the same as column 0 with less noise.
        entries = torch.where(l == 0, first[:, k] / mean, entries)
        # Of data of mean 1: their sign may be the other.
        angle = torch.angle(first[:, 1:2] / mean)
        turn = torch.polar(torch.ones_like(angle), -angle * (k - l))
        entries = entries * turn * (power[:, k] * power[:, l.abs()]).rsqrt()
        across = entries[:, (k == 2) & (l == 1)].imag
        direction = torch.where(across < 0, -1.0, 1.0).to(mean.dtype)
        # All of order one.
        features = (
            entries.real,
            entries.imag * direction,
            power[:, 1:].log() / 4 + 1,
            share.clamp_min(LEAST_SHARE).log() / 5 + 4,
            level.clamp_min(LEAST_LEVEL).log() / 2,
        )
        return torch.cat(features, 1), direction[:, 0]
