"""What trainings of networks share, in one dimension and in three."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

SETTINGS = "settings"
# Steps in which the learning rate rises, or a tenth of all.
WARM_UP = 200
# What a file may raise that is damaged or of another kind, read or made a network of.
UNREADABLE = (
    *(OSError, ValueError, TypeError, AttributeError, LookupError, EOFError),
    *(RuntimeError, zipfile.BadZipFile),
)


def warm_cosine(step: int, n_steps: int) -> float:
    """
    :param step: Steps done.
    :param n_steps: Steps in all.
    :return: Factor of the learning rate: a linear rise, then half a cosine to 0.
    """
    warm = min(1.0, (step + 1) / min(WARM_UP, n_steps / 10))
    return warm * 0.5 * (1 + math.cos(math.pi * step / n_steps))


def write_weights(path: str | Path, network: nn.Module, settings: dict) -> None:
    """
    Write a network to one .npz file without pickle: matrices and kernels as float16,
    other real numbers as float32, the rest as they are, and settings beside them.

    :param path: File to write.
    :param network: The network.
    :param settings: Of what JSON can hold.
    """
    arrays = {SETTINGS: np.array(json.dumps(settings))}
    for name, value in network.state_dict().items():
        value = value.detach().cpu().numpy()
        if value.dtype.kind == "f":
            value = value.astype(np.float16 if value.ndim > 1 else np.float32)
        arrays[name] = value
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_weights(path: str | Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """
    :param path: A file that :func:`write_weights` has written.
    :return: Settings, and a state to load into a network.
    :raises FileNotFoundError: no such file.
    :raises Exception: one of `UNREADABLE`, the file is damaged or of another kind.
    """
    # Opened here, since np.load leaves damaged files open.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    settings = json.loads(str(arrays.pop(SETTINGS)))
    return settings, {name: torch.as_tensor(value) for name, value in arrays.items()}
