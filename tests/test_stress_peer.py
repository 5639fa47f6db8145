"""Which joint calls a peer of a stress run makes before and after a step: as follows from what all know."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Iterator

import numpy as np
import pytest
from pccl.stress.crossing import Crossing
from pccl.stress.operations import ViolationError
from pccl.stress.peer import Config, Peer

import pccl

CONFIG = Config(
    address="127.0.0.1:1",  # nobody connects to it
    seed=1,
    slot=2,
    life=5,
    group=0,
    kinds=("sync", "state"),
    timeout_s=3.0,
    bound_s=40.0,
    step_s=0.0,
    max_bytes=4096,
    state_bytes=4096,
    log="/dev/null",
)
FLYING = Crossing(begin=0, due=2, shapes=(), in_place=(), retry=False, over=False)
ENDING = dataclasses.replace(FLYING, over=True)


class Communicator:
    """Writes down what is called. `step`: at which the others are."""

    def __init__(self, pending: bool = False, step: int = 0) -> None:
        self.calls: list[str] = []
        self._pending, self._step = pending, step

    def are_peers_pending(self) -> bool:
        self.calls.append("are_peers_pending")
        return self._pending

    def update_topology(self) -> None:
        self.calls.append("update_topology")

    def sync_shared_state(self, state: object, *, require_peers: bool = False) -> None:
        self.calls.append("sync_shared_state")

    def all_reduce(self, number: np.ndarray, **options: object) -> None:
        self.calls.append("all_reduce")
        assert options["op"] == "max"
        number[0] = max(number[0], self._step)


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


Sockets = tuple[socket.socket, socket.socket]


def peer_of(kinds: str, comm: Communicator, sockets: Sockets, *crossing: Crossing) -> Peer:
    peer = Peer(dataclasses.replace(CONFIG, kinds=tuple(kinds.split(","))), sockets[1])
    peer._comm.close()
    peer._comm = comm  # type: ignore[assignment]
    for plan in crossing:
        peer._crossings.begin(plan)
    return peer


def told(sockets: Sockets) -> list[str]:
    sockets[0].setblocking(False)
    try:
        return [json.loads(line)["kind"] for line in sockets[0].recv(1 << 16).splitlines()]
    except BlockingIOError:
        return []


def test_the_state_is_synchronised_before_each_step(sockets: Sockets) -> None:
    comm = Communicator()
    peer = peer_of("sync,state", comm, sockets)
    for _ in range(3):
        peer._agree()
        peer._admit()
    assert comm.calls == ["sync_shared_state", "update_topology"] * 3


def test_without_state_newcomers_hear_which_step_comes_next(sockets: Sockets) -> None:
    comm = Communicator(step=7)
    peer = peer_of("sync", comm, sockets)
    peer._agree()
    assert comm.calls == ["all_reduce"]
    assert peer._number == 7
    assert told(sockets) == ["counted"]
    peer._agree()
    assert comm.calls == ["all_reduce"], "there are no newcomers"
    peer._admit()
    peer._agree()
    assert comm.calls == ["all_reduce", "update_topology", "all_reduce"]


def test_newcomers_do_not_change_the_step_of_the_others(sockets: Sockets) -> None:
    peer = peer_of("sync", Communicator(step=7), sockets)
    peer._number, peer._in_step = 6, True
    with pytest.raises(ViolationError, match="in step at 6, and yet others of the group are at 7"):
        peer._agree()


def test_without_state_a_step_changes_none(sockets: Sockets) -> None:
    peer = peer_of("sync", Communicator(), sockets)
    words, revision = peer._words.copy(), peer._state.revision
    peer._advance(12345)
    assert peer._number == 1
    assert peer._state.revision == revision
    assert np.array_equal(peer._words, words)


def test_who_has_lost_its_membership_and_has_no_state_begins_anew(sockets: Sockets) -> None:
    peer = peer_of("sync", Communicator(), sockets)
    peer._number, peer._in_step = 6, True
    peer._lose("EvictedError", keeps_state=False)
    assert (peer._number, peer._in_step) == (0, False)


def test_ops_in_flight_bar_the_sync_and_those_that_end_do_not(sockets: Sockets) -> None:
    for plan, calls in ((FLYING, []), (ENDING, ["sync_shared_state"])):
        comm = Communicator()
        peer_of("sync,crossing,state", comm, sockets, plan)._agree()
        assert comm.calls == calls


@pytest.mark.parametrize("plan", [FLYING, ENDING])
def test_where_ops_cross_steps_the_topology_changes_for_newcomers_only(
    plan: Crossing, sockets: Sockets
) -> None:
    comm = Communicator(pending=False)
    peer = peer_of("sync,crossing,state", comm, sockets, plan)
    peer._admit()
    assert comm.calls == ["are_peers_pending"]
    comm = Communicator(pending=True)
    peer = peer_of("sync,crossing,state", comm, sockets, plan)
    peer._admit()
    peer._agree()
    assert comm.calls == ["are_peers_pending", "update_topology", "sync_shared_state"]


def test_revisions_rise_by_one_from_sync_to_sync_however_many_steps_lie_between(sockets: Sockets) -> None:
    peer = peer_of("sync,crossing,state", Communicator(), sockets)
    peer._agree()
    before = peer._state.revision
    for digest in (1, 2, 3):
        peer._advance(digest)
    assert peer._state.revision == before + 1
    assert peer._number == 3
    peer._agree()
    peer._advance(4)
    assert peer._state.revision == before + 2


def test_newcomers_take_the_number_of_the_step_from_the_state(sockets: Sockets) -> None:
    comm = Communicator()
    peer = peer_of("sync,state", comm, sockets)
    peer._small[:] = (41, 1, 2)  # as a sync does
    peer._agree()
    assert peer._number == 41


def test_who_is_alone_goes_on_with_what_it_knows(sockets: Sockets) -> None:
    class Alone(Communicator):
        def all_reduce(self, number: np.ndarray, **options: object) -> None:
            raise pccl.TooFewPeersError(pccl.Result.TOO_FEW_PEERS, "alone")

    peer = peer_of("sync", Alone(), sockets)
    peer._number = 6
    peer._agree()
    assert (peer._number, peer._in_step) == (6, False)
