"""Third moments of many starts' views, in few large products."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class OrderProducts(NamedTuple):
    """
    All products a[m1] a[m2] conj a[m1 + m2] of one order m1, of rows of numbers a.

    :param first: The rows of m1.
    :param second: Rows (n,) of a[m2].
    :param third: Rows (n,) of a[m1 + m2], which go with them.
    """

    first: slice
    second: Tensor
    third: Tensor

    def to(self, device: torch.device) -> OrderProducts:
        """
        :param device: Device of the tensors.
        :return: The same products, there.
        """
        return self._replace(second=self.second.to(device), third=self.third.to(device))


class AveragedProducts(torch.autograd.Function):
    """
    Products averaged over views and their antipodes, which show mirror images: the
    numbers a of these are conjugates. `apply(real, imag, even, odd, products)` takes
    real and imaginary parts of the rows (…, n_rows, n_views), the sum and the
    difference of the weights of the views and of their antipodes (…, 1, n_views), and a
    list of `OrderProducts`. It returns, for each of these in turn, real and imaginary
    parts (…, n, n_first).

    The gradient is added up in place; autograd would fill a tensor of all rows for
    every selection of some.
    """

    @staticmethod
    def forward(ctx, real, imag, even, odd, products):
        ctx.save_for_backward(real, imag, even, odd)
        ctx.products = products
        averages = []
        for part in products:
            a, b, pairs = _factors(real, imag, part)
            averages.append(pairs @ torch.cat((a * even, -b * even), -1).mT)
            averages.append(pairs @ torch.cat((b * odd, a * odd), -1).mT)
        return tuple(averages)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients):
        real, imag, even, odd = ctx.saved_tensors
        found = [torch.zeros_like(t) for t in (real, imag, even, odd)]
        to_real, to_imag, to_even, to_odd = found
        for part, u, v in zip(
            ctx.products, gradients[::2], gradients[1::2], strict=True
        ):
            a, b, pairs = _factors(real, imag, part)
            u_real, u_imag = (u.mT @ pairs).chunk(2, -1)
            v_real, v_imag = (v.mT @ pairs).chunk(2, -1)
            to_real[..., part.first, :] += even * u_real + odd * v_imag
            to_imag[..., part.first, :] += odd * v_real - even * u_imag
            to_even += (a * u_real - b * u_imag).sum(-2, keepdim=True)
            to_odd += (b * v_real + a * v_imag).sum(-2, keepdim=True)
            # Of the real and the imaginary part of a[m2] conj a[m1 + m2].
            uv = torch.cat((u, v), -1)
            x = uv @ torch.cat((a * even, b * odd), -2)
            y = uv @ torch.cat((-b * even, a * odd), -2)
            for rows, others in ((part.second, part.third), (part.third, part.second)):
                c, d = (t.index_select(-2, others) for t in (real, imag))
                to_real.index_add_(-2 % real.ndim, rows, x * c - y * d)
                to_imag.index_add_(-2 % real.ndim, rows, x * d + y * c)
                y = -y  # a[m1 + m2] enters as its conjugate
        return *found, None


def _factors(real: Tensor, imag: Tensor, part: OrderProducts) -> tuple[Tensor, ...]:
    """Real and imaginary parts of a[m1]; those of a[m2] conj a[m1 + m2] side by side,
    (…, n, 2 n_views)."""
    a, b = real[..., part.first, :], imag[..., part.first, :]
    c, d = (t.index_select(-2, part.second) for t in (real, imag))
    e, f = (t.index_select(-2, part.third) for t in (real, imag))
    return a, b, torch.cat((c * e + d * f, d * e - c * f), -1)
