"""Checkpoints of long computations, and digests that tell what they are of."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Mapping
from glob import escape
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aspire_mom import processes
from aspire_mom.files import atomic, check_folder

logger = logging.getLogger(__name__)

# A checkpoint begins with this line and the SHA-256 digest of all that follows.
CHECKPOINT = b"aspire_mom.Checkpoint.1\n"
HEADER_SIZE = len(CHECKPOINT) + 32
PLAIN = bool | int | float | str
ANEW = "remove it, or name another file, to start anew"


class InvalidCheckpoint(ValueError):
    """A checkpoint that is damaged, or of other data, settings or processes."""


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
        check_folder(path)
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
            if self._writes:
                logger.info(f"Going on from {path}")

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
