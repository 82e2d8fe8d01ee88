"""Sums over millions of images: one pass that can be interrupted and shared out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np
from aspire.utils import tqdm

from aspire_mom import processes
from aspire_mom.checkpoints import Checkpoint
from aspire_mom.threads import n_workers, one_blas_thread

Sums = dict[str, np.ndarray]
Batch = TypeVar("Batch")


def accumulate(
    n: int,
    batch_size: int,
    read: Callable[[int, int], Batch],
    sums_of: Callable[[Batch, int], Sums],
    *,
    n_groups: int = 1,
    checkpoint: str | Path | None = None,
    fingerprint: dict[str, object] | None = None,
    every: float = 60.0,
    most_workers: int | None = None,
) -> list[Sums]:
    """
    Read images once, batch by batch, and add up what is computed of each batch.

    Each core computes one batch at a time while another thread reads the next one.
    Sums are added in double precision in the order of the batches, so that they depend
    neither on the number of cores nor on interruptions. Under `torchrun` each process
    has a contiguous share of the batches, and all get the sums of all.

    :param n: Number of images, 1 or more.
    :param batch_size: Images per batch; the last may have fewer.
    :param read: Reads images start … stop - 1, in a thread.
    :param sums_of: Sums over a batch, by name, from its images and the number of the
        first; of the same shapes and types for every batch. Called in several threads.
    :param n_groups: Batch j counts in group j mod n_groups: 2 for half-sets.
    :param checkpoint: File that keeps the sums, from which the next pass goes on.
    :param fingerprint: What identifies these images and sums, by name.
    :param every: Seconds between writings of the checkpoint.
    :param most_workers: Batches computed at once, at most.
    :return: Sums of each group, float64 or complex128; zeros if it has no batch.
    :raises InvalidCheckpoint: the checkpoint is damaged or of something else.
    :raises OSError: the checkpoint cannot be written; the former one is still there.
    """
    starts = range(0, n, batch_size)
    own = processes.local_rows(len(starts))
    settings: dict = {"images": n, "batch_size": batch_size, "groups": n_groups}
    settings |= fingerprint or {}
    kept = Checkpoint(checkpoint, settings, every=every, each_process=True)
    first = kept.state.get("next", own.start)
    totals = {name: t.numpy() for name, t in kept.state.get("sums", {}).items()}
    batches = [(i, min(i + batch_size, n)) for i in starts[first : own.stop]]
    workers = min(n_workers(), most_workers or n)
    stream = _computed(read, sums_of, batches, workers)
    with one_blas_thread(), closing(stream):
        bar = tqdm(
            stream,
            desc="Averaging images",
            total=own.stop - own.start,
            initial=first - own.start,
            disable=not processes.is_first(),
        )
        for number, parts in enumerate(bar, first):
            for name, part in parts.items():
                if name not in totals:
                    dtype = np.result_type(part, np.float64)
                    totals[name] = np.zeros((n_groups, *np.shape(part)), dtype)
                totals[name][number % n_groups] += part
            kept.state = {"next": number + 1, "sums": totals}
            kept.write_now_and_then()
    if batches:
        kept.write()
    # Add up the totals of all processes, some of which may have had no batch.
    shapes = {name: (t.shape, t.dtype.str) for name, t in totals.items()}
    for name, (shape, dtype) in processes.broadcast_object(shapes).items():
        processes.all_reduce_sum(totals.setdefault(name, np.zeros(shape, dtype)))
    return [{name: t[group] for name, t in totals.items()} for group in range(n_groups)]


def _computed(
    read: Callable[[int, int], Batch],
    sums_of: Callable[[Batch, int], Sums],
    batches: list[tuple[int, int]],
    workers: int,
) -> Iterator[Sums]:
    """Yield the sums of each batch in order, while threads compute later batches and
    read the next one. Errors are raised in order; threads end with the generator."""

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
