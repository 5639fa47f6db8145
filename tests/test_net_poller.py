"""The poller: how long it looks before it sleeps, and that it sleeps then."""

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from native import load

ffi, lib = load("net/list.h", "net/poller.h")
WAIT_NS = 400_000_000


@pytest.fixture
def poller() -> Any:
    poller = ffi.new("struct poller *")
    assert lib.poller_open(poller) == 0
    yield poller
    lib.poller_close(poller)


def cpu_s(function: Callable[[], None]) -> float:
    """Processor time that this thread takes for it."""
    before = time.thread_time()
    function()
    return time.thread_time() - before


@pytest.mark.parametrize("name", ["poller_wait", "poller_wait_soon"])
def test_who_waits_takes_no_processor_time_for_it(poller, name) -> None:
    started = time.monotonic()
    used = cpu_s(lambda: getattr(lib, name)(poller, WAIT_NS))
    waited = time.monotonic() - started
    assert waited >= WAIT_NS / 1e9
    assert used < WAIT_NS / 1e9 / 10  # it may look for 100 us


def test_what_is_ready_ends_the_wait(poller) -> None:
    reading, writing = os.pipe()
    item = ffi.new("struct poll_item *")
    lib.poll_item_init(item, 0)
    assert lib.poller_add(poller, item, reading, lib.POLL_LEVEL) == 0
    os.write(writing, b"x")
    lib.poller_wait_soon(poller, 2**64 - 1)
    assert item.readable
    lib.poller_remove(poller, item)
    os.close(reading)
    os.close(writing)
