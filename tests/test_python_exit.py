"""How a program ends: threads in calls, masters that run, children that were forked."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import pytest
from in_process import PATIENCE, group_of

import pccl


@contextmanager
def program(text: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-uc", text, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# --- threads in calls -----------------------------------------------------------------------------------

IN_A_CALL = """
import sys, threading, time, concurrent.futures, pccl
comm = pccl.Communicator(sys.argv[1], timeout=0.5).connect()
def call():
    print("calls", flush=True)
    try:
        comm.barrier(tag=7)
    except pccl.PCCLError as error:
        try:
            comm.connect()
        except pccl.PCCLError as error:
            print(error)
if sys.argv[2] == "pool":
    concurrent.futures.ThreadPoolExecutor().submit(call)
else:
    threading.Thread(target=call, name="worker").start()
time.sleep(0.3)
if sys.argv[3] == "fails":
    raise ArithmeticError("a bug in the program")
"""


@pytest.mark.parametrize("kind", ["thread", "pool"])
def test_a_program_whose_main_thread_fails_ends(master, kind: str) -> None:
    with group_of(master, 1) as (peer,), program(IN_A_CALL, master.address, kind, "fails") as process:
        while peer.world_size < 2:
            peer.update_topology()
        assert process.wait(PATIENCE) == 1
        out, errors = process.communicate()
        assert "calls" in out
        assert "the program is ending: its main thread has ended by ArithmeticError" in out
        assert "a bug in the program" in errors
        while peer.world_size > 1:  # it has said goodbye
            peer.update_topology()


def test_a_thread_that_keeps_its_program_is_named_with_its_call(master) -> None:
    with group_of(master, 1) as (peer,), program(IN_A_CALL, master.address, "thread", "well") as process:
        while peer.world_size < 2:
            peer.update_topology()
        assert process.stderr is not None
        line = process.stderr.readline()
        while "main thread" not in line:
            line = process.stderr.readline()
        assert re.search(
            r"WARN pccl: the main thread has ended, but thread 'worker' .* barrier\(tag=7\)", line
        )
        peer.barrier(tag=7)
        assert process.wait(PATIENCE) == 0


def test_threads_may_go_on_when_the_main_thread_has_ended(master) -> None:
    text = """
import sys, threading, pccl
comm = pccl.Communicator(sys.argv[1]).connect()
def work():
    threading.main_thread().join()
    for _ in range(20):
        comm.update_topology()
    print("done", comm.world_size)
threading.Thread(target=work).start()
"""
    with program(text, master.address) as process:
        out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, errors) == (0, "done 1\n", "")


# --- masters that run -----------------------------------------------------------------------------------

A_MASTER = """
import pccl
print(pccl.MasterNode("127.0.0.1:0").address)
def start():
    master = pccl.MasterNode("127.0.0.1:0")
    master.run()
    print(master.address)
start()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_script_that_ends_with_a_running_master_serves_on(number: int) -> None:
    with program(A_MASTER) as process:
        assert process.stdout is not None
        gone, address = process.stdout.readline().strip(), process.stdout.readline().strip()
        time.sleep(0.3)  # the script is over
        with pytest.raises(pccl.PCCLError):  # this one did not run
            pccl.Communicator(gone).connect(n_attempts=1)
        with pccl.Communicator(address) as comm:
            assert comm.world_size == 1
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == (0 if number == signal.SIGINT else -signal.SIGTERM)
    assert errors == ""


def test_a_master_that_is_interrupted_keeps_nobody() -> None:
    text = """
import signal, threading, pccl
with pccl.MasterNode("127.0.0.1:0"):
    pass
handled = pccl.MasterNode("127.0.0.1:0")
handled.interrupt()
handled.run()
master = pccl.MasterNode("127.0.0.1:0")
master.run()
signal.signal(signal.SIGTERM, lambda *_: master.interrupt())
threading.Timer(0.3, signal.raise_signal, [signal.SIGTERM]).start()
"""
    with program(text) as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")


def test_a_script_that_fails_takes_its_master_along() -> None:
    with program(A_MASTER + "raise ArithmeticError") as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "ArithmeticError" in errors


# --- children -------------------------------------------------------------------------------------------

# A peer that has links (through memory if it may) and a child; it tells the child's process and descriptors.
PARENT = """
import multiprocessing, os, subprocess, sys, time, numpy, pccl
address, port, how = sys.argv[1:]
def sockets():
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{fd}").startswith(("socket:", "anon_inode:", "/memfd:pccl"))
        except OSError:
            pass  # it was that of the listing
    return count
before = sockets()
comm = pccl.Communicator(address, port=int(port), timeout=20, tcp_only=how == "tcp").connect()
comm.all_reduce(numpy.ones(1000))
assert sockets() > before
def child():
    print(os.getpid(), sockets() - before, flush=True)
    time.sleep(60)
if how == "subprocess":
    code = "import os, time; print(os.getpid(), 0, flush=True); time.sleep(60)"
    subprocess.Popen([sys.executable, "-c", code], close_fds=False)
else:
    multiprocessing.get_context("fork").Process(target=child).start()
comm.all_reduce(numpy.ones(1000))
comm.barrier(tag=8)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("how", ["tcp", "memory", "subprocess"])
def test_a_child_keeps_nothing_of_its_parents_connections(master, how: str) -> None:
    port = free_port()
    with (
        group_of(master, 1, timeout=20) as (peer,),
        program(PARENT, master.address, str(port), how) as process,
    ):
        while peer.world_size < 2:
            peer.update_topology()
        peer.all_reduce(numpy.ones(1000))
        assert process.stdout is not None
        child, kept = (int(word) for word in process.stdout.readline().split())
        try:
            assert kept == 0
            peer.all_reduce(numpy.ones(1000))  # the parent's are as they were
            process.kill()
            start = time.monotonic()
            with pytest.raises(pccl.PCCLError):
                peer.barrier(tag=9)
            assert time.monotonic() - start < 10, "that is silence, and not a connection that has ended"
            process.wait(PATIENCE)
            socket.create_server(("127.0.0.1", port)).close()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_forked_child_is_a_peer_of_its_own(master) -> None:
    text = """
import multiprocessing, sys, numpy, pccl
def work(first):
    with pccl.Communicator(sys.argv[1]) as comm:
        while comm.world_size < 2:
            comm.update_topology()
        x = numpy.ones(3)
        comm.all_reduce(x)
        assert x.tolist() == [2, 2, 2]
comm = pccl.Communicator(sys.argv[1]).connect()
comm.close()
children = [multiprocessing.get_context("fork").Process(target=work, args=(i,)) for i in range(2)]
for child in children:
    child.start()
for child in children:
    child.join()
assert [child.exitcode for child in children] == [0, 0]
"""
    with program(text, master.address) as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
