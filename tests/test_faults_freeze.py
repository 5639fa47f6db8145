"""A peer stands still, or its user does: it is told apart from a dead one, and keeps nobody for ever."""

from __future__ import annotations

import time

import pytest
from faults.cluster import Cluster, expect_error, expect_ok

SEED = 20261123
TIMEOUT = 0.6


def come_back(cluster, members, peer):
    """An evicted peer joins anew, and counts."""
    cluster.admit_again(members, peer)
    cluster.reduce([*members, peer])


@pytest.mark.parametrize("count", [100, 2_000_000], ids=["eager", "granted"])
def test_a_peer_stopped_in_an_op_is_evicted_and_may_come_back(count):
    with Cluster(seed=SEED, timeout=TIMEOUT) as cluster:
        *others, stopped = cluster.form(3)
        op = {"count": count, "in_place": True}
        waiting = stopped.tell("all_reduce", **op)
        time.sleep(0.1)
        stopped.process.stop()
        answers = cluster.ask_all(others, "all_reduce", **op)
        assert not cluster.check_either(answers, others, **op) or answers[0]["world"] == 2
        cluster.reduce(others, **op)
        stopped.process.go_on()
        expect_error(cluster.collect([waiting]), "EvictedError")
        expect_error(cluster.ask_all([stopped], "all_reduce", **op), "EvictedError")
        expect_error(cluster.ask_all([stopped], "update_topology"), "EvictedError")
        come_back(cluster, others, stopped)


def test_a_peer_stopped_between_ops_is_evicted_and_the_next_op_goes_on_without_it():
    with Cluster(seed=SEED, timeout=TIMEOUT) as cluster:
        *others, stopped = cluster.form(4)
        stopped.process.stop()
        cluster.wait_for_log(cluster.master, rf"peer {stopped.name} \S+ was evicted: nothing heard from it")
        cluster.reduce(others)
        stopped.process.go_on()
        cluster.wait_for_log(stopped.process, "put out of the run")
        expect_error(cluster.ask_all([stopped], "all_reduce", count=10), "EvictedError")
        come_back(cluster, others, stopped)


def test_a_joint_call_does_not_wait_for_a_stopped_peer_beyond_the_timeout():
    with Cluster(seed=SEED, timeout=TIMEOUT) as cluster:
        *others, stopped = cluster.form(3)
        stopped.process.stop()
        for call in ("update_topology", "are_peers_pending", "optimize_topology"):
            expect_ok(cluster.ask_all(others, call))
        cluster.reduce(others)


def test_peers_stopped_in_the_middle_of_an_op_are_all_evicted():
    with Cluster(seed=SEED, timeout=TIMEOUT) as cluster:
        peers = cluster.form(5)
        survivors, stopped = peers[:2], peers[2:]
        op = {"count": 4_000_000}
        ops = [peer.tell("all_reduce", **op) for peer in peers]
        for peer in stopped:
            peer.process.stop()
        cluster.check_either(cluster.collect(ops[:2]), peers, survivors, **op)
        cluster.wait_for_log(cluster.master, r"is committed: 2 peers")
        cluster.reduce(survivors)
        for peer in stopped:
            peer.process.go_on()
        for answer in cluster.collect(ops[2:]):
            assert answer["ok"] or (answer["error"] in ("EvictedError", "PeerLostError") and answer["intact"])
        for peer in stopped:
            cluster.wait_for_log(peer.process, "put out of the run")
        cluster.reduce(survivors)


def test_a_stop_shorter_than_the_timeout_harms_nobody():
    with Cluster(seed=SEED, timeout=5) as cluster:
        peers = cluster.form(3)
        op = {"count": 2_000_000, "in_place": True}
        ops = [peer.tell("all_reduce", **op) for peer in peers]
        time.sleep(0.005)
        peers[1].process.stop()
        time.sleep(0.5)
        peers[1].process.go_on()
        cluster.check(cluster.collect(ops), peers, **op)


def test_a_newcomer_stopped_while_pending_is_forgotten():
    with Cluster(seed=SEED, timeout=TIMEOUT) as cluster:
        members = cluster.form(2)
        newcomer = cluster.add()
        joining = newcomer.tell("connect")
        cluster.wait_until_known(newcomer)
        newcomer.process.stop()
        expect_ok(cluster.ask_all(members, "update_topology"))
        cluster.reduce(members)
        newcomer.process.go_on()
        assert not cluster.collect([joining])[0]["ok"]
        come_back(cluster, members, newcomer)


# --- the process lives, its user sleeps ------------------------------------------------------------------


def test_a_user_who_pauses_between_small_ops_for_longer_than_the_timeout_is_not_evicted():
    """Small ops in a row run in the users' own threads. Heartbeats go on while one of them computes for three
    timeouts, and while the others wait for it in their next op."""
    with Cluster(seed=SEED, timeout=1) as cluster:
        peers = cluster.form(3)
        bursts = [peer.tell("burst", count=100, ops=60) for peer in peers[1:]]
        bursts.append(peers[0].tell("burst", count=100, ops=60, pause_at=30, pause=3))
        for answer in cluster.collect(bursts):
            expect_ok([answer])
            assert answer["worlds"] == [3] * 60
            assert answer["digests"] == [cluster.expected(peers, count=100, step=step) for step in range(60)]
        assert "evicted" not in cluster.master.log.read_text()


def test_those_who_wait_for_a_peer_say_for_whom_in_which_op_and_how_long():
    with Cluster(seed=SEED, timeout=0.4) as cluster:
        *early, late = cluster.form(4)
        op = {"count": 500_000, "tag": 42}
        ops = []
        for peer in early:
            ops.append(peer.tell("all_reduce", **op))
            time.sleep(0.1)  # each counts from its own call
        line = rf"peer {late.name} \S+ has not called the collective with tag 42 for ([\d.]+) s \(1 missing\)"
        for peer in early:
            first, second, third = (
                float(cluster.wait_for_log(peer.process, line, count)[1]) for count in (1, 2, 3)
            )
            assert first >= 0.4
            assert second >= 1.4 * first  # one line for each time that the wait has doubled, and no more
            assert third >= 1.4 * second
        assert all(one.answer is None for one in ops)
        ops.append(late.tell("all_reduce", **op))
        cluster.check(cluster.collect(ops), [*early, late], **op)


def test_those_who_wait_for_a_peer_in_a_joint_call_say_for_whom():
    with Cluster(seed=SEED, timeout=0.3) as cluster:
        a, b, late = cluster.form(3)
        votes = [peer.tell("update_topology") for peer in (a, b)]
        for peer in (a, b):
            cluster.wait_for_log(
                peer.process, rf"peer {late.name} \(\w+\) has not called update_topology for", 2
            )
        votes.append(late.tell("update_topology"))
        expect_ok(cluster.collect(votes))


def test_a_straggler_is_evicted_from_an_op_after_straggler_timeout():
    with Cluster(seed=SEED, timeout=0.4) as cluster:
        a, b, late = cluster.form(3, straggler_timeout=0.8)
        op = {"count": 1000, "tag": 3}
        sleeping = late.tell("sleep", seconds=2)
        expect_error(cluster.ask_all([a, b], "all_reduce", **op), "PeerLostError")
        cluster.reduce([a, b], **op)
        expect_ok(cluster.collect([sleeping]))
        (answer,) = cluster.ask_all([late], "all_reduce", **op)
        expect_error([answer], "EvictedError")
        assert "wait for it in the collective with tag 3" in answer["text"]
        come_back(cluster, [a, b], late)


def test_a_straggler_is_evicted_from_a_joint_call_after_straggler_timeout():
    with Cluster(seed=SEED, timeout=0.4) as cluster:
        a, b, late = cluster.form(3, straggler_timeout=0.8)
        expect_ok(cluster.ask_all([a, b], "update_topology"))
        cluster.reduce([a, b])
        cluster.wait_for_log(late.process, "put out of the run")
        expect_error(cluster.ask_all([late], "update_topology"), "EvictedError")


def test_a_slow_peer_is_no_straggler_while_its_bytes_move():
    """Everybody has called: the straggler timeout is not for ops that take long."""
    with Cluster(seed=SEED, timeout=5) as cluster:
        peers = cluster.form(3, straggler_timeout=0.2)
        for step in range(3):
            cluster.reduce(peers, count=6_000_000, step=step)


def test_a_master_that_stands_still_evicts_nobody_afterwards():
    with Cluster(seed=SEED, timeout=2) as cluster:
        peers = cluster.form(3)
        cluster.master.stop()
        time.sleep(1.2)
        cluster.master.go_on()
        cluster.reduce(peers)
        assert "evicted" not in cluster.master.log.read_text()
