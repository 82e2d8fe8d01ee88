"""Processes that torchrun starts; each takes seconds to import PyTorch and ASPIRE."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aspire_mom import processes

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "processes.py"


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_loss_and_gradients_are_those_of_one_process(count):
    """In both bases; in single precision up to rounding."""
    environment = {k: v for k, v in os.environ.items() if k != "WORLD_SIZE"}
    words = [sys.executable, str(SCRIPT), f"--counts={count}", "--L=11"]
    printed = subprocess.run(
        words, check=True, capture_output=True, text=True, env=environment
    ).stdout
    number = r"([-+.e\d]+)"
    line = rf"float(32|64), .*one process {number}, of gradients {number}"
    found = re.findall(line, printed)
    assert len(found) == 4, printed
    for bits, loss, gradients in found:
        tolerance = {"32": 1e-6, "64": 1e-8}[bits]
        assert max(float(loss), float(gradients)) < tolerance, printed


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
