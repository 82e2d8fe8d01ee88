"""Weights of trained encoders: plain arrays in one .npz file, without pickle."""

from __future__ import annotations

import copy
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path

from aspire_mom.files import load_network, save_network
from aspire_mom.networks.start_encoder import StartEncoder

KINDS = {"StartEncoder": StartEncoder}
SHIPPED = "start.npz"


def save_weights(
    encoder: StartEncoder, path: str | Path, how: dict | None = None, **options
) -> None:
    """
    Write an encoder.

    :param encoder: The encoder.
    :param path: File to write (.npz).
    :param how: How it was trained, of what JSON can hold.
    :param options: `overwrite`, as :func:`~aspire_mom.files.save_network` has it.
    """
    save_network(path, encoder, "StartEncoder", encoder.settings, how, **options)


def load_weights(path: str | Path) -> StartEncoder:
    """
    :param path: A file that :func:`save_weights` has written.
    :return: The encoder, float32, for evaluation.
    :raises FileNotFoundError: no such file.
    :raises ValueError: the file is damaged or of another kind.
    """
    return load_network(path, KINDS)[0]


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
        return load_network(path, KINDS)[1]
