"""The encoder of the paper: from moments to a signal and a density."""

import torch
from torch import Tensor, nn

from aspire_mom.checks import check_integer

# Appendix A.1: slope of the leaky ReLU, and channels of the two branches stacked.
SLOPE, STACKED, MIN_SIZE = 0.02, 6, 8


class PaperEncoder(nn.Module):
    """
    The paper's encoder ξ_θ = (ξ_θ^v, ξ_θ^ρ) of section 4.1 and appendix A.1: two
    networks of the architecture of Fig. A.11. Real and imaginary parts of moments are
    channels on n points; for the second moment, row k is the point and column l the
    channel. Periodic convolutions bring each moment to 3 channels, stacked to 6; more
    convolutions and fully connected layers follow, with LeakyReLU(0.02).

    The window, the width and the softmax on ρ are those of the authors' published code.
    Ours: two convolutions before stacking and two after, with 6 hidden channels; each
    moment is scaled to unit RMS, and v multiplied by its mean, first[0]/√n; the output
    is v, not its DFT v̂(K₁). v and ρ each come out at a shift of their own.

    :param n: Sample points, at least 8.
    :param window: Convolution window, odd, less than 2n.
    :param width: Width of the fully connected layer.
    :param seed: Seed of the initial parameters.
    :raises ValueError: n is too small.
    """

    def __init__(
        self, n: int = 41, *, window: int = 15, width: int = 256, seed: int = 0
    ):
        super().__init__()
        check_integer("n", n, MIN_SIZE)
        self.n, self.settings = n, {"n": n, "window": window, "width": width}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.signal = _Branches(n, window, width)
            self.density = _Branches(n, window, width)

    def forward(
        self, first: Tensor, second: Tensor, mean_variance: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        :param first: First moments (batch, n), complex.
        :param second: Second moments (batch, n, n), complex.
        :param mean_variance: σ²/N (batch,); ignored.
        :param sigma: σ (batch,); ignored.
        :return: z_v (batch, n) and z_ρ (batch, n), a distribution, real.
        """
        mean = first[:, :1].real * self.n**-0.5
        fields = _field(first[..., None]), _field(second)
        return mean * self.signal(*fields), torch.softmax(self.density(*fields), -1)


class _Branches(nn.Module):
    def __init__(self, n: int, window: int, width: int):
        super().__init__()
        self.upper = _convolutions(window, 2, STACKED // 2)
        self.lower = _convolutions(window, 2 * n, STACKED // 2)
        self.joint = nn.Sequential(
            _convolutions(window, STACKED, STACKED),
            nn.Flatten(),
            nn.Linear(STACKED * n, width),
            nn.LeakyReLU(SLOPE),
            nn.Linear(width, n),
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.joint(torch.cat((self.upper(first), self.lower(second)), 1))


def _convolutions(window: int, before: int, after: int) -> nn.Sequential:
    periodic = {"padding": "same", "padding_mode": "circular"}
    first = nn.Conv1d(before, STACKED, window, **periodic)
    last = nn.Conv1d(STACKED, after, window, **periodic)
    return nn.Sequential(first, nn.LeakyReLU(SLOPE), last, nn.LeakyReLU(SLOPE))


def _field(moment: Tensor) -> Tensor:
    """(batch, points, channels) complex to (batch, 2 channels, points), RMS 1."""
    parts = torch.view_as_real(moment).permute(0, 2, 3, 1).flatten(1, 2)
    return parts / parts.square().mean((1, 2), keepdim=True).sqrt()
