"""A process that has no file descriptor left: it says so itself, and it is the one that is left out."""

import contextlib
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from in_process import PATIENCE, group_of

import pccl

# A member of the run. With "out" all its descriptors are in use from then on, as with many open data files.
MEMBER = """
import os, resource, sys, time, pccl
comm = pccl.Communicator(sys.argv[1], timeout=1, name="ada", tcp_only=sys.argv[2] == "tcp").connect()
used = max(int(fd) for fd in os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
print("in", flush=True)
while True:
    try:
        comm.update_topology()
        time.sleep(0.01)
    except pccl.EvictedError as error:
        print(error, flush=True)
        break
    except pccl.PCCLError:
        pass
"""


@contextmanager
def member(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-uc", MEMBER, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("how", ["memory", "tcp"])
def test_a_peer_without_descriptors_is_the_one_that_is_left_out(master, how: str) -> None:
    with member(master.address, how) as ill:
        assert ill.stdout is not None
        assert ill.stdout.readline() == "in\n"
        with pccl.Communicator(master.address, timeout=1, name="bob") as comm:  # lets nobody put *it* out
            assert comm.world_size == 1
            out, log = ill.communicate(timeout=PATIENCE)
    assert "the process has no file descriptor left (its limit is" in out
    said = [line for line in log.splitlines() if "no connection can be made or taken" in line]
    assert len(said) == 1
    assert " WARN ada: " in said[0]
    assert "ulimit -n" in said[0]


def test_a_master_or_peer_that_can_not_begin_names_the_limit() -> None:
    program = """
import resource, pccl
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
pccl.MasterNode("127.0.0.1:0")  # it is raised once; what the program says later counts
for make in (lambda: pccl.MasterNode("127.0.0.1:0"), lambda: pccl.Communicator("127.0.0.1:1")):
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        make()
    except pccl.PCCLError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("no file descriptor left (its limit is" in line for line in lines)


def test_the_soft_limit_is_raised_at_the_start_but_not_without_bound() -> None:
    program = """
import resource, pccl
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
pccl.Communicator("127.0.0.1:1")
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == (65536 if hard == resource.RLIM_INFINITY else min(hard, 65536))


def test_a_shortage_that_passes_puts_nobody_out(master) -> None:
    """Half of `timeout` must have passed without a descriptor while links were to be made."""
    with group_of(master, 1, timeout=4.0) as (peer,):
        newcomer = pccl.Communicator(master.address, timeout=4.0)
        joining = threading.Thread(target=newcomer.connect, daemon=True)
        joining.start()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        while not peer.are_peers_pending():
            pass
        resource.setrlimit(resource.RLIMIT_NOFILE, (8, hard))
        again = threading.Timer(0.5, resource.setrlimit, [resource.RLIMIT_NOFILE, (soft, hard)])
        again.start()
        try:
            while peer.world_size < 2:
                with contextlib.suppress(pccl.PeerLostError):
                    peer.update_topology()
        finally:
            again.join()
        joining.join(PATIENCE)
        assert newcomer.world_size == 2
        newcomer.close()
