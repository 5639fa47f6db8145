"""Async ops that many threads start, await and drop at once: tests/c/driver_async.c."""

import subprocess

from native import LIBRARY

PATIENCE = 120.0  # seconds that nothing here comes near, unless it hangs


def test_threads_start_await_and_drop_ops_at_once() -> None:
    program = LIBRARY.parent / "drivers" / "driver_async"
    ended = subprocess.run([program], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("all good\n")
