"""Links within a machine: through memory where both ends may, else over TCP; and who knocks at that door."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from faults.cluster import Cluster, Peer, wait_until

import pccl

SEED = 20261128
COUNT = 300_000
GREETING_BYTES = 96


def channels(peer: Peer) -> int:
    """How many it has mapped."""
    return Path(f"/proc/{peer.process.pid}/maps").read_text().count("/memfd:pccl")


def wait_for_channels(peers: list[Peer], expected: int) -> None:
    """Each has so many. The link over which a newcomer was tried is closed a little after it was let in."""
    deadline = time.monotonic() + 20
    while any(channels(peer) != expected for peer in peers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [channels(peer) for peer in peers] == [expected] * len(peers)


def door(peer: Peer, cluster: Cluster) -> str:
    """The name of the peer's local socket."""
    found = cluster.wait_for_log(cluster.master, rf"peer {peer.name} .*it listens on \S+:(\d+)")
    return f"\0pccl/{found[1]}"


def knock(name: str) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(20)
    one.connect(name)
    return one


def babble(listener: socket.socket) -> None:
    """Answers each connection with bytes that are no greeting; ends with the listener."""
    with contextlib.suppress(OSError):
        while True:
            one, _ = listener.accept()
            with one:
                one.sendall(b"x" * GREETING_BYTES)
                one.recv(1)


def reduce_all(cluster: Cluster, peers: list[Peer]) -> None:
    for step, in_place in enumerate((False, True)):
        cluster.reduce(peers, count=COUNT, step=step, in_place=in_place)
        cluster.reduce(peers, count=10, step=step, in_place=in_place)


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize(("first", "second"), [(False, False), (False, True), (True, False), (True, True)])
def test_a_link_goes_through_memory_if_neither_end_objects(first, second, streams):
    with Cluster(seed=SEED, timeout=5) as cluster:
        peers = [cluster.add(tcp_only=only, p2p_connection_pool_size=streams) for only in (first, second)]
        cluster.admit([], peers[:1])
        cluster.admit(peers[:1], peers[1:])
        reduce_all(cluster, peers)
        expected = 0 if first or second else streams
        wait_for_channels(peers, expected)


def test_channels_go_with_their_links():
    with Cluster(seed=SEED, timeout=5) as cluster:
        peers = cluster.form(4)
        reduce_all(cluster, peers)
        cluster.ask(peers[3], "close")
        reduce_all(cluster, peers[:3])
        peers[2].kill()
        cluster.reduce(peers[:2], count=COUNT, retry=True)  # it may begin with the dead one
        reduce_all(cluster, peers[:2])
        wait_until(lambda: [channels(peer) for peer in peers[:2]] == [4, 4], "the channels of one link")
        assert channels(peers[3]) == 0


@pytest.mark.parametrize("taker", ["refuses", "is silent", "answers wrongly"])
def test_who_has_no_local_socket_is_reached_over_tcp(taker):
    """Their names are taken, by somebody of the same user."""
    with Cluster(seed=SEED, timeout=4) as cluster, contextlib.ExitStack() as stack:
        peers, takers = [], []
        for _ in range(2):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            takers.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            takers[-1].bind(f"\0pccl/{port}")
            if taker != "refuses":
                takers[-1].listen()
            peers.append(cluster.add(port=port))
        if taker == "answers wrongly":
            for one in takers:
                threading.Thread(target=babble, args=(one,), daemon=True).start()
        cluster.admit([], peers[:1])
        cluster.admit(peers[:1], peers[1:])
        reduce_all(cluster, peers)
        assert [channels(peer) for peer in peers] == [0, 0]
        assert "no link between" not in cluster.master.log.read_text()


def test_greetings_without_memory_or_with_any_are_refused():
    source = random.Random(SEED)
    with Cluster(seed=SEED, timeout=5) as cluster:
        peers = cluster.form(2)
        before = [len(list(Path(f"/proc/{peer.process.pid}/fd").iterdir())) for peer in peers]
        training = [peer.tell("train", count=50_000, first=0, last=100) for peer in peers]
        memory = os.memfd_create("test")
        for peer in peers:
            for descriptors in ([], [memory], [memory] * 5):
                with knock(door(peer, cluster)) as one:
                    socket.send_fds(one, [source.randbytes(GREETING_BYTES)], descriptors)
                    assert one.recv(1) == b"", "it is closed"
                with knock(door(peer, cluster)) as one:  # one byte, one descriptor at a time, and gone
                    for _ in range(20):
                        socket.send_fds(one, [b"P"], descriptors)
        os.close(memory)
        assert [answer["failures"] for answer in cluster.collect(training)] == [0, 0]

        def files() -> list[int]:
            return [len(list(Path(f"/proc/{peer.process.pid}/fd").iterdir())) for peer in peers]

        wait_until(lambda: files() == before, "no descriptor is left behind")
        cluster.reduce(peers)


def test_the_environment_may_ask_for_tcp(monkeypatch):
    with pccl.MasterNode("127.0.0.1:0") as master:
        for wrong in ("yes", "2"):
            monkeypatch.setenv("PCCL_TCP_ONLY", wrong)
            with pytest.raises(ValueError, match="PCCL_TCP_ONLY"):
                pccl.Communicator(master.address)
        with pytest.raises(TypeError, match="tcp_only"):
            pccl.Communicator(master.address, tcp_only="no")  # type: ignore[arg-type]
        for value, offered in (("1", False), ("0", True), ("", True)):
            monkeypatch.setenv("PCCL_TCP_ONLY", value)
            with pccl.Communicator(master.address, port=48211):
                names = Path("/proc/net/unix").read_text()
                assert ("@pccl/48211" in names) == offered


def test_small_and_large_ops_of_a_gigabyte_in_all_are_exact():
    """Round many times the ring buffers, with pieces of every size."""
    with Cluster(seed=SEED, timeout=20) as cluster:
        peers = cluster.form(3)
        for step, count in enumerate(np.geomspace(1, 20_000_000, 40).astype(int)):
            cluster.reduce(peers, count=int(count), step=step, in_place=step % 2 == 0)
