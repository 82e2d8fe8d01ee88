"""What a long inversion has done so far, kept in one file."""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from pathlib import Path

import numpy as np
import torch

from aspire_mom.processes import is_first

SECONDS_BETWEEN_WRITES = 20
# What torch.load raises on files that it did not write, or not to the end.
UNREADABLE = (RuntimeError, ValueError, LookupError, EOFError, pickle.PickleError)


class ForeignCheckpoint(ValueError):
    """A checkpoint that cannot be resumed: of other moments or settings, or damaged."""


class Checkpoint:
    """
    Finished stages by name, and the stage in progress. Written whole or not at all, and
    read with `weights_only`, so that a file cannot run code.

    :param path: File to keep, or None to keep nothing on disk.
    :param fingerprint: Identifies the moments and settings.
    :raises FileNotFoundError: no such folder to write to.
    :raises ForeignCheckpoint: the file belongs to other moments or settings, or is
        damaged.
    """

    def __init__(self, path: str | Path | None, fingerprint: str):
        self.path = None if path is None else Path(path)
        self.state = {"fingerprint": fingerprint, "finished": {}, "current": {}}
        self.last_write = time.monotonic()
        if self.path is None:
            return
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{self.path.parent}: no such folder to write to")
        if not self.path.exists():
            return
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except UNREADABLE as error:
            raise ForeignCheckpoint(
                f"{path} is no checkpoint, or a damaged one"
            ) from error
        if not isinstance(state, dict) or state.keys() != self.state.keys():
            raise ForeignCheckpoint(f"{path} is no checkpoint of an inversion")
        if state["fingerprint"] != fingerprint:
            raise ForeignCheckpoint(
                f"{path} is a checkpoint of other moments or settings"
            )
        self.state = state

    def finished(self, stage: str) -> dict | None:
        """What :meth:`finish` was given for a stage, or None."""
        return self.state["finished"].get(stage)

    def in_progress(self, stage: str) -> dict | None:
        """What :meth:`progress` was last given for a stage, or None."""
        current = self.state["current"]
        return current if current.get("stage") == stage else None

    def finish(self, stage: str, result: dict) -> None:
        """Record a finished stage."""
        self.state["finished"][stage] = result
        self.state["current"] = {}
        self._write_now_and_then()

    def progress(self, stage: str, state: dict) -> None:
        """Record how far the present stage has come."""
        self.state["current"] = {"stage": stage, **state}
        self._write_now_and_then()

    def write(self) -> None:
        """Write to disk at once, if this is the process that writes."""
        if self.path is None or not is_first():
            return
        partial = self.path.with_name(self.path.name + ".part")
        torch.save(self.state, partial)
        os.replace(partial, self.path)
        self.last_write = time.monotonic()

    def _write_now_and_then(self) -> None:
        if time.monotonic() - self.last_write > SECONDS_BETWEEN_WRITES:
            self.write()


def fingerprint(
    settings: dict, arrays: list[np.ndarray | None], models: list[torch.nn.Module]
) -> str:
    """
    :param settings: Options.
    :param arrays: Data; None where there are none.
    :param models: Models that the work starts from: their tensors, and what else tells
        them apart, such as limits.
    :return: A digest that is another one where any of these is another one.
    """
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    arrays = [np.zeros(0) if array is None else array for array in arrays]
    for model in models:
        arrays += [t.cpu().numpy() for t in model.state_dict().values()]
        for name, module in model.named_modules():
            plain = {
                key: value
                for key, value in vars(module).items()
                if isinstance(value, bool | int | float | str) and key != "training"
            }
            digest.update(repr((name, sorted(plain.items()))).encode())
    for array in arrays:
        digest.update(repr(np.shape(array)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
