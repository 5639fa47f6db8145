"""The master dies, stands still, or is cut off: every call says so, none says success."""

from __future__ import annotations

import random
import time

import pytest
from faults.cluster import Cluster, expect_error, expect_ok
from faults.proxy import Proxy

import pccl

SEED = 20261124
TIMEOUT = 0.6


def waiting_calls(cluster):
    """A run of four with every kind of call under way that waits for others: the pending commands."""
    *members, silent = cluster.form(5)
    newcomer = cluster.add()
    pendings = [newcomer.tell("connect")]
    cluster.wait_until_known(newcomer)
    for peer in members[:2]:
        peer.tell("start", handle="x", count=400_000, tag=1, in_place=True)
        peer.tell("start", handle="y", count=10, tag=2)
        pendings += [peer.tell("await", handle="x"), peer.tell("await", handle="y")]
    pendings.append(members[2].tell("all_reduce", count=400_000, tag=1))
    pendings.append(members[3].tell("are_peers_pending"))
    time.sleep(0.2)
    assert all(pending.answer is None for pending in pendings)
    return members, silent, newcomer, pendings


@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_every_call_fails_when_the_master_is(fault):
    with Cluster(seed=SEED, timeout=TIMEOUT) as cluster:
        members, silent, newcomer, pendings = waiting_calls(cluster)
        if fault == "killed":
            cluster.master.kill()
        else:
            cluster.master.stop()
        expect_error(cluster.collect(pendings), "MasterLostError")
        for peer in [*members, silent]:
            cluster.wait_for_log(peer.process, "the master was lost")
            for call in ("update_topology", "are_peers_pending", "optimize_topology"):
                expect_error([cluster.ask(peer, call)], "MasterLostError")
            for op in ({"count": 1000}, {"count": 1000, "retry": True, "in_place": True}):
                expect_error([cluster.ask(peer, "all_reduce", **op)], "MasterLostError")
        expect_ok(cluster.ask_all([*members, newcomer], "close"))


def test_a_run_begins_anew_with_a_master_at_the_same_address():
    with Cluster(seed=SEED, timeout=TIMEOUT) as cluster:
        peers = cluster.form(3)
        port = int(cluster.address.rpartition(":")[2])
        ops = [peer.tell("all_reduce", count=1000) for peer in peers[:2]]
        cluster.master.kill()
        expect_error(cluster.collect(ops), "MasterLostError")
        joining = [peer.tell("connect", attempts=20) for peer in peers]
        time.sleep(0.3)
        cluster.start_master(port)
        for peer in peers:
            cluster.wait_for_log(cluster.master, rf"peer {peer.name} \S+ asks to join", count=2)
        first = next(one for one in peers if cluster.is_admitted(one))
        vote = first.tell("update_topology")
        expect_ok(cluster.collect([*joining, vote]))
        cluster.reduce(peers)


def test_a_master_killed_at_any_moment_of_an_op_leaves_results_or_inputs():
    random_source = random.Random(SEED)
    for step in range(10):
        with Cluster(seed=SEED, timeout=5) as cluster:
            peers = cluster.form(3)
            op = {"count": 500_000, "step": step, "in_place": step % 2 == 0}
            ops = [peer.tell("all_reduce", **op) for peer in peers]
            time.sleep(random_source.random() * 0.06)
            cluster.master.kill()
            answers = cluster.collect(ops)
            if committed := [answer for answer in answers if answer["ok"]]:
                cluster.check(committed, peers, **op)
            expect_error([answer for answer in answers if not answer["ok"]], "MasterLostError")


def test_nobody_there_is_said_at_once():
    with Cluster(seed=SEED, timeout=60) as cluster:
        peer = cluster.add()
        cluster.master.kill()
        (answer,) = cluster.ask_all([peer], "connect")
        assert answer["error"] == "PCCLError"
        assert cluster.address in answer["text"]


def test_whoever_answers_nothing_is_no_master():
    with Cluster(seed=SEED, timeout=TIMEOUT) as cluster, Proxy(cluster.address) as proxy:
        proxy.stall()
        peer = cluster.add(address=proxy.address)
        (answer,) = cluster.ask_all([peer], "connect")
        assert not answer["ok"]
        assert "no answer of a master came within the timeout" in answer["text"]


@pytest.mark.parametrize("direction", ["both", "to the master", "from the master"])
def test_a_peer_whose_connection_to_the_master_goes_dead_is_out_and_the_others_go_on(direction):
    """Neither side gets a FIN or a reset."""
    with Cluster(seed=SEED, timeout=TIMEOUT) as cluster, Proxy(cluster.address) as proxy:
        a, b = cluster.form(2)
        cut_off = cluster.add(address=proxy.address)
        cluster.admit([a, b], [cut_off])
        cluster.reduce([a, b, cut_off])
        ops = [peer.tell("all_reduce", count=100_000) for peer in (a, b)]
        time.sleep(0.05)
        proxy.stall(upstream=direction != "from the master", downstream=direction != "to the master")
        answers = cluster.collect(ops)
        cluster.check_either(answers, [a, b], count=100_000)
        cluster.wait_for_log(cut_off.process, "the master was lost|put out of the run")
        expect_error(
            cluster.ask_all([cut_off], "all_reduce", count=100_000), "MasterLostError", "EvictedError"
        )
        cluster.reduce([a, b])


def test_a_peer_whose_connection_to_the_master_is_reset_is_out_and_the_others_go_on():
    with Cluster(seed=SEED, timeout=60) as cluster, Proxy(cluster.address) as proxy:
        a, b = cluster.form(2)
        cut_off = cluster.add(address=proxy.address)
        cluster.admit([a, b], [cut_off])
        op = {"count": 100_000}
        ops = [peer.tell("all_reduce", **op) for peer in (a, b)]
        time.sleep(0.05)
        proxy.reset()
        expect_error(cluster.collect(ops), "PeerLostError")
        expect_error(cluster.ask_all([cut_off], "all_reduce", **op), "MasterLostError")
        cluster.reduce([a, b])


@pytest.mark.parametrize("fault", ["reset", "silence"])
def test_who_has_lost_the_master_says_so_without_a_call_and_joins_again(fault):
    """world_size and the like follow the loss at once; get_attribute tells it; `with` connects again."""
    with pccl.MasterNode("127.0.0.1:0") as master, Proxy(master.address) as proxy:
        comm = pccl.Communicator(proxy.address, timeout=TIMEOUT).connect()
        assert comm.world_size == 1
        if fault == "reset":
            proxy.reset()
        else:
            proxy.stall()
        deadline = time.monotonic() + 100 * TIMEOUT
        while comm.world_size != 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (comm.world_size, comm.global_world_size, comm.epoch) == (0, 0, 0)
        with pytest.raises(pccl.MasterLostError):
            comm.get_attribute(pccl.Attribute.GLOBAL_WORLD_SIZE)
        proxy.stall(upstream=False, downstream=False)
        with comm:
            assert comm.world_size == 1
