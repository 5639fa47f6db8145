"""Faults are a function of the seed, and the schedule always knows who is alive."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from pccl.stress.schedule import (
    BETWEEN_PEERS,
    FEWEST_PEERS,
    KINDS,
    PROFILES,
    WITNESSES,
    Fault,
    Setting,
    first_peers,
    needs_namespaces,
    schedule,
)

SETTING = Setting(seed=7, profile="mixed", peers=8, duration_s=600, groups=2, namespaces=True)


def faults(**changes: object) -> list[Fault]:
    return list(schedule(dataclasses.replace(SETTING, **changes)))


def test_the_same_seed_gives_the_same_faults() -> None:
    assert faults() == faults()
    assert faults(seed=8) != faults()


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    short = faults(duration_s=60)
    assert short == faults()[: len(short)]


@pytest.mark.parametrize("profile", list(PROFILES))
def test_without_namespaces_all_else_stays_as_it_is(profile: str) -> None:
    without = faults(profile=profile, namespaces=False)
    assert without == [fault for fault in faults(profile=profile) if fault.kind not in BETWEEN_PEERS]
    assert needs_namespaces(profile) == (len(without) < len(faults(profile=profile)))


def test_without_a_profile_there_are_no_faults_and_all_peers() -> None:
    assert faults(profile="none") == []
    assert len(first_peers(dataclasses.replace(SETTING, profile="none"))) == SETTING.peers


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "none"])
@pytest.mark.parametrize("seed", range(20))
def test_victims_are_alive_and_witnesses_stay(profile: str, seed: int) -> None:
    setting = dataclasses.replace(SETTING, profile=profile, seed=seed, groups=1 + seed % 2)
    alive = first_peers(setting)
    for fault in schedule(setting):
        if fault.kind == "replace":
            old, new = fault.slots
            assert old >= WITNESSES
            assert new not in alive
            assert alive.pop(old) == fault.group
            alive[new] = fault.group
        elif fault.kind in ("spawn", "burst"):
            assert not set(fault.slots) & set(alive)
            alive |= dict.fromkeys(fault.slots, fault.group)
        else:
            assert set(fault.slots) <= set(alive)
        if fault.kind.startswith("pair_"):
            one, other = fault.slots
            assert one != other
            assert alive[one] == alive[other]
        if fault.kind in ("kill", "term", "close"):
            assert min(fault.slots) >= WITNESSES
            del alive[fault.slots[0]]
        if fault.kind == "regroup":
            assert alive[fault.slots[0]] != fault.group
            alive[fault.slots[0]] = fault.group
        groups = list(alive.values())
        assert len(alive) <= setting.peers
        assert all(groups.count(group) >= FEWEST_PEERS[group] for group in range(setting.groups))


def test_there_is_company_most_of_the_time() -> None:
    setting = dataclasses.replace(SETTING, peers=10, duration_s=3600)
    alive, counts = len(first_peers(setting)), []
    for fault in schedule(setting):
        alive += len(fault.slots) if fault.kind in ("spawn", "burst") else 0
        alive -= fault.kind in ("kill", "term", "close")
        counts.append(alive)
    assert sum(counts) / len(counts) > 6.5


def test_faults_keep_their_distance() -> None:
    times = [fault.at_s for fault in faults(gap_s=(0.5, 2.0))]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) >= 0.5
    assert times[-1] < SETTING.duration_s


def test_every_kind_of_fault_is_explained_and_in_a_profile() -> None:
    assert {kind for weights in PROFILES.values() for kind in weights} == set(KINDS)
    assert {fault.kind for fault in faults(duration_s=3600)} == set(PROFILES["mixed"])
