"""The paper's encoders: from moments to a density on nodes, or to a latent variable."""

from __future__ import annotations

import itertools
import math
from functools import partial

import torch
from torch import Tensor, nn

from aspire_mom.checks import check_integer

# Appendix A.1: slope of the leaky ReLU, and channels of the two branches stacked.
SLOPE = 0.02
STACKED_CHANNELS = 6
# With fewer channels than this a direct convolution takes no longer.
MANY_CHANNELS = 64


class _PeriodicConv2d(nn.Conv2d):
    # `torch.nn.Conv2d` with periodic padding, of n × n fields. With many channels, as
    # second moments of images have (2 n²), it goes through Fourier space: a window of
    # w × w then costs n² w products per pair of channels in place of n² w². Kernels are
    # transformed along x, multiplied by the field's transform and summed over channels
    # for each of their rows, and transformed along y last.
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        sizes = in_channels, out_channels, kernel_size
        super().__init__(*sizes, padding="same", padding_mode="circular")

    def forward(self, field: Tensor) -> Tensor:
        n, window = field.shape[-1], self.kernel_size[0]
        if self.in_channels < MANY_CHANNELS or window > n:
            return super().forward(field)
        k = torch.arange(n, device=field.device, dtype=field.dtype)
        turns = torch.outer(k, k[:window] - window // 2) % n
        angle = 2 * math.pi / n * turns
        # exp(+2πi k j / n): Conv2d correlates, and so takes the kernel's conjugate.
        waves = torch.polar(torch.ones_like(angle), angle)
        spectrum = torch.fft.rfft2(field).permute(0, 3, 2, 1)  # batch, kx, ky, channel
        half = waves[: n // 2 + 1]
        kernel = self.weight.transpose(0, 1).reshape(-1, window)
        kernel = torch.complex(kernel @ half.real.T, kernel @ half.imag.T)
        kernel = kernel.reshape(self.in_channels, -1, n // 2 + 1).permute(2, 0, 1)
        by_row = (spectrum @ kernel).unflatten(-1, (-1, window))
        assert self.bias is not None
        out = (by_row * waves[:, None]).sum(-1).permute(0, 3, 2, 1)
        return torch.fft.irfft2(out, s=(n, n)) + self.bias[:, None, None]


class LatentEncoder(nn.Module):
    """
    Encoder ξ_θ^v of section 4.2 and appendix A.2, from moments to the latent variable
    z_v of a `FourierNet`. Make one by :meth:`cartesian` or :meth:`polar`.

    Each moment is a field on side × side points with real and imaginary parts as
    channels, scaled to unit RMS. A branch of two convolutions per moment gives 3
    channels; both are stacked to 6, and two more convolutions and two fully connected
    layers follow. All layers but the last end in a LeakyReLU(0.02). The window of 15
    for Cartesian moments and the width are those of the authors' published 1-D code.

    :param side: Points along an edge of the field.
    :param first_shape: Shape of the first moment, side² or side entries.
    :param second_shape: Shape of the second moment, a multiple of side² entries; all
        axes but the field's become channels.
    :param n_outputs: Length of z.
    :param periodic: Whether fields are periodic; others are padded with zeros.
    :param window: Convolution window, odd, at most 2 side - 1.
    :param channels: Channels of the hidden convolutions.
    :param width: Width of the fully connected layer.
    :param seed: Seed of the initial parameters.
    :raises ValueError: a size is out of range.
    """

    def __init__(
        self,
        side: int,
        first_shape: tuple[int, ...],
        second_shape: tuple[int, ...],
        n_outputs: int,
        *,
        periodic: bool,
        window: int,
        channels: int = 6,
        width: int = 256,
        seed: int = 0,
    ):
        super().__init__()
        sizes = {"n_outputs": n_outputs, "channels": channels, "width": width}
        for name, size in sizes.items():
            check_integer(name, size, 1)
        if window % 2 == 0 or not 1 <= window <= 2 * side - 1:
            accepted = f"odd and at most {2 * side - 1} for {side} x {side} points"
            raise ValueError(f"window is {window}; it must be {accepted}")
        self.side, self.first_shape, self.second_shape = side, first_shape, second_shape
        self.n_outputs = n_outputs

        conv = _PeriodicConv2d if periodic else partial(nn.Conv2d, padding="same")

        def convolutions(*sizes: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for before, after in itertools.pairwise(sizes):
                layers += [conv(before, after, window), nn.LeakyReLU(SLOPE)]
            return nn.Sequential(*layers)

        second_channels = 2 * math.prod(second_shape) // side**2
        # Seed the CPU's generator only, and restore its state.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            half = STACKED_CHANNELS // 2
            self.first_branch = convolutions(2, channels, half)
            self.second_branch = convolutions(second_channels, channels, half)
            self.joint = nn.Sequential(
                *convolutions(STACKED_CHANNELS, channels, channels),
                nn.Flatten(),
                nn.Linear(channels * side**2, width),
                nn.LeakyReLU(SLOPE),
                nn.Linear(width, n_outputs),
            )

    @classmethod
    def cartesian(
        cls, L: int, n_outputs: int, *, window: int = 15, **sizes
    ) -> LatentEncoder:
        """
        Make an encoder of moments of all L² Fourier pixels (eq. 14), with periodic
        padding. The first moment is (L²,), the second (L², L²), whose left pixel is the
        channel and right pixel the point of the field (the paper's input1D_{n,n}). It
        has more than 2 L² · window² · channels parameters, 10.7 million at L = 63.

        :param L: Pixels along an edge of the images.
        :param n_outputs: Length of z.
        :param window: Convolution window, odd, at most 2 L - 1.
        :param sizes: `channels`, `width` and `seed` of the class.
        :return: The encoder.
        """
        shapes = (L * L,), (L * L, L * L)
        return cls(L, *shapes, n_outputs, periodic=True, window=window, **sizes)

    @classmethod
    def polar(
        cls, n_orders: int, n_rings: int, n_outputs: int, *, window: int = 5, **sizes
    ) -> LatentEncoder:
        """
        Make an encoder of moments in the polar basis, with zero padding, since rings
        are not periodic. The first moment is (n_rings,), repeated along the field's
        other axis, the second (n_orders, n_rings, n_rings).

        :param n_orders: Number of angular orders.
        :param n_rings: Number of rings.
        :param n_outputs: Length of z.
        :param window: Convolution window, odd, at most 2 n_rings - 1.
        :param sizes: `channels`, `width` and `seed` of the class.
        :return: The encoder.
        """
        shapes = (n_rings,), (n_orders, n_rings, n_rings)
        return cls(n_rings, *shapes, n_outputs, periodic=False, window=window, **sizes)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """
        :param first: First moment (..., *first_shape), complex.
        :param second: Second moment (..., *second_shape), complex.
        :return: z (..., n_outputs), real, in the encoder's dtype.
        :raises ValueError: shapes or leading axes do not fit, or moments are real.
        """
        batch = first.shape[: -len(self.first_shape)]
        fields = (
            self._field("first moment", first, batch, self.first_shape),
            self._field("second moment", second, batch, self.second_shape),
        )
        branches = self.first_branch(fields[0]), self.second_branch(fields[1])
        return self.joint(torch.cat(branches, dim=1)).reshape(*batch, -1)

    def _field(self, name: str, moment: Tensor, batch, shape) -> Tensor:
        """Moment as real fields (batch, channels, side, side) of unit RMS."""
        if not moment.is_complex() or moment.shape != (*batch, *shape):
            found = f"{moment.dtype} of shape {tuple(moment.shape)}"
            wanted = f"complex of shape {(*batch, *shape)}"
            raise ValueError(f"{name} is {found}; it must be {wanted}")
        side, size = self.side, math.prod(shape)
        moment = moment.reshape(-1, size)
        norm = torch.linalg.vector_norm(moment, dim=1, keepdim=True)
        moment = moment / norm.clamp_min(torch.finfo(norm.dtype).tiny) * size**0.5
        parts = torch.cat((moment.real, moment.imag), dim=1)
        parts = parts.to(next(self.parameters()).dtype)
        # A first moment in rings has one row, repeated over the field.
        rows = min(side, size // side)
        return parts.reshape(len(parts), -1, rows, side).expand(-1, -1, side, -1)


class MomentEncoder(LatentEncoder):
    """
    Encoder ξ_θ^ρ: a :class:`LatentEncoder` whose softmax at the end gives the
    probabilities of a quadrature's nodes, the paper's z_ρ.
    """

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.softmax(super().forward(first, second), dim=-1)
