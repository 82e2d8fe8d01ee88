import numpy as np
import pytest
import torch

from aspire_mom.inversion import checkpoint as module
from aspire_mom.inversion.checkpoint import Checkpoint


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.ckpt"


def test_remembers_what_was_finished_and_begun(path):
    first = Checkpoint(path, "moments")
    assert first.finished("a") is None
    assert first.in_progress("a") is None
    first.finish("a", {"values": torch.arange(3), "loss": 0.5})
    first.progress("b", {"step": 20, "values": torch.ones(2)})
    assert not path.exists()  # written every 20 seconds
    first.write()
    again = Checkpoint(path, "moments")
    assert again.finished("a")["loss"] == 0.5
    assert again.finished("a")["values"].tolist() == [0, 1, 2]
    assert again.in_progress("b")["step"] == 20
    assert again.in_progress("a") is None
    assert again.finished("b") is None
    again.finish("b", {"loss": 0.1})
    assert again.in_progress("b") is None


def test_written_now_and_then_and_whole(path, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_WRITES", -1)
    kept = Checkpoint(path, "moments")
    for step in range(3):
        kept.progress("a", {"step": step})
        assert Checkpoint(path, "moments").in_progress("a")["step"] == step
    assert [file.name for file in path.parent.iterdir()] == ["run.ckpt"]


def test_without_a_file():
    kept = Checkpoint(None, "moments")
    kept.finish("a", {"loss": 1.0})
    kept.write()
    assert kept.finished("a") == {"loss": 1.0}


def test_refuses_another_fingerprint(path):
    kept = Checkpoint(path, "moments")
    kept.write()
    with pytest.raises(ValueError, match="other moments or settings"):
        Checkpoint(path, "others")


def test_refuses_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        Checkpoint(tmp_path / "nowhere" / "run.ckpt", "moments")


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "tensor", "other", "npz"])
def test_refuses_what_is_no_checkpoint(path, kind):
    Checkpoint(path, "moments").write()
    whole = path.read_bytes()
    if kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "other":
        torch.save({"fingerprint": "moments"}, path)
    elif kind == "npz":
        with open(path, "wb") as file:
            np.savez(file, fingerprint="moments")
    else:
        parts = {"empty": b"", "text": b"some text", "cut": whole[: len(whole) // 2]}
        path.write_bytes(parts[kind])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"run\.ckpt is no checkpoint"):
        Checkpoint(path, "moments")
    assert path.read_bytes() == before
