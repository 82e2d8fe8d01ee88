"""Weights of trained encoders: plain arrays in one .npz file, without pickle."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.resources import as_file, files
from pathlib import Path

from torch import nn

from aspire_mom.mra.encoder import MarchingEncoder, PaperEncoder
from aspire_mom.mra.mixture_encoder import MixtureEncoder
from aspire_mom.networks.files import UNREADABLE, read_weights, write_weights

KINDS = {
    "marching": MarchingEncoder,
    "mixture": MixtureEncoder,
    "paper": PaperEncoder,
}
PRETRAINED = ("marching", "mixture", "paper-1", "paper-2", "paper-3")


def save_weights(encoder: nn.Module, path: str | Path, how: dict | None = None) -> None:
    """
    Write an encoder: matrices and kernels as float16, the rest as float32, and beside
    them what is needed to make the encoder again.

    :param encoder: An encoder of this package.
    :param path: File to write (.npz).
    :param how: How it was trained, of what JSON can hold.
    """
    kind = next(name for name, cls in KINDS.items() if type(encoder) is cls)
    settings = {"kind": kind, **encoder.settings, "how": how or {}}
    write_weights(path, encoder, settings)


def load_weights(path: str | Path) -> nn.Module:
    """
    :param path: A file that :func:`save_weights` has written.
    :return: The encoder, float32, for evaluation.
    :raises FileNotFoundError: no such file.
    :raises ValueError: the file is damaged or of another kind.
    """
    try:
        settings, state = read_weights(path)
        settings.pop("how")
        encoder = KINDS[settings.pop("kind")](**settings)
        encoder.load_state_dict(state)
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(f"{path} holds no weights of an encoder") from error
    return encoder.eval()


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
        return read_weights(path)[0]["how"]


def _shipped(name: str) -> AbstractContextManager[Path]:
    if name not in PRETRAINED:
        names = ", ".join(f'"{known}"' for known in PRETRAINED)
        raise ValueError(f"name is {name!r}; it must be one of {names}")
    return as_file(files("aspire_mom.mra") / "data" / f"{name}.npz")
