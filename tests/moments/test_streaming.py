"""Sums over images, by several threads or processes, are those of the images."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from aspire.operators import CTFFilter
from threadpoolctl import threadpool_info, threadpool_limits

from aspire_mom import processes
from aspire_mom.bases import CartesianBasis, PolarBasis
from aspire_mom.moments import MomentEstimator, StreamingOptions, streaming
from aspire_mom.moments.streaming import accumulate
from aspire_mom.threads import one_blas_thread
from tests.moments.sources import noise_images, simulation
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


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_sums_are_the_same_with_any_number_of_cores(monkeypatch, workers):
    """To the last bit, whichever batch is done first."""
    expected, _ = average(n_groups=2)
    pauses = np.random.default_rng(workers).uniform(0, 0.01, N)

    def computed(images, start):
        time.sleep(pauses[start])
        return sums_of(images, start)

    monkeypatch.setattr(streaming, "n_workers", lambda: workers)
    assert_same(accumulate(N, BATCH, image_slice, computed, n_groups=2), expected)
    assert no_thread_is_left()


def test_batches_are_computed_at_once(monkeypatch):
    """Each with one thread for its products, and read one at a time."""
    together, reading = threading.Barrier(3, timeout=20), threading.Lock()

    def read(start, stop):
        assert reading.acquire(blocking=False)
        time.sleep(0.001)
        reading.release()
        return IMAGES[start:stop]

    def computed(images, start):
        assert {pool["num_threads"] for pool in blas()} == {1}
        if start < 9 * BATCH:
            together.wait()
        return sums_of(images, start)

    def blas():
        return [pool for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = blas()
    monkeypatch.setattr(streaming, "n_workers", lambda: 3)
    accumulate(N, BATCH, read, computed)
    assert blas() == before


def test_fewer_threads_of_blas_mean_fewer_batches():
    threads = max(
        p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"
    )
    assert streaming.n_workers() == min(threads, len(os.sched_getaffinity(0)))
    with threadpool_limits(1, "blas"):
        assert streaming.n_workers() == 1


def test_one_batch_at_a_time_if_wanted(monkeypatch):
    """On a machine of many cores, for a GPU's sake."""
    computing = threading.Lock()

    def computed(images, start):
        assert computing.acquire(blocking=False)
        time.sleep(0.002)
        computing.release()
        return sums_of(images, start)

    monkeypatch.setattr(streaming, "n_workers", lambda: 8)
    assert_same(
        accumulate(N, BATCH, image_slice, computed, most_workers=1), average()[0]
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_one_more_batch_is_read_than_computed(monkeypatch, workers):
    """While the first is computed, all others being done, and no more than that."""
    reads = []

    def read(start, stop):
        reads.append(start)
        return IMAGES[start:stop]

    def computed(images, start):
        deadline = time.monotonic() + 10
        while start == 0 and len(reads) <= workers and time.monotonic() < deadline:
            time.sleep(0.001)
        if start == 0:
            time.sleep(0.05)
            assert len(reads) == workers + 1
        return sums_of(images, start)

    monkeypatch.setattr(streaming, "n_workers", lambda: workers)
    accumulate(N, BATCH, read, computed)
    assert len(reads) == 11


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


def test_the_limit_of_threads_ends_with_an_error_in_adding_up(monkeypatch):
    """While other batches, which limit threads themselves, are being computed."""

    def full(kept):
        raise OSError("disk full")

    @one_blas_thread()
    def computed(images, start):
        time.sleep(0.02 if start else 0)
        return sums_of(images, start)

    before = threadpool_info()
    monkeypatch.setattr(streaming, "n_workers", lambda: 3)
    monkeypatch.setattr(streaming.Checkpoint, "write_now_and_then", full)
    with pytest.raises(OSError, match="disk full"):
        accumulate(N, BATCH, image_slice, computed)
    assert threadpool_info() == before
    assert no_thread_is_left()


@pytest.mark.parametrize("basis", [PolarBasis(16), CartesianBasis(16)])
@pytest.mark.parametrize("astigmatism", [0, 4000])
def test_moments_are_the_same_with_any_number_of_cores(monkeypatch, basis, astigmatism):
    """With CTFs, astigmatic ones too, which take non-uniform FFTs."""
    filters = [
        CTFFilter(voltage=200, defocus_u=d + astigmatism, defocus_v=d, Cs=2, alpha=0.1)
        for d in (12_000, 18_000)
    ]
    source = simulation(16, n=60, unique_filters=filters)
    found = []
    for workers in (1, 4):
        monkeypatch.setattr(streaming, "n_workers", lambda workers=workers: workers)
        found.append(
            MomentEstimator(
                source, basis, streaming=StreamingOptions(batch_size=8)
            ).estimate()
        )
    for name in ("first", "second", "first_error", "second_error"):
        one, four = (getattr(moments, name) for moments in found)
        np.testing.assert_array_equal(one, four)


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
    monkeypatch.setattr(processes, "broadcast_object", lambda shapes: {})
    for rank in range(count):
        monkeypatch.setattr(processes.dist, "get_rank", lambda rank=rank: rank)
        shares.append(average())
    assert [s for _, starts in shares for s in starts] == list(range(0, N, BATCH))
    total = sum(sums[0]["gram"] for sums, _ in shares if sums[0])
    np.testing.assert_allclose(total, expected, atol=1e-10)
