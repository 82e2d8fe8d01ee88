"""Checkpoints come back as they were, or are refused with a reason."""

import errno
import os

import numpy as np
import pytest
import torch

from aspire_mom import files, processes
from aspire_mom.checkpoints import (
    Checkpoint,
    InvalidCheckpoint,
    digest,
    discard_checkpoint,
)


def test_digests_tell_values_apart():
    network = torch.nn.Linear(2, 2)
    other = torch.nn.Linear(2, 2)
    values = [
        *(np.zeros(2), np.zeros(3), np.zeros((2, 1)), np.zeros(2, np.float32)),
        *(network, other, {"a": np.zeros(2)}, {"b": np.zeros(2)}, None, "None", 1, 1.0),
    ]
    assert len({digest(value) for value in values}) == len(values)
    assert digest(torch.zeros(2, dtype=torch.float64)) == digest(np.zeros(2))
    before = digest(network)
    network.eval()
    assert digest(network) == before
    network.limit = 3.0
    assert digest(network) != before


ORIGIN = {"moments": "a1", "seed": "0"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.ckpt"


@pytest.fixture
def kept(path):
    checkpoint = Checkpoint(path, ORIGIN)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    checkpoint.state = {
        "sums": {"x": np.arange(3) + 1j, "n": np.array(2.5)},
        "steps": [{"loss": 0.1, "values": torch.ones(2)}, (1, None)],
        "optimizer": optimizer.state_dict(),
    }
    return checkpoint


def test_state_comes_back(kept, path):
    assert not path.exists()
    kept.write_now_and_then()
    assert not path.exists()  # 20 seconds have not passed
    kept.write()
    state = Checkpoint(path, ORIGIN).state
    np.testing.assert_array_equal(state["sums"]["x"].numpy(), np.arange(3) + 1j)
    assert state["sums"]["n"].numpy() == 2.5
    assert state["steps"][0]["values"].tolist() == [1, 1]
    assert state["steps"][1] == (1, None)
    assert state["optimizer"] == kept.state["optimizer"]
    discard_checkpoint(path)
    assert Checkpoint(path, ORIGIN).state == {}


def test_written_now_and_then_and_whole(path):
    kept = Checkpoint(path, ORIGIN, every=0)
    path.with_name("run.ckpt.4711.part").write_bytes(b"half a ")
    for step in range(3):
        kept.state = {"step": step}
        kept.write_now_and_then()
        assert Checkpoint(path, ORIGIN).state == {"step": step}
    assert [file.name for file in path.parent.iterdir()] == ["run.ckpt"]


def test_without_a_file():
    kept = Checkpoint(None, ORIGIN, every=0)
    kept.state = {"loss": 1.0}
    kept.write()
    kept.write_now_and_then()
    assert kept.state == {"loss": 1.0}


def test_refuses_another_fingerprint(kept, path):
    kept.write()
    with pytest.raises(InvalidCheckpoint, match=r"\(seed: 0 then, 1 now\)"):
        Checkpoint(path, {**ORIGIN, "seed": "1"})
    with pytest.raises(InvalidCheckpoint, match=r"\(moments: a1 then, None now\)"):
        Checkpoint(path, {"seed": "0"})
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        Checkpoint(path.parent / "nowhere" / "run.ckpt", ORIGIN)


def test_refuses_what_is_no_checkpoint(kept, path):
    kept.write()
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    wrong = [b"", b"some text", whole + b"\0", whole[24:]]
    wrong += [whole[:length] for length in rng.integers(0, len(whole), 20)]
    for place in rng.integers(0, len(whole), 40):
        wrong.append(bytearray(whole))
        wrong[-1][place] ^= 1 << rng.integers(8)
    for contents in wrong:
        path.write_bytes(contents)
        with pytest.raises(InvalidCheckpoint, match=r"run\.ckpt is no checkpoint"):
            Checkpoint(path, ORIGIN)
        assert path.read_bytes() == contents


def test_full_disk(kept, path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept.write()
    before = path.read_bytes()
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left .* former one is whole"):
        kept.write()
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["run.ckpt"]
    path.unlink()
    with pytest.raises(OSError, match=r"be written \(No space left on") as raised:
        kept.write()
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(path)
    assert "former" not in str(raised.value)


def test_several_processes(path, monkeypatch):
    def of(rank, count, each_process=True):
        monkeypatch.setattr(processes, "n_processes", lambda: count)
        monkeypatch.setattr(processes, "rank", lambda: rank)
        monkeypatch.setattr(processes, "is_first", lambda: rank == 0)
        return Checkpoint(path, ORIGIN, each_process=each_process)

    of(1, 2, each_process=False).write()
    assert not path.exists()
    of(0, 2, each_process=False).write()
    assert path.exists()
    discard_checkpoint(path)
    for rank in range(2):
        of(rank, 2).write()
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["run.ckpt.0-of-2", "run.ckpt.1-of-2"]
    for count in (1, 4):
        with pytest.raises(
            InvalidCheckpoint, match=rf"with 2 process\(es\).* has {count};"
        ):
            of(0, count)
    discard_checkpoint(path)
    assert not list(path.parent.iterdir())


def test_an_orphan_does_not_write(kept, path, monkeypatch):
    monkeypatch.setattr(processes, "_started", lambda: True)
    monkeypatch.setattr(processes, "_parent", -1)
    with pytest.raises(ConnectionError, match="torchrun, .* has ended"):
        kept.write()
    assert not path.exists()
