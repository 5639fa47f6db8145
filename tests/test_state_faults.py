"""sync_shared_state while peers die, stand still, write to their tensors, or lose patience."""

from __future__ import annotations

import signal
import time

import pytest
from faults.cluster import Cluster, expect_error, expect_ok
from faults.state import digest_for

SEED = 20261128
LEAF = 1 << 20
STREAMS = 2
LARGE = 24 * LEAF  # more than is asked for at any moment
SOON = 5.0  # 0.2 s on a machine that is not busy


def tensor(fill, count=LARGE):
    return {"name": "w", "fill": fill, "count": count, "dtype": "uint8"}


def give(cluster, peer, fill, revision):
    expect_ok([cluster.ask(peer, "state", tensors=[tensor(fill)], revision=revision)])


def held(cluster, *peers):
    """Each stands still in its sync, where hold_at says."""
    expect_ok(cluster.collect([peer.tell("held", aside=True) for peer in peers]))


def go(cluster, *peers):
    expect_ok(cluster.collect([peer.tell("go", aside=True) for peer in peers]))


def expect_state(answers, fill, revision):
    expect_ok(answers)
    assert {answer["digest"] for answer in answers} == {digest_for(tensor(fill))}
    assert {answer["revision"] for answer in answers} == {revision}


def form(cluster, holders, fetchers):
    """Holders of revision 7 with fill 1, and fetchers that have something older: fills 2 and up."""
    peers = cluster.form(holders + fetchers, p2p_connection_pool_size=STREAMS)
    for peer in peers[:holders]:
        give(cluster, peer, 1, 7)
    for fill, peer in enumerate(peers[holders:], 2):
        give(cluster, peer, fill, 0)
    return peers[:holders], peers[holders:]


@pytest.fixture
def cluster():
    with Cluster(seed=SEED, timeout=5) as cluster:
        yield cluster


# --- deaths ----------------------------------------------------------------------------------------------


def test_one_of_two_distributors_dies_in_the_middle(cluster):
    (a, b), (fetcher,) = form(cluster, 2, 1)
    pending = [a.tell("sync"), b.tell("sync"), fetcher.tell("sync", hold_at="RECEIVING")]
    held(cluster, fetcher)
    a.kill()
    go(cluster, fetcher)
    died, *answers = cluster.collect(pending)
    assert died["dead"]
    expect_state(answers, 1, 7)
    assert answers[1]["rx"] >= LARGE


def test_the_newcomer_dies_in_the_middle(cluster):
    (a, b), (fetcher,) = form(cluster, 2, 1)
    pending = [a.tell("sync"), b.tell("sync"), fetcher.tell("sync", hold_at="RECEIVING")]
    held(cluster, fetcher)
    fetcher.kill()
    *answers, died = cluster.collect(pending)
    assert died["dead"]
    expect_state(answers, 1, 7)


def test_a_distributor_and_a_newcomer_die_in_the_middle(cluster):
    (a, b), (c, d) = form(cluster, 2, 2)
    pending = [a.tell("sync"), b.tell("sync"), *(one.tell("sync", hold_at="RECEIVING") for one in (c, d))]
    held(cluster, c, d)
    a.kill()
    c.kill()
    go(cluster, d)
    answers = cluster.collect(pending)
    assert answers[0]["dead"]
    assert answers[2]["dead"]
    expect_state([answers[1], answers[3]], 1, 7)


def test_one_newcomer_that_is_done_gives_to_the_other_when_the_distributor_dies(cluster):
    (a,), (b, c) = form(cluster, 1, 2)
    pending = [a.tell("sync"), b.tell("sync"), c.tell("sync", hold_at="RECEIVING", hold_early=True)]
    held(cluster, c)
    cluster.wait_for_log(cluster.master, r"of group 0 holds revision 7 now")
    a.kill()
    go(cluster, c)
    died, *answers = cluster.collect(pending)
    assert died["dead"]
    expect_state(answers, 1, 7)
    assert answers[0]["tx"] > 0


def test_all_who_held_it_die_and_memory_is_a_mix(cluster):
    (a,), (b, c) = form(cluster, 1, 2)
    pending = [a.tell("sync"), *(one.tell("sync", hold_at="RECEIVING") for one in (b, c))]
    held(cluster, b, c)
    a.kill()
    go(cluster, b, c)
    _, *answers = cluster.collect(pending)
    expect_error(answers, "PCCLError")
    for fill, answer in enumerate(answers, 2):
        assert "all who held the elected state were lost" in answer["text"]
        assert "a mix of two revisions" in answer["text"]
        assert answer["digest"] not in (digest_for(tensor(1)), digest_for(tensor(fill)))
        assert answer["revision"] == 0
    # Mixtures are not elected: what is whole is, although it has a higher id or fewer votes.
    newcomer = cluster.add()
    cluster.admit([b, c], [newcomer])
    give(cluster, newcomer, 9, 0)
    expect_state(cluster.ask_all([b, c, newcomer], "sync"), 9, 0)


def test_a_mixture_alone_is_no_state(cluster):
    (a,), (b, c) = form(cluster, 1, 2)
    pending = [a.tell("sync"), *(one.tell("sync", hold_at="RECEIVING") for one in (b, c))]
    held(cluster, b, c)
    a.kill()
    go(cluster, b, c)
    cluster.collect(pending)
    answers = cluster.ask_all([b, c], "sync")
    expect_error(answers, "PCCLError")
    assert all("no peer offers a shared state" in answer["text"] for answer in answers)
    give(cluster, b, 4, 3)
    expect_state(cluster.ask_all([b, c], "sync"), 4, 3)


def test_all_who_held_it_die_before_anything_has_moved_and_another_is_elected(cluster):
    (a,), (b, c) = form(cluster, 1, 2)
    give(cluster, b, 2, 5)
    pending = [a.tell("sync"), *(one.tell("sync", hold_at="WAITING", hold_early=True) for one in (b, c))]
    held(cluster, b, c)
    cluster.wait_for_log(cluster.master, r"revision 7 of group 0 is that of peer")
    a.kill()
    cluster.wait_for_log(cluster.master, r"revision 5 of group 0 is that of peer")
    go(cluster, b, c)
    _, *answers = cluster.collect(pending)
    expect_state(answers, 2, 5)


def test_of_those_who_are_left_one_is_changed_and_the_other_is_elected(cluster):
    (a,), (b, c) = form(cluster, 1, 2)
    give(cluster, b, 2, 5)  # would win, if it were still whole
    pending = [
        a.tell("sync"),
        b.tell("sync", hold_at="RECEIVING"),
        c.tell("sync", hold_at="WAITING", hold_early=True),
    ]
    held(cluster, b, c)
    a.kill()
    cluster.wait_for_log(cluster.master, r"revision 0 of group 0 is that of peer")
    go(cluster, b, c)
    _, *answers = cluster.collect(pending)
    expect_state(answers, 3, 0)


def test_a_peer_that_leaves_in_the_middle_is_missed_by_nobody(cluster):
    (a, b), (fetcher,) = form(cluster, 2, 1)
    pending = [a.tell("sync"), b.tell("sync"), fetcher.tell("sync", hold_at="RECEIVING")]
    held(cluster, fetcher)
    expect_ok(cluster.collect([a.tell("close", aside=True)]))
    go(cluster, fetcher)
    left, *answers = cluster.collect(pending)
    expect_error([left], "PCCLError")
    assert left["digest"] == digest_for(tensor(1))
    expect_state(answers, 1, 7)


def test_kills_at_any_moment_leave_the_others_equal(cluster):
    a, b, c, d = cluster.form(4, p2p_connection_pool_size=STREAMS)
    for turn in range(8):
        revision = 7 + turn
        for peer, fill in ((a, 1), (b, 1), (c, 2), (d, 3)):
            give(cluster, peer, fill + 10 * turn, revision if fill == 1 else 0)
        victim = (a, b, c, d)[turn % 4]
        pending = [peer.tell("sync") for peer in (a, b, c, d)]
        time.sleep(0.004 * (turn * 7 % 12))
        victim.kill()
        answers = cluster.collect(pending)
        left = [answer for answer in answers if not answer.get("dead")]
        expect_state(left, 1 + 10 * turn, revision)
        others = [peer for peer in (a, b, c, d) if peer is not victim]
        newcomer = cluster.add()
        cluster.admit(others, [newcomer])
        a, b, c, d = (newcomer if peer is victim else peer for peer in (a, b, c, d))


def test_the_master_dies_in_the_middle(cluster):
    (a,), (b,) = form(cluster, 1, 1)
    pending = [a.tell("sync"), b.tell("sync", hold_at="RECEIVING")]
    held(cluster, b)
    cluster.master.kill()
    go(cluster, b)
    answers = cluster.collect(pending)
    expect_error(answers, "MasterLostError")
    assert "a mix of two revisions" in answers[1]["text"] or "has been replaced" in answers[1]["text"]


# --- standing still --------------------------------------------------------------------------------------


def test_a_distributor_that_stands_still_is_left_for_another():
    with Cluster(seed=SEED, timeout=1) as cluster:
        (a, b), (fetcher,) = form(cluster, 2, 1)
        pending = [a.tell("sync"), b.tell("sync"), fetcher.tell("sync", hold_at="RECEIVING")]
        held(cluster, fetcher)
        a.process.stop()
        go(cluster, fetcher)
        answers = cluster.collect(pending[1:])
        expect_state(answers, 1, 7)
        a.process.go_on()
        expect_error(cluster.collect(pending[:1]), "EvictedError")


def test_a_distributor_whose_program_is_busy_holds_up_but_is_not_put_out():
    """Its net thread lives, its calling thread does not answer: the others' patience is what bounds it."""
    with Cluster(seed=SEED, timeout=1) as cluster:
        (a, b), (fetcher,) = form(cluster, 2, 1)
        pending = [a.tell("sync", hold_at="SENDING", hold_early=True), b.tell("sync"), fetcher.tell("sync")]
        held(cluster, a)
        answers = cluster.collect(pending[1:])
        expect_state(answers, 1, 7)
        go(cluster, a)
        expect_state(cluster.collect(pending[:1]), 1, 7)


def test_the_only_distributor_does_not_answer_and_all_are_told():
    with Cluster(seed=SEED, timeout=0.5) as cluster:
        (a,), (fetcher,) = form(cluster, 1, 1)
        pending = [a.tell("sync", hold_at="SENDING", hold_early=True), fetcher.tell("sync")]
        held(cluster, a)
        answers = cluster.collect(pending[1:])
        expect_error(answers, "PeerLostError")
        assert "p1" in answers[0]["text"]
        assert "p0" in answers[0]["text"]
        go(cluster, a)
        expect_error(cluster.collect(pending[:1]), "PeerLostError")
        expect_state(cluster.ask_all([a, fetcher], "sync"), 1, 7)


def test_a_newcomer_that_gets_no_further_is_named_and_then_put_out():
    """Its net thread lives, its progress callback blocks."""
    with Cluster(seed=SEED, timeout=0.5) as cluster:
        (a, b), (fetcher,) = form(cluster, 2, 1)
        pending = [a.tell("sync"), b.tell("sync"), fetcher.tell("sync", hold_at="RECEIVING")]
        held(cluster, fetcher)
        expect_state(cluster.collect(pending[:2]), 1, 7)
        go(cluster, fetcher)
        answers = cluster.collect(pending[2:])
        expect_error(answers, "EvictedError")
        assert "it has got no further for" in answers[0]["text"]
        cluster.wait_for_log(a.process, r"peer p2 \S+ has got no further in sync_shared_state for 0\.")


# --- tensors that are written meanwhile ------------------------------------------------------------------


def test_what_the_only_distributor_writes_meanwhile_is_never_spread(cluster):
    (a,), (fetcher,) = form(cluster, 1, 1)
    write = {"name": "w", "bits": [8 * 20 * LEAF + 3]}
    pending = [a.tell("sync", hold_at="WAITING", hold_early=True, write=write), fetcher.tell("sync")]
    answers = cluster.collect(pending)
    expect_error(answers, "PCCLError")
    assert all('tensor "w" of peer p0' in answer["text"] for answer in answers)
    assert all("has changed since it was offered" in answer["text"] for answer in answers)
    cluster.ask(a, "flip", **write)
    expect_state(cluster.ask_all([a, fetcher], "sync"), 1, 7)


def test_one_of_two_distributors_that_writes_meanwhile_is_named(cluster):
    (a, b), (fetcher,) = form(cluster, 2, 1)
    write = {"name": "w", "bits": [8 * LEAF * leaf for leaf in range(24)]}
    pending = [
        a.tell("sync", hold_at="WAITING", hold_early=True, write=write),
        b.tell("sync"),
        fetcher.tell("sync"),
    ]
    answers = cluster.collect(pending)
    expect_error(answers, "PCCLError")
    assert all('tensor "w" of peer p0' in answer["text"] for answer in answers)
    assert answers[1]["digest"] == digest_for(tensor(1))
    cluster.ask(a, "flip", **write)
    expect_state(cluster.ask_all([a, b, fetcher], "sync"), 1, 7)


# --- patience --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["Ctrl-C", "close"])
@pytest.mark.parametrize("who", ["waits", "fetches", "distributes", "hashes"])
def test_a_sync_ends_on_demand(how, who):
    with Cluster(seed=SEED, timeout=60) as cluster:
        (a, b), (fetcher,) = form(cluster, 2, 1)
        leaver = fetcher if who == "fetches" else a
        stays = [peer for peer in (a, b, fetcher) if peer is not leaver]
        if who == "hashes":
            expect_ok([cluster.ask(leaver, "vast", size=64 << 30)])
        pending = [leaver.tell("sync", blind=True)]
        others = []
        if who in ("fetches", "distributes"):
            others = [peer.tell("sync", hold_at="WAITING", hold_early=True) for peer in stays]
            held(cluster, *stays)
        time.sleep(0.1)
        if how == "Ctrl-C":
            leaver.process.signal(signal.SIGINT)
            (answer,) = cluster.collect(pending, within=SOON)
            expect_error([answer], "KeyboardInterrupt")
        else:
            closing = leaver.tell("close", aside=True)
            answers = cluster.collect([*pending, closing], within=SOON)
            expect_error(answers[:1], "PCCLError")
            assert "closed" in answers[0]["text"]
            expect_ok(answers[1:])
        if others:
            go(cluster, *stays)
            expect_state(cluster.collect(others), 1, 7)


def test_a_straggler_is_put_out_when_it_is_asked_for():
    with Cluster(seed=SEED, timeout=1) as cluster:
        peers = cluster.form(3, straggler_timeout=0.5)
        for peer in peers:
            give(cluster, peer, 1, 7)
        expect_state(cluster.ask_all(peers[:2], "sync"), 1, 7)
        expect_error([cluster.ask(peers[2], "sync")], "EvictedError")


def test_what_a_progress_callback_raises_ends_the_sync(cluster):
    (a,), (b,) = form(cluster, 1, 1)
    pending = [a.tell("sync"), b.tell("sync", hold_at="RECEIVING", fail=True)]
    answers = cluster.collect(pending, within=SOON)
    expect_error(answers[1:], "ZeroDivisionError")
    expect_ok(answers[:1])
