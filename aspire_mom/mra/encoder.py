"""Encoders of multireference alignment: from moments to a signal and a density."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aspire_mom.mra.marching_layer import Frequencies, March, Spectra, Sweep

# Appendix A.1: slope of the leaky ReLU, and channels of the two branches stacked.
SLOPE = 0.02
STACKED = 6
MIN_SIZE = 8
# Bounds of what the corrections are told, in standard deviations over the family.
CLIP = 5.0
# Standard errors are told apart above this one, about what float32 leaves.
LEAST_ERROR = 1e-6


class PaperEncoder(nn.Module):
    """
    The paper's ξ_θ = (ξ_θ^v, ξ_θ^ρ) of section 4.1 and appendix A.1, two networks of
    the same architecture (Fig. A.11). Moments are fields on n frequencies, real and
    imaginary parts being channels: the first, input1D_{n,1}, feeds the upper branch,
    the second, input1D_{n,n}, with row k the point and column l the channel, the lower
    one. Convolutions conv1D are periodic; both branches are stacked to 6 channels; more
    conv1D and fully connected layers follow, with LeakyReLU(0.02) in between.

    What the text leaves open is set as follows. From the authors' published code: the
    convolution window, 15, a fully connected layer from all 6 channels to 256, and a
    softmax on ρ. Ours: two convolutions in each branch and two after stacking, all
    hidden ones of 6 channels; each moment is scaled to unit RMS, so that the scale of
    the data does not matter, and v is multiplied by its mean, first[0]/√n; z_v is the
    real v on the sample points, of which the paper's v̂(K₁) is the unitary DFT. Nothing
    fixes a gauge: v and ρ come out at shifts of their own. Noise levels are ignored.

    :param n: Sample points, at least 8.
    :param window: Convolution window, odd, less than 2n.
    :param width: Width of the fully connected layer.
    :param seed: Seed of the initial weights.
    :raises ValueError: n is too small.
    """

    def __init__(
        self, n: int = 41, *, window: int = 15, width: int = 256, seed: int = 0
    ):
        super().__init__()
        _check(n)
        self.n, self.settings = n, {"n": n, "window": window, "width": width}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.signal = _Branches(n, window, width)
            self.density = _Branches(n, window, width)

    def forward(
        self, first: Tensor, second: Tensor, share: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        :param first: First moments (batch, n), complex.
        :param second: Second moments (batch, n, n), complex.
        :param share: σ²/N (batch,); ignored.
        :param sigma: σ (batch,); ignored.
        :return: z_v (batch, n) and z_ρ (batch, n), a distribution, real.
        """
        mean = first[:, :1].real * self.n**-0.5
        fields = _field(first[..., None]), _field(second)
        return mean * self.signal(*fields), torch.softmax(self.density(*fields), -1)


def _check(n: int) -> None:
    if n < MIN_SIZE:
        raise ValueError(f"n is {n}; encoders are for at least {MIN_SIZE} samples")


class _Branches(nn.Module):
    def __init__(self, n: int, window: int, width: int):
        super().__init__()
        half = STACKED // 2
        self.upper = _convolutions(window, 2, STACKED, half)
        self.lower = _convolutions(window, 2 * n, STACKED, half)
        self.joint = nn.Sequential(
            _convolutions(window, STACKED, STACKED, STACKED),
            nn.Flatten(),
            nn.Linear(STACKED * n, width),
            nn.LeakyReLU(SLOPE),
            nn.Linear(width, n),
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.joint(torch.cat((self.upper(first), self.lower(second)), 1))


def _convolutions(window: int, before: int, hidden: int, after: int) -> nn.Sequential:
    settings = {"padding": "same", "padding_mode": "circular"}
    return nn.Sequential(
        nn.Conv1d(before, hidden, window, **settings),
        nn.LeakyReLU(SLOPE),
        nn.Conv1d(hidden, after, window, **settings),
        nn.LeakyReLU(SLOPE),
    )


def _field(moment: Tensor) -> Tensor:
    """(batch, points, channels) complex to (batch, 2 channels, points), RMS 1."""
    parts = torch.view_as_real(moment).permute(0, 2, 3, 1).flatten(1, 2)
    scale = parts.square().mean((1, 2), keepdim=True).sqrt()
    return parts / scale


class MarchingEncoder(nn.Module):
    """
    Ours: frequency marching unrolled into layers whose weights are learned, each
    followed by learned corrections that know the family.

    Why so. Eq. 15 is a product of unknowns, which the paper's layers have to find out
    from examples at every shift of the data and at every phase of v̂. Marching *is* the
    differentiable program that inverts it, exactly where moments are exact, and its
    layers have the form of eq. 17, products with the second moment followed by a
    normalisation. What no program knows is what v and ρ look like; under noise, that is
    what is missing where v̂ has no power. So:

    1. Moments are scaled to mean 1 and shifted to arg first[1] = 0, which is undone at
       the end: scaling or shifting the data scales or shifts v, exactly.
    2. A :class:`March` gives v̂ and ρ̃ in the gauge arg ρ̃(1) = 0.
    3. Two times, a :class:`Sweep` confronts them with all entries, and a residual
       network with fully connected layers corrects each coefficient by a multiple of
       its standard error. It sees both spectra, how far the sweep moved them, their
       standard errors and the noise level. Where moments are exact standard errors
       vanish, and so do corrections: learning cannot harm them.

    The network is made for n samples and any number of Gaussians; how noisy moments are
    is an input.

    :param n: Sample points, at least 8.
    :param width: Width of the fully connected layers.
    :param n_rounds: Sweeps and corrections.
    :param seed: Seed of the initial weights.
    :raises ValueError: n is too small.
    """

    def __init__(
        self, n: int = 41, *, width: int = 256, n_rounds: int = 2, seed: int = 0
    ):
        super().__init__()
        _check(n)
        self.n, self.settings = n, {"n": n, "width": width, "n_rounds": n_rounds}
        self.frequencies = Frequencies(n)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.march = March(self.frequencies)
            self.sweeps = nn.ModuleList(
                Sweep(self.frequencies) for _ in range(n_rounds)
            )
            self.corrections = nn.ModuleList(
                _Correction(self.frequencies.K, width) for _ in range(n_rounds)
            )

    def forward(
        self, first: Tensor, second: Tensor, share: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        :param first: First moments (batch, n), complex; means must not be 0.
        :param second: Second moments (batch, n, n), complex.
        :param share: σ²/N (batch,), real; 0 for exact moments.
        :param sigma: σ (batch,), real.
        :return: v (batch, n), and ρ (batch, n), which sums to one and has arg ρ̃(1) = 0
            up to corrections, so that it is off the sample points and, if it has jumps,
            rings a little below 0 between them. Real.
        """
        mean = first[:, :1].real
        share, variance = share[:, None] / mean**2, sigma[:, None] ** 2 / mean**2
        # first[1] may be 0, and then any angle will do.
        angle = torch.angle(first[:, 1:2].detach())
        k = torch.fft.fftfreq(self.n, 1 / self.n, device=first.device).round()
        turn = torch.polar(torch.ones_like(angle), -angle * k.to(mean.dtype))
        data = self.frequencies.evidence(
            first / mean * turn,
            second / mean[..., None] ** 2 * turn[:, :, None] * turn[:, None].conj(),
            share,
            variance,
        )
        v, rho = self.march(data)
        level = torch.cat((share, variance), 1).clamp_min(LEAST_ERROR**2).log()
        for sweep, correction in zip(self.sweeps, self.corrections, strict=True):
            v, rho = correction(sweep(data, v, rho), v, rho, level)
        v = v * turn[:, : v.shape[1]].conj() * mean
        return (
            torch.fft.irfft(v, self.n, norm="ortho"),
            torch.fft.irfft(rho, self.n),
        )


class _Correction(nn.Module):
    """Spectra corrected by multiples of their standard errors."""

    def __init__(self, K: int, width: int):
        super().__init__()
        self.K = K
        n_features = 10 * K + 2
        self.standardise = nn.BatchNorm1d(n_features, affine=False, momentum=0.01)
        self.enter = nn.Linear(n_features, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.leave = nn.Linear(width, 4 * K)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self, spectra: Spectra, v: Tensor, rho: Tensor, level: Tensor
    ) -> tuple[Tensor, Tensor]:
        now = torch.cat((spectra.v[:, 1:], spectra.rho[:, 1:]), 1)
        before = torch.cat((v[:, 1:], rho[:, 1:]), 1)
        error = torch.cat((spectra.v_error[:, 1:], spectra.rho_error[:, 1:]), 1)
        moved = torch.view_as_real((now - before) / error).asinh()
        features = torch.cat(
            (
                torch.view_as_real(now).flatten(1),
                moved.flatten(1),
                error.clamp_min(LEAST_ERROR).log(),
                level,
            ),
            1,
        )
        x = self.enter(self.standardise(features).clamp(-CLIP, CLIP))
        for block in self.blocks:
            x = x + torch.nn.functional.silu(block(x))
        change = torch.view_as_complex(self.leave(x).unflatten(1, (-1, 2)))
        now = torch.nn.functional.pad(now + error * change, (1, 0), value=1)
        v = now[:, : self.K + 1]
        return v, torch.cat((torch.ones_like(v[:, :1]), now[:, self.K + 1 :]), 1)
