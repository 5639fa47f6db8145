"""What is done here may still wait for others: who does not come is named and put out, or a mismatch."""

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from in_process import group_of, in_threads

import pccl

TIMEOUT = 0.5
DONE_HERE = [
    pytest.param(lambda comm: comm.barrier(), id="barrier"),
    pytest.param(lambda comm: comm.broadcast(numpy.ones(4, numpy.float32), root=comm.rank), id="root"),
]


@pytest.mark.parametrize("call", DONE_HERE)
def test_who_does_not_come_is_named_and_put_out(call: Callable[[Any], Any], master: Any, capfd: Any) -> None:
    with group_of(master, 2, timeout=TIMEOUT, straggler_timeout=2 * TIMEOUT) as (waits, late):
        gone = threading.Event()

        def come_late() -> None:
            assert gone.wait(30)
            with pytest.raises(pccl.EvictedError, match="wait for it in the collective"):
                late.barrier()

        def wait() -> None:
            with pytest.raises(pccl.PCCLError):
                call(waits)
            gone.set()

        in_threads(wait, come_late)
    assert re.search(r"has not called the collective", capfd.readouterr().err)


@pytest.mark.parametrize("call", DONE_HERE)
def test_a_joint_call_that_waits_for_it_is_a_mismatch(call: Callable[[Any], Any], master: Any) -> None:
    def expect_mismatch(function: Callable[[], Any]) -> None:
        with pytest.raises(pccl.MismatchError, match="wait for each other"):
            function()

    with group_of(master, 2, timeout=TIMEOUT) as (waits, asks):
        in_threads(
            lambda: expect_mismatch(lambda: call(waits)),
            lambda: expect_mismatch(lambda: (time.sleep(0.05), asks.are_peers_pending())),
        )


@pytest.mark.parametrize("offset", [0.0, 0.002, 0.3])
def test_blocking_calls_that_wait_for_each_other_are_a_mismatch(offset: float, master: Any) -> None:
    """However their reports fall together."""

    def expect_mismatch(function: Callable[[], Any]) -> None:
        with pytest.raises(pccl.MismatchError, match="wait for each other"):
            function()

    with group_of(master, 2, timeout=TIMEOUT) as (a, b):
        x = numpy.ones(4, numpy.float32)
        in_threads(
            lambda: expect_mismatch(lambda: a.barrier(tag=1)),
            lambda: expect_mismatch(lambda: (time.sleep(offset), b.all_reduce(x, tag=2))),
        )
        in_threads(lambda: a.barrier(), lambda: b.barrier())
