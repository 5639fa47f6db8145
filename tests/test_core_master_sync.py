"""csrc/core/master_sync.c, step by step: what the master sends when offers, reports and losses come in an
order that real time hardly ever brings."""

from __future__ import annotations

from collections.abc import Sequence
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

SUCCESS, MISMATCH, NO_STATE = lib.pcclSuccess, lib.pcclMismatch, lib.pcclNoSharedStateAvailable
POPULAR = lib.PCCL_SHARED_STATE_SYNC_STRATEGY_ENFORCE_POPULAR
RECEIVE = lib.PCCL_SHARED_STATE_SYNC_STRATEGY_RECEIVE_ONLY
SEND = lib.PCCL_SHARED_STATE_SYNC_STRATEGY_SEND_ONLY
MOVING, UNREACHED = lib.SYNC_MOVING, lib.SYNC_UNREACHED
TOUCHED, FETCHED, FAILED = lib.SYNC_TOUCHED, lib.SYNC_FETCHED, lib.SYNC_FAILED


class Master:
    """With members 1 … count; `plans` and `results` hold what was sent to each, the newest last."""

    def __init__(self, count: int) -> None:
        self._memory = ffi.new("char[]", lib.master_bytes())
        self._master = ffi.cast("struct master *", self._memory)
        self._now = 10**9
        self.plans: dict[int, list[Any]] = {peer: [] for peer in range(1, count + 1)}
        self.results: dict[int, list[tuple[int, int, str]]] = {peer: [] for peer in range(1, count + 1)}
        self.ids: dict[int, bytes] = {}
        self.named: dict[int, list[bytes]] = {peer: [] for peer in range(1, count + 1)}
        self.evicted: dict[int, str] = {}
        self._lost: set[int] = set()
        self._todo: list[tuple[int, int]] = []
        self._probes: list[tuple[int, bytes]] = []
        self._perform = ffi.callback("void(void *, const struct master_action *)", self._on_action)
        lib.master_init(
            self._master, ffi.new("struct master_options *", {"seed": 7}), self._perform, ffi.NULL
        )
        for peer in range(1, count + 1):
            self.hello(peer)
        self._link()
        self.vote(1)
        self._get_ready()
        assert sorted(self.ids) == list(range(1, count + 1))

    def _on_action(self, context: Any, action: Any) -> None:
        if action.kind != lib.MASTER_SEND:
            return
        message, peer = action.message, int(action.connection)
        if message.type == lib.MESSAGE_EVICTED:
            self.evicted[peer] = ffi.string(getattr(message, "as").refused.reason).decode()
        elif message.type == lib.MESSAGE_VOTE_WAITING:
            report = getattr(message, "as").stragglers
            self.named[peer] += [bytes(report.peers[i].bytes) for i in range(report.named)]
        if message.type == lib.MESSAGE_WELCOME:
            self.ids[peer] = bytes(getattr(message, "as").welcome.peer.bytes)
        elif message.type == lib.MESSAGE_PROPOSE:
            self._todo.append((peer, getattr(message, "as").propose.epoch))
        elif message.type == lib.MESSAGE_PROBE:
            self._probes.append((peer, bytes(getattr(message, "as").probe.key.bytes)))
        elif message.type == lib.MESSAGE_SYNC_PLAN:
            plan = getattr(message, "as").sync_plan
            sources = [bytes(plan.sources[i].id.bytes) for i in range(plan.source_count)]
            self.plans[peer].append(
                {
                    "sync": plan.sync,
                    "role": "hold" if plan.role == lib.SYNC_HOLD else "fetch",
                    "content": plan.content.bytes[0],
                    "key": bytes(plan.key.bytes),
                    "patience_ms": plan.patience_ms,
                    "sources": sorted(p for p, one in self.ids.items() if one in sources),
                }
            )
        elif message.type == lib.MESSAGE_VOTE_RESULT:
            result = getattr(message, "as").vote_result
            if result.kind == lib.VOTE_SYNC_STATE:
                self.results[peer].append((result.status, result.value, ffi.string(result.reason).decode()))

    def _step(self, peer: int, message: Any) -> None:
        self._now += 1000
        event = ffi.new("struct master_event *")
        event.kind, event.now_ns, event.connection, event.message = (
            lib.MASTER_MESSAGE,
            self._now,
            peer,
            message,
        )
        lib.master_step(self._master, event)

    def _message(self, kind: int) -> tuple[Any, Any]:
        message = ffi.new("struct message *")
        message.type = kind
        return message, getattr(message, "as")

    def sleep(self, seconds: float) -> None:
        """All peers are heard of meanwhile."""
        for _ in range(int(seconds * 2)):
            self._now += 5 * 10**8
            for peer in self.ids:
                if peer not in self._lost and peer not in self.evicted:
                    message, _ = self._message(lib.MESSAGE_HEARTBEAT)
                    self._step(peer, message)
            event = ffi.new("struct master_event *", {"kind": lib.MASTER_TICK, "now_ns": self._now})
            lib.master_step(self._master, event)
            self._get_ready()

    def hello(self, peer: int) -> None:
        message, body = self._message(lib.MESSAGE_HELLO)
        body.hello.version = body.hello.oldest_version = lib.PROTOCOL_VERSION
        body.hello.streams, body.hello.timeout_ms = 1, 10_000
        self._step(peer, message)
        self._get_ready()

    def add(self, *newcomers: int) -> None:
        """Newcomers, let in by all members."""
        members = [peer for peer in self.ids if peer not in self._lost]
        for peer in newcomers:
            self.plans[peer], self.results[peer] = [], []
            self.hello(peer)
        self._link()
        for peer in members:
            self.vote(peer)
        self._get_ready()

    def vote(self, peer: int) -> None:
        message, body = self._message(lib.MESSAGE_VOTE)
        body.vote.kind = lib.VOTE_UPDATE_TOPOLOGY
        self._step(peer, message)

    def _link(self) -> None:
        """Every link that the master wants to be tried works."""
        while self._probes:
            peer, key = self._probes.pop(0)
            message, body = self._message(lib.MESSAGE_PROBED)
            ffi.memmove(body.probed.key.bytes, key, len(key))
            body.probed.reached = True
            self._step(peer, message)

    def _get_ready(self) -> None:
        while self._todo:
            peer, epoch = self._todo.pop(0)
            message, body = self._message(lib.MESSAGE_READY)
            body.ready.epoch = epoch
            self._step(peer, message)

    def offer(self, peer: int, content: int, revision: int = 1, strategy: int = POPULAR) -> None:
        message, body = self._message(lib.MESSAGE_SYNC_OFFER)
        body.sync_offer.revision, body.sync_offer.strategy = revision, strategy
        body.sync_offer.content.bytes[0] = content
        self._step(peer, message)

    def report(
        self, peer: int, progress: int, sync: int | None = None, status: int = 0, other: int | None = None
    ) -> None:
        message, body = self._message(lib.MESSAGE_SYNC_REPORT)
        body.sync_report.sync = self.plans[peer][-1]["sync"] if sync is None else sync
        body.sync_report.progress, body.sync_report.status = progress, status
        body.sync_report.reason = b"it can't"
        if other is not None:
            body.sync_report.peer.bytes = self.ids[other]
        self._step(peer, message)

    def lose(self, peer: int) -> None:
        self._lost.add(peer)
        event = ffi.new("struct master_event *")
        event.kind, event.now_ns, event.connection = lib.MASTER_CLOSED, self._now, peer
        reason = ffi.new("char[]", b"reset")
        event.reason = reason
        lib.master_step(self._master, event)
        self._get_ready()

    def statuses(self, *peers: int) -> list[int | None]:
        return [self.results[peer][-1][0] if self.results[peer] else None for peer in peers]


def offered(contents: Sequence[int], revisions: Sequence[int] | None = None) -> Master:
    master = Master(len(contents))
    for peer, content in enumerate(contents, 1):
        master.offer(peer, content, 1 if revisions is None else revisions[peer - 1])
    return master


@pytest.fixture
def one_holder() -> Master:
    """Peer 1 holds revision 9, peers 2 and 3 are to fetch it."""
    master = offered([5, 6, 7], [9, 8, 7])
    assert [master.plans[peer][-1]["role"] for peer in (1, 2, 3)] == ["hold", "fetch", "fetch"]
    assert master.plans[2][-1]["sources"] == [1]
    return master


def test_equal_offers_need_no_plan() -> None:
    master = offered([5, 5, 5])
    assert master.statuses(1, 2, 3) == [SUCCESS] * 3
    assert not any(master.plans.values())


def test_all_hear_of_success_when_the_last_has_it(one_holder: Master) -> None:
    one_holder.report(2, TOUCHED)
    one_holder.report(2, FETCHED)
    assert one_holder.statuses(1, 2, 3) == [None] * 3
    one_holder.report(3, FETCHED)
    assert [one_holder.results[peer] for peer in (1, 2, 3)] == [[(SUCCESS, 9, "")]] * 3


def test_who_has_fetched_becomes_a_source_when_the_holder_is_lost(one_holder: Master) -> None:
    one_holder.report(2, FETCHED)
    one_holder.lose(1)
    assert one_holder.plans[2][-1]["role"] == "hold"
    assert one_holder.plans[3][-1]["sources"] == [2]
    assert one_holder.plans[3][-1]["sync"] == one_holder.plans[3][0]["sync"]
    assert one_holder.plans[3][-1]["key"] == one_holder.plans[2][-1]["key"]
    one_holder.report(3, FETCHED)
    assert one_holder.statuses(2, 3) == [SUCCESS] * 2


def test_who_has_fetched_becomes_a_source_at_once(one_holder: Master) -> None:
    one_holder.report(2, FETCHED)
    assert one_holder.plans[2][-1]["role"] == "hold"
    assert one_holder.plans[3][-1]["sources"] == [1, 2]
    assert one_holder.plans[3][-1]["sync"] == one_holder.plans[3][0]["sync"]
    one_holder.report(3, FETCHED)
    assert one_holder.statuses(1, 2, 3) == [SUCCESS] * 3


def test_a_holder_that_is_not_reached_is_told_to_call(one_holder: Master) -> None:
    plans = len(one_holder.plans[1])
    one_holder.report(2, UNREACHED, other=1)
    assert one_holder.plans[1][plans:] == [one_holder.plans[1][0] | {"sources": [2]}]
    one_holder.report(2, UNREACHED, other=3)  # it holds nothing
    one_holder.report(1, UNREACHED, other=2)  # it does not fetch
    one_holder.report(2, UNREACHED, sync=0, other=1)
    assert len(one_holder.plans[1]) == plans + 1
    assert len(one_holder.plans[3]) == 1


def test_a_fetcher_that_gets_on_has_all_the_time_it_needs(one_holder: Master) -> None:
    for _ in range(20):
        one_holder.sleep(9)
        one_holder.report(2, MOVING)
        one_holder.report(3, MOVING)
    assert one_holder.evicted == {}
    one_holder.report(2, FETCHED)
    one_holder.report(3, FETCHED)
    assert one_holder.statuses(1, 2, 3) == [SUCCESS] * 3


def test_a_fetcher_that_does_not_is_named_and_then_put_out(one_holder: Master) -> None:
    one_holder.report(2, FETCHED)
    one_holder.sleep(11)
    assert one_holder.named[1] == one_holder.named[2] == [one_holder.ids[3]]
    assert one_holder.named[3] == []
    one_holder.sleep(28)
    assert one_holder.evicted == {}
    one_holder.sleep(2)
    assert "it has got no further for 4" in one_holder.evicted[3]
    assert one_holder.statuses(1, 2) == [SUCCESS] * 2


def test_an_offer_in_the_middle_of_a_sync_changes_nothing(one_holder: Master) -> None:
    one_holder.offer(1, 99, 50, strategy=RECEIVE)
    one_holder.report(2, FETCHED)
    assert one_holder.plans[3][-1]["sources"] == [1, 2], "peer 1 is the source that it said it was"
    one_holder.report(3, FETCHED)
    assert [one_holder.results[peer][-1][1] for peer in (1, 2, 3)] == [9, 9, 9]


def test_a_peer_elected_anew_is_asked_whether_it_is_still_whole(one_holder: Master) -> None:
    one_holder.lose(1)
    assert one_holder.plans[2][-1] | {"key": b""} == {
        "sync": one_holder.plans[3][-1]["sync"],
        "role": "hold",
        "content": 6,
        "key": b"",
        "patience_ms": 0,
        "sources": [],
    }
    one_holder.report(3, FETCHED)
    assert one_holder.statuses(2, 3) == [None] * 2, "peer 2 has not said that it holds it"
    one_holder.report(2, FETCHED)
    assert one_holder.statuses(2, 3) == [SUCCESS] * 2


def test_a_peer_alone_is_not_taken_at_its_offer_either(one_holder: Master) -> None:
    one_holder.lose(3)
    one_holder.lose(1)
    assert one_holder.statuses(2) == [None]
    one_holder.report(2, TOUCHED)
    assert one_holder.statuses(2) == [NO_STATE]


def test_word_of_a_change_that_comes_too_late_counts_when_asked(one_holder: Master) -> None:
    first = one_holder.plans[2][-1]["sync"]
    one_holder.lose(1)
    one_holder.report(2, TOUCHED, sync=first)  # was on its way when peer 2 was elected
    assert one_holder.plans[2][-1]["role"] == "hold"
    one_holder.report(2, TOUCHED)
    assert one_holder.plans[3][-1]["role"] == "hold"
    assert one_holder.plans[2][-1]["role"] == "fetch"
    assert one_holder.plans[2][-1]["sources"] == [3]
    one_holder.report(3, FETCHED)
    one_holder.report(2, FETCHED)
    assert one_holder.statuses(2, 3) == [SUCCESS] * 2
    assert one_holder.results[2][-1][1] == 7


def test_word_of_success_for_an_older_plan_does_not_count(one_holder: Master) -> None:
    first = one_holder.plans[2][-1]["sync"]
    one_holder.lose(1)
    one_holder.report(3, FETCHED, sync=first)
    one_holder.report(2, FETCHED, sync=first)
    assert one_holder.statuses(2, 3) == [None] * 2


def test_nobody_is_whole_any_more(one_holder: Master) -> None:
    one_holder.report(2, TOUCHED)
    one_holder.report(3, TOUCHED)
    one_holder.lose(1)
    assert one_holder.statuses(2, 3) == [NO_STATE] * 2
    assert "hold a part of it" in one_holder.results[2][-1][2]


def test_a_failure_is_one_of_all(one_holder: Master) -> None:
    one_holder.report(3, FAILED, status=MISMATCH)
    assert [one_holder.results[peer] for peer in (1, 2, 3)] == [[(MISMATCH, 0, "it can't")]] * 3


def test_a_failure_that_calls_itself_success_is_none(one_holder: Master) -> None:
    one_holder.report(3, FAILED, status=SUCCESS)
    assert one_holder.statuses(1, 2, 3) == [lib.pcclInternalError] * 3


def test_a_holder_that_says_it_is_changed_is_none_any_more() -> None:
    master = offered([5, 5, 6])
    assert master.plans[3][-1]["sources"] == [1, 2]
    master.report(1, TOUCHED)
    assert master.plans[3][-1]["sources"] == [2]
    assert master.plans[1][-1]["role"] == "fetch"
    master.report(3, FETCHED)
    assert master.statuses(1, 2, 3) == [None] * 3
    master.report(1, FETCHED)
    assert master.statuses(1, 2, 3) == [SUCCESS] * 3


def test_the_revision_of_a_failed_sync_is_used_again(one_holder: Master) -> None:
    one_holder.report(3, FAILED, status=MISMATCH)
    for peer in (1, 2, 3):
        one_holder.offer(peer, 5, revision=9)
    assert one_holder.statuses(1, 2, 3) == [SUCCESS] * 3
    for peer in (1, 2, 3):
        one_holder.offer(peer, 5, revision=9)
    assert one_holder.statuses(1, 2, 3) == [lib.pcclInvalidUsage] * 3
    assert "expected 10" in one_holder.results[1][-1][2]


# --- who knows the revision -------------------------------------------------------------------------------


@pytest.fixture
def at_nine() -> Master:
    """Peers 1, 2 and 3 have synchronised revision 9."""
    master = offered([5, 5, 5], [9, 9, 9])
    assert master.statuses(1, 2, 3) == [SUCCESS] * 3
    return master


def test_newcomers_are_held_to_the_revision_as_long_as_one_knows_it(at_nine: Master) -> None:
    at_nine.add(4, 5)
    at_nine.lose(1)
    at_nine.lose(2)
    for peer, revision in ((4, 30), (5, 30), (3, 10)):
        at_nine.offer(peer, 6, revision)
    assert at_nine.statuses(3, 4, 5) == [lib.pcclInvalidUsage] * 3
    assert "expected 10" in at_nine.results[3][-1][2]
    for peer, revision in ((4, 0), (5, 0), (3, 10)):
        at_nine.offer(peer, peer, revision)
    assert [at_nine.plans[peer][-1]["role"] for peer in (3, 4, 5)] == ["hold", "fetch", "fetch"]


def test_newcomers_whose_predecessors_have_all_died_set_the_revision_anew(at_nine: Master) -> None:
    at_nine.add(4, 5)
    for peer in (1, 2, 3):
        at_nine.lose(peer)
    for peer in (4, 5):
        at_nine.offer(peer, 6, 0)
    assert at_nine.statuses(4, 5) == [SUCCESS] * 2
    assert at_nine.results[4][-1][1] == 0
    for peer in (4, 5):
        at_nine.offer(peer, 6, 0)
    assert "expected 1:" in at_nine.results[4][-1][2], "from here on it counts"


def test_so_they_do_when_the_last_who_knew_it_dies_in_the_sync(at_nine: Master) -> None:
    at_nine.lose(2)
    at_nine.add(4, 5)
    at_nine.lose(3)
    for peer, revision in ((1, 10), (4, 0), (5, 0)):
        at_nine.offer(peer, 5 if peer == 1 else 6, revision)
    assert [at_nine.plans[peer][-1]["role"] for peer in (1, 4, 5)] == ["hold", "fetch", "fetch"]
    at_nine.lose(1)
    for peer in (4, 5):
        at_nine.report(peer, FETCHED)
    assert at_nine.statuses(4, 5) == [SUCCESS] * 2
    assert at_nine.results[4][-1][1] == 0


def test_who_was_alone_may_have_gone_on(at_nine: Master) -> None:
    at_nine.lose(1)
    at_nine.lose(2)
    at_nine.add(4)
    for peer, revision in ((3, 40), (4, 0)):
        at_nine.offer(peer, 5, revision)
    assert at_nine.statuses(3, 4) == [SUCCESS] * 2
    assert at_nine.results[4][-1][1] == 40


def test_the_last_of_a_sync_in_which_the_others_died_may_go_on(at_nine: Master) -> None:
    for peer in (1, 2, 3):
        at_nine.offer(peer, peer, 10)
    holder = next(peer for peer in (1, 2, 3) if at_nine.plans[peer][-1]["role"] == "hold")
    for peer in {1, 2, 3} - {holder}:
        at_nine.lose(peer)
    assert at_nine.results[holder][-1][:2] == (SUCCESS, 10), "alone, with the elected state"
    at_nine.add(4)
    for peer, revision in ((holder, 50), (4, 0)):
        at_nine.offer(peer, 5, revision)
    assert at_nine.statuses(holder, 4) == [SUCCESS] * 2


def test_a_peer_whose_call_failed_does_not_know_the_revision() -> None:
    master = Master(3)
    for peer, content in ((1, 5), (2, 5), (3, 6)):
        master.offer(peer, content, 9, strategy=SEND)
    assert master.statuses(1, 2, 3) == [SUCCESS, SUCCESS, MISMATCH]
    master.add(4)
    master.lose(1)
    master.lose(2)
    for peer in (3, 4):
        master.offer(peer, 7, 2)
    assert master.statuses(3, 4) == [SUCCESS] * 2


def test_many_fetchers_begin_at_different_sources() -> None:
    master = Master(14)
    for peer in range(1, 15):
        master.offer(peer, 5 if peer <= 12 else 6)
    sources = [tuple(master.plans[peer][-1]["sources"]) for peer in (13, 14)]
    assert all(len(one) == lib.MAX_SYNC_SOURCES for one in sources)
    assert sources[0] != sources[1]


def test_only_those_who_send_are_sources() -> None:
    master = Master(4)
    for peer, strategy, content in ((1, POPULAR, 5), (2, RECEIVE, 5), (3, POPULAR, 6), (4, SEND, 5)):
        master.offer(peer, content, strategy=strategy)
    assert master.plans[2] == []
    assert master.plans[3][-1]["sources"] == [1, 4]
