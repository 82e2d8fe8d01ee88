"""Encoders on disk, and those that come with the package."""

from pathlib import Path

from torch import nn

from aspire_mom.checks import check_choice
from aspire_mom.files import load_network, save_network
from aspire_mom.mra.mixture_encoder import MixtureEncoder
from aspire_mom.mra.paper_encoder import PaperEncoder

DATA = Path(__file__).with_name("data")
KINDS = {"mixture": MixtureEncoder, "paper": PaperEncoder}
SHIPPED = "mixture", "paper-1", "paper-2", "paper-3"


def save_weights(
    encoder: nn.Module, path: str | Path, training_info: dict | None = None, **options
) -> None:
    """
    :param encoder: An encoder of this package.
    :param path: File to write (.npz).
    :param training_info: How it was trained, values that JSON can hold.
    :param options: `overwrite`, as for :func:`~aspire_mom.files.save_network`.
    """
    kind = next(name for name, cls in KINDS.items() if type(encoder) is cls)
    save_network(path, encoder, kind, encoder.settings, training_info, **options)


def load_weights(path: str | Path) -> nn.Module:
    """
    :param path: A file that :func:`save_weights` has written.
    :return: The encoder, float32, for evaluation, with the attribute `training_info`.
    :raises FileNotFoundError: no such file.
    :raises ValueError: the file is damaged or of another kind.
    """
    return load_network(path, KINDS)


def pretrained(name: str = "mixture") -> nn.Module:
    """
    :param name: An encoder that comes with the package: "mixture", for k = 1, 2, 3
        Gaussians and all noise levels, or "paper-1", "paper-2", "paper-3", the paper's,
        each for one k and exact moments of n = 41 samples.
    :return: The encoder, as :func:`load_weights` returns it. Its `training_info` has
        the command that made it, all settings, and the best validation loss.
    :raises ValueError: no such encoder comes with the package.
    """
    check_choice("name", name, SHIPPED)
    return load_weights(DATA / f"{name}.npz")
