"""Sums over the images read so far, in a file that is whole or not taken for one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np

from aspire_mom import processes

FORMAT = "aspire_mom.Sums.1"
AFRESH = "remove it, or name another file, to start afresh"

Sums = dict[str, np.ndarray]


class SumsCheckpoint:
    """
    What one process has added up so far, and the number of the next batch.

    A line of JSON, the arrays as `np.save` writes them, and a SHA-256 digest of all
    that comes before it. The file is written under another name beside it and moves
    into place when it is on the disk, so that at every instant it is the former one or
    the new one; of several processes each has its own, `name.RANK-of-COUNT`.

    :param path: The file, or None to keep nothing.
    :param settings: What the sums depend on, by name; a checkpoint where any of these
        is another is refused.
    :param every: Seconds from one writing to the next.
    :raises FileNotFoundError: no such folder to write to.
    :raises ValueError: the file is damaged, or of other images, settings or another
        number of processes.
    """

    def __init__(self, path: str | Path | None, settings: dict[str, str], every: float):
        self.path, self.settings, self.every = None, settings, every
        self.last_write = time.monotonic()
        if path is None:
            return
        path, count = Path(path), processes.n_processes()
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent}: no such folder to write to")
        for found, processes_of_found in _files(path).items():
            if processes_of_found != count:
                raise ValueError(
                    f"{found} is a checkpoint of a run with {processes_of_found}"
                    f" process(es), and this one has {count}; {AFRESH}"
                )
        name = f"{path.name}.{processes.rank()}-of-{count}" if count > 1 else path.name
        self.path = path.with_name(name)
        # A process of a killed run that is about to move one of these into place
        # cannot any more.
        for partial in _partials(self.path):
            partial.unlink(missing_ok=True)

    def read(self) -> tuple[int, Sums] | None:
        """
        :return: Number of the next batch and the sums up to it; None where there is no
            file.
        :raises ValueError: as the class has it.
        """
        if self.path is None or not self.path.exists():
            return None
        with open(self.path, "rb") as file:
            if not _is_whole(file):
                raise ValueError(
                    f"{self.path} is no checkpoint, or a damaged one; {AFRESH}"
                )
            header = json.loads(file.readline())
            if header["format"] != FORMAT:
                raise ValueError(
                    f"{self.path} is a checkpoint of another version of this program;"
                    f" {AFRESH}"
                )
            self._check_settings(header["settings"])
            sums = {name: np.load(file) for name in header["sums"]}
        return header["next"], sums

    def write_now_and_then(self, following: int, sums: Sums) -> None:
        """:meth:`write`, if the last time is long enough ago."""
        if self.path is not None and time.monotonic() - self.last_write >= self.every:
            self.write(following, sums)

    def write(self, following: int, sums: Sums) -> None:
        """
        :param following: Number of the next batch.
        :param sums: Sums up to it.
        :raises OSError: the file cannot be written; the former one is still there.
        """
        if self.path is None:
            return
        processes.check_parent()
        header = {
            "format": FORMAT,
            "settings": self.settings,
            "next": following,
            "sums": list(sums),
        }
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            with open(partial, "wb") as file:
                digesting = _Digesting(file)
                digesting.write(json.dumps(header).encode() + b"\n")
                for array in sums.values():
                    np.save(digesting, array)
                file.write(digesting.digest.digest())
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)
            _flush_folder(self.path.parent)
        except OSError as error:
            reason = f"the checkpoint could not be written ({error.strerror or error})"
            if self.path.exists():
                reason += "; the former one is whole and can be resumed from"
            raise OSError(error.errno, reason, str(self.path)) from error
        finally:
            partial.unlink(missing_ok=True)
        self.last_write = time.monotonic()

    def _check_settings(self, found: dict[str, str]) -> None:
        for name in found | self.settings:
            before, now = found.get(name), self.settings.get(name)
            if before != now:
                raise ValueError(
                    f"{self.path} is a checkpoint of other images or settings"
                    f" ({name}: {before} then, {now} now); {AFRESH}"
                )


def discard_checkpoint(path: str | Path) -> None:
    """
    Remove a checkpoint, of however many processes, once the result is safe.

    :param path: As :func:`~aspire_mom.moments.streaming.accumulate` was given it.
    """
    for file in _files(Path(path)):
        file.unlink(missing_ok=True)


def _files(path: Path) -> dict[Path, int]:
    """The files of a checkpoint that are there, and of how many processes each is."""
    pattern = re.compile(re.escape(path.name) + r"\.\d+-of-(\d+)")
    found = {path: 1} if path.exists() else {}
    for file in path.parent.iterdir():
        if match := pattern.fullmatch(file.name):
            found[file] = int(match[1])
    return found


def _partials(path: Path) -> list[Path]:
    pattern = re.compile(re.escape(path.name) + r"\.\d+\.part")
    return [file for file in path.parent.iterdir() if pattern.fullmatch(file.name)]


def _is_whole(file: BinaryIO) -> bool:
    """Whether a file ends in the digest of the rest; leaves it at its beginning."""
    digest = hashlib.sha256()
    left = os.fstat(file.fileno()).st_size - digest.digest_size
    while left > 0:
        block = file.read(min(left, 1 << 20))
        if not block:
            return False
        digest.update(block)
        left -= len(block)
    whole = left == 0 and file.read() == digest.digest()
    file.seek(0)
    return whole


class _Digesting:
    """A file that is written and digested in one go."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)


def _flush_folder(folder: Path) -> None:
    """Have the folder's entries on the disk, where the system can be asked for it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
