"""Answers of trained encoders, and their refinement (section 5.1.2)."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aspire_mom.mra.marching import entry_variance
from aspire_mom.mra.moments import FourierMoments, forward_moments, relative_errors
from aspire_mom.mra.shift_ambiguity import (
    best_shift,
    centre_density,
    from_half_spectra,
    to_distribution,
)
from aspire_mom.mra.signals import Arrays, check_pair, shift

# Least probability of a shift in the start of a direct refinement, and least mean of a
# signal relative to its root mean square.
LEAST_PROBABILITY, LEAST_MEAN = 1e-6, 1e-6


class RefinementStatus(NamedTuple):
    """Progress, for a status callback: steps done, signals and densities (batch, n),
    and sums of the relative errors of both moments (batch,), eq. 22."""

    step: int
    v: Tensor
    rho: Tensor
    errors: Tensor


Status = Callable[[RefinementStatus], bool | None]


def predict(encoder: nn.Module, moments: FourierMoments) -> Arrays:
    """
    :param encoder: Network (first, second, σ²/N, σ) → (v, ρ).
    :param moments: Moments of one problem or of a batch.
    :return: The encoder's v and ρ, a distribution, brought to one shift, (..., n) each.
    """
    encoder, inputs = _prepared(encoder, moments, torch.float64)
    with torch.no_grad():
        v, rho = (x.numpy() for x in encoder(*inputs))
    by_v, by_rho = _alignment(v, rho, moments)
    return _final(shift(v, by_v), shift(rho, by_rho), moments)


def _alignment(v, rho, moments) -> Arrays:
    """
    Shifts a and b (batch,) such that v(· - a) and ρ(· - b), (batch, n), have the given
    moments. The peak of a correlation over the entries at which ρ̃ does not wrap around
    determines a + b; the wrapped entries determine the rest.
    """
    n = v.shape[-1]
    k = np.arange(n)
    first, second = forward_moments(v, rho)
    goals = tuple(x.numpy() for x in _tensors(moments, torch.float64))
    signed = np.fft.fftfreq(n, 1 / n)
    unwrapped = np.abs(signed[:, None] - signed) <= n / 2
    by_lag = (unwrapped * second.conj() * goals[1])[:, k, (k - k[:, None]) % n].sum(-1)
    powers = [(np.abs(x.reshape(len(x), -1)) ** 2).sum(1)[:, None] for x in goals]
    match = first.conj() * goals[0] / powers[0] + by_lag / powers[1]
    # The wave at an even n's Nyquist frequency cannot be shifted.
    kept = 2 * k != n
    total = best_shift(np.fft.ifft(kept).real, np.fft.ifft(kept * match).real)

    together, half = shift(v, total), slice(n // 2 + 1)
    around = np.arange(-(n // 2), n // 2 + 1)
    power = np.einsum("...kk->...k", goals[1]).real.clip(0)[..., around]
    moved, _ = from_half_spectra(
        np.fft.fft(together, norm="ortho")[:, half],
        np.fft.fft(rho)[:, half],
        goals[1],
        entry_variance(power, moments),
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
) -> Arrays:
    """
    Align an encoder's outputs, then minimise the loss of eq. 26 with λ = ‖M̂1‖/‖M̂2‖
    over its parameters by Adam. Each problem of a batch has its own copy of them.

    :param encoder: Network (first, second, σ²/N, σ) → (v, ρ); it stays unchanged.
    :param moments: Moments of one problem or of a batch.
    :param n_steps: Steps.
    :param learning_rate: Learning rate of Adam; 1e-3 suits an untrained encoder.
    :param status: Called before the first step and after each; returning True stops.
    :return: v and ρ, (..., n) each, ρ a distribution, centred at shift 0.
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
    by = [torch.tensor(x).float() for x in _alignment(v, rho, moments)]

    def pair() -> tuple[Tensor, Tensor]:
        v, rho = outputs(parameters, *inputs)
        return shift(v, by[0]), shift(rho, by[1])

    leaves, options = list(parameters.values()), (n_steps, learning_rate, status)
    return _descend(pair, leaves, moments, *options)


def refine_directly(
    v: np.ndarray,
    rho: np.ndarray,
    moments: FourierMoments,
    *,
    n_steps: int = 3000,
    learning_rate: float = 1e-3,
    status: Status | None = None,
) -> Arrays:
    """
    Minimise the loss of eq. 26, as :func:`refine_weights`, over v and ρ = softmax(z).

    :param v: Starts (..., n), not 0, at one shift with `rho`.
    :param rho: Starts (..., n), distributions.
    :param moments: Moments (..., n), (..., n, n).
    :param n_steps: Steps.
    :param learning_rate: Adam's, for z and for v in units of its root mean square.
    :param status: As for :func:`refine_weights`.
    :return: v and ρ, centred at shift 0.
    :raises ValueError: shapes that differ, or a ρ that is no distribution.
    """
    v, rho = check_pair(v, rho)
    shape = moments.first.shape
    if v.shape != shape:
        raise ValueError(f"v has shape {v.shape}; the first moment has {shape}")
    v, rho = (torch.as_tensor(x.reshape(-1, shape[-1])) for x in (v, rho))
    scale = v.square().mean(-1, keepdim=True).sqrt()
    u = (v / scale).requires_grad_()
    z = rho.clamp_min(LEAST_PROBABILITY).log().requires_grad_()
    options = n_steps, learning_rate, status
    return _descend(lambda: (u * scale, z.softmax(-1)), [u, z], moments, *options)


def _descend(pair, parameters, moments, n_steps, learning_rate, status):
    first, second = _tensors(moments, parameters[0].dtype)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    for step in range(n_steps + 1):
        v, rho = pair()
        errors = sum(relative_errors(v, rho, first, second))
        now = RefinementStatus(step, v.detach(), rho.detach(), errors.detach())
        if (status and status(now)) or step == n_steps:
            break
        optimizer.zero_grad()
        # The loss of eq. 26 with λ = ‖M̂1‖/‖M̂2‖. Problems share no parameters.
        (first.norm(dim=-1) * errors).sum().backward()
        optimizer.step()
    return _final(*(x.detach().double().numpy() for x in (v, rho)), moments)


def _final(v: np.ndarray, rho: np.ndarray, moments: FourierMoments):
    v, rho = centre_density(v, to_distribution(rho))
    return v.reshape(moments.first.shape), rho.reshape(moments.first.shape)


def _prepared(encoder: nn.Module, moments: FourierMoments, dtype):
    """A copy of an encoder, and its inputs."""
    n = moments.first.shape[-1]
    if encoder.n not in (n, None):
        raise ValueError(f"n is {n}; the encoder is for n = {encoder.n}")
    power = np.einsum("...kk->...", moments.second).real
    if (np.abs(moments.first[..., 0]) ** 2 <= LEAST_MEAN**2 * power).any():
        raise ValueError("the signal's mean is 0 to within rounding; encoders need it")
    first, second = _tensors(moments, dtype)
    sigma = 0.0 if moments.n_observations is None else moments.sigma
    noise = (moments.mean_variance, sigma)
    noise = [torch.tensor(x, dtype=dtype).expand(len(first)) for x in noise]
    return copy.deepcopy(encoder).to("cpu", dtype).eval(), (first, second, *noise)


def _tensors(moments: FourierMoments, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Moments (batch, n) and (batch, n, n), of a real dtype's complex one."""
    n, dtype = moments.first.shape[-1], dtype.to_complex()
    first = torch.as_tensor(moments.first.reshape(-1, n), dtype=dtype)
    return first, torch.as_tensor(moments.second.reshape(-1, n, n), dtype=dtype)
