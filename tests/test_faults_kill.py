"""A peer is killed, at whatever instant: the others agree on what has become of their op, and go on."""

from __future__ import annotations

import time

import pytest
from faults.cluster import Cluster, expect_error, expect_ok

SEED = 20261121


def test_peers_reduce_exactly_while_nothing_fails():
    with Cluster(seed=SEED) as cluster:
        peers = cluster.form(4)
        for step, dtype in enumerate(["float32", "int32", "float64", "uint16"]):
            cluster.reduce(peers, step=step, dtype=dtype, count=300_001)
        cluster.reduce(peers, op="avg", in_place=True)
        cluster.reduce(peers, op="max")


def test_many_peers_that_connect_at_once_all_get_in():
    for attempt in range(4):
        with Cluster(seed=SEED + attempt) as cluster:
            cluster.reduce(cluster.form(8))


# --- before and between ops ------------------------------------------------------------------------------


def test_a_newcomer_killed_while_pending_is_missed_by_nobody():
    with Cluster(seed=SEED) as cluster:
        members = cluster.form(3)
        newcomer = cluster.add()
        newcomer.tell("connect")
        cluster.wait_until_known(newcomer)
        newcomer.kill()
        answers = cluster.ask_all(members, "update_topology")
        expect_ok(answers)
        assert {answer["world"] for answer in answers} == {3}
        cluster.reduce(members)


def test_a_newcomer_killed_between_proposal_and_links_holds_nobody_up():
    with Cluster(seed=SEED, timeout=10) as cluster:  # so that it is the kill that counts, and not the silence
        members = cluster.form(2)
        newcomer = cluster.add()
        newcomer.tell("connect")
        cluster.wait_until_known(newcomer)
        time.sleep(1)  # it is reached
        newcomer.process.stop()
        votes = [peer.tell("update_topology") for peer in members]
        cluster.wait_for_log(cluster.master, r"is proposed to 3 peers")
        newcomer.kill()
        answers = cluster.collect(votes)
        expect_ok(answers)
        assert {answer["world"] for answer in answers} == {2}
        cluster.reduce(members)


def test_a_member_killed_while_a_newcomer_is_let_in_takes_nobody_along():
    with Cluster(seed=SEED, timeout=10) as cluster:
        a, b, c = cluster.form(3)
        newcomer = cluster.add()
        joining = newcomer.tell("connect")
        cluster.wait_until_known(newcomer)
        voted = c.tell("update_topology")
        cluster.collect([c.tell("info", aside=True)])
        time.sleep(0.05)  # the vote is on its way
        c.process.stop()  # cannot make its links to the newcomer
        votes = [peer.tell("update_topology") for peer in (a, b)]
        cluster.wait_for_log(cluster.master, r"is proposed to 4 peers")
        c.kill()
        answers = cluster.collect([joining, *votes])
        assert cluster.collect([voted])[0]["dead"]
        expect_ok(answers)
        assert {answer["world"] for answer in answers} == {3}
        cluster.reduce([a, b, newcomer])


@pytest.mark.parametrize("call", ["update_topology", "are_peers_pending", "optimize_topology"])
def test_a_joint_call_goes_on_without_a_peer_that_is_killed(call):
    with Cluster(seed=SEED, timeout=10) as cluster:
        a, b, voter, silent = cluster.form(4)
        voter.tell(call)
        votes = [peer.tell(call) for peer in (a, b)]
        time.sleep(0.05)
        voter.kill()  # has voted
        silent.kill()  # has not
        expect_ok(cluster.collect(votes))
        cluster.reduce([a, b])


def test_a_peer_killed_in_close_is_gone_for_the_others():
    with Cluster(seed=SEED, timeout=10) as cluster:
        a, b, leaver = cluster.form(3)
        cluster.master.stop()  # so that close() waits for its answer
        leaver.tell("close")
        ops = [peer.tell("all_reduce", count=100_000) for peer in (a, b)]
        time.sleep(0.05)
        leaver.kill()
        cluster.master.go_on()
        answers = cluster.collect(ops)
        # It left in good order, and the op went on, or it died, and the op has to be done again.
        cluster.check_either(answers, [a, b], count=100_000)
        cluster.reduce([a, b])


# --- in an op --------------------------------------------------------------------------------------------


def test_an_op_that_only_the_killed_peer_had_called_is_one_of_the_survivors():
    with Cluster(seed=SEED) as cluster:
        a, b, killed = cluster.form(3)
        killed.tell("all_reduce", count=1000, tag=5)
        time.sleep(0.1)
        killed.kill()
        cluster.wait_for_log(cluster.master, r"is committed: 2 peers")
        cluster.reduce([a, b], tag=5)


@pytest.mark.parametrize("count", [10, 1_000_000], ids=["eager", "granted"])
def test_an_op_fails_for_all_when_a_peer_dies_that_some_waited_for(count):
    with Cluster(seed=SEED) as cluster:
        a, b, c, killed = cluster.form(4)
        ops = [peer.tell("all_reduce", count=count) for peer in (a, b)]
        time.sleep(0.1)
        killed.kill()
        expect_error(cluster.collect(ops), "PeerLostError")
        # It had not called yet: the op that the others have lost is lost for it as well.
        expect_error([cluster.ask(c, "all_reduce", count=count)], "PeerLostError")
        cluster.reduce([a, b, c], count=count)


def test_an_op_whole_everywhere_but_not_committed_ends_alike_for_all():
    with Cluster(seed=SEED, timeout=10) as cluster:
        peers = cluster.form(4)
        op = {"count": 50_000, "step": 3, "in_place": True}
        cluster.reduce(peers, **op)  # all that is needed is warm
        cluster.master.stop()
        ops = [peer.tell("all_reduce", **op) for peer in peers]
        time.sleep(0.3)  # each has its whole result, and has said so
        assert all(one.answer is None for one in ops)
        peers[3].kill()
        time.sleep(0.05)
        cluster.master.go_on()
        answers = cluster.collect(ops[:3])
        cluster.check_either(answers, peers, **op)
        cluster.reduce(peers[:3], **op)


@pytest.mark.parametrize("victims", [2, 3, 4], ids=["two", "three", "all but one"])
def test_several_that_die_at_once(victims):
    with Cluster(seed=SEED) as cluster:
        peers = cluster.form(5)
        survivors = peers[victims:]
        ops = [peer.tell("all_reduce", count=2_000_000) for peer in survivors]
        for peer in peers[:victims]:
            peer.kill()
        answers = cluster.collect(ops)
        if len(survivors) > 1:
            cluster.check_either(answers, survivors, count=2_000_000)  # called before or after it
            cluster.reduce(survivors)
        else:
            expect_error(answers, "PeerLostError", "TooFewPeersError")
            cluster.wait_for_log(cluster.master, r"is committed: 1 peers", count=2)
            expect_error(cluster.ask_all(survivors, "all_reduce", count=1000), "TooFewPeersError")
            expect_error(cluster.ask_all(survivors, "all_reduce", count=1000, retry=True), "TooFewPeersError")
            newcomer = cluster.add()
            cluster.admit(survivors, [newcomer])
            cluster.reduce([*survivors, newcomer])


def test_when_all_members_die_the_pending_ones_are_let_in():
    with Cluster(seed=SEED) as cluster:
        members = cluster.form(3)
        newcomers = [cluster.add() for _ in range(3)]
        joining = [peer.tell("connect") for peer in newcomers]
        for peer in newcomers:
            cluster.wait_until_known(peer)
        for peer in members:
            peer.kill()
        expect_ok(cluster.collect(joining))
        expect_ok(cluster.ask_all(newcomers, "update_topology"))
        cluster.reduce(newcomers)


def test_ops_in_flight_beside_the_lost_one_are_lost_for_all_or_committed_for_all():
    with Cluster(seed=SEED) as cluster:
        peers = cluster.form(4)
        survivors = peers[:3]
        ops = [{"tag": tag, "step": tag, "count": 400_000, "in_place": tag % 2 == 0} for tag in range(6)]
        for op in ops:
            for peer in peers[:: 1 if op["tag"] % 2 else -1]:  # in different order on different peers
                peer.tell("start", handle=str(op["tag"]), **op)
        time.sleep(0.005)
        peers[3].kill()
        for op in ops:
            answers = cluster.ask_all(survivors, "await", handle=str(op["tag"]))
            cluster.check_either(answers, peers, survivors, **op)
        for op in ops:
            cluster.reduce(survivors, **op)


def test_ops_that_retry_come_right_by_themselves():
    with Cluster(seed=SEED) as cluster:
        peers = cluster.form(4)
        survivors = peers[:3]
        ops = [{"tag": tag, "step": tag, "count": 300_000, "in_place": tag % 2 == 0} for tag in range(6)]
        for op in ops:
            for peer in peers[:: 1 if op["tag"] % 2 else -1]:
                peer.tell("start", handle=str(op["tag"]), retry=True, **op)
        time.sleep(0.01)
        peers[3].kill()
        for op in ops:
            answers = cluster.ask_all(survivors, "await", handle=str(op["tag"]))
            expect_ok(answers)
            assert cluster.check_either(answers, peers, survivors, **op)


@pytest.mark.parametrize("max_in_flight", [1, 3, 100])
def test_all_reduce_multiple_with_retry_goes_on_with_those_who_are_left(max_in_flight):
    with Cluster(seed=SEED) as cluster:
        peers = cluster.form(4)
        ops = [{"tag": tag, "step": tag, "count": 200_000, "in_place": tag % 2 == 0} for tag in range(12)]
        calls = [peer.tell("multiple", ops=ops, max_in_flight=max_in_flight) for peer in peers]
        for victim in peers[2:]:
            time.sleep(0.02)
            victim.kill()
        answers = cluster.collect(calls[:2])
        expect_ok(answers)
        assert answers[0]["digests"] == answers[1]["digests"]
        memberships = [peers, [*peers[:2], peers[3]], peers[:2]]
        for op, result in zip(ops, answers[0]["digests"], strict=True):
            assert result in {cluster.expected(members, **op) for members in memberships}
        cluster.reduce(peers[:2])


def test_peers_train_on_while_others_die():
    with Cluster(seed=SEED) as cluster:
        peers = cluster.form(4)
        steps = {"count": 100_000, "first": 0, "last": 60, "in_place": True}
        training = [peer.tell("train", **steps) for peer in peers]
        for victim in peers[2:]:
            time.sleep(0.15)
            victim.kill()
        answers = cluster.collect(training[:2])
        expect_ok(answers)
        assert answers[0]["worlds"] == answers[1]["worlds"]
        members = {4: peers, 3: [*peers[:2], peers[3]], 2: peers[:2]}
        for step, (world, one, other) in enumerate(
            zip(answers[0]["worlds"], answers[0]["digests"], answers[1]["digests"], strict=True)
        ):
            assert one == other == cluster.expected(members[world], step=step, count=steps["count"])
        cluster.reduce(peers[:2])
