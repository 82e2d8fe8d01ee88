"""
Share work among the processes that `torchrun` has started, if any. In an inversion each
evaluates the volume at its share of the quadrature's nodes and sends the values to all
others; in a search for a grid each fits its share of the starts. In an average over
images each reads its share, and sums are added at the end.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

# Process number of the parent at the time of :func:`joined`.
_parent: int | None = None


def n_processes() -> int:
    """:return: Number of processes that share the work."""
    return dist.get_world_size() if _started() else 1


def rank() -> int:
    """:return: Number of this process, from 0."""
    return dist.get_rank() if _started() else 0


def is_first() -> bool:
    """:return: Whether this is the process that writes files and reports."""
    return rank() == 0


@contextmanager
def joined(device: str | torch.device) -> Iterator[None]:
    """
    Join the processes that `torchrun` has started, if any, while the context lasts.
    Open it around `MomentInversion(…).estimate()`; then write results where
    :func:`is_first` is true.

    :param device: Device of the tensors that are exchanged.
    :yield: Nothing.
    """
    if _started() or "WORLD_SIZE" not in os.environ:
        yield
        return
    global _parent
    _parent = os.getppid()
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """
    :param device: Name of a device; "cuda" stands for all GPUs of a machine.
    :return: The same, or for "cuda" this process's GPU, as `torchrun` numbers them.
    """
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device


def wait() -> None:
    """Wait until all processes have reached this call."""
    if _started():
        dist.barrier()


def check_parent() -> None:
    """
    Stop a process whose run was killed, before it overwrites files of a new run.

    :raises ConnectionError: `torchrun`, which started this process, has ended.
    """
    if _started() and _parent not in (None, os.getppid()):
        raise ConnectionError("torchrun, which started this process, has ended")


def local_rows(n: int) -> slice:
    """
    :param n: Number of rows of an array that all processes compute together.
    :return: The rows that this process computes.
    """
    each = math.ceil(n / n_processes())
    return slice(*(min(i * each, n) for i in (rank(), rank() + 1)))


def all_gather_rows(rows: Tensor, n: int) -> Tensor:
    """
    :param rows: Values at :func:`local_rows`, (own, ...), real or complex.
    :param n: Rows of all processes together.
    :return: Values at all rows (n, ...). The gradient reaches a process's own rows
        only: every process must compute the same loss from the result.
    """
    return _Gathered.apply(rows, n) if _started() else rows


def combine_gradients(
    split: Iterable[torch.nn.Parameter], same: Iterable[torch.nn.Parameter]
) -> None:
    """
    Combine gradients, so that all processes have those of the full loss.

    :param split: Parameters whose gradients cover a process's own rows: summed.
    :param same: Parameters of which each process has the full gradient: averaged.
    """
    if not _started():
        return
    for parameters, divisor in ((split, 1), (same, n_processes())):
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            flat = torch.cat([g.reshape(-1) for g in gradients])
            dist.all_reduce(flat)
            flat /= divisor
            parts = flat.split([g.numel() for g in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def all_reduce_sum(array: np.ndarray) -> None:
    """
    Replace an array by its sum over all processes, reproducibly.

    :param array: Real or complex numbers, of one shape and type; changed in place.
    """
    if _started():
        tensor = torch.from_numpy(array)
        dist.all_reduce(torch.view_as_real(tensor) if tensor.is_complex() else tensor)


def broadcast_object(value: Any) -> Any:
    """
    :param value: Anything small that can be pickled.
    :return: The first process's value, so that all processes decide alike.
    """
    if not _started():
        return value
    values = [value]
    dist.broadcast_object_list(values, 0, device=torch.device("cpu"))
    return values[0]


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, n: int) -> Tensor:
        ctx.rows = local_rows(n)
        each = math.ceil(n / n_processes())
        real = torch.view_as_real(rows) if rows.is_complex() else rows
        own = real.new_zeros((each, *real.shape[1:]))
        own[: len(real)] = real
        parts = [torch.empty_like(own) for _ in range(n_processes())]
        dist.all_gather(parts, own)
        whole = torch.cat(parts)[:n]
        return torch.view_as_complex(whole) if rows.is_complex() else whole

    @staticmethod
    def backward(ctx, by: Tensor) -> tuple[Tensor, None]:
        return by[ctx.rows].contiguous(), None


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()
