"""Whatever connects to the ports of the master and the peers and talks nonsense: the run does not notice."""

from __future__ import annotations

import contextlib
import random
import re
import resource
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.cluster import Cluster, expect_ok, readable, wait_until

SEED = 20261128
CROWD = 2500
STRANGERS = 256  # MAX_STRANGERS in csrc/base/limits.h
MOST_FILES = STRANGERS + 2 * 4 + 60  # 4 streams to each neighbour, and what a process has anyway
MEMORY_BYTES = 32 << 20  # that a crowd may cost
HELLO = struct.pack("<IH", 40, 1)

NONSENSE = {
    "zeros": bytes(8),
    "a length of 4 GiB": b"\xff\xff\xff\xff\x01\x00",
    "a length at the limit": struct.pack("<IH", 128 * 1024, 1) + bytes(1000),
    "an unknown type": struct.pack("<IH", 4, 65535) + bytes(4),
    "half a header": b"\x10\x00",
    "a message of members": struct.pack("<IH", 0, 13),
    "half a hello": HELLO + b"PCCL",
    "a web page": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": bytes.fromhex("160301020001000001fc0303") + bytes(500),
    "nothing": b"",
    "a megabyte of noise": random.Random(SEED).randbytes(1 << 20),
}


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Where something listens: a TCP address, or the name of a local socket.
Door = tuple[str, int] | str


def doors(cluster: Cluster) -> list[Door]:
    """Of the master, and two of each peer: for TCP, and for its own machine."""
    text = cluster.master.log.read_text()
    found = [cluster.address, *re.findall(r"it listens on (\S+)", text)]
    tcp: list[Door] = [(host, int(port)) for host, _, port in (one.rpartition(":") for one in found)]
    return [*tcp, *(f"\0pccl/{one[1]}" for one in tcp[1:])]


def files(process) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def memory(process) -> int:
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * resource.getpagesize()


def processes(cluster: Cluster):
    return [cluster.master, *(peer.process for peer in cluster.peers)]


def connect(door: Door) -> socket.socket:
    if isinstance(door, str):
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(20)
        one.connect(door)
    else:
        one = socket.create_connection(door, timeout=20)
    one.setblocking(False)
    return one


def send_some(one: socket.socket, data: bytes) -> None:
    with contextlib.suppress(BlockingIOError, ConnectionError):
        one.sendall(data)


def is_closed(one: socket.socket) -> bool:
    """By the other side. Whatever it has said before does not count."""
    try:
        while readable([one.fileno()], 0):
            if not one.recv(1 << 16):
                return True
    except ConnectionError:
        return True
    return False


def test_nonsense_ends_that_connection_and_nothing_else():
    with Cluster(seed=SEED, timeout=5) as cluster, contextlib.ExitStack() as stack:
        peers = cluster.form(2)
        training = [peer.tell("train", count=50_000, first=0, last=100) for peer in peers]
        talkers = []
        for what, data in NONSENSE.items():
            for door in doors(cluster):
                one = stack.enter_context(connect(door))
                talkers.append((one, f"{what} to {door!r}"))
                send_some(one, data)
        for one, what in talkers:
            wait_until(lambda one=one: is_closed(one), f"closed: {what}")
        answers = cluster.collect(training)
        assert [answer["failures"] for answer in answers] == [0, 0]
        cluster.reduce(peers)
        assert "epoch 3" not in cluster.master.log.read_text()


def test_noise_of_every_length_and_kind_leaves_the_run_as_it_was():
    random_source = random.Random(SEED)
    with Cluster(seed=SEED, timeout=5) as cluster:
        peers = cluster.form(3)
        before = {process.name: files(process) for process in processes(cluster)}
        training = [peer.tell("train", count=20_000, first=0, last=100) for peer in peers]
        for _ in range(300):
            door = random_source.choice(doors(cluster))
            with connect(door) as one:
                size = random_source.choice([1, 5, 6, 7, 40, 96, 97, 1000, 5000])
                noise = bytearray(random_source.randbytes(size))
                if random_source.random() < 0.7:  # a header that makes sense at first sight
                    body_bytes = random_source.choice([0, max(size - 6, 0), 1 << 16, 2**32 - 1])
                    header = struct.pack("<IH", body_bytes, random_source.randrange(26))
                    noise[: min(6, size)] = header[: min(6, size)]
                send_some(one, bytes(noise))
                if isinstance(door, tuple) and random_source.random() < 0.5:  # and it ends with a reset
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        answers = cluster.collect(training)
        assert [answer["failures"] for answer in answers] == [0, 0, 0]
        for process in processes(cluster):
            wait_until(lambda p=process: files(p) <= before[p.name], f"{process.name} has closed them all")
        cluster.reduce(peers)


def test_a_crowd_that_says_nothing_costs_little():
    with Cluster(seed=SEED, timeout=5) as cluster:
        a, b, c = cluster.form(3)
        cluster.reduce([a, b, c], count=1_000_000)
        before = {process.name: memory(process) for process in processes(cluster)}
        training = [peer.tell("train", count=50_000, first=0, last=40) for peer in (a, b, c)]
        with contextlib.ExitStack() as crowd:
            for _ in range(CROWD // 7):
                for door in doors(cluster):
                    crowd.enter_context(connect(door))
            answers = cluster.collect(training)
            assert [answer["failures"] for answer in answers] == [0, 0, 0]
            for process in processes(cluster):
                assert files(process) <= MOST_FILES, process.name
                assert memory(process) - before[process.name] <= MEMORY_BYTES, process.name
        cluster.reduce([a, b, c])


def test_a_crowd_at_every_door_keeps_no_link_from_being_made():
    with Cluster(seed=SEED, timeout=2) as cluster, contextlib.ExitStack() as crowd:
        peers = cluster.form(4)
        ring = sorted(peers, key=lambda peer: cluster.ask(peer, "info")["rank"])
        for door in doors(cluster)[1:]:
            for _ in range(STRANGERS + 50):
                crowd.enter_context(connect(door))
        ring[1].kill()  # its neighbours need a new link
        survivors = [ring[0], *ring[2:]]
        cluster.wait_for_log(cluster.master, r"is committed: 3 peers")
        cluster.reduce(survivors)
        newcomer = cluster.add()
        cluster.admit(survivors, [newcomer])
        cluster.reduce([*survivors, newcomer])
        assert "evicted" not in cluster.master.log.read_text()
        assert "no link between" not in cluster.master.log.read_text()


def test_a_crowd_that_comes_and_goes_is_forgotten():
    with Cluster(seed=SEED, timeout=5) as cluster:
        peers = cluster.form(2)
        before = {process.name: files(process) for process in processes(cluster)}
        training = [peer.tell("train", count=20_000, first=0, last=100) for peer in peers]
        for number in range(CROWD // 5):
            for door in doors(cluster):
                with connect(door) as one:
                    send_some(one, b"x" * (number % 7))
        expect_ok(cluster.collect(training))
        for process in processes(cluster):
            wait_until(lambda p=process: files(p) <= before[p.name], f"{process.name} has closed them all")
        cluster.reduce(peers)


def test_nonsense_dripped_byte_by_byte_has_its_time_limit():
    """It is not silence that counts but the time without a greeting."""
    with Cluster(seed=SEED, timeout=5) as cluster:
        peers = cluster.form(2)
        with contextlib.ExitStack() as stack:
            drips = [stack.enter_context(connect(door)) for door in doors(cluster)]
            deadline = time.monotonic() + 20
            while not all(is_closed(one) for one in drips):
                assert time.monotonic() < deadline, "never closed"
                for one in drips:
                    send_some(one, HELLO[:1])
                time.sleep(0.4)
        cluster.reduce(peers)
