"""The network loses every packet between some, and tells nobody (no FIN, no RST)."""

from __future__ import annotations

import re
import time

import pytest
from faults.cluster import Cluster, expect_error, expect_ok
from faults.netns import Star, reason_not_to

SEED = 20261127
TIMEOUT = 0.6

pytestmark = pytest.mark.skipif(reason_not_to() is not None, reason=str(reason_not_to()))


@pytest.fixture
def network():
    with Star() as star:
        yield star


@pytest.fixture
def cluster(network):
    with Cluster(seed=SEED, timeout=TIMEOUT, network=network) as cluster:
        yield cluster


def neighbours(cluster, peers):
    """The peers in ring order."""
    answers = cluster.ask_all(peers, "info")
    return [peer for _, peer in sorted(zip([answer["rank"] for answer in answers], peers, strict=True))]


def stay_together(cluster, peers, count=300_000):
    """They reduce until it succeeds: with everybody."""
    op = {"count": count, "in_place": True}
    for _ in range(10):
        answers = cluster.ask_all(peers, "all_reduce", **op)
        if cluster.check_either(answers, peers, **op):
            break
    else:
        raise AssertionError("they did not find together")
    assert "evicted" not in cluster.master.log.read_text()


def test_a_network_without_faults_carries_a_run(cluster, network):
    cluster.reduce(cluster.form(4), count=1_000_000)


@pytest.mark.parametrize("one_way", [False, True], ids=["both ways", "one way"])
def test_an_edge_between_healthy_peers_goes_dead_in_an_op_and_is_routed_around(cluster, network, one_way):
    peers = cluster.form(4)
    ring = neighbours(cluster, peers)
    op = {"count": 3_000_000, "in_place": True}
    ops = [peer.tell("all_reduce", **op) for peer in peers]
    time.sleep(0.01)
    network.cut(ring[1].name, ring[2].name, one_way=one_way)
    cluster.check_either(cluster.collect(ops), peers, **op)
    stay_together(cluster, peers)
    assert abs(neighbours(cluster, peers).index(ring[1]) - neighbours(cluster, peers).index(ring[2])) == 2


def test_a_link_that_is_reset_is_made_anew(cluster, network):
    peers = cluster.form(3)
    op = {"count": 3_000_000, "in_place": True}
    for step in range(2):  # three times in a row is a link that can't be made
        ring = neighbours(cluster, peers)
        ops = [peer.tell("all_reduce", step=step, **op) for peer in peers]
        time.sleep(0.01)
        if not network.reset(ring[0].name, ring[1].name):
            pytest.skip("this kernel can't reset connections (CONFIG_INET_DIAG_DESTROY)")
        cluster.check_either(cluster.collect(ops), peers, step=step, **op)
        stay_together(cluster, peers)


def test_an_edge_that_goes_dead_between_ops_is_routed_around(cluster, network):
    peers = cluster.form(4)
    ring = neighbours(cluster, peers)
    cluster.reduce(peers)
    network.cut(ring[3].name, ring[0].name)
    stay_together(cluster, peers)


def test_two_edges_go_dead_and_a_ring_is_left(cluster, network):
    peers = cluster.form(5)
    ring = neighbours(cluster, peers)
    network.cut(ring[0].name, ring[1].name)
    network.cut(ring[2].name, ring[3].name)
    stay_together(cluster, peers)


def test_where_no_ring_is_left_one_goes_and_the_others_go_on(cluster, network):
    """Three peers need every edge."""
    peers = cluster.form(3)
    cluster.reduce(peers)
    network.cut(peers[0].name, peers[1].name)
    op = {"count": 300_000}
    members = peers
    for _ in range(10):
        answers = cluster.ask_all(members, "all_reduce", **op)
        out = [
            peer
            for peer, one in zip(members, answers, strict=True)
            if not one["ok"] and one["error"] == "EvictedError"
        ]
        if out:
            assert len(out) == 1
            assert peers[2] not in out, "the one whose links are all well was put out"
            members = [peer for peer in members if peer not in out]
            break
        expect_error(answers, "PeerLostError")
    assert len(members) == 2
    cluster.reduce(members, **op)


def test_a_peer_behind_a_black_hole_is_out_and_sees_that_the_master_is_lost(cluster, network):
    *others, lonely = cluster.form(4)
    op = {"count": 2_000_000}
    ops = [peer.tell("all_reduce", **op) for peer in [*others, lonely]]
    time.sleep(0.01)
    network.isolate(lonely.name)
    answers = cluster.collect(ops)
    cluster.check_either(answers[:3], [*others, lonely], others, **op)
    assert answers[3]["ok"] or (
        answers[3]["error"] in ("MasterLostError", "PeerLostError") and answers[3]["intact"]
    )
    cluster.reduce(others)
    expect_error(cluster.ask_all([lonely], "all_reduce", **op), "MasterLostError")
    network.mend()
    cluster.admit_again(others, lonely)
    cluster.reduce([*others, lonely])


@pytest.mark.parametrize("direction", ["both ways", "to the master", "from the master"])
def test_the_way_to_the_master_alone_goes_dead(cluster, network, direction):
    *others, cut_off = cluster.form(3)
    if direction == "both ways":
        network.cut(cut_off.name, "master")
    elif direction == "to the master":
        network.cut(cut_off.name, "master", one_way=True)
    else:
        network.cut("master", cut_off.name, one_way=True)
    op = {"count": 100_000}
    answers = cluster.ask_all(others, "all_reduce", **op)
    cluster.check_either(answers, others, **op)
    cluster.wait_for_log(cut_off.process, "the master was lost|put out of the run")
    expect_error(cluster.ask_all([cut_off], "all_reduce", **op), "MasterLostError", "EvictedError")
    cluster.reduce(others)


def test_the_master_falls_into_a_black_hole(cluster, network):
    peers = cluster.form(3)
    op = {"count": 1000, "in_place": True}
    ops = [peer.tell("all_reduce", **op) for peer in peers[:2]]
    ops.append(peers[2].tell("are_peers_pending"))
    time.sleep(0.05)
    network.isolate("master")
    expect_error(cluster.collect(ops), "MasterLostError")
    network.mend()
    joining = [peer.tell("connect") for peer in peers]
    for peer in peers:
        cluster.wait_for_log(cluster.master, rf"peer {peer.name} \S+ asks to join", 2)
    first = next(peer for peer in peers if cluster.is_admitted(peer))
    expect_ok(cluster.collect([*joining, first.tell("update_topology")]))
    cluster.reduce(peers)


def test_a_newcomer_that_nobody_can_reach_is_left_out_and_told_why(cluster, network):
    members = cluster.form(3)
    newcomer = cluster.add()
    for member in members:
        network.cut(newcomer.name, member.name)
    joining = newcomer.tell("connect")
    cluster.wait_until_known(newcomer)
    answers = cluster.ask_all(members, "update_topology")
    expect_ok(answers)
    assert {answer["world"] for answer in answers} == {3}
    (answer,) = cluster.collect([joining])
    assert not answer["ok"]
    assert answer["error"] == "PCCLError"
    assert "no ring of links includes it" in answer["text"]
    cluster.reduce(members)
    assert not re.search(r"peer p[012] \S+ was evicted", cluster.master.log.read_text())


def test_a_newcomer_that_some_can_reach_is_let_in(cluster, network):
    members = cluster.form(4)
    newcomer = cluster.add()
    network.cut(newcomer.name, members[0].name)
    network.cut(newcomer.name, members[2].name)
    cluster.admit(members, [newcomer])
    cluster.reduce([*members, newcomer], count=200_000)


def test_a_newcomer_that_can_only_call_out_is_let_in(cluster, network):
    """As from behind a firewall: the address that it gives leads nowhere."""
    members = cluster.form(3)
    newcomer = cluster.add(advertise="10.77.250.250")
    cluster.admit(members, [newcomer])
    cluster.reduce([*members, newcomer], count=200_000)


def test_a_holder_that_can_only_call_out_gives_its_state(cluster):
    """Nobody gets a connection to the address that it advertises."""
    (holder,) = cluster.form(1, advertise="10.77.250.250")
    newcomer = cluster.add()
    cluster.admit([holder], [newcomer])
    for peer, fill in ((holder, 5), (newcomer, 0)):
        tensor = {"name": "w", "fill": fill, "count": 1000, "dtype": "uint8"}
        cluster.ask(peer, "state", tensors=[tensor], revision=fill)
    answers = cluster.ask_all([holder, newcomer], "sync")
    expect_ok(answers)
    assert answers[0]["digest"] == answers[1]["digest"]
    assert (answers[0]["tx"], answers[1]["rx"]) == (1000, 1000)
