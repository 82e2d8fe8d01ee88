"""Interrupted, damaged and shared-out passes over images give the whole or say why."""

import errno
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from aspire.operators import CTFFilter, ScalarFilter
from aspire.source import RelionSource
from hypothesis import given, settings
from hypothesis import strategies as st

from aspire_mom import processes
from aspire_mom.moments import (
    MomentEstimator,
    PolarBasis,
    ThirdMomentBasis,
    discard_checkpoint,
)
from aspire_mom.moments import checkpoint as checkpoint_module
from aspire_mom.moments.streaming import accumulate
from tests.moments.sources import array_source, noise_images, simulation

N, BATCH = 103, 10
IMAGES = noise_images(N, 6)


class Killed(Exception):
    """Stands for a SIGKILL."""


def image_slice(start, stop):
    return IMAGES[start:stop]


def sums_of(images, start):
    pixels = images.reshape(len(images), -1)
    return {
        "gram": pixels.T @ pixels,
        "transform": np.fft.fft2(images).sum(0).astype(np.complex64),
        "count": np.array(len(images)),
    }


def average(path=None, *, kill_before=None, images=IMAGES, read=None, **options):
    """
    :return: Sums, and the starts of the batches that were read.
    """
    starts = []

    def read_images(start, stop):
        starts.append(start)
        return images[start:stop]

    def computed(batch, start):
        if start == kill_before:
            raise Killed
        return sums_of(batch, start)

    options = {"every": 0, "checkpoint": path} | options
    batch_size = options.pop("batch_size", BATCH)
    sums = accumulate(len(images), batch_size, read or read_images, computed, **options)
    return sums, starts


def assert_same(sums, expected):
    assert len(sums) == len(expected)
    for group, of_expected in zip(sums, expected, strict=True):
        assert group.keys() == of_expected.keys()
        for name, value in group.items():
            assert value.dtype == of_expected[name].dtype
            np.testing.assert_array_equal(value, of_expected[name])


def no_thread_is_left():
    return not any(t.name.startswith("read-images") for t in threading.enumerate())


@pytest.mark.parametrize("n_groups", [1, 2, 3, 20])
def test_sums_of_groups(n_groups):
    sums, starts = average(n_groups=n_groups)
    assert starts == list(range(0, N, BATCH))
    assert len(sums) == n_groups
    for group, found in enumerate(sums):
        own = [j for j in range(N) if j // BATCH % n_groups == group]
        pixels = IMAGES[own].reshape(len(own), 36).astype(float)
        assert found["count"] == len(own)
        assert found["gram"].dtype == np.float64
        assert found["transform"].dtype == np.complex128
        np.testing.assert_allclose(found["gram"], pixels.T @ pixels, atol=1e-4)
        expected = np.fft.fft2(IMAGES[own].astype(float)).sum(0)
        np.testing.assert_allclose(found["transform"], expected, atol=1e-4)


def test_float32_products_stay_accurate_at_ten_million_images():
    """The products of 512 images in float32 over and over, 20,000 times in double:
    the error is one batch's, and not that of 10⁷ numbers added in float32."""
    images = noise_images(512, 4) + 3
    exact = sums_of(images.astype(float), 0)["gram"] * 20_000
    batch = sums_of(images, 0)
    [sums] = accumulate(
        20_000 * 512, 512, lambda start, stop: images, lambda images, start: batch
    )
    error = np.abs(sums["gram"] - exact).max() / np.abs(exact).max()
    assert error < 1e-6
    one_by_one = np.float32(0)
    for _ in range(20_000):
        one_by_one += batch["gram"][0, 0]
    assert abs(one_by_one / exact[0, 0] - 1) > 1e-5


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

    def computed(images, start):
        now[0] += 1
        return sums_of(images, start)

    path = tmp_path / "sums"
    accumulate(N, BATCH, image_slice, computed, checkpoint=path, every=3.5)
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


@pytest.mark.parametrize("error", [Killed("a lens fell off"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["reading", "computing"])
def test_errors_surface_as_themselves_and_leave_no_thread(error, where):
    def read(start, stop):
        if where == "reading" and start == 50:
            raise error
        return IMAGES[start:stop]

    def computed(images, start):
        if where == "computing" and start == 50:
            raise error
        return sums_of(images, start)

    with pytest.raises(type(error)) as raised:
        accumulate(N, BATCH, read, computed)
    assert raised.value is error
    assert no_thread_is_left()


def test_a_batch_is_read_while_the_one_before_is_computed():
    """And no more than that."""
    reads = []
    computing = threading.Event()

    def read(start, stop):
        if start == BATCH:
            assert computing.wait(10)
        reads.append(start)
        return IMAGES[start:stop]

    def computed(images, start):
        computing.set()
        deadline = time.monotonic() + 10
        while len(reads) < min(start // BATCH + 2, 11) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(reads) == min(start // BATCH + 2, 11)
        return sums_of(images, start)

    accumulate(N, BATCH, read, computed)


@pytest.mark.parametrize("change", [{"n": 0}, {"batch_size": 0}, {"n_groups": 1.5}])
def test_wrong_numbers_are_named(change):
    [(name, value)] = change.items()
    numbers = {"n": 5, "batch_size": 2, "n_groups": 1} | change
    n, batch_size = numbers.pop("n"), numbers.pop("batch_size")
    with pytest.raises(ValueError, match=rf"{name} is {value}; it must be an integer"):
        accumulate(n, batch_size, None, None, **numbers)


# Processes that torchrun starts take seconds to import PyTorch and ASPIRE.


@pytest.mark.slow
def test_processes_of_torchrun():
    """The same moments as one, each its share of the images, and no orphan writes."""
    script = Path(__file__).parents[2] / "benchmarks" / "streaming.py"
    words = [sys.executable, str(script), "processes", "--images=2048", "--counts"]
    environment = {k: v for k, v in os.environ.items() if k != "WORLD_SIZE"}
    printed = subprocess.run(
        [*words, "2", "4"], check=True, capture_output=True, text=True, env=environment
    ).stdout
    assert "whole batches [4, 4]" in printed
    assert "whole batches [2, 2, 2, 2]" in printed
    apart = re.findall(r"largest entry: (\S+) (\S+) (\S+) (\S+) \(", printed)
    assert len(apart) == 2, printed
    assert max(float(a) for line in apart for a in line) < 1e-6, printed
    assert float(re.search(r"wrote for (\S+) s", printed)[1]) < 2, printed


@pytest.mark.parametrize("count", [2, 4, 16])
def test_shares_of_processes_add_up(monkeypatch, count):
    """Of processes one after another, the last of 16 without any batch."""
    shares, expected = [], average()[0][0]["gram"]
    monkeypatch.setattr(processes, "n_processes", lambda: count)
    monkeypatch.setattr(processes, "_started", lambda: True)
    monkeypatch.setattr(processes, "from_first", lambda shapes: {})
    for rank in range(count):
        monkeypatch.setattr(processes.dist, "get_rank", lambda rank=rank: rank)
        shares.append(average())
    assert [s for _, starts in shares for s in starts] == list(range(0, N, BATCH))
    total = sum(sums[0]["gram"] for sums, _ in shares if sums[0])
    np.testing.assert_allclose(total, expected, atol=1e-10)


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
    monkeypatch.setattr(processes, "_parent", 1)
    monkeypatch.setattr(processes, "n_processes", lambda: 1)
    monkeypatch.setattr(processes, "rank", lambda: 0)
    monkeypatch.setattr(processes, "own_rows", lambda n: slice(0, n))
    monkeypatch.setattr(processes, "is_first", lambda: True)
    with pytest.raises(ConnectionError, match="torchrun, .* has ended"):
        average(tmp_path / "sums")
    assert not list(tmp_path.iterdir())


# MomentEstimator


def estimate(source, path, **options):
    options = {"checkpoint": path, "checkpoint_seconds": 0, "batch_size": 16} | options
    return MomentEstimator(source, PolarBasis(source.L), **options).estimate()


def test_estimates_resume(tmp_path):
    source = simulation(12, n=60)
    expected = estimate(source, None)
    path = tmp_path / "sums"
    killed = simulation(12, n=60)
    read = killed._images

    def until_killed(indices):
        if len(indices) == 12:
            raise Killed
        return read(indices)

    killed._img_accessor.fun = until_killed
    with pytest.raises(Killed):
        estimate(killed, path)
    assert path.exists()
    read_again = []
    killed._img_accessor.fun = lambda i: read_again.append(len(i)) or read(i)
    found = estimate(killed, path)
    assert read_again == [16, 12]
    for name in ("first", "second", "first_error", "second_error"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.fixture
def stacks(tmp_path):
    """A STAR file of 30 images in three stacks, and a finished checkpoint of it."""
    star = tmp_path / "particles.star"
    simulation(12, n=30).save(star, batch_size=10)
    estimate(RelionSource(star), tmp_path / "sums")
    return star


def test_stacks_that_changed_are_noticed(stacks):
    star, path = stacks, stacks.with_name("sums")
    estimate(RelionSource(star), path)
    stack = sorted(star.parent.glob("*.mrcs"))[1]
    data, times = stack.read_bytes(), (stack.stat().st_atime, stack.stat().st_mtime)
    stack.write_bytes(data)
    with pytest.raises(ValueError, match=r"other images or settings \(stacks: 3, "):
        estimate(RelionSource(star), path)
    os.utime(stack, times)
    lines = star.read_text().splitlines()
    rows = [i for i, line in enumerate(lines) if "@" in line]
    lines[rows[3]], lines[rows[4]] = lines[rows[4]], lines[rows[3]]
    star.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"\((images in stacks|pixels of 16 images): "):
        estimate(RelionSource(star), path)
    star.write_text("\n".join(lines[:-5]) + "\n")
    with pytest.raises(ValueError, match=r"\(images: 30 then, 25 now\)"):
        estimate(RelionSource(star), path)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda s: s[:20], "images"),
        (lambda s: s.downsample(8), "basis"),
        (lambda s: s.normalize_background(), "pixels of 16 images"),
        (lambda s: s.whiten(), "pixels of 16 images"),
    ],
)
def test_sources_that_changed_are_noticed(tmp_path, change, name):
    source = simulation(12, n=30)
    estimate(source, tmp_path / "sums")
    estimate(simulation(12, n=30), tmp_path / "sums")
    with pytest.raises(ValueError, match=rf"other images or settings \({name}: "):
        estimate(change(source), tmp_path / "sums")


def test_sums_serve_what_they_do_not_depend_on(tmp_path):
    """Other shifts to be modelled, amplitudes and noise; not another way of reading."""
    offsets = np.random.default_rng(0).standard_normal((30, 2))
    source = simulation(12, n=30, offsets=offsets, unique_filters=[CTFFilter()])
    path = tmp_path / "sums"
    estimate(source, path)
    read_again = []
    read = source._images
    source._img_accessor.fun = lambda i: read_again.append(len(i)) or read(i)
    for serves in (
        {"shift_std": 1.5},
        {"shift_std": None},
        {"amplitude_std": 0.2},
        {"noise_variance": 0.1},
        {"noise_filter": ScalarFilter(dim=2, value=0.1)},
    ):
        found = estimate(source, path, **serves)
        assert found.shift_std == serves.get("shift_std", 0.0)
    # The few that are looked at, and never the rest.
    assert set(read_again) == {16}
    for other, name in (
        ({"ignore_shifts": True}, "known shifts"),
        ({"ignore_ctf": True}, "CTFs"),
        ({"phase_flipped": True}, "CTFs"),
        ({"third": ThirdMomentBasis.rings(PolarBasis(12), 2)}, "third"),
    ):
        with pytest.raises(ValueError, match=rf"images or settings \({name}: "):
            estimate(source, path, **other)


def test_arrays_that_changed_are_noticed(tmp_path):
    images = noise_images(30, 12)
    estimate(array_source(images), tmp_path / "sums")
    estimate(array_source(images.copy()), tmp_path / "sums")
    images[-1, 3, 3] += 1
    with pytest.raises(ValueError, match="pixels of 16 images"):
        estimate(array_source(images), tmp_path / "sums")
