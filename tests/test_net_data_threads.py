"""Data threads: large ops use them, whatever fails meanwhile, and nothing else does."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import time
from pathlib import Path

import pytest
from faults.cluster import TRANSPORTS, Cluster, Peer, expect_error, expect_ok, wait_until
from faults.collectives import check_results
from native import load

import pccl

_, lib = load("net/cores.h")

SEED = 20261203
# Longer than any test waits: what comes late is a hang.
PATIENCE = 60.0
LARGE = 3_000_001  # elements: chunks of 256 KiB, many of them
SMALL = 20_000  # chunks that are worth no second thread
THREADS = [2, 4]  # one is what the other tests use


def helpers(pid: int | str) -> list[Path]:
    """The data threads of a process beside those that drive its communicators."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has ended
            if (task / "comm").read_text().strip() == "pccl-data":
                found.append(task)
    return found


def processor_ns(peer: Peer) -> list[int]:
    return [int((task / "schedstat").read_text().split()[0]) for task in helpers(peer.process.pid)]


def sleeps(peer: Peer) -> int:
    """How often its data threads have gone to sleep."""
    lines = [
        line for task in helpers(peer.process.pid) for line in (task / "status").read_text().splitlines()
    ]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def have_worked(cluster: Cluster, peers: list[Peer], before: list[int]) -> bool:
    """After four large ops; on a busy machine they may find that the driver has done it all."""
    for step in range(4):
        cluster.reduce(peers, count=LARGE, step=step)
    after = [sum(processor_ns(peer)) for peer in peers]
    return all(new > old + 1_000_000 for old, new in zip(before, after, strict=True))


def reduce_small(cluster: Cluster, peers: list[Peer]) -> None:
    for step in range(30):
        cluster.reduce(peers, count=SMALL, step=step, in_place=step % 2 == 0)


# --- who works --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp_only", TRANSPORTS)
@pytest.mark.parametrize("threads", THREADS)
def test_large_ops_are_shared_out(threads, tcp_only):
    with Cluster(seed=SEED, timeout=PATIENCE, tcp_only=tcp_only) as cluster:
        peers = cluster.form(2, data_threads=threads)
        before = [0, 0]
        for _ in range(3):
            wait_until(functools.partial(have_worked, cluster, peers, before), "both have shared out an op")
            assert [len(helpers(peer.process.pid)) for peer in peers] == [threads - 1] * 2
            time.sleep(0.2)  # they sleep, and are to be woken
            before = [sum(processor_ns(peer)) for peer in peers]


def test_small_ops_neither_start_data_threads_nor_wake_them():
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peers = cluster.form(2, data_threads=4)
        reduce_small(cluster, peers)
        assert [len(helpers(peer.process.pid)) for peer in peers] == [0, 0]
        cluster.reduce(peers, count=LARGE)
        assert [len(helpers(peer.process.pid)) for peer in peers] == [3, 3]
        time.sleep(0.2)  # they look for work for some time before they sleep
        before = [(sleeps(peer), processor_ns(peer)) for peer in peers]
        reduce_small(cluster, peers)
        assert [(sleeps(peer), processor_ns(peer)) for peer in peers] == before


def test_with_one_thread_there_are_no_others():
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peers = cluster.form(2, data_threads=1)
        cluster.reduce(peers, count=LARGE)
        assert [len(helpers(peer.process.pid)) for peer in peers] == [0, 0]


def test_they_end_with_the_communicator():
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peers = cluster.form(2, data_threads=3)
        cluster.reduce(peers, count=LARGE)
        assert [len(helpers(peer.process.pid)) for peer in peers] == [2, 2]
        expect_ok(cluster.ask_all(peers, "destroy"))
        wait_until(lambda: not any(helpers(peer.process.pid) for peer in peers), "no data threads")


# --- results ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp_only", TRANSPORTS)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("world", [2, 3])
def test_all_reduce_is_exact(world, threads, tcp_only):
    with Cluster(seed=SEED, timeout=PATIENCE, tcp_only=tcp_only) as cluster:
        peers = cluster.form(world, data_threads=threads)
        dtypes = ["float32", "int8", "float64", "uint16", "int64"]
        for step, dtype in enumerate(dtypes):
            cluster.reduce(peers, count=1_500_007, step=step, dtype=dtype, in_place=step % 2 == 0)
        cluster.reduce(peers, count=1_500_007, op="avg", in_place=True)
        cluster.reduce(peers, count=1_500_007, op="max")


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("world", [2, 3])
def test_the_other_collectives_are_exact(world, threads):
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        peers = cluster.form(world, data_threads=threads)
        ops = [{"kind": "broadcast", "algorithm": algorithm} for algorithm in ("ring", "tree")]
        for kind, in_place in itertools.product(["all_gather", "reduce_scatter"], [False, True]):
            ops.append({"kind": kind, "in_place": in_place})
        for step, varied in enumerate(ops):
            op = {"count": 1_500_007, "step": step} | varied
            answers = cluster.ask_all(peers, "collective", **op)
            check_results(cluster.seed, answers, [peer.index for peer in peers], **op)


@pytest.mark.parametrize("streams", [1, 16])
def test_peers_may_differ_in_threads(streams):
    with Cluster(seed=SEED, timeout=PATIENCE) as cluster:
        first = cluster.form(1, p2p_connection_pool_size=streams, data_threads=1)
        others = [cluster.add(p2p_connection_pool_size=streams, data_threads=n) for n in (2, 16)]
        cluster.admit(first, others)
        cluster.reduce([*first, *others], count=LARGE, in_place=True)


# --- failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("in_place", [False, True])
def test_inputs_are_there_when_a_peer_dies_in_the_middle(in_place, threads):
    rng = random.Random(SEED + threads)
    failed = attempts = 0
    while attempts < 4 or failed == 0:
        assert attempts < 40, "no kill came in the middle"
        with Cluster(seed=SEED, tcp_only=attempts % 2 == 1) as cluster:
            peers = cluster.form(3, data_threads=threads)
            op = {"count": LARGE, "step": 3, "in_place": in_place}
            cluster.reduce(peers, count=LARGE)
            undisturbed = cluster.ask_all(peers, "all_reduce", count=LARGE)
            expect_ok(undisturbed)
            reducing = [peer.tell("all_reduce", **op) for peer in peers]
            time.sleep(rng.random() * undisturbed[0]["seconds"])
            peers[2].kill()
            answers = cluster.collect(reducing[:2])
            if answers[0]["ok"]:
                cluster.check_either(answers, peers, peers[:2], **op)
            else:
                failed += 1
                expect_error(answers, "PeerLostError")  # looks at the inputs, too
            cluster.reduce(peers[:2], count=LARGE, in_place=True)
        attempts += 1


@pytest.mark.parametrize("threads", THREADS)
def test_ops_that_retry_start_from_their_inputs(threads):
    with Cluster(seed=SEED) as cluster:
        peers = cluster.form(4, data_threads=threads)
        while len(peers) > 2:
            op = {"count": LARGE, "step": len(peers), "in_place": True, "retry": True}
            reducing = [peer.tell("all_reduce", **op) for peer in peers]
            time.sleep(0.05)
            victim = peers.pop()
            victim.kill()
            cluster.check_either(cluster.collect(reducing[:-1]), [*peers, victim], peers, **op)


# --- how many ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "allowed", "peers_here", "load", "threads"),
    [
        (1, 1, 1, 0.0, 1),
        (2, 2, 1, 0.0, 1),
        (4, 4, 1, 0.0, 2),
        (4, 4, 2, 0.0, 1),
        (8, 8, 1, 0.0, 4),
        (16, 16, 2, 8.0, 4),
        (16, 16, 4, 8.0, 2),
        (16, 16, 8, 8.0, 1),
        (128, 128, 1, 0.0, 4),
        (16, 4, 1, 0.0, 2),  # a process that may use some of the cores only
        (16, 16, 1, 12.0, 4),
        (16, 16, 1, 12.1, 1),  # they have other work
        (16, 16, 0, 0.0, 4),
    ],
)
def test_as_many_as_cores_peers_and_load_allow(cores, allowed, peers_here, load, threads):
    assert lib.cores_best_threads(cores, allowed, peers_here, load) == threads


def test_the_environment_says_how_many(monkeypatch):
    with pccl.MasterNode("127.0.0.1:0") as master:
        for text in ["17", "-1", "two", "2 "]:
            monkeypatch.setenv("PCCL_DATA_THREADS", text)
            with pytest.raises(pccl.PCCLError, match=f'PCCL_DATA_THREADS is "{text}"'):
                pccl.Communicator(master.address)
            pccl.Communicator(master.address, data_threads=2)  # which comes first
        for text in ["", "0", "16"]:
            monkeypatch.setenv("PCCL_DATA_THREADS", text)
            pccl.Communicator(master.address)
        for wrong in [0, 17]:
            with pytest.raises(ValueError, match="data_threads"):
                pccl.Communicator(master.address, data_threads=wrong)
