"""Peers call different things: all of them are told, at once, who called what."""

from __future__ import annotations

import re

import pytest
from faults.cluster import Cluster, expect_error, expect_ok

SEED = 20261125
# Longer than any test waits: what comes late is a hang.
PATIENCE = 60.0
OP = {"count": 1000, "dtype": "float32", "op": "sum", "tag": 4}

DIFFERENCES = [
    pytest.param(OP, OP | {"op": "max"}, ["sum", "max"], id="op"),
    pytest.param(OP, OP | {"count": 1001}, ["1000", "1001"], id="count"),
    pytest.param(OP, OP | {"dtype": "int32"}, ["float32", "int32"], id="type of the same size"),
    pytest.param(OP, OP | {"dtype": "float64"}, ["float32", "float64"], id="type of another size"),
    pytest.param(OP | {"count": 3}, OP | {"count": 3_000_000}, ["3", "3000000"], id="small and large"),
    pytest.param(
        OP | {"count": 2_000_000}, OP | {"count": 3_000_000}, ["2000000", "3000000"], id="large and larger"
    ),
]


def names_both(answer, *peers):
    assert all(re.search(rf"\b{peer.name}\b", answer["text"]) for peer in peers), answer["text"]


@pytest.mark.parametrize(("usual", "odd", "words"), DIFFERENCES)
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_one_peer_calls_another_op_than_the_others(usual, odd, words, last):
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peers = cluster.form(3)
        other = peers[1]
        order = [peer for peer in peers if peer is not other]
        order.insert(2 if last else 0, other)
        ops = [peer.tell("all_reduce", **(odd if peer is other else usual)) for peer in order]
        answers = cluster.collect(ops)
        expect_error(answers, "MismatchError")
        for answer in answers:
            names_both(answer, other)
            assert all(re.search(rf"\b{word}\b", answer["text"]) for word in words), answer["text"]
        cluster.reduce(peers, tag=4)


def test_an_op_that_some_have_not_called_yet_fails_for_them_too():
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        a, b, c, late = cluster.form(4)
        ops = [peer.tell("all_reduce", **OP) for peer in (a, b)]
        ops.append(c.tell("all_reduce", **(OP | {"op": "min"})))
        expect_error(cluster.collect(ops), "MismatchError")
        (answer,) = cluster.ask_all([late], "all_reduce", **OP)
        expect_error([answer], "MismatchError")
        names_both(answer, c)
        cluster.reduce([a, b, c, late], tag=4)


def test_other_ops_in_flight_are_lost_and_come_right_when_retried():
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peers = cluster.form(3)
        beside = {"count": 200_000, "tag": 8, "in_place": True}
        for peer in peers[:2]:
            peer.tell("start", handle="beside", **beside)
        answers = cluster.collect(
            [peer.tell("all_reduce", **(OP | {"count": 5 + (peer is peers[1])})) for peer in peers]
        )
        expect_error(answers, "MismatchError")
        expect_error(cluster.ask_all(peers[:2], "await", handle="beside"), "PeerLostError")
        expect_error(cluster.ask_all(peers[2:], "all_reduce", **beside), "PeerLostError")
        cluster.reduce(peers, **beside)


@pytest.mark.parametrize("voter_first", [True, False], ids=["the vote first", "the op first"])
@pytest.mark.parametrize("call", ["update_topology", "optimize_topology"])
def test_one_peer_is_in_a_joint_call_and_the_others_in_an_op(call, voter_first):
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        *others, voter = cluster.form(3)
        calls = [] if not voter_first else [voter.tell(call)]
        calls += [peer.tell("all_reduce", **OP) for peer in others]
        calls += [] if voter_first else [voter.tell(call)]
        answers = cluster.collect(calls)
        expect_error(answers, "MismatchError")
        for answer in answers:
            names_both(answer, voter)
            assert call in answer["text"]
            assert "all_reduce" in answer["text"]
        expect_ok(cluster.ask_all([*others, voter], call))
        cluster.reduce([*others, voter])


def test_peers_in_different_joint_calls():
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        a, b, _ = cluster.form(3)
        answers = cluster.collect([a.tell("update_topology"), b.tell("optimize_topology")])
        expect_error(answers, "MismatchError")
        for answer in answers:
            names_both(answer, a, b)


def test_a_mismatch_of_two_hits_no_other_group():
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peers = cluster.form(2)
        strangers = [cluster.add(peer_group=7) for _ in range(2)]
        joining = [peer.tell("connect") for peer in strangers]
        for peer in strangers:
            cluster.wait_until_known(peer)
        expect_ok(cluster.collect(joining + [peer.tell("update_topology") for peer in peers]))
        waiting = strangers[0].tell("all_reduce", **OP)
        answers = cluster.collect(
            [peers[0].tell("all_reduce", **OP), peers[1].tell("all_reduce", **(OP | {"count": 2}))]
        )
        expect_error(answers, "MismatchError")
        cluster.check(cluster.collect([waiting, strangers[1].tell("all_reduce", **OP)]), strangers, **OP)
        cluster.reduce(peers, tag=4)


def test_a_blocking_op_and_are_peers_pending_that_wait_for_each_other():
    # Both may yet be joined by another thread of the other side, so that only time can tell.
    with Cluster(seed=SEED, timeout=1.0) as cluster:
        voter, *others = peers = cluster.form(3)
        calls = [voter.tell("are_peers_pending")]
        calls += [peer.tell("all_reduce", **OP) for peer in others]
        answers = cluster.collect(calls)
        expect_error(answers, "MismatchError")
        for answer in answers:
            names_both(answer, voter)
            assert "are_peers_pending" in answer["text"]
            assert "all_reduce" in answer["text"]
        cluster.reduce(peers, tag=4)


def test_blocking_ops_that_wait_for_each_other_end_for_all_in_the_circle():
    with Cluster(seed=SEED, timeout=0.5) as cluster:
        peers = cluster.form(3)
        answers = cluster.collect(
            [peer.tell("all_reduce", count=4, tag=7 + i) for i, peer in enumerate(peers)]
        )
        expect_error(answers, "MismatchError")
        for answer in answers:
            assert "wait for each other" in answer["text"]
            named = {tag for tag in (7, 8, 9) if f"the collective with tag {tag}" in answer["text"]}
            assert len(named) >= 2, answer[
                "text"
            ]  # each of two waits for the other; the third may be one too many
        cluster.reduce(peers, tag=20)
