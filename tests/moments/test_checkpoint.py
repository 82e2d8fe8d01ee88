"""Passes over images that were interrupted give the whole or say why not."""

import errno
import os
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aspire_mom import processes
from aspire_mom.moments import checkpoint as checkpoint_module
from aspire_mom.moments import discard_checkpoint
from aspire_mom.moments.streaming import accumulate
from tests.moments.streams import (
    BATCH,
    IMAGES,
    Killed,
    N,
    assert_same,
    average,
    image_slice,
    no_thread_is_left,
    sums_of,
)


@settings(max_examples=30)
@given(
    kills=st.lists(st.integers(0, (N - 1) // BATCH), max_size=4, unique=True),
    n_groups=st.integers(1, 2),
    every=st.sampled_from([0, 1e9]),
)
def test_resumed_is_unbroken(tmp_path_factory, kills, n_groups, every):
    path = tmp_path_factory.mktemp("sums") / "sums"
    expected, _ = average(n_groups=n_groups)
    for batch in sorted(kills):
        with pytest.raises(Killed):
            average(path, kill_before=batch * BATCH, n_groups=n_groups, every=every)
    sums, starts = average(path, n_groups=n_groups, every=every)
    assert_same(sums, expected)
    # Never repeats more than it has to.
    assert starts[0] == (max(kills, default=0) * BATCH if every == 0 else 0)
    sums, starts = average(path, n_groups=n_groups)
    assert_same(sums, expected)
    assert starts == []
    assert [f.name for f in path.parent.iterdir()] == ["sums"]


def test_checkpoints_are_written_at_intervals(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(
        checkpoint_module, "time", SimpleNamespace(monotonic=lambda: now[0])
    )
    written = []
    write = checkpoint_module.SumsCheckpoint.write

    def noted(self, following, sums):
        written.append(following)
        write(self, following, sums)

    monkeypatch.setattr(checkpoint_module.SumsCheckpoint, "write", noted)

    now_and_then = checkpoint_module.SumsCheckpoint.write_now_and_then

    def a_second_later(self, following, sums):
        now[0] += 1
        now_and_then(self, following, sums)

    monkeypatch.setattr(
        checkpoint_module.SumsCheckpoint, "write_now_and_then", a_second_later
    )
    path = tmp_path / "sums"
    accumulate(N, BATCH, image_slice, sums_of, checkpoint=path, every=3.5)
    assert written == [4, 8, 11]


@pytest.fixture
def interrupted(tmp_path):
    """The checkpoint of a run that was killed before its eighth batch."""
    path = tmp_path / "sums"
    with pytest.raises(Killed):
        average(path, kill_before=70, fingerprint={"pixel size": "2.0"})
    return path


def resume(path, **options):
    return average(path, **{"fingerprint": {"pixel size": "2.0"}} | options)


def test_half_written_and_damaged_files_are_refused(interrupted):
    whole = interrupted.read_bytes()
    rng = np.random.default_rng(0)
    for length in (0, 1, 31, 32, 33, 200, *rng.integers(0, len(whole), 20)):
        interrupted.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="sums is no checkpoint, or a damage"):
            resume(interrupted)
        assert interrupted.read_bytes() == whole[:length]
    for place in (0, len(whole) - 1, *rng.integers(0, len(whole), 40)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        interrupted.write_bytes(damaged)
        with pytest.raises(ValueError, match="remove it, or name another file"):
            resume(interrupted)
    for foreign in (b"data_\n", b"PK\x05\x06" + bytes(200), whole + b"\0"):
        interrupted.write_bytes(foreign)
        with pytest.raises(ValueError, match="no checkpoint, or a damaged one"):
            resume(interrupted)
    interrupted.write_bytes(whole)
    assert_same(resume(interrupted)[0], average()[0])


def test_a_file_left_half_written_beside_it_does_no_harm(interrupted):
    partial = interrupted.with_name("sums.4711.part")
    partial.write_bytes(b"half a ")
    sums, starts = resume(interrupted)
    assert starts[0] == 70
    assert_same(sums, average()[0])
    assert not partial.exists()
    only = interrupted.with_name("other.4711.part")
    only.write_bytes(interrupted.read_bytes()[:-1])
    assert resume(interrupted.with_name("other"))[1][0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": IMAGES[:90]}, r"\(images: 103 then, 90 now\)"),
        ({"batch_size": 20}, r"\(batch_size: 10 then, 20 now\)"),
        ({"n_groups": 2}, r"\(groups: 1 then, 2 now\)"),
        ({"fingerprint": {"pixel size": "3"}}, r"\(pixel size: 2.0 then, 3 now\)"),
        ({"fingerprint": {}}, r"\(pixel size: 2.0 then, None now\)"),
    ],
)
def test_checkpoints_of_something_else_are_refused(interrupted, change, message):
    before = interrupted.read_bytes()
    with pytest.raises(ValueError, match=message) as raised:
        resume(interrupted, **change)
    assert str(interrupted) in str(raised.value)
    assert interrupted.read_bytes() == before


def test_other_versions_are_refused(interrupted, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "FORMAT", "aspire_mom.Sums.2")
    with pytest.raises(ValueError, match="of another version of this program"):
        resume(interrupted)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        average(tmp_path / "nowhere" / "sums")


@pytest.mark.parametrize("allowed", [0, 100, 700])
def test_full_disk(interrupted, monkeypatch, allowed):
    """As a disk with room for a few bytes."""
    before = interrupted.read_bytes()

    class Full(checkpoint_module._Digesting):
        def write(self, data):
            if self.file.tell() + len(data) > allowed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    with monkeypatch.context() as full:
        full.setattr(checkpoint_module, "_Digesting", Full)
        with pytest.raises(OSError, match=r"No space left .* former one is whole"):
            resume(interrupted)
        fresh = interrupted.with_name("fresh")
        with pytest.raises(OSError, match=r"be written \(No space left on") as raised:
            resume(fresh)
        assert raised.value.errno == errno.ENOSPC
        assert raised.value.filename == str(fresh)
        assert "former" not in str(raised.value)
    assert [f.name for f in interrupted.parent.iterdir()] == ["sums"]
    assert interrupted.read_bytes() == before
    assert no_thread_is_left()
    assert_same(resume(interrupted)[0], average()[0])


def test_another_number_of_processes_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "sums"

    def run_as(rank, count):
        monkeypatch.setattr(processes, "n_processes", lambda: count)
        monkeypatch.setattr(processes, "rank", lambda: rank)
        average(path)

    run_as(0, 2)
    run_as(1, 2)
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "sums.0-of-2",
        "sums.1-of-2",
    ]
    for count in (1, 4):
        with pytest.raises(ValueError, match=rf"with 2 process\(es\).* has {count};"):
            run_as(0, count)
    discard_checkpoint(path)
    assert not list(tmp_path.iterdir())
    run_as(0, 1)
    with pytest.raises(ValueError, match=r"sums is .* 1 process\(es\).* has 4;"):
        run_as(3, 4)


def test_an_orphan_does_not_write(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_started", lambda: True)
    monkeypatch.setattr(processes, "_parent", -1)
    monkeypatch.setattr(processes, "n_processes", lambda: 1)
    monkeypatch.setattr(processes, "rank", lambda: 0)
    monkeypatch.setattr(processes, "own_rows", lambda n: slice(0, n))
    monkeypatch.setattr(processes, "is_first", lambda: True)
    with pytest.raises(ConnectionError, match="torchrun, .* has ended"):
        average(tmp_path / "sums")
    assert not list(tmp_path.iterdir())
