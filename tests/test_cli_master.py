"""`pccl master` and `python -m pccl.master`, as processes."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pccl

COMMANDS = {
    "pccl": [str(Path(sys.executable).with_name("pccl")), "master"],
    "python -m pccl": [sys.executable, "-m", "pccl", "master"],
    "python -m pccl.master": [sys.executable, "-m", "pccl.master"],
}
PATIENCE = 60


@contextmanager
def running(command: list[str], **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process of a master on a free port, and its address."""
    process = subprocess.Popen(
        [*command, "--listen-address", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.fullmatch(r"pccl master: listening on (127\.0\.0\.1:[1-9]\d*)\n", line)
        assert found, line
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_ends_by_a_signal(command, number) -> None:
    with running(command) as (process, address):
        with pccl.Communicator(address, name="visitor") as comm:
            assert comm.world_size == 1
        process.send_signal(number)
        out, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert out == ""
    assert log.endswith("pccl master: stopped\n")
    assert "Traceback" not in log


def test_it_logs_who_comes_and_goes() -> None:
    with running(COMMANDS["pccl"]) as (process, address):
        with pccl.Communicator(address, 5, name="visitor"):
            pass
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE)
    joined, epoch, left = (log.find(text) for text in ("asks to join group 5", "epoch 1", "has left"))
    assert 0 <= joined < epoch < left
    assert log.count("visitor") >= 2


def test_the_log_level_can_be_set() -> None:
    with running(COMMANDS["pccl"], PCCL_LOG_LEVEL="ERROR") as (process, address):
        with pccl.Communicator(address, name="visitor"):
            pass
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE)
    assert log == "pccl master: stopped\n"


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(
    "arguments", [["--listen-address", "nowhere"], ["--listen-address"], ["--port", "1"], ["x"]]
)
def test_wrong_usage_is_status_2(command, arguments) -> None:
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr


def test_an_address_that_is_taken_is_status_1(master) -> None:
    done = subprocess.run(
        [*COMMANDS["pccl"], "--listen-address", master.address],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert master.address in done.stderr


def test_it_serves_one_run_only() -> None:
    with running([*COMMANDS["pccl"], "--run", "llama"]) as (_, address):
        with pytest.raises(pccl.RefusedError, match=r'"llama".*"digits"'):
            pccl.Communicator(address, run="digits").connect()
        with pccl.Communicator(address, run="llama") as comm:
            assert comm.world_size == 1
