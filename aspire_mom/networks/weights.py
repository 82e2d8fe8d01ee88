"""Weights of trained encoders: plain arrays in one .npz file, without pickle."""

from __future__ import annotations

import copy
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path

from aspire_mom.networks.files import UNREADABLE, read_weights, write_weights
from aspire_mom.networks.start_encoder import StartEncoder

FORMAT = "aspire_mom.StartEncoder.1"
SHIPPED = "start.npz"


def save_weights(
    encoder: StartEncoder, path: str | Path, how: dict | None = None
) -> None:
    """
    Write an encoder: matrices as float16, vectors as float32, and beside them what is
    needed to make the encoder again.

    :param encoder: The encoder.
    :param path: File to write (.npz).
    :param how: How it was trained, of what JSON can hold.
    """
    settings = {"format": FORMAT, "encoder": encoder.settings, "how": how or {}}
    write_weights(path, encoder, settings)


def load_weights(path: str | Path) -> StartEncoder:
    """
    :param path: A file that :func:`save_weights` has written.
    :return: The encoder, float32, for evaluation.
    :raises FileNotFoundError: no such file.
    :raises ValueError: the file is damaged or of another kind.
    """
    try:
        settings, state = read_weights(path)
        if settings["format"] != FORMAT:
            raise ValueError(f"its format is {settings['format']!r}")
        encoder = StartEncoder(**settings["encoder"])
        encoder.load_state_dict(state)
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(f"{path} holds no weights of a StartEncoder") from error
    return encoder.eval()


def pretrained() -> StartEncoder:
    """
    Load the encoder that comes with the package.

    :return: A new encoder, float32, for evaluation.
    """
    return copy.deepcopy(shipped())


@lru_cache(maxsize=1)
def shipped() -> StartEncoder:
    """:func:`pretrained`, read once: one object, which is not to be changed."""
    with as_file(files("aspire_mom.networks") / "data" / SHIPPED) as path:
        return load_weights(path)


def how_trained() -> dict:
    """
    :return: The command that made the weights of :func:`pretrained`, all settings of
        the training, its steps and the best validation loss.
    """
    with as_file(files("aspire_mom.networks") / "data" / SHIPPED) as path:
        return read_weights(path)[0]["how"]
