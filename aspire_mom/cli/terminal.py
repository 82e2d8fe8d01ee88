"""What surrounds a command: standard streams, which may be closed or full, and signals
to stop."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Stream(io.FileIO):
    """Standard output or standard error, of bytes, without a buffer. What cannot be
    written to standard error is lost; standard output says that it failed."""

    def write(self, data) -> int:
        rest = memoryview(data).cast("B")
        try:
            while rest:
                rest = rest[super().write(rest) or 0 :]
        except OSError as error:
            if self.fileno() == 1:
                reason = error.strerror
                raise OSError(error.errno, reason, "standard output") from error
        return len(data)


def open_standard_streams() -> None:
    """
    Replace standard streams that are closed by /dev/null, so that no file gets their
    numbers, and let messages that cannot be written be no errors. Streams that tests or
    callers have put in their place stay.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(2)
        logging.raiseExceptions = False
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(1)


def _text(number: int) -> io.TextIOWrapper:
    before = (sys.__stdin__, sys.__stdout__, sys.__stderr__)[number]
    return io.TextIOWrapper(
        _Stream(number, "w", closefd=False),  # type: ignore[arg-type]
        encoding=before.encoding if before else None,
        errors="backslashreplace",
        write_through=True,
    )


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """
    While the context lasts, let SIGTERM and SIGHUP do what Ctrl-C does, as schedulers
    and terminals that close send them, so that what was begun is cleaned up.

    :yield: Nothing.
    """
    replaced = []
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
                replaced.append(number)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)
