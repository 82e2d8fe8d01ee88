"""Read and write files: whole or not at all, without pickle."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import nn

from aspire_mom.checks import check_new

NETWORK = "aspire_mom.Network.1"
Network = TypeVar("Network", bound=nn.Module)


def check_folder(path: Path) -> None:
    """
    :param path: A file to write.
    :raises FileNotFoundError: Its folder does not exist.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder to write to")


@contextmanager
def atomic(path: str | Path, mode: str = "wb") -> Iterator[Any]:
    """
    Write a file whole or not at all: under another name, then rename it.

    :param path: File to write or to replace.
    :param mode: "wb", or "w" for text.
    :yield: The open file.
    """
    path = Path(path)
    check_folder(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(partial, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.filename in (None, str(partial)):
            _raise_named(error, path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def _raise_named(error: OSError, path: Path) -> NoReturn:
    """Raise an error with a file's name. Those of a full disk come without."""
    reason = error.strerror or str(error)
    raise OSError(error.errno or errno.EIO, reason, str(path)) from error


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """
    Write files together: they move to a folder at the end, or vanish after an error.

    :param folder: The folder, made if it does not exist.
    :yield: A temporary folder on the same file system.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial-", dir=folder) as name:
        partial = Path(name)
        try:
            yield partial
            for path in sorted(partial.iterdir()):
                os.replace(path, folder / path.name)
        except OSError as error:
            # An error without a name is of the file that was written last.
            written = sorted(partial.iterdir(), key=os.path.getmtime)
            path = Path(error.filename or [partial, *written][-1])
            if path.is_relative_to(partial):
                _raise_named(error, folder.absolute() / path.relative_to(partial))
            raise


def write_json(path: Path, report: dict) -> None:
    """
    :param path: File to write.
    :param report: Plain numbers, strings, lists and dictionaries.
    """
    with atomic(path, "w") as file:
        file.write(json.dumps(report, indent=2) + "\n")


def save_arrays(
    path: str | Path,
    format: str,
    arrays: Mapping[str, np.ndarray | None],
    settings: Mapping | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """
    :param path: File to write, its name ending in .npz.
    :param format: Kind and version of the contents, such as "aspire_mom.Moments.3".
    :param arrays: Arrays by name; those that are None are left out.
    :param settings: Values that JSON can hold, by name.
    :param overwrite: Replace an existing file.
    :raises ValueError: the name does not end in .npz.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: the file's name must end in .npz")
    check_new(path, overwrite)
    contents: dict[str, Any] = {k: v for k, v in arrays.items() if v is not None}
    text = json.dumps(dict(settings or {}))
    with atomic(path) as file:
        np.savez(file, format=format, settings=text, **contents)


def load_arrays(path: str | Path, format: str) -> tuple[dict[str, np.ndarray], dict]:
    """
    :param path: What :func:`save_arrays` wrote.
    :param format: Kind and version of the contents.
    :return: Arrays by name, and settings by name.
    :raises ValueError: the file is damaged, or holds something else.
    """
    arrays = load_npz(path)
    with contents_of(path):
        found = str(arrays.pop("format", "unknown contents"))
        if found != format:
            raise ValueError(f"it holds {found}, and {format} is wanted")
        return arrays, json.loads(str(arrays.pop("settings", "{}")))


def load_npz(path: str | Path) -> dict[str, np.ndarray]:
    """
    :param path: An .npz file.
    :return: Its arrays by name, read without pickle.
    :raises FileNotFoundError: the file does not exist.
    :raises ValueError: the file is damaged, or no .npz file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    # np.load would leave a damaged file open.
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except Exception as error:  # damaged files raise errors of many classes
            raise ValueError(f"{path} is damaged, or is not an .npz file") from error


@contextmanager
def contents_of(path: str | Path) -> Iterator[None]:
    """
    Turn errors about a file's contents into a `ValueError` that names the file.

    :param path: The file.
    :yield: Nothing.
    :raises ValueError: the contents are incomplete or do not fit together.
    """
    try:
        yield
    except LookupError as error:
        raise ValueError(f"{path} lacks {error}") from error
    except (ArithmeticError, AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is damaged or incomplete") from error
    except (EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def save_network(
    path: str | Path,
    network: nn.Module,
    kind: str,
    settings: dict,
    training_info: dict | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """
    Write a network's parameters and buffers to one .npz file: matrices and kernels as
    float16, other real numbers as float32, the rest as they are.

    :param path: File to write, its name ending in .npz.
    :param network: The network.
    :param kind: Name of the network's class, by which :func:`load_network` finds it.
    :param settings: Arguments of its class, values that JSON can hold.
    :param training_info: How it was trained, values that JSON can hold.
    :param overwrite: Replace an existing file.
    """
    arrays = {}
    for name, tensor in network.state_dict().items():
        value = tensor.detach().cpu().numpy()
        if value.dtype.kind == "f":
            value = value.astype(np.float16 if value.ndim > 1 else np.float32)
        arrays[name] = value
    about = {"kind": kind, "settings": settings, "how": training_info or {}}
    save_arrays(path, NETWORK, arrays, about, overwrite=overwrite)


def load_network(path: str | Path, kinds: Mapping[str, type[Network]]) -> Network:
    """
    :param path: What :func:`save_network` wrote.
    :param kinds: Accepted classes, by kind.
    :return: The network, float32, in evaluation mode, with `training_info`.
    :raises ValueError: the file is damaged, or holds something else.
    """
    arrays, about = load_arrays(path, NETWORK)
    with contents_of(path):
        kind, wanted = about["kind"], " or ".join(map(repr, kinds))
        if kind not in kinds:
            raise ValueError(f"it holds a {kind!r} network, and {wanted} is wanted")
        network = kinds[kind](**about["settings"])
        network.load_state_dict({k: torch.as_tensor(v) for k, v in arrays.items()})
        network.training_info = about["how"]  # type: ignore[assignment]
        return network.eval()
