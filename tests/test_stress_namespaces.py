"""The network of a stress run: what the router loses, and that it comes about or not at all."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import socket
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from faults.netns import reason_not_to
from pccl.stress.namespaces import (
    HUB_ADDRESS,
    Router,
    UnavailableError,
    address_of,
    connect_namespace,
    enter_hub,
)

pytestmark = pytest.mark.skipif(reason_not_to() is not None, reason=str(reason_not_to()))

OWN_NAMESPACE = Path("/proc/thread-self/ns/net")
PORT = 7000
A, B, C = (address_of(life) for life in range(3))
EVERYBODY = [HUB_ADDRESS, A, B, C]
SECONDS_UNDERWAY = 0.1  # more than a datagram takes that is not lost, if the machine has time
ATTEMPTS = 6


def receiver(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, PORT))
    sock.settimeout(SECONDS_UNDERWAY)
    return sock


def send_to_all(sock: socket.socket) -> None:
    for other in EVERYBODY:
        with contextlib.suppress(OSError):  # the router itself sees that there is no way
            sock.sendto(b"?", (other, PORT))


def heard(sock: socket.socket) -> set[str]:
    senders = set()
    while True:
        try:
            senders.add(sock.recvfrom(9)[1][0])
        except TimeoutError:
            return senders


def peer(life: int, orders: Connection) -> None:
    connect_namespace(life)
    sock = receiver(address_of(life))
    orders.send("ready")
    while orders.recv() == "send":
        send_to_all(sock)
        orders.send("sent")
        orders.recv()
        orders.send(heard(sock))


class Network:
    """A hub, this process, and three peers."""

    def __init__(self) -> None:
        enter_hub()
        fork = multiprocessing.get_context("fork")
        self.own = receiver(HUB_ADDRESS)
        self.pipes = []
        for life in range(3):
            mine, theirs = fork.Pipe()
            fork.Process(target=peer, args=(life, theirs), daemon=True).start()
            self.pipes.append(mine)
        assert [pipe.recv() for pipe in self.pipes] == ["ready"] * 3

    def _ask(self, order: str) -> list[object]:
        for pipe in self.pipes:
            pipe.send(order)
        return [pipe.recv() for pipe in self.pipes]

    def lost(self) -> set[tuple[str, str]]:
        """From whom to whom nothing arrives."""
        self._ask("send")
        send_to_all(self.own)
        answers = [heard(self.own), *self._ask("hear")]
        arrived = {
            (source, target) for target, sources in zip(EVERYBODY, answers, strict=True) for source in sources
        }
        return set(itertools.permutations(EVERYBODY, 2)) - arrived


def in_hub(results: Connection) -> None:
    network, router = Network(), Router()
    found = {"at first": network.lost()}
    for name, ways, told in [
        ("one way", [(A, B)], False),
        ("both ways", [(A, B), (B, A)], False),
        ("told", [(A, B), (B, A)], True),
        ("from peers", [(C, "peers"), ("peers", C)], False),
        ("from all", [(C, "all"), ("all", C)], False),
    ]:
        mend = router.lose(ways, told)
        found[name] = network.lost()
        mend()
        found[f"{name}, mended"] = network.lost()
    one, other = router.lose([(A, B)]), router.lose([(A, B), (A, C)])
    other()
    found["the first of two alike"] = network.lost()
    one()
    found["after both"] = network.lost()
    results.send(found)


@pytest.fixture(scope="module")
def found() -> dict[str, set[tuple[str, str]]]:
    """What was lost in each state of a network."""
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe()
    process = spawn.Process(target=in_hub, args=(theirs,))
    process.start()
    assert mine.poll(60)
    results = mine.recv()
    process.join()
    return results


def test_everybody_reaches_everybody_else(found) -> None:
    assert found["at first"] == set()


@pytest.mark.parametrize(
    ("state", "lost"),
    [
        ("one way", {(A, B)}),
        ("both ways", {(A, B), (B, A)}),
        ("told", {(A, B), (B, A)}),
        ("from peers", {(C, A), (C, B), (A, C), (B, C)}),
        ("from all", {(C, A), (C, B), (C, HUB_ADDRESS), (A, C), (B, C), (HUB_ADDRESS, C)}),
    ],
)
def test_that_and_nothing_else_is_lost_until_it_is_mended(found, state, lost) -> None:
    assert found[state] == lost
    assert found[f"{state}, mended"] == set()


def test_a_cut_is_mended_by_itself_alone(found) -> None:
    assert found["the first of two alike"] == {(A, B)}
    assert found["after both"] == set()


def test_without_a_way_to_make_one_nothing_has_changed(monkeypatch) -> None:
    before = OWN_NAMESPACE.readlink()
    monkeypatch.setattr("pccl.stress.namespaces._OWN", -1)  # no rule can be made
    with pytest.raises(UnavailableError):
        enter_hub()
    assert OWN_NAMESPACE.readlink() == before
