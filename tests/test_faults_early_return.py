"""Small ops that return before their commit: whoever dies, all survivors end with the same results."""

from __future__ import annotations

import random
import time

import pytest
from faults.cluster import Cluster, Peer, expect_ok, readable

SEED = 20261123
STEPS = 1500
COUNT = 64  # float32


def served(peers: list[Peer]) -> int:
    """How often one of these was handed a result that others had returned."""
    return sum(peer.process.log.read_text().count("which has returned it") for peer in peers)


def check_volley(cluster: Cluster, survivors: list[Peer], members: list[Peer], answers: list[dict]) -> int:
    """All survivors have the same outcome of each op, and results are those of the members that it names. How
    many were lost?"""
    expect_ok(answers)
    outcomes = [[tuple(outcome) for outcome in answer["outcomes"]] for answer in answers]
    assert all(other == outcomes[0] for other in outcomes[1:])
    by_size = {len(group): group for group in (survivors, members)}
    lost = 0
    for step, (found, world) in enumerate(outcomes[0]):
        if found == "lost":
            lost += 1
        else:
            assert found == cluster.expected(by_size[world], count=COUNT, step=step), f"step {step}"
    return lost


@pytest.mark.parametrize("tags", [1, 5])
def test_survivors_agree_on_every_op_whoever_is_killed_when(tags):
    random_source = random.Random(SEED + tags)
    with Cluster(seed=SEED, timeout=5) as cluster:
        survivors = cluster.form(3)
        lost = rounds = 0
        while rounds < 12 or (served(survivors) == 0 and rounds < 100):
            rounds += 1
            victim = cluster.add()
            cluster.admit(survivors, [victim])
            members = [*survivors, victim]
            volleys = [peer.tell("volley", steps=STEPS, count=COUNT, tags=tags) for peer in members]
            time.sleep(0.02 + 0.2 * random_source.random())
            victim.kill()
            lost += check_volley(cluster, survivors, members, cluster.collect(volleys[:3]))
            cluster.forget_dead()
        print(f"{rounds} kills: {lost} ops lost for all, {served(survivors)} results handed on")
        assert served(survivors) > 0, "no result was ever handed on: the kills missed what they are for"


def test_results_come_while_the_master_stands_still_and_the_next_op_waits_for_it():
    with Cluster(seed=SEED, timeout=10) as cluster:
        peers = cluster.form(3)
        op = {"count": COUNT, "tag": 1, "early_return": True}
        cluster.master.stop()
        cluster.check(cluster.ask_all(peers, "all_reduce", step=1, **op), peers, step=1, **op)
        other_tag = op | {"tag": 2, "in_place": True}
        cluster.check(cluster.ask_all(peers, "all_reduce", step=2, **other_tag), peers, step=2, **other_tag)
        behind = [peer.tell("all_reduce", step=3, **op) for peer in peers]
        answered = readable([peer.connection.fileno() for peer in peers], 0.3)
        assert not answered, "it did not wait for the commit of the first"
        cluster.master.go_on()
        cluster.check(cluster.collect(behind), peers, step=3, **op)


def test_a_peer_that_closes_at_once_leaves_its_last_result_to_the_others():
    with Cluster(seed=SEED, timeout=10) as cluster:
        a, b = cluster.form(2)
        for step in range(20):
            leaver = cluster.add()
            cluster.admit([a, b], [leaver])
            members = [a, b, leaver]
            op = {"count": COUNT, "step": step, "early_return": True}
            ops = [peer.tell("all_reduce", **op) for peer in members]
            closing = leaver.tell("close")
            cluster.check(cluster.collect(ops), members, **op)
            expect_ok(cluster.collect([closing]))
            leaver.kill()
            cluster.forget_dead()
