"""Threads of the libraries that multiply matrices."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from threading import Lock

# Libraries are found once they are loaded.
import numpy  # noqa: F401
import scipy.linalg  # noqa: F401
from threadpoolctl import OpenBLASController, ThreadpoolController


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """
    One thread for each matrix product, where products are too small for several, which
    would wait for one another, or where several threads make products already. The
    limit is one of the process and ends with the last of the contexts that are open, in
    whichever threads. A context or a decorator; it takes 20 µs.
    """
    global _n_open, _limit
    with _counting:
        if _n_open == 0:
            _limit = _blas().limit(limits=1)
        _n_open += 1
    try:
        yield
    finally:
        with _counting:
            _n_open -= 1
            if _n_open == 0:
                # Or only the thread that set the limit could end it.
                OpenBLASController.clear_controlling_thread(force=True)
                _limit.restore_original_limits()
                OpenBLASController.clear_controlling_thread()


def n_workers() -> int:
    """Cores that this process may use, or threads of BLAS where these are fewer."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    # Of several libraries, some are built without threads.
    pools = [pool["num_threads"] for pool in _blas().info()]
    return min(cores, max(pools, default=cores))


def made_once(make: Callable) -> Callable:
    """
    Remember the last two results, like `lru_cache`, which in several threads at a time
    would make the same one several times.

    :param make: A function of hashable arguments.
    :return: The same, remembered.
    """
    remembered, making = lru_cache(maxsize=2)(make), Lock()

    @wraps(make)
    def made(*arguments):
        with making:
            return remembered(*arguments)

    return made


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    """The BLAS libraries there are, looked up once, which takes a millisecond."""
    return ThreadpoolController().select(user_api="blas")


_counting = Lock()
_n_open, _limit = 0, None
