"""Many ops at once in real processes: any order, limits, joint calls beside them, deaths in mid-flight."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
from faults.cluster import Answer, Cluster, Peer, expect_error, expect_ok, wait_until
from faults.many import usage

SEED = 20261203
MAX_OPS = 1024


def small(tags: range) -> list[dict[str, Any]]:
    return [{"tag": tag, "step": tag, "count": 4, "in_place": True} for tag in tags]


def mixed(tags: range) -> list[dict[str, Any]]:
    """Types, sizes (below and above what goes early), in place and out of place."""
    return [
        {
            "tag": tag,
            "step": tag,
            "count": [50, 3_000, 40_000, 120_000][tag % 4],
            "dtype": ["float16", "int64"][tag // 4 % 2],
            "in_place": tag // 8 % 2 == 0,
        }
        for tag in tags
    ]


def landed(cluster: Cluster, peers: Sequence[Peer], tags: Sequence[int]) -> list[list[Answer]]:
    """The answers of the peers to each op, in the order of `tags`."""
    answers = cluster.ask_all(peers, "land", tags=list(tags))
    expect_ok(answers)
    return [list(of_op) for of_op in zip(*(answer["ops"] for answer in answers), strict=True)]


# --- one call and its limits ------------------------------------------------------------------------------


def test_more_ops_than_may_be_in_flight_wait_for_a_place():
    # At other speeds, so that each peer comes to the limit at another op.
    with Cluster(seed=SEED, timeout=10) as cluster:
        a, b, c = peers = cluster.form(3)
        tags = range(2 * MAX_OPS)
        ops = [op | {"retry": op["tag"] % 2 == 0} for op in small(tags)]
        expect_ok([cluster.ask(a, "launch", ops=ops)])
        expect_ok([cluster.ask(b, "launch", ops=ops[: MAX_OPS // 2])])
        blocking = a.tell("all_reduce", **small(range(tags.stop, tags.stop + 1))[0])
        expect_ok([cluster.ask(c, "launch", ops=ops)])
        expect_ok([cluster.ask(b, "launch", ops=ops[MAX_OPS // 2 :])])
        assert blocking.answer is None
        rest = [peer.tell("all_reduce", **small(range(tags.stop, tags.stop + 1))[0]) for peer in (b, c)]
        expect_ok(cluster.collect([blocking, *rest]))
        for op, answers in zip(ops, landed(cluster, peers, tags), strict=True):
            cluster.check(answers, peers, **op)


def test_ops_that_wait_for_a_place_end_with_those_that_have_one():
    with Cluster(seed=SEED, timeout=1) as cluster:
        a, b = cluster.form(2)
        tags = range(MAX_OPS + 100)
        expect_ok([cluster.ask(a, "launch", ops=small(tags))])
        cluster.wait_for_log(a.process, r"1024 collectives are in flight, and for .* same order")
        b.kill()
        for answers in landed(cluster, [a], tags):
            expect_error(answers, "PeerLostError", "TooFewPeersError")


def test_as_many_as_may_be_are_in_flight_again_and_again():
    with Cluster(seed=SEED, timeout=10) as cluster:
        peers = cluster.form(2)
        for first in range(0, 3 * MAX_OPS, MAX_OPS):
            tags = range(first, first + MAX_OPS)
            expect_ok(cluster.ask_all(peers, "launch", ops=small(tags)))
            for answers in landed(cluster, peers, tags):
                expect_ok(answers)


def test_peers_pending_is_asked_while_ops_are_in_flight_and_no_other_joint_call():
    with Cluster(seed=SEED, timeout=10) as cluster:
        a, b = cluster.form(2)
        ops = mixed(range(8))
        for i, retry in enumerate((False, True)):
            op_list = [op | {"tag": op["tag"] + 100 * i, "retry": retry} for op in ops]
            expect_ok([cluster.ask(a, "launch", ops=op_list)])
            answers = cluster.ask_all([a, b], "are_peers_pending")
            expect_ok(answers)
            assert [answer["pending"] for answer in answers] == [False, False]
            for call in ("update_topology", "optimize_topology"):
                answer = cluster.ask(a, call)
                assert not answer["ok"]
                assert "await" in answer["text"], answer
            expect_ok([cluster.ask(b, "launch", ops=op_list)])
            for op, answers in zip(
                op_list, landed(cluster, [a, b], [op["tag"] for op in op_list]), strict=True
            ):
                cluster.check(answers, [a, b], **op)
        expect_ok(cluster.ask_all([a, b], "update_topology"))


def test_async_ops_that_retry_are_no_reason_to_fail_a_question_for_pending_peers():
    # Unlike a blocking op, such an op does not keep its user from making the joint call, however late.
    with Cluster(seed=SEED, timeout=1.0) as cluster:
        a, b = cluster.form(2)
        op = mixed(range(1))[0] | {"retry": True}
        expect_ok([cluster.ask(a, "launch", ops=[op])])
        asking = b.tell("are_peers_pending")
        time.sleep(2.5)  # the op has been reported as waiting for b more than once
        expect_ok(cluster.collect([asking, a.tell("are_peers_pending")]))
        expect_ok([cluster.ask(b, "launch", ops=[op])])
        cluster.check(landed(cluster, [a, b], [0])[0], [a, b], **op)


def test_a_peer_that_drops_its_handles_takes_part_all_the_same():
    with Cluster(seed=SEED, timeout=10) as cluster:
        a, b = cluster.form(2)
        ops = mixed(range(32))
        expect_ok([cluster.ask(a, "launch", ops=ops), cluster.ask(a, "drop")])
        expect_ok([cluster.ask(b, "launch", ops=ops)])
        for op, answers in zip(ops, landed(cluster, [b], range(32)), strict=True):
            assert answers[0]["world"] == 2
            assert answers[0]["digest"] == cluster.expected([a, b], **op)
        cluster.reduce([a, b])


# --- several with retry -----------------------------------------------------------------------------------


def test_a_slow_op_does_not_keep_the_next_ones_from_being_started():
    with Cluster(seed=SEED, timeout=10) as cluster:
        a, b = cluster.form(2)
        ops = [op | {"dtype": "float32"} for op in mixed(range(12))]
        many = a.tell("multiple", ops=ops, max_in_flight=3)
        expect_ok([cluster.ask(b, "launch", ops=ops[1:])])
        for op, answers in zip(ops[1:], landed(cluster, [b], range(1, 12)), strict=True):
            assert answers[0]["digest"] == cluster.expected([a, b], **op)
        assert many.answer is None
        expect_ok([cluster.ask(b, "all_reduce", **ops[0])])
        (answer,) = cluster.collect([many])
        expect_ok([answer])
        assert answer["digests"] == [cluster.expected([a, b], **op) for op in ops]


@pytest.mark.parametrize("max_in_flight", [1, 3])
def test_no_more_than_max_in_flight_run_at_a_time(max_in_flight):
    with Cluster(seed=SEED, timeout=10) as cluster:
        a, b = cluster.form(2)
        # If they all ran at once, the last ones would overtake the others.
        ops = [{"tag": tag, "step": tag, "count": 400_000 if tag < 17 else 4} for tag in range(20)]
        expect_ok([cluster.ask(b, "launch", ops=ops[::-1])])
        many = a.tell("multiple", ops=ops, max_in_flight=max_in_flight)
        # An op that starts behind k others of which max_in_flight - 1 may run comes after the rest of them.
        for tag in (19, 18, 17):
            cluster.ask(b, "land", tags=[tag])
            over = cluster.ask(b, "done")["tags"]
            assert set(over) >= set(range(tag - max_in_flight + 1))
        expect_ok(cluster.collect([many, b.tell("land", tags=list(range(17)))]))


@pytest.mark.parametrize(
    ("count", "limits"), [(1, (1, 5)), (7, (7, 100)), (1500, (5000, 3)), (40, (1, 2**31 - 1))]
)
def test_windows_of_any_size(count, limits):
    with Cluster(seed=SEED, timeout=10) as cluster:
        peers = cluster.form(2)
        ops = small(range(count))
        calls = [
            peer.tell("multiple", ops=ops, max_in_flight=limit)
            for peer, limit in zip(peers, limits, strict=True)
        ]
        answers = cluster.collect(calls)
        expect_ok(answers)
        assert answers[0]["world"] == 2
        assert answers[0]["digests"] == answers[1]["digests"]
        assert answers[0]["digests"] == [cluster.expected(peers, **op) for op in ops]


@pytest.mark.parametrize("places_left", [1, 3])
def test_a_window_makes_do_with_the_places_that_other_ops_leave(places_left):
    with Cluster(seed=SEED, timeout=10) as cluster:
        a, b = cluster.form(2)
        others = small(range(1000, 1000 + MAX_OPS - places_left))
        expect_ok([cluster.ask(a, "launch", ops=others)])
        ops = small(range(10))
        many = a.tell("multiple", ops=ops, max_in_flight=8)
        time.sleep(0.1)  # it has started what it can
        assert many.answer is None
        expect_ok(cluster.collect([many, b.tell("multiple", ops=ops, max_in_flight=8)]))
        expect_ok([cluster.ask(b, "launch", ops=others)])
        for answers in landed(cluster, [a, b], [op["tag"] for op in others]):
            expect_ok(answers)


@pytest.mark.parametrize("world", [2, 4])
def test_a_peer_that_is_left_alone_has_its_inputs_back_also_of_ops_that_were_done(world):
    with Cluster(seed=SEED) as cluster:
        a, *others = cluster.form(world)
        counts = [10, 30_000, 400_000, 50]
        ops = [
            {"tag": tag, "step": tag, "count": counts[tag % 4], "in_place": tag % 5 > 0} for tag in range(20)
        ]
        many = a.tell("multiple", ops=ops, max_in_flight=4)
        expect_ok(cluster.ask_all(others, "launch", ops=ops[:12]))
        for answers in landed(cluster, others, range(12)):
            expect_ok(answers)  # committed, at all
        for peer in others:
            peer.kill()
        (answer,) = cluster.collect([many])
        expect_error([answer], "TooFewPeersError")
        assert answer["intact"]


def test_an_op_that_differs_fails_the_call_at_all_peers_and_nobody_is_left_waiting():
    with Cluster(seed=SEED, timeout=10) as cluster:
        peers = cluster.form(3)
        for differing in (0, 5, 19):
            calls = []
            for peer in peers:
                ops = [
                    {"tag": tag, "step": tag, "count": 20_000, "in_place": tag % 2 == 0} for tag in range(20)
                ]
                ops[differing]["count"] += peer is peers[1]
                calls.append(peer.tell("multiple", ops=ops, max_in_flight=4 + peer.index))
            answers = cluster.collect(calls)
            expect_error(answers, "MismatchError")
            assert all(answer["intact"] for answer in answers)
            cluster.reduce(peers)


# --- deaths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retry", [False, True], ids=["once", "retry"])
def test_sixty_four_ops_in_flight_under_kills(retry):
    order = random.Random(SEED)
    lost = committed = 0
    with Cluster(seed=SEED) as cluster:
        peers = cluster.form(4)
        for round_number in range(6):
            tags = range(64 * round_number, 64 * round_number + 64)
            ops = [op | {"retry": retry} for op in mixed(tags)]
            for peer in peers:
                peer.tell("launch", ops=order.sample(ops, len(ops)))
            victim = order.choice(peers)
            # Anywhere between the first op that starts and the last one that is committed.
            time.sleep(order.random() * 0.05)
            victim.kill()
            survivors = [peer for peer in peers if peer is not victim]
            for op, answers in zip(ops, landed(cluster, survivors, tags), strict=True):
                if cluster.check_either(answers, peers, survivors, **op):
                    committed += 1
                else:
                    assert not retry, answers
                    lost += 1
            cluster.forget_dead()
            newcomer = cluster.add()
            cluster.admit(survivors, [newcomer])
            peers = [*survivors, newcomer]
            cluster.reduce(peers)
    print(f"seed {SEED}: {committed} committed, {lost} lost")
    assert committed + lost == 6 * 64


def test_ops_that_only_some_have_started_are_settled_alike_when_a_peer_dies():
    with Cluster(seed=SEED) as cluster:
        *survivors, victim = cluster.form(4)
        ops = mixed(range(64))
        order = random.Random(SEED)
        started = {peer.index: order.sample(range(64), 40) for peer in survivors}
        expect_ok(
            cluster.collect(
                [peer.tell("launch", ops=[ops[tag] for tag in started[peer.index]]) for peer in survivors]
            )
        )
        victim.kill()
        cluster.wait_for_log(cluster.master, r"is committed: 3 peers")
        # The others come late, and still hear of what has failed.
        for peer in survivors:
            rest = [op for op in ops if op["tag"] not in started[peer.index]]
            expect_ok([cluster.ask(peer, "launch", ops=rest)])
        for op, answers in zip(ops, landed(cluster, survivors, range(64)), strict=True):
            if any(op["tag"] in tags for tags in started.values()):
                expect_error(answers, "PeerLostError")
            else:
                cluster.check(answers, survivors, **op)
        cluster.reduce(survivors)


# --- nothing grows ----------------------------------------------------------------------------------------


def flood(ops: int, warm_up: int) -> None:
    """That many ops with fresh tags: from `warm_up` on, master and peers hold no more than before."""
    with Cluster(seed=SEED, timeout=10) as cluster:
        peers = cluster.form(2)

        def run(first: int, last: int) -> list[Answer]:
            calls = [peer.tell("flood", first=first, last=last, window=100) for peer in peers]
            answers = cluster.collect(calls, within=30 + (last - first) / 500)
            expect_ok(answers)
            return [*answers, usage(cluster.master.pid)]

        # Python takes and gives back its memory by the MiB, so that two looks are taken at each end.
        before = [run(0, warm_up // 2), run(warm_up // 2, warm_up)]
        after = [run(warm_up, ops - warm_up // 2), run(ops - warm_up // 2, ops)]
        for i, who in enumerate(("peer 0", "peer 1", "master")):
            then, now = [answers[i] for answers in before], [answers[i] for answers in after]
            grown = min(one["bytes"] for one in now) - max(one["bytes"] for one in then)
            print(f"{who}: grown by {grown} bytes from op {warm_up} to op {ops}: {then}, {now}")
            assert grown <= 2 << 20, who
            for what in ("files", "threads"):
                # A link that was only tried, before the first op, may have been closed meanwhile.
                assert now[-1][what] <= then[-1][what], who


def test_a_hundred_thousand_tags_leave_nothing_behind():
    flood(100_000, 20_000)


@pytest.mark.stress
def test_a_million_tags_leave_nothing_behind():
    flood(1_000_000, 20_000)


def test_retries_take_no_threads_and_dropped_handles_hold_nothing():
    with Cluster(seed=SEED, timeout=10) as cluster:
        peers = cluster.form(2)
        before = cluster.ask_all(peers, "usage")
        ops = [op | {"count": 100_000, "retry": True} for op in small(range(100))]
        expect_ok([cluster.ask(peers[0], "launch", ops=ops)])
        assert cluster.ask(peers[0], "usage")["threads"] == before[0]["threads"]
        expect_ok(cluster.ask_all(peers[:1], "drop"))
        expect_ok([cluster.ask(peers[1], "launch", ops=ops)])
        expect_ok([answers[0] for answers in landed(cluster, peers[1:], range(100))])
        expect_ok(cluster.ask_all(peers, "update_topology"))
        held = 100 * 100_000 * 4

        def is_back() -> bool:
            after = cluster.ask(peers[0], "usage")
            return after["bytes"] < before[0]["bytes"] + held // 2

        wait_until(is_back, "the arrays of dropped ops are freed")
