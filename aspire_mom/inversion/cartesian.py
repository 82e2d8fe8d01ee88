"""
Moments and loss over all Fourier pixels, eq. 20 and 28. Images are real, so in the
unitary coordinates √2 Re f(k) and √2 Im f(k), one k of each pair ±k, and f(0), slices
and moments are real. This halves the memory and the points of the volume to evaluate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from aspire_mom.bases import CartesianBasis
from aspire_mom.moments import Moments
from aspire_mom.processes import all_gather_rows, local_rows
from aspire_mom.rotations import SO3Quadrature
from aspire_mom.volumes import FourierVolume

# Fourier values evaluated at once: few enough for a CPU's cache to hold a network's
# layers, and on a GPU enough to keep it busy.
POINTS_PER_CHUNK = {"cpu": 2**12, "gpu": 2**14}
# Up to this many points, a network's intermediate values are kept for the gradient (1.5
# GB for the paper's network); above it, the backward pass evaluates each chunk again.
POINTS_KEPT = 2**17


class CartesianForward(torch.nn.Module):
    """
    Slices and moments of all Fourier pixels by eq. 20, for any density on SO(3).

    A turn by 90° maps pixels to pixels, so if the number of in-plane angles is a
    multiple of four, the volume is evaluated for a quarter of the nodes only.

    :param basis: `CartesianBasis` of the moments.
    :param quadrature: Nodes on SO(3), view-major.
    :param shift_std: As for :func:`forward_model`. Gaussian shifts multiply
        E f(k) f(k')* by exp(-2π² (std/L)² |k - k'|²).
    """

    def __init__(
        self, basis: CartesianBasis, quadrature: SO3Quadrature, shift_std: float | None
    ):
        super().__init__()
        self.L, self.n_nodes, self.shift_std = basis.L, len(quadrature), shift_std
        frequencies = torch.from_numpy(basis.frequencies).double()
        pixels, friedel_mates = _pixel_pairs(basis)
        self.register_buffer("pixels", pixels)
        self.register_buffer("friedel_mates", friedel_mates)
        self.register_buffer("frequencies", frequencies[pixels])
        n = quadrature.n_inplane
        self.n_turns = 4 if n % 4 == 0 else 1
        self.n_angles = n // self.n_turns
        rotations = torch.from_numpy(quadrature.rotations.matrices)
        rotations = rotations.unflatten(0, (-1, n))[:, : self.n_angles]
        self.register_buffer("rotations", rotations.flatten(0, 1))
        # Rz(90°) takes pair i to pair turn[i]. Where it takes the first pixel of a pair
        # to a second one, the value is conjugated: flip[i] = -1 is its imaginary sign.
        L = basis.L
        x, y = frequencies[pixels].T.round().long()
        turned = (x + L // 2) * L - y + L // 2
        place = torch.zeros(L**2, dtype=torch.long)
        place[friedel_mates] = place[pixels] = torch.arange(len(pixels))
        self.register_buffer("turn", place[turned])
        self.register_buffer("flip", 1.0 - 2.0 * (pixels[place[turned]] != turned))

    def _half_slices(self, volume: FourierVolume) -> Tensor:
        """Return f(k), complex, (n_nodes, pairs ±k), one k of each; k = 0 is last."""
        dtype = next(volume.parameters()).dtype
        frequencies, n = self.frequencies.to(dtype), len(self.rotations)
        rotations = self.rotations.to(dtype)[local_rows(n)]
        values = in_chunks(volume, volume.slices, rotations, frequencies)
        turns = [all_gather_rows(values, n) / self.L]
        flip = self.flip.to(dtype)
        for _ in range(self.n_turns - 1):
            # Node R Rz(α + 90°) at pixel k is node R Rz(α) at pixel Rz(90°) k.
            last = turns[-1][:, self.turn]
            turns.append(torch.complex(last.real, last.imag * flip))
        every = torch.stack(turns).unflatten(1, (-1, self.n_angles))
        return every.transpose(0, 1).reshape(self.n_nodes, -1)

    def slices(self, volume: FourierVolume) -> Tensor:
        """
        :param volume: The volume model.
        :return: Slices in the real coordinates of this module (n_nodes, n_kept): L²
            pixels, less the Nyquist row and column if L is even.
        """
        half = self._half_slices(volume)
        pairs = math.sqrt(2) * torch.view_as_real(half[:, :-1])
        return torch.cat((pairs[..., 0], pairs[..., 1], half[:, -1:].real), 1)

    def forward(
        self, volume: FourierVolume, probabilities: Tensor, std: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        half = self._half_slices(volume)
        slices = half.new_zeros((self.n_nodes, self.L**2))
        slices[:, self.friedel_mates] = half.conj()
        slices[:, self.pixels] = half
        weighted = slices * probabilities[:, None].to(half.real.dtype)
        first, second = weighted.sum(0), weighted.T @ slices.conj()
        if self.shift_std == 0:
            return first, second
        std = self.shift_std if std is None else std
        L, a = self.L, 2 * math.pi**2 * (std / self.L) ** 2
        k = torch.arange(L, device=second.device).to(second.real.dtype)
        # Gaussians are products over the axes.
        one = torch.exp(-a * (k - L // 2).square())
        two = torch.exp(-a * (k[:, None] - k).square())
        return first * torch.outer(one, one).ravel(), second * torch.kron(two, two)


class CartesianLoss(torch.nn.Module):
    """
    Eq. 28 in Cartesian moments, each norm divided by that of the estimate (eq. 22).

    The model's second moment, L² × L² numbers, is never formed: with slices f_j,

        ‖M̂ - Σ p_j f_j f_j*‖² = ‖M̂‖² - 2 Σ p_j f_j* M̂ f_j + Σ p_j p_k |f_j* f_k|².

    In float32, cancellation limits the second moment's relative error to about 3e-4;
    noise in estimated moments is larger.

    :param moments: The estimates.
    :param lam: λ, weight of the second moment.
    :raises ValueError: A moment has no power.
    """

    weighting = "none"

    def __init__(self, moments: Moments, *, lam: float = 1.0):
        super().__init__()
        self.lam = lam
        pairs = [pixels.numpy() for pixels in _pixel_pairs(moments.basis)]
        first = _real_rows(moments.first, *pairs)
        second = _real_rows(moments.second, *pairs)
        second = _real_rows(second.conj().T, *pairs).conj().T
        for name, value in (("first", first), ("second", second)):
            unit = float(np.linalg.norm(value))
            if not unit > 0:
                raise ValueError(f"the {name} moment is 0 at all Fourier pixels")
            setattr(self, f"{name}_unit", unit)
            value = (value.real / unit).astype(np.float32)
            self.register_buffer(name, torch.from_numpy(value))
        # Relative norm of the part of the first moment that violates Friedel symmetry:
        # zero for real images; no model can fit it.
        self.first_asymmetry = float(np.linalg.norm(first.imag)) / self.first_unit

    def relative_errors(
        self, slices: Tensor, probabilities: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        :param slices: Of :meth:`CartesianForward.slices`, (n, n_kept).
        :param probabilities: Weights of the nodes, (n,).
        :return: Eq. 22 of the first and the second moment.
        """
        p = probabilities.to(slices.dtype)
        difference = p @ slices / self.first_unit - self.first
        first = difference.square().sum() + self.first_asymmetry**2
        cross, own = _SecondMomentProducts.apply(
            slices / math.sqrt(self.second_unit), p, self.second.to(slices.dtype)
        )
        second = (1 - 2 * cross + own).clamp_min(0)
        # The root's slope is infinite at an exact fit.
        tiny = torch.finfo(slices.dtype).tiny
        return (first + tiny).sqrt(), (second + tiny).sqrt().to(first.dtype)

    def forward(self, slices: Tensor, probabilities: Tensor) -> Tensor:
        first, second = self.relative_errors(slices, probabilities)
        return first + self.lam * second


class _SecondMomentProducts(torch.autograd.Function):
    """⟨M̂, Σ p f fᵀ⟩ and ‖Σ p f fᵀ‖², with the products reused for the gradient."""

    @staticmethod
    def forward(ctx, slices: Tensor, p: Tensor, second: Tensor):
        with_estimate = slices @ second
        overlaps = slices @ slices.T
        cross = (slices * with_estimate).sum(1, dtype=torch.float64)
        own = overlaps.square().double() @ p.double()
        ctx.save_for_backward(slices, p, with_estimate, overlaps, cross, own)
        return p.double() @ cross, p.double() @ own

    @staticmethod
    def backward(ctx, grad_cross: Tensor, grad_own: Tensor):
        slices, p, with_estimate, overlaps, cross, own = ctx.saved_tensors
        grad_slices = 2 * grad_cross.to(p) * p[:, None] * with_estimate
        weighted = p[:, None] * overlaps * (4 * grad_own.to(p) * p)
        grad_slices.addmm_(weighted, slices)
        return grad_slices, (grad_cross * cross + 2 * grad_own * own).to(p), None


def in_chunks(
    volume: FourierVolume,
    evaluate: Callable[[Tensor, Tensor], Tensor],
    rows: Tensor,
    points: Tensor,
) -> Tensor:
    """
    Evaluate rows × points in chunks that fit into cache. Only the volume's variables
    get gradients.

    :param volume: The volume model.
    :param evaluate: A method of it, (rows (r, ...), points (p, ...)) ↦ (r, p), complex.
    :param rows: Rows (n, ...).
    :param points: Points (p, ...).
    :return: Values (n, p).
    """
    device = "cpu" if rows.device.type == "cpu" else "gpu"
    chunks = rows.split(max(1, POINTS_PER_CHUNK[device] // len(points)))
    variables = [v for v in volume.variables() if v.requires_grad]
    kept = len(rows) * len(points) <= POINTS_KEPT and torch.is_grad_enabled()
    return _InChunks.apply(
        lambda chunk: evaluate(chunk, points), chunks, kept, *variables
    )


class _InChunks(torch.autograd.Function):
    """
    Values of all chunks in one preallocated tensor, which avoids fragmentation of the
    allocator, unlike `torch.utils.checkpoint`; graphs for the gradient are kept if
    `kept`. Gradients are summed in float64 and so do not depend on which process
    evaluates which rows.
    """

    @staticmethod
    def forward(
        ctx, evaluate, chunks: tuple[Tensor, ...], kept: bool, *variables: Tensor
    ):
        ctx.evaluate, ctx.chunks, ctx.variables = evaluate, chunks, variables
        ctx.kept, values, start = [], None, 0
        for chunk in chunks:
            with torch.set_grad_enabled(kept):
                own = evaluate(chunk)
            if kept:
                ctx.kept.append(own)
            if values is None:
                values = own.new_empty((sum(map(len, chunks)), *own.shape[1:]))
            values[start : start + len(chunk)] = own.detach()
            start += len(chunk)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_values: Tensor):
        sums = [torch.zeros_like(v, dtype=torch.float64) for v in ctx.variables]
        parts = grad_values.split([*map(len, ctx.chunks)])
        for i, (chunk, part) in enumerate(zip(ctx.chunks, parts, strict=True)):
            with torch.enable_grad():
                own = ctx.kept[i] if ctx.kept else ctx.evaluate(chunk)
            gradients = torch.autograd.grad(own, ctx.variables, part, allow_unused=True)
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total += gradient
        ctx.kept = []
        sums = [s.to(v) for s, v in zip(sums, ctx.variables, strict=True)]
        return None, None, None, *sums


def _pixel_pairs(basis: CartesianBasis) -> tuple[Tensor, Tensor]:
    """
    Indices of pixels k and -k, zero frequency last, without the Nyquist row and column
    of even L, where ASPIRE's images are 0.
    """
    kept = torch.from_numpy(basis.off_nyquist).nonzero()[:, 0]
    n = len(kept) // 2 + 1
    return kept[:n], kept.flip(0)[:n]


def _real_rows(
    values: np.ndarray, pixels: np.ndarray, friedel_mates: np.ndarray
) -> np.ndarray:
    """Transform rows from pixels to the real coordinates."""
    one, mates = values[pixels], values[friedel_mates]
    pairs = (one[:-1] + mates[:-1], (one[:-1] - mates[:-1]) / 1j)
    return np.concatenate((*(p / np.sqrt(2) for p in pairs), one[-1:]))
