"""Broadcast, all-gather, reduce-scatter and barrier between real processes, in good times and bad."""

from __future__ import annotations

import itertools
import random
import re
import time
from typing import Any

import pytest
from faults.cluster import Cluster, Peer, expect_error, expect_ok, wait_until
from faults.collectives import check_results, expected

import pccl

SEED = 20261127
# Longer than any test waits: what comes late is a hang.
PATIENCE = 60.0
COUNTS = [1, 17, 100_000]
KINDS = ["broadcast", "all_gather", "reduce_scatter"]


def check(cluster: Cluster, answers: list[Any], peers: list[Peer], **op: Any) -> None:
    check_results(cluster.seed, answers, [peer.index for peer in peers], **op)


def collective(cluster: Cluster, peers: list[Peer], **op: Any) -> list[Any]:
    answers = cluster.ask_all(peers, "collective", **op)
    check(cluster, answers, peers, **op)
    return answers


def in_order_of_ranks(cluster: Cluster, peers: list[Peer]) -> list[Peer]:
    ranks = [answer["rank"] for answer in cluster.ask_all(peers, "info")]
    return [peer for _, peer in sorted(zip(ranks, peers, strict=True), key=lambda pair: pair[0])]


def wait_for_world(cluster: Cluster, peers: list[Peer], size: int) -> None:
    def is_reached() -> bool:
        return all(answer["world"] == size for answer in cluster.ask_all(peers, "info"))

    wait_until(is_reached, f"a world of {size}")


# --- results ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3, 4, 5, 6])
def test_each_has_what_its_rank_must_have(world):
    with Cluster(seed=SEED + world, timeout=PATIENCE) as cluster:
        peers = cluster.form(world)
        for step, (count, in_place) in enumerate(itertools.product(COUNTS, [False, True])):
            shared = {"count": count, "in_place": in_place, "step": step}
            collective(cluster, peers, kind="all_gather", **shared)
            collective(cluster, peers, kind="reduce_scatter", **shared)
        for root, count, algorithm in itertools.product(range(world), COUNTS, ["auto", "ring", "tree"]):
            answers = collective(
                cluster, peers, kind="broadcast", root=root, count=count, algorithm=algorithm, step=root
            )
            small = algorithm == "auto" and count < 1000
            used = "tree" if small or algorithm == "tree" else "ring"
            assert {answer["algorithm"] for answer in answers} == {used}
        collective(cluster, peers, kind="barrier", count=0)


def test_all_element_types():
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peers = cluster.form(3)
        for step, datatype in enumerate(pccl.DataType):
            op = {"dtype": datatype.dtype_name, "count": 1001, "step": step}
            # Sums of bfloat16 are rounded, in an order that the test does not know.
            reduce_op = "max" if datatype is pccl.DataType.BFLOAT16 else "sum"
            collective(cluster, peers, kind="reduce_scatter", op=reduce_op, in_place=step % 2 == 0, **op)
            collective(cluster, peers, kind="all_gather", **op)
            collective(cluster, peers, kind="broadcast", root=step % 3, **op)


@pytest.mark.parametrize("world", [2, 3, 5, 6])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_bits_are_equal_at_all_peers_whatever_the_floats(world, dtype):
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peers = cluster.form(world)
        for algorithm, op, count in itertools.product(
            ["auto", "ring", "tree"], ["sum", "avg", "prod", "max", "min"], [13, 5000]
        ):
            options = {"special": True, "dtype": dtype, "op": op, "count": count, "algorithm": algorithm}
            answers = cluster.ask_all(peers, "collective", kind="all_reduce", **options)
            expect_ok(answers)
            assert len({answer["digest"] for answer in answers}) == 1, options
            again = cluster.ask_all(peers, "collective", kind="all_reduce", in_place=True, **options)
            assert {answer["digest"] for answer in again} == {answers[0]["digest"]}, options
        special = {"special": True, "dtype": dtype, "count": 5000}
        for algorithm in ("ring", "tree"):
            collective(cluster, peers, kind="broadcast", root=world - 1, algorithm=algorithm, **special)
        collective(cluster, peers, kind="all_gather", **special)


def test_all_kinds_are_in_flight_at_once_in_any_order():
    choice = random.Random(SEED)
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peers = cluster.form(4)
        for round_ in range(3):
            ops = [
                {
                    "kind": (["all_reduce", "barrier", *KINDS])[tag % 5],
                    "count": choice.choice(COUNTS),
                    "tag": tag,
                    "step": round_,
                    "root": tag % 4,
                    "in_place": choice.random() < 0.5,
                    "algorithm": choice.choice(["auto", "ring", "tree"]),
                }
                for tag in range(20)
            ]
            for peer in peers:
                for op in choice.sample(ops, len(ops)):
                    peer.tell("start_collective", handle=str(op["tag"]), **op)
            alone = {"kind": "all_gather", "count": 30_000, "tag": 99}
            collective(cluster, peers, **alone)  # a blocking one amid them
            for op in choice.sample(ops, len(ops)):
                answers = cluster.ask_all(peers, "await_collective", handle=str(op["tag"]))
                check(cluster, answers, peers, **op)


def test_a_barrier_holds_until_the_last_has_come():
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        *early, last = peers = cluster.form(4)
        calls = [peer.tell("collective", kind="barrier", tag=3) for peer in early]
        time.sleep(0.2)
        cluster.ask(last, "info")
        assert all(call.answer is None for call in calls)
        calls.append(last.tell("collective", kind="barrier", tag=3))
        check(cluster, cluster.collect(calls), peers, kind="barrier")


# --- calls that differ ------------------------------------------------------------------------------------

BROADCAST = {"kind": "broadcast", "tag": 4, "root": 0, "algorithm": "ring"}
LARGE = BROADCAST | {"count": 200_000}
SMALL = BROADCAST | {"count": 100}
GATHER = {"kind": "all_gather", "tag": 4, "count": 100}
DIFFERENCES = [
    pytest.param(LARGE, LARGE | {"root": 3}, ["root 0", "root 3"], id="root, large"),
    pytest.param(SMALL, SMALL | {"root": 3}, ["root 0", "root 3"], id="root, small"),
    pytest.param(LARGE, LARGE | {"count": 200_001}, ["200000", "200001"], id="count, large"),
    pytest.param(GATHER, GATHER | {"count": 101}, ["100", "101"], id="count"),
    pytest.param(LARGE, LARGE | {"algorithm": "tree"}, ["by ring", "by tree"], id="algorithm"),
    pytest.param(LARGE, LARGE | {"kind": "barrier"}, ["broadcast", "barrier"], id="a barrier, large"),
    pytest.param(SMALL, SMALL | {"kind": "barrier"}, ["broadcast", "barrier"], id="a barrier, small"),
    pytest.param(GATHER, GATHER | {"kind": "reduce_scatter"}, ["all_gather", "reduce_scatter"], id="kind"),
    pytest.param(
        GATHER | {"kind": "reduce_scatter", "op": "min"},
        GATHER | {"kind": "reduce_scatter", "op": "max"},
        ["min", "max"],
        id="op",
    ),
]


@pytest.mark.parametrize("odd_rank", [0, 1, 2, 3])
@pytest.mark.parametrize(("usual", "odd", "words"), DIFFERENCES)
def test_one_peer_calls_something_else(usual, odd, words, odd_rank):
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peers = in_order_of_ranks(cluster, cluster.form(4))
        for tree in (False, True):
            calls = []
            for rank, peer in enumerate(peers):
                op = odd if rank == odd_rank else usual
                other_way = tree and usual is LARGE and odd["algorithm"] == "ring"
                calls.append(peer.tell("collective", **op | ({"algorithm": "tree"} if other_way else {})))
            answers = cluster.collect(calls)
            expect_error(answers, "MismatchError")
            for answer in answers:
                assert re.search(rf"\b{peers[odd_rank].name}\b", answer["text"]), answer["text"]
                assert all(re.search(rf"\b{word}\b", answer["text"]) for word in words), answer["text"]
        collective(cluster, peers, **GATHER)


# --- peers that go ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01])
@pytest.mark.parametrize("victim_rank", [0, 2], ids=["root", "not the root"])
@pytest.mark.parametrize("kind", [*KINDS, "tree broadcast"])
def test_a_peer_is_killed_in_the_middle(kind, victim_rank, delay):
    op = {"kind": kind.split()[-1], "count": 2_000_000, "tag": 5}
    if kind == "tree broadcast":
        op["algorithm"] = "tree"
    with Cluster(seed=SEED) as cluster:
        peers = in_order_of_ranks(cluster, cluster.form(4))
        survivors = [peer for rank, peer in enumerate(peers) if rank != victim_rank]
        for peer in peers:
            peer.tell("start_collective", handle="it", in_place=kind == "all_gather", **op)
        time.sleep(delay)
        peers[victim_rank].kill()
        answers = cluster.ask_all(survivors, "await_collective", handle="it")
        if answers[0]["ok"]:  # over before the kill, or called after it
            expect_ok(answers)
            members = peers if answers[0]["world"] == 4 else in_order_of_ranks(cluster, survivors)
            by_rank = [peer.index for peer in members]
            for peer, answer in zip(survivors, answers, strict=True):
                assert answer["digest"] == expected(cluster.seed, by_rank, members.index(peer), op)
        else:
            expect_error(answers, "PeerLostError")
        wait_for_world(cluster, survivors, 3)
        collective(cluster, survivors, **op)
        collective(cluster, survivors, **op | {"in_place": True})


def test_buffers_for_a_world_that_was_are_lost_and_for_one_that_never_was_refused():
    with Cluster(seed=SEED) as cluster:
        peers = cluster.form(4)
        op = {"kind": "all_gather", "count": 1000, "tag": 2}
        answers = cluster.ask_all(peers, "collective", **op | {"world": 5})
        expect_error(answers, "InvalidArgumentError")
        answers = cluster.ask_all(peers, "collective", **op | {"kind": "reduce_scatter", "world": 3})
        expect_error(answers, "InvalidArgumentError")
        answers = cluster.ask_all(peers, "collective", kind="broadcast", count=10, root=4)
        expect_error(answers, "InvalidArgumentError")
        assert all("root is 4" in answer["text"] for answer in answers)
        peers.pop().kill()
        wait_for_world(cluster, peers, 3)
        collective(cluster, peers, **op)
        # What was right a moment ago is no mistake: all can call again.
        answers = cluster.ask_all(peers, "collective", **op | {"world": 4})
        expect_error(answers, "PeerLostError")
        answers = cluster.ask_all(peers, "collective", kind="broadcast", count=10, root=3, tag=2)
        expect_error(answers, "PeerLostError")
        collective(cluster, peers, **op)


def test_a_graceful_leave_fails_what_names_ranks_and_no_barrier():
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        *staying, leaver = cluster.form(4)
        ops = [
            {"kind": kind, "count": 200_000, "tag": tag}
            for tag, kind in enumerate([*KINDS, "barrier", "all_reduce"])
        ]
        for op in ops:
            for peer in staying:
                peer.tell("start_collective", handle=str(op["tag"]), **op)
        cluster.ask_all(staying, "info")  # all have started
        expect_ok([cluster.ask(leaver, "close")])
        for op in ops:
            answers = cluster.ask_all(staying, "await_collective", handle=str(op["tag"]))
            if op["kind"] in KINDS:
                expect_error(answers, "PeerLostError")
            else:
                check(cluster, answers, staying, **op)
        for op in ops:
            collective(cluster, staying, **op)


def test_alone_there_are_too_few_peers():
    with Cluster(seed=SEED) as cluster:
        peers = cluster.form(1)
        for kind in (*KINDS, "barrier"):
            expect_error(cluster.ask_all(peers, "collective", kind=kind, count=10), "TooFewPeersError")
        for call in ("broadcast_object", "all_gather_object"):
            expect_error(cluster.ask_all(peers, call), "TooFewPeersError")


# --- objects ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3, 5])
def test_objects_arrive_at_all(world):
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peers = in_order_of_ranks(cluster, cluster.form(world))
        items = [1, 2.5, None, True, "é"]
        for size in (None, 0, 70_000):
            command = {} if size is None else {"size": size}

            def value(peer, size=size):
                return {"index": peer.index, "items": items} if size is None else [peer.index, "x" * size]

            answers = cluster.ask_all(peers, "all_gather_object", tag=3, **command)
            expect_ok(answers)
            assert all(answer["value"] == [value(peer) for peer in peers] for answer in answers)
            for root in range(world):
                answers = cluster.ask_all(peers, "broadcast_object", root=root, tag=3, **command)
                expect_ok(answers)
                assert all(answer["value"] == value(peers[root]) for answer in answers)


def test_one_object_that_is_too_large_is_an_error_at_all_and_holds_nobody():
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peers = in_order_of_ranks(cluster, cluster.form(3))
        too_large = {"size": 17 << 20}
        for call, others in (("all_gather_object", {"size": 5}), ("broadcast_object", {"root": 1})):
            calls = [
                peer.tell(call, **others | (too_large if rank == 1 else {}))
                for rank, peer in enumerate(peers)
            ]
            answers = cluster.collect(calls)
            expect_error(answers, "ValueError")
            assert all("rank 1" in answer["text"] and "16777216" in answer["text"] for answer in answers)
        expect_ok(cluster.ask_all(peers, "all_gather_object", size=5))


def test_objects_survive_a_kill_when_they_are_retried():
    with Cluster(seed=SEED) as cluster:
        peers = in_order_of_ranks(cluster, cluster.form(4))
        *survivors, victim = peers
        for round_ in range(6):
            calls = [peer.tell("all_gather_object", retry=True, size=1_000_000) for peer in survivors]
            if round_ == 2:
                victim.tell("all_gather_object", retry=True, size=1_000_000)
                time.sleep(0.01)
                victim.kill()
            elif round_ < 2:
                calls.append(victim.tell("all_gather_object", retry=True, size=1_000_000))
            answers = cluster.collect(calls)
            expect_ok(answers)
            gathered = [[value[0] for value in answer["value"]] for answer in answers]
            assert all(sorted(one) == sorted(gathered[0]) for one in gathered)
            members = peers if len(gathered[0]) == 4 else survivors
            assert sorted(gathered[0]) == sorted(peer.index for peer in members)
            assert round_ != 0 or members is peers
            assert round_ < 3 or members is survivors


def test_a_root_that_is_killed_has_one_outcome_for_all():
    with Cluster(seed=SEED) as cluster:
        root, *others = in_order_of_ranks(cluster, cluster.form(4))
        calls = [peer.tell("broadcast_object") for peer in others]
        root.kill()
        answers = cluster.collect(calls)
        if answers[0]["ok"]:  # all have called after it, and have another rank 0
            expect_ok(answers)
        else:
            expect_error(answers, "PeerLostError")
        wait_for_world(cluster, others, 3)
        answers = cluster.ask_all(others, "broadcast_object")
        expect_ok(answers)
        assert len({answer["value"]["index"] for answer in answers}) == 1
