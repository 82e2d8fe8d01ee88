"""Weights of trained encoders: plain arrays in one .npz file, without pickle."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.resources import as_file, files
from pathlib import Path

from torch import nn

from aspire_mom.files import load_network, save_network
from aspire_mom.mra.encoder import MarchingEncoder, PaperEncoder
from aspire_mom.mra.mixture_encoder import MixtureEncoder

KINDS = {
    "marching": MarchingEncoder,
    "mixture": MixtureEncoder,
    "paper": PaperEncoder,
}
PRETRAINED = ("marching", "mixture", "paper-1", "paper-2", "paper-3")


def save_weights(
    encoder: nn.Module, path: str | Path, how: dict | None = None, **options
) -> None:
    """
    Write an encoder.

    :param encoder: An encoder of this package.
    :param path: File to write (.npz).
    :param how: How it was trained, of what JSON can hold.
    :param options: `overwrite`, as :func:`~aspire_mom.files.save_network` has it.
    """
    kind = next(name for name, cls in KINDS.items() if type(encoder) is cls)
    save_network(path, encoder, kind, encoder.settings, how, **options)


def load_weights(path: str | Path) -> nn.Module:
    """
    :param path: A file that :func:`save_weights` has written.
    :return: The encoder, float32, for evaluation.
    :raises FileNotFoundError: no such file.
    :raises ValueError: the file is damaged or of another kind.
    """
    return load_network(path, KINDS)[0]


def pretrained(name: str = "marching") -> nn.Module:
    """
    Encoders that come with the package, trained for signals of the reference family,
    n = 41 (see the documentation for how).

    :param name: "marching" or "mixture", one for k = 1, 2, 3 Gaussians and all noise
        levels, or "paper-1", "paper-2", "paper-3", the paper's, each for one k and
        exact moments.
    :return: The encoder, float32, for evaluation.
    :raises ValueError: another name.
    """
    with _shipped(name) as path:
        return load_weights(path)


def how_trained(name: str) -> dict:
    """
    :param name: As for :func:`pretrained`.
    :return: The command that made its weights, all settings of the training, its steps
        and the best validation loss.
    :raises ValueError: another name.
    """
    with _shipped(name) as path:
        return load_network(path, KINDS)[1]


def _shipped(name: str) -> AbstractContextManager[Path]:
    if name not in PRETRAINED:
        names = ", ".join(f'"{known}"' for known in PRETRAINED)
        raise ValueError(f"name is {name!r}; it must be one of {names}")
    return as_file(files("aspire_mom.mra") / "data" / f"{name}.npz")
