"""Two-dimensional convolutions of periodic fields with very many channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# With fewer channels a direct convolution takes no longer.
MANY_CHANNELS = 64


class PeriodicConv2d(nn.Conv2d):
    """
    `torch.nn.Conv2d` with periodic padding, computed by way of Fourier space where a
    field has many channels, as second moments of n × n images have, 2 n²: a window of
    w × w then costs n² w products per pair of channels, not n² w², as matrix products.

    Kernels are transformed along x; the product with the field's transform sums over
    channels for each row of the kernel; the transform along y comes last, on few
    numbers.

    :param before: Channels in.
    :param after: Channels out.
    :param window: Kernel size w, odd.
    """

    def __init__(self, before: int, after: int, window: int):
        super().__init__(before, after, window, padding="same", padding_mode="circular")

    def forward(self, field: Tensor) -> Tensor:
        """
        :param field: (batch, before, n, n), real.
        :return: (batch, after, n, n).
        """
        n, window = field.shape[-1], self.kernel_size[0]
        if self.in_channels < MANY_CHANNELS or window > n:
            return super().forward(field)
        k = torch.arange(n, device=field.device, dtype=field.dtype)
        turns = torch.outer(k, k[:window] - window // 2) % n
        angle = 2 * math.pi / n * turns
        # exp(+2πi k j / n): Conv2d correlates, and so takes the kernel's conjugate.
        waves = torch.polar(torch.ones_like(angle), angle)
        spectrum = torch.fft.rfft2(field).permute(0, 3, 2, 1)  # batch, kx, ky, before
        half = waves[: n // 2 + 1]
        kernel = self.weight.transpose(0, 1).reshape(-1, window)
        kernel = torch.complex(kernel @ half.real.T, kernel @ half.imag.T)
        kernel = kernel.reshape(self.in_channels, -1, n // 2 + 1).permute(2, 0, 1)
        by_row = (spectrum @ kernel).unflatten(-1, (-1, window))
        out = (by_row * waves[:, None]).sum(-1).permute(0, 3, 2, 1)
        return torch.fft.irfft2(out, s=(n, n)) + self.bias[:, None, None]
