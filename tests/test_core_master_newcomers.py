"""csrc/core/master_probe.c and what the master does with peers that hold others up, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from native import load

ffi, lib = load(
    "ccoip.h",
    "ccoip_inet.h",
    "pccl.h",
    "base/limits.h",
    "base/id.h",
    "base/address.h",
    "wire/message.h",
    "core/master.h",
)

MS = 10**6
TIMEOUT_MS = 1000
DAY_MS = 24 * 3600 * 1000


class Master:
    """Peers answer as honest ones do, but for what a test says otherwise."""

    def __init__(self) -> None:
        self._memory = ffi.new("char[]", lib.master_bytes())
        self._master = ffi.cast("struct master *", self._memory)
        self.now = 10**9
        self.inbox: list[tuple[int, str, dict[str, Any]]] = []
        self.log: list[str] = []
        self.ids: dict[int, bytes] = {}
        self.out: dict[int, str] = {}
        self.proposals = 0
        self.world = 0  # of the newest proposal
        self.results: list[int] = []  # who has heard that update_topology ended
        self.pending: dict[int, str] = {}
        self.silent: set[int] = set()  # they answer nothing, not even the master's heartbeats
        self.never_ready: set[int] = set()
        self.lies: dict[int, Callable[[int, list[bytes]], bytes]] = {}  # whose link a liar says is lost
        self.unreachable: set[int] = set()
        self._todo: list[Callable[[], None]] = []
        self._perform = ffi.callback("void(void *, const struct master_action *)", self._on_action)
        options = ffi.new("struct master_options *", {"seed": 7})
        lib.master_init(self._master, options, self._perform, ffi.NULL)

    def _on_action(self, context: Any, action: Any) -> None:
        if action.kind == lib.MASTER_LOG:
            self.log.append(ffi.string(action.text).decode())
        if action.kind != lib.MASTER_SEND:
            return
        message, peer = action.message, int(action.connection)
        body = getattr(message, "as")
        if message.type == lib.MESSAGE_WELCOME:
            self.ids[peer] = bytes(body.welcome.peer.bytes)
        elif message.type == lib.MESSAGE_EVICTED:
            self.out[peer] = ffi.string(body.refused.reason).decode()
        elif message.type == lib.MESSAGE_VOTE_RESULT:
            self.results.append(peer)
        elif message.type == lib.MESSAGE_PENDING:
            self.pending[peer] = ffi.string(body.pending.reason).decode()
        elif message.type == lib.MESSAGE_PROBE and peer not in self.silent:
            key, other = bytes(body.probe.key.bytes), bytes(body.probe.member.id.bytes)
            self._todo.append(lambda: self._probed(peer, key, other))
        elif message.type == lib.MESSAGE_PROPOSE:
            plan = body.propose
            self.world = plan.world
            self.proposals += plan.rank == 0
            members = [bytes(plan.members[rank].id.bytes) for rank in range(plan.world)]
            epoch = plan.epoch
            self._todo.append(lambda: self._proposed(peer, epoch, members))

    def _probed(self, peer: int, key: bytes, other: bytes) -> None:
        parties = {peer, *(number for number, one in self.ids.items() if one == other)}
        if not parties & self.unreachable and not parties & self.silent:
            self.send(peer, lib.MESSAGE_PROBED, lambda body: _set_probed(body.probed, key))

    def _proposed(self, peer: int, epoch: int, members: list[bytes]) -> None:
        if peer in self.lies and len(members) > 1:
            lost = self.lies[peer](epoch, [one for one in members if one != self.ids[peer]])
            self.send(peer, lib.MESSAGE_LINK_LOST, lambda body: _set_lost(body.unreachable, epoch, lost))
        elif peer not in self.never_ready:
            self.send(peer, lib.MESSAGE_READY, lambda body: setattr(body.ready, "epoch", epoch))

    def _step(self, peer: int, message: Any) -> None:
        event = ffi.new("struct master_event *")
        event.kind = lib.MASTER_TICK if message is None else lib.MASTER_MESSAGE
        event.now_ns, event.connection = self.now, peer
        if message is not None:
            event.message = message
        lib.master_step(self._master, event)

    def settle(self) -> None:
        while self._todo and self.proposals < 200:
            self._todo.pop(0)()

    def send(self, peer: int, kind: int, fill: Callable[[Any], None] = lambda body: None) -> None:
        if peer in self.out:
            return
        message = ffi.new("struct message *")
        message.type = kind
        fill(getattr(message, "as"))
        self._step(peer, message)

    def hello(self, peer: int, group: int = 0, timeout_ms: int = TIMEOUT_MS) -> None:
        def fill(body: Any) -> None:
            body.hello.version = body.hello.oldest_version = lib.PROTOCOL_VERSION
            body.hello.group, body.hello.streams, body.hello.timeout_ms = group, 1, timeout_ms
            body.hello.name = f"p{peer}".encode()

        self.send(peer, lib.MESSAGE_HELLO, fill)
        self.settle()

    def update_topology(self, *peers: int) -> None:
        for peer in peers:
            self.send(peer, lib.MESSAGE_VOTE, lambda body: setattr(body.vote, "kind", 1))
        self.settle()

    def form(self, count: int) -> list[int]:
        for peer in range(1, count + 1):
            self.hello(peer)
        self.update_topology(1)
        assert self.world == count
        self.results.clear()
        return list(range(1, count + 1))

    def wait(self, milliseconds: int) -> None:
        """All peers but the silent ones send heartbeats meanwhile."""
        for _ in range(0, milliseconds, 50):
            self.now += 50 * MS
            self._step(0, None)
            self.settle()
            for peer in self.ids:
                if peer not in self.silent:
                    self.send(peer, lib.MESSAGE_HEARTBEAT)
            self.settle()


def _set_probed(probed: Any, key: bytes) -> None:
    ffi.memmove(probed.key.bytes, key, len(key))
    probed.reached = True


def _set_lost(report: Any, epoch: int, peer: bytes) -> None:
    report.epoch = epoch
    ffi.memmove(report.peer.bytes, peer, len(peer))
    report.reason = b"gone"


@pytest.fixture
def master() -> Master:
    return Master()


def test_a_newcomer_that_answers_is_let_in_by_the_next_call(master: Master) -> None:
    members = master.form(4)
    master.hello(5)
    master.update_topology(*members)
    assert master.results == members
    assert master.world == 5


def test_members_wait_for_a_newcomer_that_nobody_reaches_once_and_not_for_long(master: Master) -> None:
    members = master.form(6)
    formed = master.proposals
    master.unreachable.add(7)
    master.hello(7)
    master.update_topology(*members)
    master.wait(TIMEOUT_MS // 2)
    assert master.results == members
    for _ in range(3):  # it is still being tried
        master.results.clear()
        master.update_topology(*members)
        assert master.results == members
    master.wait(3 * TIMEOUT_MS)
    assert "no ring of links includes it" in master.out[7]
    assert master.proposals == formed  # the epoch went on


def test_who_has_failed_is_tried_again_later_and_waited_for_no_more(master: Master) -> None:
    members = master.form(3)
    master.unreachable.add(4)
    master.hello(4)
    master.wait(2 * TIMEOUT_MS)
    assert 4 in master.out
    master.unreachable.add(5)
    master.ids[5] = b""
    master.send(5, lib.MESSAGE_HELLO, _hello_of(4))  # the same one, on a new connection
    master.update_topology(*members)
    assert master.results == members
    master.wait(TIMEOUT_MS // 5)
    assert "they try again in" in master.pending[5]


def _hello_of(peer: int) -> Callable[[Any], None]:
    def fill(body: Any) -> None:
        body.hello.version = body.hello.oldest_version = lib.PROTOCOL_VERSION
        body.hello.streams, body.hello.timeout_ms = 1, TIMEOUT_MS
        body.hello.name = f"p{peer}".encode()

    return fill


def test_a_newcomer_is_told_who_has_not_called(master: Master) -> None:
    master.form(2)
    master.hello(3)
    master.wait(TIMEOUT_MS // 5)
    assert master.pending[3].startswith("peer p1 (")
    assert master.pending[3].endswith(" and 1 other have not called update_topology()")
    master.update_topology(1)
    master.wait(100)
    assert master.pending[3].startswith("peer p2 (")


def test_a_group_of_somebody_who_never_answers_holds_nobody_up(master: Master) -> None:
    members = master.form(2)
    master.silent.add(3)
    master.hello(3, group=7, timeout_ms=DAY_MS)
    master.update_topology(*members)
    master.wait(TIMEOUT_MS // 2)
    assert master.results == members


def test_a_group_that_is_being_formed_holds_no_other_one_up(master: Master) -> None:
    members = master.form(2)
    master.never_ready.add(3)
    master.hello(3, group=7, timeout_ms=DAY_MS)
    master.update_topology(*members)
    assert master.results == []
    master.wait(TIMEOUT_MS)
    assert master.results == members
    master.wait(4 * TIMEOUT_MS)
    assert "did not make its links" in master.out[3]  # the timeout of those who wait counts


def test_all_who_are_late_go_at_once(master: Master) -> None:
    members = master.form(2)
    late = range(3, 18)
    master.never_ready.update(late)
    for peer in late:
        master.hello(peer, timeout_ms=DAY_MS)
    master.update_topology(*members)
    assert master.results == []
    master.wait(4 * TIMEOUT_MS + 200)
    assert master.results == members
    assert set(master.out) == set(late)
    assert master.world == 2


def test_who_loses_now_this_link_and_now_that_one_is_put_out(master: Master) -> None:
    master.form(3)
    turns = [0]

    def lie(epoch: int, others: list[bytes]) -> bytes:
        turns[0] += 1
        return others[turns[0] % len(others)]

    master.lies[1] = lie  # the oldest
    others = [master.ids[2], master.ids[3]]
    master.proposals = 0
    epoch = 2
    master.send(1, lib.MESSAGE_LINK_LOST, lambda body: _set_lost(body.unreachable, epoch, others[0]))
    master.settle()
    assert set(master.out) == {1}
    assert master.proposals < 10
    assert master.world == 2


def test_the_links_of_one_culprit_are_not_given_up_one_by_one(master: Master) -> None:
    master.form(8)
    turns = [0]

    def lie(epoch: int, others: list[bytes]) -> bytes:
        turns[0] += 1
        return others[turns[0] % len(others)]  # often one that it has no link to, which says nothing

    master.lies[1] = lie
    for other in range(2, 9):
        master.send(1, lib.MESSAGE_LINK_LOST, lambda b, o=other: _set_lost(b.unreachable, 2, master.ids[o]))
    master.settle()
    for _ in range(100):
        for other in range(2, 9):
            epoch = master.proposals  # the epochs before the lie are two
            master.send(
                1,
                lib.MESSAGE_LINK_LOST,
                lambda b, e=epoch, o=other: _set_lost(b.unreachable, e, master.ids[o]),
            )
        master.settle()
    assert set(master.out) == {1}
    assert "check its network" in master.out[1]
    assert master.world == 7
