"""Frequency marching as layers of a network, with learned weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Rounding that counts as noise, in units of the dtype's own and of the signal's power.
ROUNDING = 8.0
# What significance the march starts from, and what precision each sweep's prior has.
SIGNIFICANCE, PRIOR_PRECISION = 4.0, 10.0
TINY = 1e-20


class Evidence(NamedTuple):
    """
    Entries of second moments and how much they weigh, at frequencies up to K.

    :param entries: second[k, l], k = 0 … K, l = -K … K, (batch, K + 1, 2K + 1).
    :param weights: Their inverse variances, 0 where ρ̃(k - l) wraps around or k = l.
    :param by_lag: second[k, k - d], d = 1 … K, k = 0 … K, (batch, K, K + 1).
    :param by_lag_weights: Their inverse variances, 0 where k < d/2: those say the same.
    :param modulus: |v̂(k)| from the diagonal, (batch, K + 1).
    :param modulus_weights: Its inverse variance.
    """

    entries: Tensor
    weights: Tensor
    by_lag: Tensor
    by_lag_weights: Tensor
    modulus: Tensor
    modulus_weights: Tensor


class Spectra(NamedTuple):
    """
    Estimates of v̂ and ρ̃ at frequencies 0 … K, (batch, K + 1), complex, and their
    standard errors, real, 0 at frequency 0.
    """

    v: Tensor
    rho: Tensor
    v_error: Tensor
    rho_error: Tensor


class Frequencies(nn.Module):
    """
    Where things are in the second moment of n samples; K = (n - 1)//2.

    :param n: Sample points.
    """

    def __init__(self, n: int):
        super().__init__()
        self.n, self.K = n, (n - 1) // 2
        K = self.K
        k, l = torch.arange(K + 1)[:, None], torch.arange(-K, K + 1)
        d = torch.arange(1, K + 1)[:, None]
        used = ((k - l).abs() <= K) & (k != l)
        buffers = {
            "l": l % n,
            "used": used,
            "lag": torch.where(used, k - l, 0) + K,
            "pair": (k.T - d).clamp_min(-K) + K,
            "own_half": d <= 2 * k.T,
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def evidence(
        self, first: Tensor, second: Tensor, share: Tensor, variance: Tensor
    ) -> Evidence:
        """
        :param first: First moments (batch, n), complex, first[0] = 1.
        :param second: Second moments (batch, n, n), complex.
        :param share: σ²/N (batch, 1), real.
        :param variance: σ² (batch, 1), real.
        :return: The entries that are used, and their weights.
        """
        K = self.K
        entries = second[:, : K + 1, self.l]
        power = second.diagonal(dim1=1, dim2=2).real.clamp_min(0)
        rounding = ROUNDING * torch.finfo(share.dtype).eps * power.sum(1, keepdim=True)
        rounding = rounding**2
        half = power[:, : K + 1]
        own = 2 * half / (share * (2 * half + variance) + rounding)
        both = half[:, :, None] + power[:, None, self.l] + variance[..., None]
        weights = 1 / (share[..., None] * both + rounding[..., None])
        # The first moment stands in for column 0, which says the same with more noise.
        column = torch.arange(2 * K + 1, device=first.device) == K
        entries = torch.where(column, first[:, : K + 1, None], entries)
        weights = torch.where(column, 1 / (share + rounding)[..., None], weights)
        k = torch.arange(K + 1, device=first.device)
        return Evidence(
            entries,
            weights * self.used,
            entries[:, k, self.pair],
            weights[:, k, self.pair] * self.own_half,
            half.sqrt(),
            own,
        )


class March(nn.Module):
    """
    One march up the frequencies in the gauge arg ρ̃(1) = 0, as
    :func:`aspire_mom.mra.marching.march` does: v̂(k) from the entries (k, l), 0 < l < k,
    its modulus from the diagonal as well, then ρ̃(k) from all pairs k apart up to k,
    each a weighted average (eq. 15). What is learned: factors on the weights, which
    start at 1, and the significance τ around which estimates x that are q = |x|² in
    units of their variance shrink to x q/(q + τ), instead of being kept or set to 0.

    :param frequencies: Which entries are where.
    """

    def __init__(self, frequencies: Frequencies):
        super().__init__()
        self.K = K = frequencies.K
        self.gates = nn.Parameter(torch.zeros(K + 1, 2 * K + 1))
        self.lag_gates = nn.Parameter(torch.zeros(K, K + 1))
        start = math.log(SIGNIFICANCE)
        self.thresholds = nn.Parameter(torch.full((2, K + 1), start))

    def forward(self, data: Evidence) -> tuple[Tensor, Tensor]:
        """
        :param data: Moments whose first[1] has the argument 0.
        :return: v̂ and ρ̃, (batch, K + 1), complex.
        """
        K, tau = self.K, self.thresholds.exp()
        weights = data.weights * self.gates.exp()
        lag_weights = data.by_lag_weights * self.lag_gates.exp()
        one = torch.ones_like(data.entries[:, 0, 0])
        v = torch.stack((one, data.modulus[:, 1] + 0j), 1)
        rho = one[:, None]
        for k in range(1, K + 1):
            if k > 1:
                l = slice(K + 1, K + k)
                known = v[:, 1:k].conj() * rho[:, 1:k].flip(1)
                z, precision = average(known, data.entries[:, k, l], weights[:, k, l])
                size = modulus(z)
                shrunk = _shrunk(size, precision, tau[0, k]) / size
                shrunk = shrunk * _with_modulus(size, precision, data, k)
                v = torch.cat((v, (z * shrunk)[:, None]), 1)
            j = slice((k + 1) // 2, k + 1)
            known = v[:, j] * v.flip(1)[:, j]
            z, precision = average(
                known, data.by_lag[:, k - 1, j], lag_weights[:, k - 1, j]
            )
            size = modulus(z)
            # No probability distribution has a larger coefficient than 1.
            shrunk = _shrunk(size, precision, tau[1, k]) / size.clamp_min(1)
            rho = torch.cat((rho, (z * shrunk)[:, None]), 1)
        return v, rho


class Sweep(nn.Module):
    """
    All of ρ̃ again from v̂, then v̂ from it, then ρ̃ again, each coefficient a weighted
    average of what the entries say and of what it was before. Learned are the factors
    on the weights and the precision of what it was before, by frequency.

    :param frequencies: Which entries are where.
    """

    def __init__(self, frequencies: Frequencies):
        super().__init__()
        self.frequencies = frequencies
        K = frequencies.K
        self.gates = nn.Parameter(torch.zeros(K + 1, 2 * K + 1))
        self.lag_gates = nn.Parameter(torch.zeros(K, K + 1))
        start = math.log(PRIOR_PRECISION)
        self.priors = nn.Parameter(torch.full((3, K + 1), start))

    def forward(self, data: Evidence, v: Tensor, rho: Tensor) -> Spectra:
        """
        :param data: The moments.
        :param v: v̂ as it was, (batch, K + 1).
        :param rho: ρ̃ as it was.
        :return: Both anew.
        """
        anew, _ = self._densities(data, v, rho, 0)
        known = signed(v)[:, None].conj() * signed(anew)[:, self.frequencies.lag]
        weights = data.weights * self.gates.exp()
        z, precision = average(known, data.entries, weights)
        size = modulus(z)
        z = z / size * _with_modulus(size, precision, data, slice(None))
        v, v_error = self._combine(v, z, precision, 1)
        rho, rho_error = self._densities(data, v, rho, 2)
        return Spectra(v, rho, v_error, rho_error)

    def _densities(self, data, v, rho, stage):
        known = v[:, None] * signed(v)[:, self.frequencies.pair].conj()
        weights = data.by_lag_weights * self.lag_gates.exp()
        z, precision = average(known, data.by_lag, weights)
        pad = torch.nn.functional.pad
        return self._combine(rho, pad(z, (1, 0)), pad(precision, (1, 0)), stage)

    def _combine(self, before, z, precision, stage):
        prior = self.priors[stage].exp()
        moving = torch.arange(before.shape[1], device=before.device) > 0
        total = precision + prior
        x = before + (z - before) * (precision / total * moving)
        return x, total.rsqrt() * moving


def signed(half: Tensor) -> Tensor:
    """Coefficients of a real signal at -K … K from those at 0 … K."""
    return torch.cat((half[:, 1:].conj().flip(1), half), 1)


def average(known: Tensor, entries: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """x with known · x ≈ entries by weighted least squares, and its precision."""
    precision = (weights * (known.real**2 + known.imag**2)).sum(-1)
    total = (known.conj() * entries * weights).sum(-1)
    return total / (precision + TINY), precision


def modulus(z: Tensor) -> Tensor:
    """|z|, with a gradient at 0."""
    return (z.real**2 + z.imag**2 + TINY).sqrt()


def _shrunk(size: Tensor, precision: Tensor, tau: Tensor) -> Tensor:
    q = size**2 * precision
    return q / (q + tau)


def _with_modulus(size: Tensor, precision: Tensor, data: Evidence, k) -> Tensor:
    """The modulus from other entries and from the diagonal together."""
    own = data.modulus_weights[:, k]
    return (size * precision + data.modulus[:, k] * own) / (precision + own + TINY)
