"""What NumPy and torch do alike, so that one code computes on the CPU and on GPUs."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch

Array = np.ndarray | torch.Tensor


def namespace(array: Array) -> ModuleType:
    """The module whose functions take an array, numpy or torch."""
    return np if isinstance(array, np.ndarray) else torch


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Zeros of an array's type, on its device."""
    if isinstance(like, np.ndarray):
        return np.zeros(shape, like.dtype)
    return like.new_zeros(shape)
