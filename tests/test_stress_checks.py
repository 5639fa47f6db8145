"""What the stress run takes for a violation, and what not."""

from __future__ import annotations

import math

import pytest
from pccl.stress.causes import COMMITTED_BY_PEERS, Disturbance, window_s
from pccl.stress.checks import Checks, Limits
from pccl.stress.flat import ALLOWED, Flat, Sample

LIMITS = Limits.of(3.0)
MASKS = [0b11]


class Run:
    """Two peers, a and b, that have been in step since 0 s."""

    def __init__(self) -> None:
        self.checks = Checks(LIMITS, 0.0)
        for name in ("a", "b"):
            self.checks.born(name, 0, 0.0)
            self.tell(name, "in", 0.0, epoch=1, world=2)
            self.agree(name, 0.0, 1, "one")

    def tell(self, name: str, kind: str, at: float, **more: object) -> None:
        self.checks.told(name, {"kind": kind, "at": at, "group": 0, **more})

    def agree(self, name: str, at: float, revision: int, value: str) -> None:
        self.tell(name, "agreed", at, revision=revision, hash=value)

    def fail(
        self,
        name: str,
        at: float,
        result: str,
        text: str = "why",
        call: str = "all_reduce",
        since: float | None = None,
    ) -> None:
        """`since`: the last moment before at which the peer could be told of anything."""
        since = at - 0.1 if since is None else since
        self.tell(name, "error", at, call=call, result=result, text=text, since=since)

    def fault(self, kind: str, at: float, *names: str, lasts: float = 0.0) -> None:
        self.checks.disturbed(Disturbance(kind, at, at + lasts, frozenset(names)))
        if kind in COMMITTED_BY_PEERS:
            self.tell(names[0], "does", at, what=kind)

    @property
    def violations(self) -> list[str]:
        self.checks.judge(math.inf)
        return [one.what for one in self.checks.violations]


def test_equal_states_and_members_are_fine() -> None:
    run = Run()
    for name in ("a", "b"):
        run.tell(name, "step", 1.0, step=1, members=MASKS)
        run.agree(name, 1.1, 2, "two")
    assert run.violations == []
    assert run.checks.parity_checks == 3


def test_another_state_at_the_same_revision_is_a_violation() -> None:
    run = Run()
    run.agree("a", 1.0, 2, "two")
    run.agree("b", 1.0, 2, "other")
    assert len(run.violations) == 1
    assert run.checks.violations[0].peers == ["a", "b"]


def test_other_members_of_the_same_step_are_a_violation() -> None:
    run = Run()
    run.tell("a", "step", 1.0, step=1, members=[0b11])
    run.tell("b", "step", 1.0, step=1, members=[0b111])
    assert len(run.violations) == 1


def test_crossing_ops_end_alike_at_all_that_began_them() -> None:
    run = Run()
    for name in ("a", "b"):
        run.tell(name, "crossed", 1.0, step=1, members=[0b11, 0])
    assert run.violations == []
    assert run.checks.parity_checks == 2
    run.tell("a", "crossed", 2.0, step=2, members=[0b11, 0])
    run.tell("b", "crossed", 2.0, step=2, members=[0b11, 0b11])
    assert len(run.violations) == 1
    assert "step 2" in run.violations[0]


def test_without_a_state_who_has_found_its_step_counts_as_company() -> None:
    checks = Checks(LIMITS, 0.0)
    for name in ("a", "b"):
        checks.born(name, 0, 0.0)
        checks.told(name, {"kind": "in", "at": 0.0, "group": 0})
        checks.told(name, {"kind": "counted", "at": 0.0, "group": 0})
    error = {"call": "all_reduce", "result": "TOO_FEW_PEERS", "text": "alone", "since": 99.0}
    checks.told("a", {"kind": "error", "at": 100.0, "group": 0, **error})
    checks.judge(math.inf)
    assert len(checks.violations) == 1
    assert checks.parity_checks == 0


def test_a_state_that_nobody_holds_any_more_may_be_made_anew() -> None:
    run = Run()
    run.agree("a", 1.0, 2, "two")
    run.tell("a", "out", 2.0, why="EvictedError")
    run.agree("b", 3.0, 2, "other")
    run.agree("a", 3.1, 2, "other")
    assert run.violations == []


def test_only_one_that_brings_its_own_state_may_clash_with_a_group_that_began_afresh() -> None:
    run = Run()
    run.tell("a", "out", 2.0, why="MasterLostError", keeps_state=True)
    run.tell("a", "in", 3.0)
    for name in ("a", "b"):
        run.fail(name, 4.0, "INVALID_USAGE", call="sync_shared_state")
    assert run.violations == []
    run.agree("a", 5.0, 2, "other")
    run.fail("b", 6.0, "INVALID_USAGE", call="sync_shared_state")
    assert len(run.violations) == 1, "it has taken over the group's"


def test_who_clashed_may_have_died_before_the_others_are_heard() -> None:
    run = Run()
    run.tell("a", "out", 2.0, why="MasterLostError", keeps_state=True)
    run.fault("kill", 4.5, "a")
    run.checks.ended("a", -9, 4.5)
    run.fail("b", 4.0, "INVALID_USAGE", call="sync_shared_state")
    assert run.violations == []


def test_one_that_has_given_up_its_state_may_not_clash() -> None:
    run = Run()
    run.tell("a", "out", 2.0, why="EvictedError", keeps_state=False)
    run.fail("a", 4.0, "INVALID_USAGE", call="sync_shared_state")
    assert len(run.violations) == 1


SILENT = "nothing heard from it for 3.0 s"
UNLINKED = "no ring of links includes it (no link between peers a and b: silent for 3.6 s)"


@pytest.mark.parametrize(
    "result",
    [
        *("RANK_CONNECTION_LOST", "RANK_CONNECTION_FAILED", "MISMATCH", "EVICTED"),
        *("MASTER_CONNECTION_LOST", "MASTER_CONNECTION_FAILED"),
    ],
)
def test_an_error_without_a_fault_is_a_violation(result: str) -> None:
    run = Run()
    run.fault("spawn", 99.0)
    for text in (SILENT, UNLINKED):
        run.fail("a", 100.0, result, text)
    assert len(run.violations) == 2


@pytest.mark.parametrize("result", ["INTERNAL_ERROR", "INVALID_USAGE", "REFUSED", "TIMEOUT"])
def test_some_errors_have_no_excuse(result: str) -> None:
    run = Run()
    for kind in ("kill", "pause", "reset", "mismatch", "master_kill", "pair_cut", "cut_off"):
        run.fault(kind, 99.0, "a")
    run.fail("a", 100.0, result)
    assert len(run.violations) == 1


@pytest.mark.parametrize(
    ("kind", "result", "text"),
    [
        ("kill", "RANK_CONNECTION_LOST", ""),
        ("pair_oneway", "RANK_CONNECTION_LOST", ""),
        ("cut_off", "RANK_CONNECTION_LOST", ""),
        ("mismatch", "MISMATCH", ""),
        ("pause", "EVICTED", SILENT),
        ("unheard", "EVICTED", SILENT),
        ("reset", "MASTER_CONNECTION_LOST", ""),
        ("master_kill", "MASTER_CONNECTION_FAILED", ""),
    ],
)
def test_an_error_has_its_cause_before_it_but_not_long_before(kind: str, result: str, text: str) -> None:
    run = Run()
    lasts = 0.0 if kind in COMMITTED_BY_PEERS else 2.0
    run.fault(kind, 100.0, "a", lasts=lasts)
    run.fail("a", 99.9, result, text)
    assert len(run.violations) == 1
    end = 100.0 + lasts + window_s(kind, LIMITS.timeout_s)
    run.fail("a", end, result, text)
    assert len(run.violations) == 1
    run.fail("a", end + 0.2, result, text)
    assert len(run.violations) == 2


def test_a_kill_explains_a_failure_for_one_timeout_and_two_seconds() -> None:
    assert window_s("kill", 3.0) == 5.0
    assert window_s("pair_cut", 3.0) == 6.5


def test_who_was_not_in_a_call_is_told_in_the_next_one() -> None:
    """The program thought, was stopped, or had not yet awaited an async op."""
    run = Run()
    run.fault("kill", 100.0, "b")
    run.fail("a", 120.0, "RANK_CONNECTION_LOST", since=99.0)
    assert run.violations == []
    run.fail("a", 120.0, "RANK_CONNECTION_LOST", since=106.0)
    assert len(run.violations) == 1


def test_what_a_program_does_wrong_counts_from_when_it_does_it() -> None:
    run = Run()
    run.checks.disturbed(Disturbance("mismatch", 100.0, 100.0, frozenset(["b"])))  # the order
    run.fail("a", 101.0, "MISMATCH")
    assert len(run.violations) == 1
    run.tell("b", "does", 120.0, what="mismatch")
    run.fail("a", 121.0, "MISMATCH")
    assert len(run.violations) == 1


def test_a_peer_that_was_stopped_is_killed_when_it_ends() -> None:
    run = Run()
    run.fault("term", 100.0, "b")
    run.checks.ended("b", -15, 110.0)
    run.fail("a", 111.0, "RANK_CONNECTION_LOST")
    assert run.violations == []


def test_a_cause_may_be_heard_of_after_the_error() -> None:
    run = Run()
    run.fail("a", 100.1, "MISMATCH")
    run.checks.judge(100.2)
    run.tell("b", "does", 100.0, what="mismatch")
    run.checks.judge(100.3)
    assert run.violations == []


def test_a_healthy_peer_must_not_be_evicted_for_another_one() -> None:
    run = Run()
    run.fault("pause", 100.0, "b", lasts=6.0)
    run.fail("a", 104.0, "EVICTED", SILENT)
    assert len(run.violations) == 1


def test_whose_links_were_cut_may_be_put_out_as_long_as_it_is_a_member() -> None:
    """The master remembers pairs that could not be linked."""
    run = Run()
    run.fault("pair_cut", 100.0, "a", lasts=10.0)
    run.fail("a", 200.0, "EVICTED", UNLINKED)
    assert run.violations == []
    run.tell("a", "out", 200.0, why="EvictedError")
    run.fail("a", 210.0, "EVICTED", UNLINKED)
    assert len(run.violations) == 1


def test_whose_links_are_well_must_not_be_put_out_for_them() -> None:
    run = Run()
    run.checks.born("c", 0, 0.0)
    run.fault("pair_oneway", 100.0, "b", "c", lasts=10.0)
    run.fail("a", 105.0, "EVICTED", UNLINKED)
    assert len(run.violations) == 1


def test_whose_links_were_cut_must_not_be_put_out_for_silence() -> None:
    run = Run()
    run.fault("pair_cut", 100.0, "a", "b", lasts=10.0)
    run.fail("a", 105.0, "EVICTED", SILENT)
    assert len(run.violations) == 1


def test_a_goodbye_fails_only_ops_that_name_ranks() -> None:
    run = Run()
    run.fault("close", 100.0, "b")
    run.fail("a", 100.5, "RANK_CONNECTION_LOST", call="AllGather of 9 int8")
    assert run.violations == []
    run.fail("a", 100.5, "RANK_CONNECTION_LOST")
    assert len(run.violations) == 1


def test_nobody_is_alone_beside_a_peer_in_step() -> None:
    run = Run()
    run.fail("a", 100.0, "TOO_FEW_PEERS")
    assert len(run.violations) == 1


def test_a_peer_is_alone_when_the_other_was_put_out() -> None:
    run = Run()
    run.fault("pause", 95.0, "b", lasts=6.0)
    run.fail("a", 100.0, "TOO_FEW_PEERS")
    assert run.violations == []


def test_ending_without_an_order_is_a_violation() -> None:
    run = Run()
    run.fault("kill", 1.0, "a")
    run.checks.ended("a", -9, 1.1)
    assert run.violations == []
    run.checks.ended("b", -11, 1.2)
    assert len(run.violations) == 1


def test_a_call_that_hangs_is_told_once() -> None:
    run = Run()
    for seconds in (1.0, LIMITS.bound_s + 1, LIMITS.bound_s + 2):
        run.tell("a", "beat", 100.0 + seconds, call="sync_shared_state", seconds=seconds)
    assert len(run.violations) == 1
    assert run.checks.look(1.0, set()) == ["a"]  # which is to say where


def test_silence_is_a_violation_unless_the_peer_is_stopped() -> None:
    run = Run()
    run.tell("b", "beat", LIMITS.bound_s, call="", seconds=0.0)
    run.checks.look(LIMITS.bound_s + 1.0, {"a"})
    assert run.violations == []
    run.checks.look(LIMITS.bound_s + 1.0, set())
    assert len(run.violations) == 1


def test_a_group_that_makes_no_step_is_a_violation() -> None:
    run = Run()
    run.checks.look(0.0, set())
    for name in ("a", "b"):
        run.tell(name, "beat", LIMITS.progress_s, call="", seconds=0.0)
    run.checks.look(LIMITS.progress_s + 1.0, set())
    assert len(run.violations) == 1


def grown(step: dict[str, int]) -> list[str]:
    """What Flat says of five minutes in which these things grow by so much a second."""
    flat, found = Flat(0.0), []
    for second in range(0, 300, 2):
        sample = {"memory_bytes": 50 << 20, "files": 30, "threads": 4}
        sample = {name: value + step.get(name, 0) * second + (second % 8) for name, value in sample.items()}
        found += flat.add(Sample(float(second), **sample))
    return found


def test_what_stays_is_flat() -> None:
    assert grown({}) == []


@pytest.mark.parametrize("name", list(ALLOWED))
def test_what_grows_is_found_once(name: str) -> None:
    found = grown({name: max(ALLOWED[name] // 60, 1)})
    assert len(found) == 1
    assert found[0].startswith(name)
