"""What a long inversion has done so far, kept in one file."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path

import torch

from aspire_mom.inversion.processes import is_first

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
