"""Ctrl-C, and close() from another thread, end every wait, whatever is waited for."""

from __future__ import annotations

import signal
import time

import pytest
from faults.cluster import Cluster, expect_error, expect_ok

SEED = 20261126
PATIENCE = 60.0  # the library's own bound, beyond that of SOON
SOON = 5.0  # 0.2 s on a machine that is not busy

CALLS = {
    "update_topology": {},
    "are_peers_pending": {},
    "optimize_topology": {},
    "all_reduce": {"count": 100_000, "in_place": True},
    "await": {"handle": "x"},
}


def waiting(cluster, peer, call):
    """The peer waits in the call for others, who won't come."""
    if call == "await":
        peer.tell("start", handle="x", count=100_000, in_place=True)
    pending = peer.tell(call, **CALLS[call])
    time.sleep(0.2)
    assert pending.answer is None
    return pending


def end(cluster, peer, pending, how):
    """Ctrl-C, or close() from another thread, ends what the peer waits in."""
    if how == "Ctrl-C":
        peer.process.signal(signal.SIGINT)
        expect_error(cluster.collect([pending], within=SOON), "KeyboardInterrupt")
    else:
        closing = peer.tell("close", aside=True)
        answers = cluster.collect([pending, closing], within=SOON)
        expect_error(answers[:1], "PCCLError")
        expect_ok(answers[1:])


def is_usable_again(cluster, peer, others):
    """It may join anew, and the others have lost nothing but it."""
    cluster.reduce(others)
    cluster.admit_again(others, peer)
    cluster.reduce([*others, peer])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("how", ["Ctrl-C", "close"])
def test_a_call_that_waits_for_others_ends(call, how):
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peer, *others = cluster.form(3)
        pending = waiting(cluster, peer, call)
        if how == "Ctrl-C":
            peer.process.signal(signal.SIGINT)
            expect_error(cluster.collect([pending], within=SOON), "KeyboardInterrupt")
        else:
            closing = peer.tell("close", aside=True)
            answers = cluster.collect([pending, closing], within=SOON)
            expect_error(answers[:1], "PCCLError")
            assert "closed while the call was waiting" in answers[0]["text"]
            expect_ok(answers[1:])
        is_usable_again(cluster, peer, others)


@pytest.mark.parametrize("how", ["Ctrl-C", "close"])
@pytest.mark.parametrize("delay", [0.0, 0.005, 0.2])
def test_the_last_of_many_small_ops_ends_though_nobody_else_calls_it(how, delay):
    """Small ops in a row run in the user's own thread, for some milliseconds."""
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peer, *others = cluster.form(3)
        bursts = [one.tell("burst", count=100, ops=20) for one in others]
        pending = peer.tell("burst", count=100, ops=21)
        expect_ok(cluster.collect(bursts))
        time.sleep(delay)
        end(cluster, peer, pending, how)
        is_usable_again(cluster, peer, others)


@pytest.mark.parametrize("how", ["Ctrl-C", "close"])
def test_connect_of_a_pending_peer_ends(how):
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        members = cluster.form(2)
        peer = cluster.add()
        pending = peer.tell("connect")
        cluster.wait_until_known(peer)
        end(cluster, peer, pending, how)
        expect_ok(cluster.ask_all(members, "update_topology"))
        is_usable_again(cluster, peer, members)


@pytest.mark.parametrize("how", ["Ctrl-C", "close"])
def test_connect_to_a_master_that_says_nothing_ends(how):
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        cluster.master.stop()
        peer = cluster.add()
        pending = peer.tell("connect")
        time.sleep(0.2)
        if how == "Ctrl-C":
            peer.process.signal(signal.SIGINT)
            expect_error(cluster.collect([pending], within=SOON), "KeyboardInterrupt")
        else:
            closing = peer.tell("close", aside=True)
            answers = cluster.collect([pending, closing], within=SOON)
            expect_error(answers[:1], "PCCLError")
        cluster.master.go_on()
        expect_ok(cluster.ask_all([peer], "connect"))


def test_close_that_waits_for_a_stopped_master_ends_by_ctrl_c():
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peer, *others = cluster.form(3)
        cluster.master.stop()
        closing = peer.tell("close")
        time.sleep(0.2)
        assert closing.answer is None
        peer.process.signal(signal.SIGINT)
        (answer,) = cluster.collect([closing], within=SOON)
        assert answer["ok"] or answer["error"] == "KeyboardInterrupt"
        cluster.master.go_on()
        cluster.reduce(others)


@pytest.mark.parametrize("call", ["all_reduce", "update_topology"])
@pytest.mark.parametrize("how", ["Ctrl-C", "close"])
def test_a_call_that_waits_for_the_commit_of_an_op_that_returned_early_ends(call, how):
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peer, *others = peers = cluster.form(3)
        op = {"count": 64, "tag": 1, "early_return": True}
        cluster.master.stop()
        expect_ok(cluster.ask_all(peers, "all_reduce", **op))
        pending = peer.tell(call, **(op if call == "all_reduce" else {}))
        time.sleep(0.2)
        assert pending.answer is None
        closing = None
        if how == "Ctrl-C":
            peer.process.signal(signal.SIGINT)
            expect_error(cluster.collect([pending], within=SOON), "KeyboardInterrupt")
        else:
            closing = peer.tell("close", aside=True)
            expect_error(cluster.collect([pending], within=SOON), "PCCLError")
            assert closing.answer is None, "it did not wait for the commit"
        cluster.master.go_on()
        expect_ok(cluster.collect([closing] if closing else [], within=SOON))
        is_usable_again(cluster, peer, others)


def test_close_in_the_middle_of_a_large_op_leaves_the_input_and_the_others():
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peer, *others = cluster.form(3)
        op = {"count": 4_000_000, "in_place": True}
        for delay in (0.0, 0.01, 0.03, 0.06):
            members = [peer, *others]
            ops = [one.tell("all_reduce", **op) for one in members]
            time.sleep(delay)
            expect_ok(cluster.collect([peer.tell("close", aside=True)], within=SOON))
            mine, *theirs = cluster.collect(ops)
            if not mine["ok"]:
                expect_error([mine], "PCCLError")
            # A member that left in good order fails no op of the others: they go on without it.
            cluster.check_either(theirs, members, others, **op)
            cluster.admit_again(others, peer)
        cluster.reduce([peer, *others])


def test_ctrl_c_storms_leave_the_run_in_order():
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peer, *others = cluster.form(3)
        for _ in range(5):
            pending = waiting(cluster, peer, "all_reduce")
            for _ in range(3):
                peer.process.signal(signal.SIGINT)
                time.sleep(0.01)
            expect_error(cluster.collect([pending], within=SOON), "KeyboardInterrupt")
            cluster.reduce(others)
            cluster.admit_again(others, peer)
            cluster.reduce([*others, peer])
