"""Read and write files: whole or not at all, without pickle."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from aspire_mom import processes
from aspire_mom.checks import check_new

NETWORK = "aspire_mom.Network.1"
# A checkpoint begins with this line and the SHA-256 digest of all that follows.
CHECKPOINT = b"aspire_mom.Checkpoint.1\n"
HEADER_SIZE = len(CHECKPOINT) + 32
PLAIN = bool | int | float | str
Network = TypeVar("Network", bound=nn.Module)
ANEW = "remove it, or name another file, to start anew"


class InvalidCheckpoint(ValueError):
    """A checkpoint that is damaged, or of other data, settings or processes."""


def _check_folder(path: Path) -> None:
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
    _check_folder(path)
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


def digest(*values: object) -> str:
    """
    :param values: Arrays, tensors, models (of which tensors and plain attributes
        count), lists and dictionaries of these, or objects whose `repr` is complete.
    :return: A short text that differs where a value, shape or type does.
    """
    sha = hashlib.sha256()
    for value in values:
        _add_to_digest(sha, value)
    return sha.hexdigest()[:16]


def _add_to_digest(sha, value: object) -> None:
    if isinstance(value, nn.Module):
        for name, module in value.named_modules():
            plain = {k: v for k, v in vars(module).items() if isinstance(v, PLAIN)}
            plain.pop("training", None)
            _add_to_digest(sha, (name, sorted(plain.items())))
        value = value.state_dict()
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        sha.update(f"{len(value)} ".encode())
        for part in value:
            _add_to_digest(sha, part)
    elif isinstance(value, np.ndarray):
        sha.update(f"{value.dtype}{value.shape}".encode())
        sha.update(np.ascontiguousarray(value).tobytes())
    else:
        sha.update(repr(value).encode() + b"\n")


class Checkpoint:
    """
    State of a long computation in one file, from which a killed run can go on.

    The attribute `state`, empty at first, holds nested dictionaries, lists and tuples
    of numbers, texts, arrays and tensors. Arrays come back as tensors, all on the CPU.

    :param path: The file, or None to keep nothing on disk.
    :param fingerprint: Texts by name; a checkpoint with any other text is refused.
    :param every: Seconds from one writing to the next.
    :param each_process: Each of several processes keeps a file of its own,
        `name.RANK-of-COUNT`; otherwise the first process writes for all.
    :raises InvalidCheckpoint: the file is damaged, or of other data or processes.
    """

    def __init__(
        self,
        path: str | Path | None,
        fingerprint: Mapping[str, str],
        *,
        every: float = 20.0,
        each_process: bool = False,
    ):
        self.path: Path | None = None
        self.state: dict = {}
        self.fingerprint, self.every = dict(fingerprint), every
        self._last_write = time.monotonic()
        self._writes = each_process or processes.is_first()
        if path is None:
            return
        path, count = Path(path), processes.n_processes() if each_process else 1
        _check_folder(path)
        for found, count_of_found in _checkpoint_files(path).items():
            if count_of_found != count:
                raise InvalidCheckpoint(
                    f"{found} is a checkpoint of a run with {count_of_found}"
                    f" process(es), and this one has {count}; {ANEW}"
                )
        if count > 1:
            path = path.with_name(f"{path.name}.{processes.rank()}-of-{count}")
        self.path = path
        if self._writes:
            # A process of a killed run could rename its file over this run's.
            for partial in path.parent.glob(f"{escape(path.name)}.*.part"):
                partial.unlink(missing_ok=True)
        if path.exists():
            self.state = self._read(path)

    def write(self) -> None:
        """
        Write the state at once.

        :raises OSError: the file cannot be written; the former one is still there.
        """
        if self.path is None or not self._writes:
            return
        processes.check_parent()
        contents = {"fingerprint": self.fingerprint, "state": _tensors(self.state)}
        try:
            with atomic(self.path, "w+b") as file:
                file.write(CHECKPOINT.ljust(HEADER_SIZE))
                torch.save(contents, file)
                sha = _sha256_of_contents(file)
                file.seek(len(CHECKPOINT))
                file.write(sha)
        except (OSError, RuntimeError) as error:
            # torch raises an error of its own while it handles that of the disk.
            error = error if isinstance(error, OSError) else error.__context__
            if not isinstance(error, OSError):
                raise
            reason = f"the checkpoint could not be written ({error.strerror or error})"
            if self.path.exists():
                reason += "; the former one is whole and can be resumed from"
            raise OSError(error.errno, reason, str(self.path)) from error
        self._last_write = time.monotonic()

    def write_now_and_then(self) -> None:
        """Write the state if the last time is at least `every` seconds ago."""
        if time.monotonic() - self._last_write >= self.every:
            self.write()

    def _read(self, path: Path) -> dict:
        with open(path, "rb") as file:
            if file.read(HEADER_SIZE) != CHECKPOINT + _sha256_of_contents(file):
                raise InvalidCheckpoint(
                    f"{path} is no checkpoint, or a damaged one, or of another"
                    f" version of aspire_mom; {ANEW}"
                )
            file.seek(HEADER_SIZE)
            # `weights_only`, so that a file cannot run code.
            contents = torch.load(file, map_location="cpu", weights_only=True)
        before, now = contents["fingerprint"], self.fingerprint
        for name in before | now:
            if before.get(name) != now.get(name):
                raise InvalidCheckpoint(
                    f"{path} is a checkpoint of other data or settings ({name}:"
                    f" {before.get(name)} then, {now.get(name)} now); {ANEW}"
                )
        return contents["state"]


def discard_checkpoint(path: str | Path) -> None:
    """:param path: A checkpoint to remove, with the files of all its processes."""
    for file in _checkpoint_files(Path(path)):
        file.unlink(missing_ok=True)


def _checkpoint_files(path: Path) -> dict[Path, int]:
    """Existing files of a checkpoint, each with its run's number of processes."""
    pattern = re.compile(re.escape(path.name) + r"\.\d+-of-(\d+)")
    matches = {file: pattern.fullmatch(file.name) for file in path.parent.iterdir()}
    found = {file: int(match[1]) for file, match in matches.items() if match}
    return found | ({path: 1} if path.exists() else {})


def _sha256_of_contents(file) -> bytes:
    file.seek(HEADER_SIZE)
    sha = hashlib.sha256()
    while part := file.read(2**20):
        sha.update(part)
    return sha.digest()


def _tensors(value: object) -> object:
    """Replace arrays, also nested ones, by tensors that share their memory."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.asarray(value, order="C"))
    if isinstance(value, dict):
        return {name: _tensors(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_tensors, value))
    return value
