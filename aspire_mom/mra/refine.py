"""Answers of trained encoders, and their refinement (section 5.1.2)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from aspire_mom.mra.marching import entry_variance
from aspire_mom.mra.moments import FourierMoments, forward_moments
from aspire_mom.mra.shift_ambiguity import (
    best_shift,
    centre_density,
    from_half_spectra,
    to_distribution,
)
from aspire_mom.mra.signals import check_pair, shift

# Least probability of a shift in the start of a direct refinement.
LEAST_PROBABILITY = 1e-6
# Least mean of a signal relative to its root mean square.
LEAST_MEAN = 1e-6


@dataclass(frozen=True, eq=False)
class RefinementStatus:
    """
    Progress, for a status callback.

    :param step: Steps done, 0 before the first.
    :param v: Signals (batch, n), detached.
    :param rho: Densities (batch, n), detached.
    :param first_error: Relative errors of the first moments (batch,), eq. 22.
    :param second_error: Relative errors of the second moments (batch,).
    """

    step: int
    v: Tensor
    rho: Tensor
    first_error: Tensor
    second_error: Tensor


Status = Callable[[RefinementStatus], bool | None]


def predict(
    encoder: nn.Module, moments: FourierMoments
) -> tuple[np.ndarray, np.ndarray]:
    """
    Compute an encoder's answer in double precision, v and ρ brought to one shift.

    :param encoder: Network (first, second, σ²/N, σ) → (v, ρ).
    :param moments: Moments of one problem or of a batch.
    :return: v (..., n) and ρ (..., n), a distribution, centred at shift 0.
    :raises ValueError: the encoder is for another n, or the signal's mean is 0.
    """
    encoder, inputs = _prepared(encoder, moments, torch.float64)
    with torch.no_grad():
        v, rho = (x.numpy() for x in encoder(*inputs))
    by_v, by_rho = alignment(v, rho, _flat(moments))
    return _final(shift(v, by_v), shift(rho, by_rho), moments)


def alignment(
    v: np.ndarray, rho: np.ndarray, moments: FourierMoments
) -> tuple[np.ndarray, np.ndarray]:
    """
    Find shifts a and b such that v(· - a) and ρ(· - b), outputs of two networks, have
    the given moments. The peak of a correlation over the entries at which ρ̃ does not
    wrap around determines a + b; the wrapped entries or the sign of ρ determine the
    rest up to whole samples.

    :param v: Signals (batch, n).
    :param rho: Densities (batch, n).
    :param moments: Moments (batch, n), (batch, n, n).
    :return: a and b (batch,), in samples.
    """
    n = v.shape[-1]
    k = np.arange(n)
    first, second = forward_moments(v, rho)
    signed = np.fft.fftfreq(n, 1 / n)
    unwrapped = np.abs(signed[:, None] - signed) <= n / 2
    powers = (
        (np.abs(x.reshape(len(v), -1)) ** 2).sum(-1, keepdims=True)
        for x in (moments.first, moments.second)
    )
    first_power, second_power = powers
    by_lag = (unwrapped * second.conj() * moments.second)[:, k, (k - k[:, None]) % n]
    match = first.conj() * moments.first / first_power + by_lag.sum(-1) / second_power
    # The wave at an even n's Nyquist frequency cannot be shifted.
    kept = 2 * k != n
    total = best_shift(np.fft.ifft(kept).real, np.fft.ifft(kept * match).real)

    together, half = shift(v, total), slice(n // 2 + 1)
    around = np.arange(-(n // 2), n // 2 + 1)
    power = np.einsum("...kk->...k", moments.second).real.clip(0)[..., around]
    moved, _ = from_half_spectra(
        np.fft.fft(together, norm="ortho")[:, half],
        np.fft.fft(rho)[:, half],
        moments.second,
        entry_variance(power, *_noise(moments)),
    )
    by = total + best_shift(together, moved)
    return by, total - by


def refine_weights(
    encoder: nn.Module,
    moments: FourierMoments,
    *,
    n_steps: int = 3000,
    learning_rate: float = 1e-4,
    status: Status | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Align an encoder's outputs, then minimise loss 26 over its parameters θ by Adam,
    with λ = ‖M̂1‖/‖M̂2‖, which makes the loss proportional to the sum of both relative
    errors (eq. 22). Each problem of a batch has a copy of θ of its own.

    :param encoder: Network (first, second, σ²/N, σ) → (v, ρ); it stays unchanged.
    :param moments: Moments of one problem or of a batch.
    :param n_steps: Steps.
    :param learning_rate: Adam's; an untrained encoder bears 1e-3.
    :param status: Called before the first step and after each; returning True stops.
    :return: v and ρ, (..., n) each, ρ a distribution, centred at shift 0.
    :raises ValueError: the encoder is for another n, or the signal's mean is 0.
    """
    encoder, inputs = _prepared(encoder, moments, torch.float32)
    buffers = dict(encoder.named_buffers())
    parameters = {
        name: p.detach().expand(len(inputs[0]), *p.shape).clone().requires_grad_()
        for name, p in encoder.named_parameters()
    }

    def one(parameters, *inputs):
        every = tuple(x[None] for x in inputs)
        v, rho = torch.func.functional_call(encoder, (parameters, buffers), every)
        return v[0], rho[0]

    outputs = torch.vmap(one)
    with torch.no_grad():
        v, rho = (x.double().numpy() for x in outputs(parameters, *inputs))
    by = alignment(v, rho, _flat(moments))
    by_v, by_rho = (torch.as_tensor(x, dtype=torch.float32) for x in by)

    def pair() -> tuple[Tensor, Tensor]:
        v, rho = outputs(parameters, *inputs)
        return shift(v, by_v), shift(rho, by_rho)

    return _descend(
        pair, list(parameters.values()), moments, n_steps, learning_rate, status
    )


def refine_directly(
    v: np.ndarray,
    rho: np.ndarray,
    moments: FourierMoments,
    *,
    n_steps: int = 3000,
    learning_rate: float = 1e-3,
    status: Status | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Minimise loss 26, with λ as in :func:`refine_weights`, over v and ρ = softmax(z)
    themselves by Adam.

    :param v: Starts (..., n), at one shift with `rho`.
    :param rho: Starts (..., n), distributions.
    :param moments: Moments (..., n), (..., n, n).
    :param n_steps: Steps.
    :param learning_rate: Adam's, for z and for v in units of its mean.
    :param status: Called before the first step and after each; returning True stops.
    :return: v and ρ, centred at shift 0.
    :raises ValueError: shapes that differ, ρ that are no distributions, a v whose mean
        is 0.
    """
    v, rho = check_pair(v, rho)
    shape = moments.first.shape
    if v.shape != shape:
        raise ValueError(
            f"v and rho have shapes {v.shape} and {rho.shape}; the first moment has"
            f" {shape}, and they must be the same"
        )
    v, rho = (torch.as_tensor(x.reshape(-1, shape[-1])) for x in (v, rho))
    scale = v.mean(-1, keepdim=True)
    if (scale.abs() <= LEAST_MEAN * v.square().mean(-1, keepdim=True).sqrt()).any():
        raise ValueError(
            "the mean of v is 0 to within rounding; it is the unit of v's steps"
        )
    u = (v / scale).requires_grad_()
    z = rho.clamp_min(LEAST_PROBABILITY).log().requires_grad_()

    def pair() -> tuple[Tensor, Tensor]:
        return u * scale, torch.softmax(z, -1)

    return _descend(pair, [u, z], moments, n_steps, learning_rate, status)


def _descend(pair, parameters, moments, n_steps, learning_rate, status):
    first, second = _tensors(moments, parameters[0].dtype)
    norms = first.norm(dim=-1), second.norm(dim=(-2, -1))
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    for step in range(n_steps + 1):
        v, rho = pair()
        made = forward_moments(v, rho)
        off = (made[0] - first).norm(dim=-1), (made[1] - second).norm(dim=(-2, -1))
        if status is not None:
            errors = (o.detach() / norm for o, norm in zip(off, norms, strict=True))
            if status(RefinementStatus(step, v.detach(), rho.detach(), *errors)):
                break
        if step == n_steps:
            break
        optimizer.zero_grad()
        # A sum over problems, none of which shares parameters with another.
        (off[0] + norms[0] / norms[1] * off[1]).sum().backward()
        optimizer.step()
    return _final(*(x.detach().double().numpy() for x in (v, rho)), moments)


def _final(v: np.ndarray, rho: np.ndarray, moments: FourierMoments):
    v, rho = centre_density(v, to_distribution(rho))
    return v.reshape(moments.first.shape), rho.reshape(moments.first.shape)


def _prepared(encoder: nn.Module, moments: FourierMoments, dtype):
    """A copy of an encoder, and its inputs."""
    n = moments.first.shape[-1]
    if encoder.n not in (n, None):
        raise ValueError(
            f"the moments are of n = {n} samples; the encoder is for {encoder.n}"
        )
    power = np.einsum("...kk->...", moments.second).real
    if (np.abs(moments.first[..., 0]) ** 2 <= LEAST_MEAN**2 * power).any():
        raise ValueError(
            "the signal's mean is 0 to within rounding; encoders take it as the unit"
        )
    first, second = _tensors(moments, dtype)
    noise = (torch.full((len(first),), x, dtype=dtype) for x in _noise(moments))
    return copy.deepcopy(encoder).to("cpu", dtype).eval(), (first, second, *noise)


def _flat(moments: FourierMoments) -> FourierMoments:
    n = moments.first.shape[-1]
    first, second = moments.first.reshape(-1, n), moments.second.reshape(-1, n, n)
    return replace(moments, first=first, second=second)


def _tensors(moments: FourierMoments, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    flat = _flat(moments)
    return tuple(
        torch.as_tensor(x).to(dtype.to_complex()) for x in (flat.first, flat.second)
    )


def _noise(moments: FourierMoments) -> tuple[float, float]:
    """σ²/N and σ, which are 0 for exact moments."""
    if moments.n_observations is None:
        return 0.0, 0.0
    return moments.sigma**2 / moments.n_observations, moments.sigma
