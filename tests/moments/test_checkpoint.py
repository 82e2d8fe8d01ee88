"""Passes over images that were interrupted give the whole or say why not."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aspire_mom import checkpoints
from aspire_mom.checkpoints import Checkpoint, InvalidCheckpoint
from aspire_mom.moments.streaming import accumulate
from tests.moments.streams import (
    BATCH,
    IMAGES,
    Killed,
    N,
    assert_same,
    average,
    image_slice,
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
    """After every batch if it is time, and at the end."""
    written, now = [], [0]

    def a_second_later():
        now[0] += 1
        return now[0] / 2

    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=a_second_later))
    write = Checkpoint.write

    def noted(self):
        written.append(self.state["next"])
        write(self)

    monkeypatch.setattr(Checkpoint, "write", noted)
    path = tmp_path / "sums"
    accumulate(N, BATCH, image_slice, sums_of, checkpoint=path, every=2)
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


def test_damaged_files_are_refused(interrupted):
    whole = interrupted.read_bytes()
    rng = np.random.default_rng(0)
    for place in (0, len(whole) - 1, *rng.integers(0, len(whole), 20)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        for content in (bytes(damaged), whole[:place]):
            interrupted.write_bytes(content)
            with pytest.raises(InvalidCheckpoint, match="sums is no checkpoint, or a"):
                resume(interrupted)
            assert interrupted.read_bytes() == content
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
