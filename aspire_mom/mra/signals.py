"""Signals, densities of shifts and observations of multireference alignment."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch

from aspire_mom.checks import check_choice, check_integer

Array = TypeVar("Array", np.ndarray, torch.Tensor)
Arrays = tuple[np.ndarray, np.ndarray]
MIN_SIZE = 4
# Ranges of the family's means and standard deviations, in segments.
MEANS, STANDARD_DEVIATIONS = (-0.5, 0.5), (1 / 20, 1 / 10)


@dataclass(frozen=True)
class GaussianFamily:
    """
    The family of section 5.1: signals and densities are mixtures of k Gaussians of
    equal weight on the unit segment, sampled at x_j = (j + 1/2)/n - 1/2 and cut off at
    its ends. Means are uniform on the segment, standard deviations from 1/20 to 1/10.

    The paper does not state the scale of v, which decides how hard a given noise is.

    :param k: Gaussians in each of v and ρ.
    :param n: Sample points, at least 4.
    :param scale: "density": mean(v) = 1. "unit": the Euclidean norm of v is 1.
    :raises ValueError: a value out of range.
    """

    k: int
    n: int = 41
    scale: Literal["density", "unit"] = "density"

    def __post_init__(self):
        check_integer("k", self.k, 1)
        check_integer("n", self.n, MIN_SIZE)
        check_choice("scale", self.scale, ("density", "unit"))

    def draw(self, count: int, rng: np.random.Generator) -> Arrays:
        """
        :param count: Number of independent pairs.
        :param rng: Source of randomness.
        :return: v and ρ, (count, n), float64; ρ[s] is the probability of a shift by s.
        """
        return self.pair(self.draw_parameters(count, rng))

    def draw_parameters(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """
        :param count: Number of pairs.
        :param rng: Source of randomness.
        :return: Means and standard deviations for v and for ρ, (count, 2, 2, k).
        """
        limits = (MEANS, STANDARD_DEVIATIONS) * 2
        drawn = [rng.uniform(*each, (count, self.k)) for each in limits]
        return np.stack(drawn, 1).reshape(count, 2, 2, self.k)

    def pair(self, parameters: np.ndarray) -> Arrays:
        """
        :param parameters: As :meth:`draw_parameters` gives them.
        :return: v and ρ, as :meth:`draw` gives them.
        """
        means, widths = np.moveaxis(parameters[..., None], 2, 0)
        z = ((np.arange(self.n) + 0.5) / self.n - 0.5 - means) / widths
        v, rho = np.moveaxis((np.exp(-0.5 * z**2) / widths).sum(2), 1, 0)
        size = np.linalg.norm(v, axis=-1) if self.scale == "unit" else v.mean(-1)
        return v / size[:, None], rho / rho.sum(-1, keepdims=True)


def observe(
    v: np.ndarray,
    rho: np.ndarray,
    n_observations: int,
    sigma: float,
    rng: np.random.Generator,
    *,
    batch_size: int = 20_000,
) -> Iterator[np.ndarray]:
    """
    Draw observations v(· - s_j) + ε_j (eq. 23), circular shifts and white noise.

    :param v: Signal (n,).
    :param rho: Probability (n,) of each shift 0, 1, …, n - 1, in samples.
    :param n_observations: Number of observations N.
    :param sigma: Standard deviation of the noise, in v's units.
    :param rng: Source of randomness.
    :param batch_size: Observations held at once.
    :yield: Arrays (≤ batch_size, n), float64, N rows in all.
    """
    v, rho = check_pair(v, rho)
    shifted = all_shifts(v)
    for start in range(0, n_observations, batch_size):
        count = min(batch_size, n_observations - start)
        shifts = rng.choice(len(v), size=count, p=rho)
        yield shifted[shifts] + sigma * rng.standard_normal((count, len(v)))


def all_shifts(v: np.ndarray) -> np.ndarray:
    """
    :param v: Signals (..., n).
    :return: Their shifts (..., n, n): row s is v(· - s).
    """
    j = np.arange(v.shape[-1])
    return v[..., (j - j[:, None]) % len(j)]


def shift(signal: Array, by: Array | float) -> Array:
    """
    Shift by trigonometric interpolation; cos(πj), n even, becomes cos(π by) cos(πj).

    :param signal: Real signals (..., n), an array or a tensor.
    :param by: Shifts (...,), any real numbers of samples, of the same kind.
    :return: signal(· - by), (..., n).
    """
    if not isinstance(signal, torch.Tensor):
        by = torch.as_tensor(by, dtype=torch.float64)
        return shift(torch.as_tensor(signal), by).numpy()
    n = signal.shape[-1]
    k = torch.arange(n // 2 + 1, device=signal.device)
    phase = torch.exp(-2j * np.pi / n * by[..., None] * k)
    return torch.fft.irfft(torch.fft.rfft(signal) * phase, n)


def check_pair(v: np.ndarray, rho: np.ndarray) -> Arrays:
    """
    :param v: Signals (..., n).
    :param rho: Probabilities of shifts (..., n).
    :return: Both as float64.
    :raises ValueError: shapes that differ, NaN or infinity, ρ is no distribution.
    """
    v, rho = np.asarray(v, np.float64), np.asarray(rho, np.float64)
    if v.ndim == 0 or v.shape != rho.shape:
        raise ValueError(f"v and rho have different shapes {v.shape} and {rho.shape}")
    if not np.isfinite((v, rho)).all():
        raise ValueError("v or rho has values that are NaN or infinite")
    if rho.min() < 0 or not np.allclose(rho.sum(-1), 1, atol=1e-8):
        found = f"a least value of {rho.min():.3g} and sums of {rho.sum(-1).min():.6g}"
        raise ValueError(f"rho has {found}; it must be 0 or more and sum to one")
    return v, rho
