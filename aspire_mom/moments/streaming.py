"""Sums over millions of images: one pass that can be interrupted and shared out."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
from aspire.utils import tqdm

from aspire_mom import processes
from aspire_mom.checks import check_integer
from aspire_mom.files import Checkpoint
from aspire_mom.threads import n_workers, one_blas_thread

Sums = dict[str, np.ndarray]


def accumulate(
    n: int,
    batch_size: int,
    read: Callable[[int, int], np.ndarray],
    sums_of: Callable[[np.ndarray, int], Sums],
    *,
    n_groups: int = 1,
    checkpoint: str | Path | None = None,
    fingerprint: dict[str, object] | None = None,
    every: float = 60.0,
    most_workers: int | None = None,
    desc: str = "Averaging images",
) -> list[Sums]:
    """
    Read images once, batch by batch, and add up what is computed of each batch.

    Each core that the process may use computes a batch, with one thread for its matrix
    products; OMP_NUM_THREADS, which limits those, limits cores likewise. One more batch
    is read meanwhile, so that as many batches as cores and one are in memory. Sums are
    added in double precision in the order of the batches: they are the same to the last
    bit with any number of cores, interrupted or not, where `sums_of` is. Under
    `torchrun` each process has a contiguous share of the batches, and all get the sums
    of all, the same with as many processes.

    :param n: Number of images, 1 or more.
    :param batch_size: Images per batch; the last may have fewer.
    :param read: Reads images start … stop - 1 as (stop - start, L, L); called in
        another thread, never twice at a time.
    :param sums_of: Sums over the images of a batch, by name, from the images and the
        number of the first; arrays of the same shapes and types for every batch. Called
        in several threads at a time.
    :param n_groups: Batch j counts in group j mod n_groups: 2 for half-sets.
    :param checkpoint: File that keeps the sums so far. Where it is there already, the
        pass goes on from it; at the end it has the whole result, until
        :func:`aspire_mom.files.discard_checkpoint` removes it.
    :param fingerprint: What identifies these images and sums, by name.
    :param every: Seconds between writings of the checkpoint. A resumed pass repeats
        what was added up since the last one, and the batches that were being computed.
    :param most_workers: Batches computed at once, at most.
    :param desc: What the progress bar says.
    :return: One dictionary of sums per group, float64 or complex128. Groups that no
        batch falls to have zeros.
    :raises ValueError: `n`, `batch_size` or `n_groups` is below 1.
    :raises ForeignCheckpoint: the checkpoint is damaged or of something else.
    :raises OSError: the checkpoint cannot be written; the former one is still there.
    """
    for name, value in (("n", n), ("batch_size", batch_size), ("n_groups", n_groups)):
        check_integer(name, value, 1)
    starts = range(0, n, batch_size)
    own = processes.own_rows(len(starts))
    settings = {"images": n, "batch_size": batch_size, "groups": n_groups}
    kept = Checkpoint(
        checkpoint, settings | (fingerprint or {}), every=every, each_process=True
    )
    first = kept.state.get("next", own.start)
    totals = {name: t.numpy() for name, t in kept.state.get("sums", {}).items()}
    batches = [
        (start, min(start + batch_size, n)) for start in starts[first : own.stop]
    ]
    workers = min(n_workers(), most_workers or math.inf)
    stream = _computed(read, sums_of, batches, workers)
    with one_blas_thread(), closing(stream):
        for number, parts in enumerate(_with_bar(stream, own, first, desc), first):
            _add(totals, parts, number % n_groups, n_groups)
            kept.state = {"next": number + 1, "sums": totals}
            kept.write_now_and_then()
    if batches:
        kept.write()
    _of_all_processes(totals)
    return [{name: t[group] for name, t in totals.items()} for group in range(n_groups)]


def _computed(
    read: Callable[[int, int], np.ndarray],
    sums_of: Callable[[np.ndarray, int], Sums],
    batches: list[tuple[int, int]],
    workers: int,
) -> Iterator[Sums]:
    """
    Sums over the batches in turn, some being computed and the next being read while one
    is in use. Errors are raised here, in turn; threads end with the generator.
    """

    def compute(images: list[Future], start: int) -> Sums:
        return sums_of(images.pop().result(), start)

    coming = deque()
    with (
        ThreadPoolExecutor(1, thread_name_prefix="read-images") as reader,
        ThreadPoolExecutor(workers, thread_name_prefix="sum-images") as computers,
    ):
        try:
            for start, stop in batches:
                images = [reader.submit(read, start, stop)]
                coming.append(computers.submit(compute, images, start))
                if len(coming) > workers:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for waiting in coming:
                waiting.cancel()
            reader.shutdown(wait=False, cancel_futures=True)


def _with_bar(
    stream: Iterator[Sums], own: slice, first: int, desc: str
) -> Iterable[Sums]:
    """The stream with a progress bar over this process's batches."""
    if not processes.is_first():
        return stream
    return tqdm(
        stream, desc=desc, total=own.stop - own.start, initial=first - own.start
    )


def _add(totals: Sums, parts: Sums, group: int, n_groups: int) -> None:
    """Add a batch's sums to its group's, in double precision: totals[name][group]."""
    for name, part in parts.items():
        if name not in totals:
            dtype = np.result_type(part, np.float64)
            totals[name] = np.zeros((n_groups, *np.shape(part)), dtype)
        totals[name][group] += part


def _of_all_processes(totals: Sums) -> None:
    """Make this process's totals those of all; it may have had no batch at all."""
    shapes = {name: (t.shape, t.dtype.str) for name, t in totals.items()}
    for name, (shape, dtype) in processes.from_first(shapes).items():
        processes.add_up(totals.setdefault(name, np.zeros(shape, dtype)))
