"""The limit of BLAS threads."""

from __future__ import annotations

import threading

import pytest
from threadpoolctl import threadpool_info

from aspire_mom.threads import one_blas_thread


def blas() -> list[int]:
    return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]


def test_limits_nest():
    before = blas()
    with one_blas_thread():
        with one_blas_thread():
            assert set(blas()) == {1}
        assert set(blas()) == {1}
    assert blas() == before


def test_contexts_of_several_threads_may_end_in_any_order():
    """The one that began first, when others had no limit, may end first, too."""
    before = blas()
    entered, leave = threading.Event(), threading.Event()

    def other():
        with one_blas_thread():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with one_blas_thread():
        thread.start()
        entered.wait(10)
    assert set(blas()) == {1}
    leave.set()
    thread.join()
    assert blas() == before
    with one_blas_thread():
        assert set(blas()) == {1}
    assert blas() == before


def test_the_limit_ends_with_an_error():
    before = blas()

    @one_blas_thread()
    def fail():
        assert set(blas()) == {1}
        raise RuntimeError

    for _ in range(2):
        with pytest.raises(RuntimeError):
            fail()
    assert blas() == before
