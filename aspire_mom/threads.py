"""Threads of the libraries that multiply matrices."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from threading import Event, Lock, Thread

# threadpoolctl finds only libraries that are loaded.
import numpy  # noqa: F401
import scipy.linalg  # noqa: F401
from threadpoolctl import ThreadpoolController


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """
    Limit BLAS to one thread, as a context or a decorator: for small products, or where
    several threads compute products. The limit holds for the whole process, from the
    first context that opens to the last that closes, in whichever threads.

    :yield: Nothing.
    """
    global _limit
    with _counting:
        if not _limit.contexts:
            _limit = _Limit()
            _limit.start()
            _limit.begun.wait()
        _limit.contexts += 1
    try:
        yield
    finally:
        with _counting:
            _limit.contexts -= 1
            if not _limit.contexts:
                _limit.end.set()
                _limit.join()


def n_workers() -> int:
    """:return: Cores that this process may use, or BLAS threads if these are fewer."""
    linux = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    # Of several libraries, some are built without threads.
    pools = [pool["num_threads"] for pool in _blas().info()]
    return min(cores, max(pools, default=cores))


def locked_lru_cache(make: Callable) -> Callable:
    """
    :param make: A function of hashable arguments.
    :return: It in `lru_cache(maxsize=2)`, locked: no result is computed twice at once.
    """
    remembered, making = lru_cache(maxsize=2)(make), Lock()

    @wraps(make)
    def made(*arguments):
        with making:
            return remembered(*arguments)

    return made


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


class _Limit(Thread):
    """
    A thread that sets the limit and ends it. OpenBLAS accepts the end of a limit only
    from the thread that set it, and contexts may open and close in different threads.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.contexts, self.begun, self.end = 0, Event(), Event()

    def run(self) -> None:
        with _blas().limit(limits=1):
            self.begun.set()
            self.end.wait()


_counting, _limit = Lock(), _Limit()
