"""Where a refinement stands between two iterations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# Share of the views' probability that is uniform.
UNIFORM_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class State:
    """
    Where a refinement stands between two iterations.

    :param halves: Volumes of both halves that the next iteration starts from, after
        momentum, each (n, n, n), smoothed where there is nothing but noise.
    :param before: The same without momentum.
    :param densities: Probabilities of the coarse views (2, n_views).
    :param noises: Variance of the noise at a Fourier pixel (2, rings of the basis).
    :param signal: Variance of the volume's Fourier values / L on shells 0, 1, … (rings
        of the last iteration,).
    :param n_rings: Rings to use next.
    :param n_images: Images to use next.
    :param history: One dict per iteration.
    """

    halves: np.ndarray
    before: np.ndarray
    densities: np.ndarray
    noises: np.ndarray
    signal: np.ndarray
    n_rings: int
    n_images: int
    history: list[dict]

    @classmethod
    def stored(cls, fields: dict) -> State:
        """
        :param fields: The fields as a checkpoint has them, arrays as tensors.
        :return: The state.
        """
        plain: dict[str, Any] = {
            name: value.numpy() if torch.is_tensor(value) else value
            for name, value in fields.items()
        }
        return cls(**plain)


def with_uniform_share(density: np.ndarray) -> np.ndarray:
    """
    :param density: Probabilities of views (n,), up to a factor.
    :return: The density of sum 1, a tenth of it uniform, so that no view is left out.
    """
    uniform = UNIFORM_SHARE / len(density)
    return (1 - UNIFORM_SHARE) * density / density.sum() + uniform
