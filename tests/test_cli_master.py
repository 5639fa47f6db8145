"""`pccl master` and `python -m pccl.master`, as processes."""

import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pccl

COMMANDS = {
    "pccl": [str(Path(sys.executable).with_name("pccl")), "master"],
    "python -m pccl": [sys.executable, "-m", "pccl", "master"],
    "pccl_master": [str(Path(sys.executable).with_name("pccl_master"))],
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
        found = re.fullmatch(r"\S+ INFO master: listening on (127\.0\.0\.1:[1-9]\d*)\n", line)
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
    assert log.endswith(" INFO master: stopped\n")
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
    assert re.fullmatch(r"\S+ INFO master: stopped\n", log)


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


def test_it_serves_although_nobody_reads_its_log_and_ends_by_a_signal() -> None:
    with running(COMMANDS["pccl"]) as (process, address):
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        with pccl.Communicator(address, timeout=1.0, name="n" * 60) as comm:
            for i in range(60):  # some hundred bytes each
                with contextlib.suppress(pccl.PCCLError):
                    state = pccl.SharedState({"x": bytearray(8)})
                    state.revision = i + 1 if i % 2 else 0
                    comm.sync_shared_state(state)
                with socket.create_connection(address_of(address)) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1")
                comm.update_topology()
            deadline = time.monotonic() + 2.0
            while time.monotonic() < deadline:
                comm.update_topology()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&1 | head -1", "2>&-"])
def test_its_status_is_that_of_its_work_not_of_its_log(stderr: str, tmp_path: Path) -> None:
    program = f'"$0" -m pccl.master --listen-address 127.0.0.1:0 & echo $! > {tmp_path}/pid; wait $!; echo $?'
    command = f"{{ {program} > {tmp_path}/status; }} {stderr}"
    process = subprocess.Popen(["bash", "-c", command, sys.executable])
    deadline = time.monotonic() + PATIENCE
    pid = 0
    while pid == 0 or not serves(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        with contextlib.suppress(OSError, ValueError):
            pid = int((tmp_path / "pid").read_text())
    os.kill(pid, signal.SIGTERM)
    process.wait(PATIENCE)
    assert (tmp_path / "status").read_text() == "0\n"


def address_of(text: str) -> tuple[str, int]:
    host, port = text.split(":")
    return host, int(port)


def serves(pid: int) -> bool:
    """It has its net thread besides the main one, and handlers of signals."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", status)
    (threads,) = re.findall(r"Threads:\s*(\d+)", status)
    return int(threads) > 1 and bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def test_healthy_syncs_and_health_checks_do_not_drown_joins() -> None:
    with running(COMMANDS["pccl"]) as (process, address):
        with pccl.Communicator(address, name="visitor") as comm:
            state = pccl.SharedState({"x": bytearray(8)})
            for _ in range(20):
                with contextlib.suppress(pccl.TooFewPeersError):
                    comm.sync_shared_state(state)
                    state.push_revision()
                socket.create_connection(address_of(address)).close()
                comm.update_topology()
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE)
    assert "has left" in log
    assert len(log.splitlines()) < 10, log
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z [A-Z]+ master: ", line) for line in log.splitlines())


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
