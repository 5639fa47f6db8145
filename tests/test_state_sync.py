"""sync_shared_state between real processes, while nothing fails."""

from __future__ import annotations

import itertools
import time

import pytest
from faults.cluster import Cluster, expect_error, expect_ok
from faults.state import digest_for

SEED = 20261127
DTYPES = [
    "uint8",
    "int8",
    "int16",
    "uint16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
]
LEAF = 1 << 20


def tensor(name="w", fill=1, count=1000, dtype="float32", **more):
    return {"name": name, "fill": fill, "count": count, "dtype": dtype, **more}


def give(cluster, peer, *tensors, revision=1):
    expect_ok([cluster.ask(peer, "state", tensors=tensors, revision=revision)])


def sync(cluster, peers, **options):
    return cluster.collect([peer.tell("sync", **options) for peer in peers])


def expect_equal(answers, *tensors, revision):
    expect_ok(answers)
    assert {answer["digest"] for answer in answers} == {digest_for(*tensors)}
    assert {answer["revision"] for answer in answers} == {revision}
    assert sum(answer["tx"] for answer in answers) == sum(answer["rx"] for answer in answers)


@pytest.fixture
def cluster():
    with Cluster(seed=SEED, timeout=5) as cluster:
        yield cluster


# --- what moves ------------------------------------------------------------------------------------------


def test_equal_states_move_no_bytes(cluster):
    peers = cluster.form(3)
    state = [tensor("w", 1, 3_000_001), tensor("b", 2, 7, "int16")]
    for peer in peers:
        give(cluster, peer, *state)
    answers = sync(cluster, peers)
    expect_equal(answers, *state, revision=1)
    assert [(answer["tx"], answer["rx"]) for answer in answers] == [(0, 0)] * 3


def test_a_newcomer_gets_the_state_of_the_others(cluster):
    peers = cluster.form(3)
    state = [tensor("w", 1, 3_000_001), tensor("b", 2, 7, "int16")]
    for peer in peers[:2]:
        give(cluster, peer, *state, revision=9)
    give(cluster, peers[2], tensor("w", 5, 3_000_001), tensor("b", 6, 7, "int16"), revision=0)
    answers = sync(cluster, peers)
    expect_equal(answers, *state, revision=9)
    assert [answer["rx"] for answer in answers] == [0, 0, 12_000_004 + 14]
    assert all(answer["tx"] > 0 for answer in answers[:2]), "all holders send"


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_type(cluster, dtype):
    peers = cluster.form(2)
    for fill, peer in enumerate(peers):
        give(cluster, peer, tensor(fill=fill, count=70_001, dtype=dtype), revision=2 - fill)
    expect_equal(sync(cluster, peers), tensor(fill=0, count=70_001, dtype=dtype), revision=2)


@pytest.mark.parametrize("count", [1, 3, LEAF - 1, LEAF, LEAF + 1, 3 * LEAF, 3 * LEAF + 5])
def test_sizes_around_those_of_leaves(cluster, count):
    peers = cluster.form(2)
    for fill, peer in enumerate(peers):
        give(
            cluster, peer, tensor("a", 9, 3), tensor(fill=fill, count=count, dtype="uint8"), revision=2 - fill
        )
    answers = sync(cluster, peers)
    expect_equal(answers, tensor("a", 9, 3), tensor(fill=0, count=count, dtype="uint8"), revision=2)
    assert answers[1]["rx"] == count


def test_single_bits_are_found_and_only_their_leaves_move(cluster):
    peers = cluster.form(3)
    state = [tensor("w", 1, 8 * LEAF, "uint8"), tensor("v", 2, 1000)]
    for peer in peers:
        give(cluster, peer, *state)
    expect_ok([cluster.ask(peers[1], "flip", name="w", bits=[8 * LEAF * 3 + 77])])
    answers = sync(cluster, peers)
    expect_equal(answers, *state, revision=1)
    assert [answer["rx"] for answer in answers] == [0, LEAF, 0]
    for revision, bit in enumerate([0, 8 * LEAF - 1, 8 * LEAF, 64 * LEAF - 1], 2):
        for peer in peers:
            cluster.ask(peer, "revision", revision=revision)
        expect_ok([cluster.ask(peers[revision % 3], "flip", name="w", bits=[bit])])
        answers = sync(cluster, peers)
        expect_equal(answers, *state, revision=revision)
        assert sorted(answer["rx"] for answer in answers) == [0, 0, LEAF]


def test_a_copy_one_revision_old_gets_only_what_changed(cluster):
    peers = cluster.form(2)
    state = [tensor("w", 1, 6 * LEAF, "uint8"), tensor("v", 2, 3 * LEAF, "uint8")]
    for peer in peers:
        give(cluster, peer, *state)
    expect_equal(sync(cluster, peers), *state, revision=1)
    cluster.ask(peers[0], "flip", name="w", bits=[5, 8 * 5 * LEAF])
    cluster.ask(peers[0], "revision", revision=2)
    answers = sync(cluster, peers)
    expect_ok(answers)
    assert answers[0]["digest"] == answers[1]["digest"] != digest_for(*state)
    assert [answer["rx"] for answer in answers] == [0, 2 * LEAF]


def test_three_newcomers_at_once(cluster):
    peers = cluster.form(5)
    state = tensor("w", 1, 9 * LEAF, "uint8")
    for peer in peers[:2]:
        give(cluster, peer, state, revision=4)
    for fill, peer in enumerate(peers[2:], 7):
        give(cluster, peer, tensor("w", fill, 9 * LEAF, "uint8"), revision=0)
    answers = sync(cluster, peers)
    expect_equal(answers, state, revision=4)
    assert [answer["rx"] for answer in answers] == [0, 0, 9 * LEAF, 9 * LEAF, 9 * LEAF]


def test_thousands_of_small_tensors(cluster):
    peers = cluster.form(2)
    state = [tensor(f"layer.{i}", i, 1 + i % 50) for i in range(5000)]
    give(cluster, peers[0], *state, revision=1)
    give(
        cluster,
        peers[1],
        *(one | {"fill": one["fill"] + (i % 3 == 0)} for i, one in enumerate(state)),
        revision=0,
    )
    answers = sync(cluster, peers)
    expect_equal(answers, *state, revision=1)
    assert answers[1]["rx"] == sum(4 * one["count"] for i, one in enumerate(state) if i % 3 == 0)


def test_tensors_are_matched_by_name_in_whatever_order(cluster):
    peers = cluster.form(2)
    state = [tensor("a", 1, 100), tensor("b", 2, 200), tensor("ab", 3, 300)]
    give(cluster, peers[0], *state)
    give(cluster, peers[1], *state[::-1])
    answers = sync(cluster, peers)
    expect_equal(answers, *state, revision=1)
    assert answers[0]["tx"] == 0


def test_content_that_may_differ_is_left_alone(cluster):
    peers = cluster.form(2)
    for fill, peer in enumerate(peers, 1):
        give(cluster, peer, tensor("w", fill, 500), tensor("mine", fill, 500, free=True), revision=3 - fill)
    before = [cluster.ask(peer, "look")["free"] for peer in peers]
    answers = sync(cluster, peers)
    expect_equal(answers, tensor("w", 1, 500), revision=2)
    assert answers[1]["rx"] == 2000
    assert [answer["free"] for answer in answers] == before
    assert before[0] != before[1]


def test_a_state_of_nothing_but_content_that_may_differ(cluster):
    peers = cluster.form(2)
    for fill, peer in enumerate(peers, 1):
        give(cluster, peer, tensor("mine", fill, 500, free=True))
    answers = sync(cluster, peers)
    expect_ok(answers)
    assert [answer["rx"] for answer in answers] == [0, 0]


def test_groups_synchronise_each_by_itself(cluster):
    peers = cluster.form(2)
    others = [cluster.add(peer_group=7) for _ in range(2)]
    cluster_members = cluster.collect(
        [*(peer.tell("connect") for peer in others), *vote_until_in(cluster, peers, others)]
    )
    expect_ok(cluster_members)
    for fill, peer in enumerate([*peers, *others]):
        give(cluster, peer, tensor(fill=fill), revision=10 - fill)
    pending = [peer.tell("sync") for peer in peers]
    expect_equal(cluster.collect(pending), tensor(fill=0), revision=10)
    expect_equal(sync(cluster, others), tensor(fill=2), revision=8)


def vote_until_in(cluster, peers, newcomers):
    for peer in newcomers:
        peer.tell("connect")
    for peer in newcomers:
        cluster.wait_until_known(peer)
    return [peer.tell("update_topology") for peer in peers]


# --- revisions and elections -----------------------------------------------------------------------------


def test_the_majority_wins(cluster):
    peers = cluster.form(5)
    for fill, peer in zip([3, 2, 3, 1, 3], peers, strict=True):
        give(cluster, peer, tensor(fill=fill))
    expect_equal(sync(cluster, peers), tensor(fill=3), revision=1)


def test_the_lowest_id_wins_a_draw(cluster):
    peers = cluster.form(4)
    for fill, peer in enumerate(peers):
        give(cluster, peer, tensor(fill=fill))
    ids = [answer["peer_id"] for answer in cluster.ask_all(peers, "info")]
    expect_equal(sync(cluster, peers), tensor(fill=ids.index(min(ids))), revision=1)


def test_the_newest_wins_over_the_majority(cluster):
    peers = cluster.form(3)
    for fill, peer in zip([1, 1, 2], peers, strict=True):
        give(cluster, peer, tensor(fill=fill), revision=3 + fill)
    expect_equal(sync(cluster, peers), tensor(fill=2), revision=5)


@pytest.mark.parametrize("revision", [1, 3, 100])
def test_a_wrong_revision_is_refused_for_all_and_said(cluster, revision):
    peers = cluster.form(3)
    for peer in peers:
        give(cluster, peer, tensor(fill=1))
    expect_equal(sync(cluster, peers), tensor(fill=1), revision=1)
    for peer in peers:
        cluster.ask(peer, "revision", revision=revision)
    answers = sync(cluster, peers)
    expect_error(answers, "PCCLError")
    for answer in answers:
        assert f"offers revision {revision} of the shared state, expected 2: one more" in answer["text"]
        cure = "call push_revision()" if revision == 1 else "set its revision to the expected one"
        assert cure in answer["text"]
    for peer in peers:
        cluster.ask(peer, "revision", revision=2)
    expect_equal(sync(cluster, peers), tensor(fill=1), revision=2)


def test_newcomers_whose_predecessors_all_died_begin_afresh(cluster):
    members = cluster.form(2)
    for peer in members:
        give(cluster, peer, tensor(fill=1), revision=7)
    expect_equal(sync(cluster, members), tensor(fill=1), revision=7)
    newcomers = [cluster.add() for _ in range(2)]
    cluster.admit(members, newcomers)
    for peer in members:
        peer.kill()
    cluster.wait_for_log(cluster.master, r"is proposed to 2 peers: .* lost")
    for peer in newcomers:
        give(cluster, peer, tensor(fill=2), revision=0)
    expect_equal(sync(cluster, newcomers), tensor(fill=2), revision=0)


def test_a_peer_that_was_alone_may_have_gone_on_by_itself(cluster):
    peers = cluster.form(2)
    for peer in peers:
        give(cluster, peer, tensor(fill=1))
    expect_equal(sync(cluster, peers), tensor(fill=1), revision=1)
    peers.pop().kill()
    cluster.wait_for_log(cluster.master, r"is committed: 1 peers", 2)
    newcomer = cluster.add()
    cluster.admit(peers, [newcomer])
    give(cluster, peers[0], tensor(fill=9), revision=40)
    give(cluster, newcomer, tensor(fill=2), revision=0)
    expect_equal(sync(cluster, [*peers, newcomer]), tensor(fill=9), revision=40)


def test_one_peer_that_is_ahead_is_refused(cluster):
    peers = cluster.form(2)
    for peer in peers:
        give(cluster, peer, tensor(fill=1))
    expect_equal(sync(cluster, peers), tensor(fill=1), revision=1)
    cluster.ask(peers[0], "revision", revision=2)
    cluster.ask(peers[1], "revision", revision=3)
    answers = sync(cluster, peers)
    expect_error(answers, "PCCLError")
    assert all("p1" in answer["text"] and "offers revision 3" in answer["text"] for answer in answers)


def test_a_forgotten_push_revision_is_told_from_a_state_that_was_left_alone(cluster):
    peers = cluster.form(2)
    for peer in peers:
        give(cluster, peer, tensor(fill=1))
    expect_equal(sync(cluster, peers), tensor(fill=1), revision=1)
    answers = sync(cluster, peers)
    assert all("synchronised last: call push_revision()" in answer["text"] for answer in answers)
    for peer in peers:
        give(cluster, peer, tensor(fill=2))
    answers = sync(cluster, peers)
    assert all(
        "have changed since" in answer["text"] and "was forgotten" in answer["text"] for answer in answers
    )


def test_after_the_highest_revision_any_is_right(cluster):
    peers = cluster.form(2)
    for peer in peers:
        give(cluster, peer, tensor(fill=1), revision=2**64 - 1)
    expect_equal(sync(cluster, peers), tensor(fill=1), revision=2**64 - 1)
    for peer in peers:
        give(cluster, peer, tensor(fill=2), revision=0)
    expect_equal(sync(cluster, peers), tensor(fill=2), revision=0)


# --- strategies ------------------------------------------------------------------------------------------


def sync_as(cluster, peers, strategies):
    return cluster.collect(
        [peer.tell("sync", strategy=strategy) for peer, strategy in zip(peers, strategies, strict=True)]
    )


def test_who_only_sends_overrules_the_majority(cluster):
    peers = cluster.form(3)
    for fill, peer in zip([1, 1, 2], peers, strict=True):
        give(cluster, peer, tensor(fill=fill))
    answers = sync_as(cluster, peers, ["ENFORCE_POPULAR", "RECEIVE_ONLY", "SEND_ONLY"])
    expect_equal(answers, tensor(fill=2), revision=1)


def test_who_only_receives_is_neither_elected_nor_asked(cluster):
    peers = cluster.form(4)
    for fill, peer in zip([1, 1, 1, 2], peers, strict=True):
        give(cluster, peer, tensor(fill=fill))
    answers = sync_as(cluster, peers, ["RECEIVE_ONLY", "RECEIVE_ONLY", "RECEIVE_ONLY", "ENFORCE_POPULAR"])
    expect_equal(answers, tensor(fill=2), revision=1)
    assert [answer["tx"] for answer in answers] == [0, 0, 0, 12_000]


def test_who_only_receives_does_not_send_even_what_was_elected(cluster):
    peers = cluster.form(3)
    for fill, peer in zip([1, 1, 2], peers, strict=True):
        give(cluster, peer, tensor(fill=fill), revision=3 - fill)
    answers = sync_as(cluster, peers, ["ENFORCE_POPULAR", "RECEIVE_ONLY", "ENFORCE_POPULAR"])
    expect_equal(answers, tensor(fill=1), revision=2)
    assert [answer["tx"] for answer in answers] == [4000, 0, 0]


def test_nobody_sends(cluster):
    peers = cluster.form(3)
    for fill, peer in enumerate(peers):
        give(cluster, peer, tensor(fill=fill))
    answers = sync_as(cluster, peers, ["RECEIVE_ONLY"] * 3)
    expect_error(answers, "PCCLError")
    assert all("all only receive" in answer["text"] for answer in answers)
    assert [answer["digest"] for answer in answers] == [digest_for(tensor(fill=fill)) for fill in range(3)]
    expect_ok(sync(cluster, peers))


def test_those_who_only_send_and_disagree_fail_alone(cluster):
    peers = cluster.form(4)
    for fill, peer in zip([5, 5, 6, 7], peers, strict=True):
        give(cluster, peer, tensor(fill=fill))
    *good, odd, receiver = sync_as(cluster, peers, ["SEND_ONLY", "SEND_ONLY", "SEND_ONLY", "ENFORCE_POPULAR"])
    expect_equal([*good, receiver], tensor(fill=5), revision=1)
    expect_error([odd], "MismatchError")
    assert "only sends" in odd["text"]
    assert odd["digest"] == digest_for(tensor(fill=6))
    assert odd["revision"] == 1


def test_all_only_send_and_agree(cluster):
    peers = cluster.form(3)
    for peer in peers:
        give(cluster, peer, tensor(fill=1))
    expect_equal(sync_as(cluster, peers, ["SEND_ONLY"] * 3), tensor(fill=1), revision=1)


def test_all_combinations_of_strategies_of_three_peers_that_differ(cluster):
    peers = cluster.form(3)
    ids = [answer["peer_id"] for answer in cluster.ask_all(peers, "info")]
    names = ["ENFORCE_POPULAR", "RECEIVE_ONLY", "SEND_ONLY"]
    revision = 0
    for chosen in itertools.product(names, repeat=3):
        for fill, peer in enumerate(peers):
            give(cluster, peer, tensor(fill=fill), revision=revision + 1)
        answers = sync_as(cluster, peers, chosen)
        able = [i for i in range(3) if chosen[i] == "SEND_ONLY"]
        able = able or [i for i in range(3) if chosen[i] == "ENFORCE_POPULAR"]
        if not able:
            expect_error(answers, "PCCLError")
            continue
        revision += 1
        elected = min(able, key=lambda i: ids[i])
        odd = [i for i in able if i != elected and chosen[i] == "SEND_ONLY"]
        expect_error([answers[i] for i in odd], "MismatchError")
        expect_equal([answers[i] for i in range(3) if i not in odd], tensor(fill=elected), revision=revision)


# --- states that do not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        ([tensor("w", count=999)], '"w" is float32[1000] at {a} and float32[999] at {b}'),
        ([tensor("w", dtype="int32")], '"w" is float32[1000] at {a} and int32[1000] at {b}'),
        (
            [tensor("w", free=True)],
            '"w" is float32[1000] at {a} and float32[1000] (content may differ) at {b}',
        ),
        ([tensor("x")], '"w" is missing at {b}; "x" is missing at {a}'),
        ([tensor("w"), tensor("x")], '"x" is missing at {a}'),
    ],
)
def test_other_tensors_are_listed(cluster, mine, said):
    peers = cluster.form(2)
    give(cluster, peers[0], tensor("w"), revision=2)
    give(cluster, peers[1], *mine, revision=1)
    a, b = (f"p{i} ({info['peer_id'][:8]})" for i, info in enumerate(cluster.ask_all(peers, "info")))
    answers = sync(cluster, peers)
    expect_error(answers, "MismatchError")
    for answer in answers:
        assert said.format(a=a, b=b) in answer["text"]
    assert answers[0]["digest"] == digest_for(tensor("w"))


def test_of_many_differences_the_first_are_listed(cluster):
    peers = cluster.form(3)
    long = "x" * 300
    give(cluster, peers[0], *(tensor(f"{i}{long}", count=1) for i in range(2000)), revision=2)
    give(cluster, peers[1], *(tensor(f"{i}{long}", count=2) for i in range(2000)), revision=1)
    give(cluster, peers[2], *(tensor(f"{i}{long}", count=1) for i in range(2000)), revision=2)
    answers = sync(cluster, peers)
    expect_error(answers, "MismatchError")
    assert all("p1" in answer["text"] and '"0xxx' in answer["text"] for answer in answers)


def test_a_newcomer_that_does_not_fit_can_be_mended(cluster):
    peers = cluster.form(2)
    give(cluster, peers[0], tensor("w"), revision=2)
    give(cluster, peers[1], tensor("v"), revision=0)
    expect_error(sync(cluster, peers), "MismatchError")
    give(cluster, peers[1], tensor("w", fill=8), revision=0)
    expect_equal(sync(cluster, peers), tensor("w"), revision=2)


# --- with other calls ------------------------------------------------------------------------------------


def test_alone(cluster):
    (peer,) = cluster.form(1)
    for strategy in (
        "ENFORCE_POPULAR",
        "RECEIVE_ONLY",
        "SEND_ONLY",
    ):  # its state is the state, at any revision
        give(cluster, peer, tensor(), revision=5)
        expect_equal(sync(cluster, [peer], strategy=strategy), tensor(), revision=5)
    expect_error([cluster.ask(peer, "sync", require_peers=True)], "TooFewPeersError")


def test_another_joint_call_at_the_same_time_fails_both(cluster):
    peers = cluster.form(2)
    give(cluster, peers[0], tensor())
    pending = peers[0].tell("sync")
    time.sleep(0.1)
    answers = cluster.collect([pending, peers[1].tell("update_topology")])
    expect_error(answers, "MismatchError")
    assert all(
        "sync_shared_state" in answer["text"] and "update_topology" in answer["text"] for answer in answers
    )


def test_an_op_that_the_others_will_not_join_fails_both(cluster):
    peers = cluster.form(2)
    give(cluster, peers[0], tensor())
    pending = [peers[0].tell("sync"), peers[1].tell("all_reduce", count=1000)]
    answers = cluster.collect(pending)
    expect_error(answers, "MismatchError")
    assert all("sync_shared_state" in answer["text"] for answer in answers)


def test_ops_in_flight_are_to_be_awaited_first(cluster):
    peers = cluster.form(2)
    for peer in peers:
        give(cluster, peer, tensor())
    expect_ok([cluster.ask(peers[0], "start", handle="x", count=1000)])
    answer = cluster.ask(peers[0], "sync")
    expect_error([answer], "PCCLError")
    assert "in flight" in answer["text"]
    cluster.ask(peers[1], "start", handle="x", count=1000)
    expect_ok(cluster.ask_all(peers, "await", handle="x"))
    expect_equal(sync(cluster, peers), tensor(), revision=1)


def test_before_connect(cluster):
    peer = cluster.add()
    give(cluster, peer, tensor())
    answer = cluster.ask(peer, "sync")
    expect_error([answer], "PCCLError")
    assert "connect first" in answer["text"]


def test_syncs_and_reductions_in_turn(cluster):
    peers = cluster.form(3)
    for step in range(1, 6):
        for fill, peer in enumerate(peers):
            give(cluster, peer, tensor(fill=fill + (fill == step % 3), count=5000), revision=step)
        answers = sync(cluster, peers)
        expect_ok(answers)
        assert len({answer["digest"] for answer in answers}) == 1
        cluster.reduce(peers, step=step)


def test_phases_are_told_in_their_order(cluster):
    peers = cluster.form(2)
    for fill, peer in enumerate(peers):
        give(cluster, peer, tensor(fill=fill, count=4 * LEAF), revision=2 - fill)
    answers = sync(cluster, peers, hold_at="NOWHERE")
    expect_equal(answers, tensor(fill=0, count=4 * LEAF), revision=2)
    phases = [[name for name, _ in itertools.groupby(answer["phases"])] for answer in answers]
    assert phases[0] == ["HASHING", "WAITING", "SENDING"]
    assert phases[1] == ["HASHING", "WAITING", "RECEIVING"]


# --- large -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_tensor_beyond_four_gib(cluster):
    peers = cluster.form(2)
    size = 4 * LEAF * 1024 + 3 * LEAF + 17
    for peer in peers:
        expect_ok(
            cluster.collect([peer.tell("state", tensors=[tensor(fill=1, count=size, dtype="uint8")])], 120)
        )
    flips = [3, 8 * (4 * LEAF * 1024) + 5, 8 * size - 1]
    expect_ok([cluster.ask(peers[1], "flip", name="w", bits=flips)])
    expect_ok(cluster.ask_all(peers[:1], "revision", revision=1))
    answers = cluster.collect([peer.tell("sync") for peer in peers], 300)
    expect_ok(answers)
    assert answers[0]["digest"] == answers[1]["digest"]
    assert answers[1]["rx"] == 2 * LEAF + 17


@pytest.mark.slow
def test_a_gigabyte_to_a_newcomer_in_little_memory(cluster):
    peers = cluster.form(2)
    state = tensor(fill=1, count=1 << 30, dtype="uint8")
    expect_ok(cluster.collect([peers[0].tell("state", tensors=[state], revision=1)], 120))
    expect_ok(cluster.collect([peers[1].tell("state", tensors=[state | {"fill": 2}], revision=0)], 120))
    for _ in range(2):  # the second one is what is resident now
        before = [cluster.ask(peer, "peak_memory")["peak"] for peer in peers]
    answers = cluster.collect([peer.tell("sync") for peer in peers], 300)
    expect_ok(answers)
    assert answers[0]["digest"] == answers[1]["digest"]
    after = [cluster.ask(peer, "peak_memory")["peak"] for peer in peers]
    assert all(early > 1 << 30 for early in before)
    assert all(late - early < 64 << 20 for early, late in zip(before, after, strict=True)), (before, after)


def test_a_hundred_thousand_tensors(cluster):
    peers = cluster.form(2)
    for revision, peer in enumerate(peers):
        expect_ok([cluster.ask(peer, "many", count=100_000, fill=revision, revision=revision)])
    answers = sync(cluster, peers)
    expect_ok(answers)
    assert answers[0]["digest"] == answers[1]["digest"]
    assert answers[0]["rx"] == 100_000 * 8
