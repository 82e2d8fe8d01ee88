"""Processes that torchrun starts; each takes seconds to import PyTorch and ASPIRE."""

import os
import subprocess
import sys

import pytest
import torch

from aspire_mom import processes
from benchmarks import processes as benchmark


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_results_are_those_of_one_process(count, tmp_path):
    """Loss and gradients in both bases, and the search for a grid, in which one of four
    processes has no start; in single precision up to rounding, which grows in the fits
    to averages."""
    path, L = tmp_path / "found.pt", 11
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words += [f"--nproc-per-node={count}", benchmark.__file__, f"--L={L}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*words, f"--save={path}"], check=True, env=environment)
    found = torch.load(path, weights_only=True)
    (losses, volumes), _ = found.pop("grid")
    one, _ = benchmark.grid(L)
    assert benchmark.relative([losses], one[:1]) < 1e-4
    assert benchmark.relative([volumes[1:]], [one[1][1:]]) < 1e-4
    assert benchmark.relative([volumes[:1]], [one[1][:1]]) < 3e-3  # from averages
    assert len(found) == 4
    for kind, (values, _) in found.items():
        basis, dtype = kind.split()
        one, _ = benchmark.loss_and_gradients(basis, L, getattr(torch, dtype))
        tolerance = {"float32": 1e-6, "float64": 1e-8}[dtype]
        assert benchmark.relative(values[:1], one[:1]) < tolerance
        assert benchmark.relative(values[1:], one[1:]) < tolerance


def test_rows_are_shared_out_without_gap_or_overlap(monkeypatch):
    for n, count in ((10, 3), (2, 4), (0, 2), (12, 4)):
        monkeypatch.setattr(processes, "_started", lambda: True)
        monkeypatch.setattr(processes, "n_processes", lambda count=count: count)
        rows = []
        for rank in range(count):
            monkeypatch.setattr(processes.dist, "get_rank", lambda rank=rank: rank)
            rows += range(n)[processes.local_rows(n)]
        assert rows == list(range(n))


def test_one_process_does_nothing():
    values = torch.ones(3, requires_grad=True)
    assert processes.local_rows(3) == slice(0, 3)
    assert processes.all_gather_rows(values, 3) is values
    assert processes.broadcast_object(values) is values
    assert processes.n_processes() == 1
    assert processes.is_first()
    with processes.joined(torch.device("cpu")):
        assert processes.n_processes() == 1
