"""csrc/core/election.c: whose shared state it is, against a second description, for all small groups."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
from native import load

ffi, lib = load(
    "ccoip.h",
    "ccoip_inet.h",
    "pccl.h",
    "base/limits.h",
    "base/id.h",
    "base/address.h",
    "wire/message.h",
    "core/election.h",
)

POPULAR = lib.PCCL_SHARED_STATE_SYNC_STRATEGY_ENFORCE_POPULAR
RECEIVE = lib.PCCL_SHARED_STATE_SYNC_STRATEGY_RECEIVE_ONLY
SEND = lib.PCCL_SHARED_STATE_SYNC_STRATEGY_SEND_ONLY


@dataclass(frozen=True)
class Offer:
    revision: int = 1
    content: int = 0
    strategy: int = POPULAR
    touched: bool = False
    keys: int = 0


def elect(offers: dict[int, Offer], last: int | None) -> tuple[str, int | None, int]:
    """Of peers by id: the outcome, the id of its candidate, the expected revision."""
    candidates = ffi.new("struct candidate[]", max(len(offers), 1))
    for candidate, (peer, offer) in zip(candidates, offers.items(), strict=False):
        candidate.peer.bytes[0] = peer
        candidate.offer.revision = offer.revision
        candidate.offer.strategy = offer.strategy
        candidate.offer.content.bytes[15] = offer.content
        candidate.offer.keys.bytes[7] = offer.keys
        candidate.touched = offer.touched
    election = lib.elect(candidates, len(offers), last is not None, last or 0)
    name = {lib.ELECTED: "elected", lib.NO_CANDIDATE: "none", lib.BAD_REVISION: "bad"}[election.outcome]
    peers = list(offers)
    if name == "none":
        return name, None, 0
    return name, peers[election.candidate], election.expected if name == "bad" else 0


def described(offers: dict[int, Offer], last: int | None) -> tuple[str, int | None, int]:
    """The same, as csrc/core/election.h says it."""
    able = {p: o for p, o in offers.items() if not o.touched and o.strategy != RECEIVE}
    if not able:
        return "none", None, 0
    legal = None if last is None else last + 1
    newest = max(offer.revision for offer in able.values())
    if legal is not None and newest != legal:
        return "bad", min(p for p, o in able.items() if o.revision == newest), legal
    if any(offer.strategy == SEND for offer in able.values()):
        able = {p: o for p, o in able.items() if o.strategy == SEND}
        newest = max(offer.revision for offer in able.values())
        if legal is not None and newest != legal:
            return "bad", min(p for p, o in able.items() if o.revision == newest), legal
    able = {p: o for p, o in able.items() if o.revision == newest}
    votes: dict[tuple[int, int], list[int]] = {}
    for peer, offer in able.items():
        votes.setdefault((offer.keys, offer.content), []).append(peer)
    return "elected", min(votes.values(), key=lambda who: (-len(who), min(who)))[0], 0


KINDS = [
    Offer(revision, content, strategy, touched)
    for revision in (6, 7, 8)
    for content in (0, 1)
    for strategy in (POPULAR, RECEIVE, SEND)
    for touched in (False, True)
    if not (touched and (content or strategy != POPULAR))  # what is touched counts for nothing, whatever else
]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("last", [None, 6, 7])
def test_all_small_groups(count: int, last: int | None) -> None:
    for kinds in itertools.product(KINDS, repeat=count):
        offers = dict(enumerate(kinds, 1))
        expected = described({peer: offers[peer] for peer in sorted(offers)}, last)
        assert elect(offers, last) == expected, offers


def test_the_order_in_which_peers_are_listed_does_not_count() -> None:
    kinds = [Offer(7, 0), Offer(7, 1), Offer(6, 1), Offer(7, 1, SEND), Offer(7, 0, RECEIVE)]
    for chosen in itertools.combinations_with_replacement(kinds, 4):
        outcomes = {elect(dict(listed), 6) for listed in itertools.permutations(list(enumerate(chosen, 1)))}
        assert len(outcomes) == 1, chosen


def test_most_votes_win_over_the_lowest_id() -> None:
    assert elect({1: Offer(content=5), 2: Offer(content=6), 3: Offer(content=6)}, None)[1] == 2


def test_the_lowest_id_wins_among_equals() -> None:
    assert elect({9: Offer(content=5), 4: Offer(content=6), 7: Offer(content=7)}, None)[1] == 4


def test_states_with_other_keys_are_other_states() -> None:
    offers = {1: Offer(keys=1), 2: Offer(keys=2), 3: Offer(keys=2)}
    assert elect(offers, None)[1] == 2


def test_the_newest_wins_over_the_many_in_the_first_sync() -> None:
    assert elect({1: Offer(0), 2: Offer(0), 3: Offer(5)}, None) == ("elected", 3, 0)


def test_old_revisions_are_overruled_and_new_ones_are_an_offence() -> None:
    assert elect({1: Offer(3), 2: Offer(4)}, 3) == ("elected", 2, 0)
    assert elect({1: Offer(4), 2: Offer(5)}, 3) == ("bad", 2, 4)
    assert elect({1: Offer(3), 2: Offer(2)}, 3) == ("bad", 1, 4)


def test_who_only_receives_may_be_at_any_revision() -> None:
    assert elect({1: Offer(4), 2: Offer(900, 1, RECEIVE)}, 3) == ("elected", 1, 0)


def test_who_only_sends_goes_first() -> None:
    assert elect({1: Offer(content=1), 2: Offer(content=1), 3: Offer(1, 2, SEND)}, None)[1] == 3


def test_nobody_to_elect() -> None:
    assert elect({1: Offer(1, 0, RECEIVE), 2: Offer(touched=True)}, None) == ("none", None, 0)


def test_limits() -> None:
    many = {peer: Offer(2**64 - 1, peer % 7) for peer in range(1, 256)}
    outcome: Any = elect(many, 2**64 - 2)
    assert outcome == ("elected", 1, 0)
