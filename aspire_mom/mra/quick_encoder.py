"""
A trained `MixtureEncoder` for one problem at a time, in NumPy: at that size calling
torch takes longer than what is computed.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from aspire_mom.mra.curves import MARGIN, WIDTHS
from aspire_mom.mra.mixture_encoder import (
    HIGHEST,
    LEAST_LEVEL,
    LEAST_POWER,
    LEAST_SHARE,
    MixtureEncoder,
)

# Of the network's layers that normalise.
EPSILON = 1e-5


class Alternatives(NamedTuple):
    """
    Alternatives for a curve of k Gaussians, in units of the window [-1/2, 1/2], the
    likeliest first.

    :param centres: Centres (alternatives, k).
    :param log_widths: Logarithms of standard deviations (alternatives, k).
    :param probabilities: How likely each alternative is, (alternatives,).
    """

    centres: np.ndarray
    log_widths: np.ndarray
    probabilities: np.ndarray


class QuickEncoder:
    """
    :param encoder: What it is to say the same as, in single precision.
    """

    def __init__(self, encoder: MixtureEncoder):
        state = {
            name: value.detach().double().numpy()
            for name, value in encoder.state_dict().items()
        }

        def layer(name):
            return state[f"{name}.weight"], state[f"{name}.bias"]

        self.enter, self.leave = _single(*layer("enter")), _single(*layer("leave"))
        self.blocks = []
        for i in range(len(encoder.blocks)):
            scale, offset = layer(f"blocks.{i}.0")
            widen, start = layer(f"blocks.{i}.1")
            # What normalises x is part of the layer after it, but for x's deviation.
            start = start + widen @ offset
            widen = widen * scale
            widen -= widen.mean(1, keepdims=True)
            self.blocks.append(
                (*_single(widen, start), *_single(*layer(f"blocks.{i}.3")))
            )
        self.ends, self.n_alternatives = np.cumsum(encoder.sizes), encoder.alternatives
        self.k, self.l = encoder.pairs.numpy()

    def __call__(
        self, first: np.ndarray, second: np.ndarray, share: float, sigma: float
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """
        :param first: First moment (n,), n at least 19, of data that do not lean to the
            left; its mean must not be 0.
        :param second: Second moment (n, n).
        :param share: σ²/N.
        :param sigma: σ.
        :return: Probabilities of 1, 2, … Gaussians, and what `alternatives` reads.
        """
        features = self._features(first, second, share, sigma)
        weight, bias = self.enter
        x = weight @ features + bias
        for widen, start, narrow, end in self.blocks:
            mean = np.add.reduce(x) / len(x)
            y = widen @ x
            y /= math.sqrt(x @ x / len(x) - mean**2 + EPSILON)
            y += start
            y /= 1 + np.exp(-y)
            x += narrow @ y
            x += end
        weight, bias = self.leave
        *parts, counts = np.split(np.float64(weight @ x + bias), self.ends)
        return _softmax(counts), parts

    def alternatives(
        self, parts: list[np.ndarray], i: int
    ) -> tuple[Alternatives, Alternatives]:
        """
        :param parts: What the network says.
        :param i: Number of Gaussians, less one.
        :return: Alternatives for v and for ρ.
        """
        return self._curves(parts[2 * i]), self._curves(parts[2 * i + 1])

    def _curves(self, part: np.ndarray) -> Alternatives:
        part = part.reshape(self.n_alternatives, -1)
        k = part.shape[1] // 2
        low, high = (math.log(width) for width in WIDTHS)
        probabilities = _softmax(part[:, -1])
        order = np.argsort(-probabilities, kind="stable")
        shape = np.tanh(part[order, :-1])
        return Alternatives(
            (0.5 + MARGIN) * shape[:, :k],
            (low + high) / 2 + (high - low) / 2 * shape[:, k:],
            probabilities[order],
        )

    def _features(self, first, second, share, sigma) -> np.ndarray:
        """As `MixtureEncoder` has them."""
        mean, k, l = first[0].real, self.k, self.l
        share, level = share / mean**2, abs(sigma / mean)
        power = np.maximum(second.diagonal()[: HIGHEST + 1].real / mean**2, 0)
        power += math.sqrt(share) * level + LEAST_POWER
        entries = second[k, l] / mean**2
        entries[l == 0] = first[k[l == 0]] / mean
        turn = np.exp(-1j * np.angle(first[1] / mean) * (k - l))
        entries *= turn / np.sqrt(power[k] * power[np.abs(l)])
        features = (
            entries.real,
            entries.imag,
            np.log(power[1:]) / 4 + 1,
            [
                math.log(max(share, LEAST_SHARE)) / 5 + 4,
                math.log(max(level, LEAST_LEVEL)) / 2,
            ],
        )
        return np.concatenate(features).astype(np.float32)


def leans_left(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether it is the reverse of data that `MixtureEncoder` is told."""
    mean = first[0].real
    return bool((second[2, 1] * np.exp(-1j * np.angle(first[1] / mean))).imag < 0)


def _single(*arrays: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(x, np.float32) for x in arrays]


@cache
def quick_encoder() -> QuickEncoder:
    """The package's."""
    from aspire_mom.mra.weights import pretrained

    return QuickEncoder(pretrained("mixture"))


def _softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max())
    return x / x.sum()
