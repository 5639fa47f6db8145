"""Ops that are started in one step and awaited in a later one, as a peer of a stress run does it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import pytest
from pccl.stress.arithmetic import Shape, contribution, reduction
from pccl.stress.crossing import LONGEST, Crossing, Crossings, draw_crossing
from pccl.stress.operations import Batch, ViolationError, draw_step
from pccl.stress.steps import Mischief, Step

import pccl

SLOTS = [4, 7, 2]
MASK = sum(1 << slot for slot in SLOTS)
SLOT = 4


def drawn(steps: int, seed: int = 1, group: int = 0) -> list[Crossing]:
    plans = (draw_crossing(seed, group, step, 4096) for step in range(steps))
    return [plan for plan in plans if plan is not None]


def test_what_crosses_is_a_function_of_seed_group_and_step() -> None:
    assert drawn(300) == drawn(300)
    assert drawn(300) != drawn(300, seed=2)
    assert drawn(300) != drawn(300, group=1)


def test_all_lengths_and_ways_come_up() -> None:
    plans = drawn(300)
    assert {plan.due - plan.begin for plan in plans} == set(range(1, LONGEST + 1))
    assert {(plan.retry, plan.over) for plan in plans} == {
        (a, b) for a in (False, True) for b in (False, True)
    }
    # In some stretches there is none, so that all joint calls are made.
    assert 0.2 < len(plans) / 300 < 0.6


def test_tags_are_used_again_but_never_by_two_at_a_time() -> None:
    plans = drawn(300)
    every = [shape.tag for plan in plans for shape in plan.shapes]
    assert len(set(every)) < len(every)
    for plan in plans:
        others = [one for one in plans if one != plan and one.begin <= plan.begin <= one.due]
        tags = [shape.tag for one in (plan, *others) for shape in one.shapes]
        assert len(set(tags)) == len(tags)
    ordinary = {
        shape.tag
        for step in range(300)
        for batch in draw_step(1, 0, step, ["async"], 4096)
        for shape in batch.shapes
    }
    assert not ordinary & set(every)


def test_the_kinds_that_are_no_part_of_a_step_leave_it_as_it_is() -> None:
    for step in range(50):
        assert draw_step(1, 0, step, ["sync"], 4096) == draw_step(
            1, 0, step, ["sync", "crossing", "state"], 4096
        )


class Handle:
    """Of an op that ends when the test says so."""

    def __init__(self, send: np.ndarray, recv: np.ndarray | None) -> None:
        self.target = send if recv is None else recv
        self.over = False
        self.error: pccl.PCCLError | None = None
        self.awaited = 0

    def succeed(self, result: np.ndarray) -> None:
        self.target[:] = result
        self.over = True

    def fail(self, kind: type[pccl.PCCLError], result: pccl.Result) -> None:
        self.error = kind(result, "why")
        self.over = True

    def done(self) -> bool:
        return self.over

    def wait(self) -> tuple[bool, int, pccl.ReduceInfo]:
        assert self.over
        return self.error is None, 0, pccl.ReduceInfo(len(SLOTS), 10, 10)

    def result(self) -> pccl.ReduceInfo:
        assert self.over
        self.awaited += 1
        if self.error is not None:
            raise self.error
        return pccl.ReduceInfo(len(SLOTS), 10, 10)


class Communicator:
    """Keeps what is started."""

    def __init__(self) -> None:
        self.handles: dict[int, Handle] = {}

    def all_reduce_async(self, send: np.ndarray, recv: np.ndarray | None, **options: object) -> Handle:
        handle = self.handles[int(str(options["tag"]))] = Handle(send, recv)
        return handle


class Always(random.Random):
    """Chooses to start at once, or only when it must."""

    def __init__(self, at_once: bool) -> None:
        super().__init__(1)
        self._number = 0.0 if at_once else 0.99

    def random(self) -> float:
        return self._number


@contextlib.contextmanager
def watch(call: str, started: float | None = None) -> Iterator[None]:
    yield


def shape_of(step: int, tag: int = 9) -> Shape:
    return Shape(f"1 0 {step} {tag}", tag, 300, "int32", "sum")


def plan_of(step: int = 5, length: int = 2, retry: bool = False, over: bool = False) -> Crossing:
    return Crossing(step, step + length, (shape_of(step),), (True,), retry, over)


class Run:
    """The crossing ops of one peer."""

    def __init__(self, plan: Crossing, at_once: bool = True) -> None:
        self.comm = Communicator()
        self.told: list[tuple[int, list[int]]] = []
        self.crossings = Crossings(
            self.comm,  # type: ignore[arg-type]
            SLOT,
            watch,
            Always(at_once),
            lambda step, members, sent: self.told.append((step, members)),
        )
        self.crossings.begin(plan)
        self.crossings.start_some(plan.begin)

    @property
    def handle(self) -> Handle:
        return self.comm.handles[9]


def test_it_is_verified_when_it_is_due_and_not_before() -> None:
    run = Run(plan_of())
    assert run.crossings.unsettled
    run.handle.succeed(reduction(shape_of(5), sorted(SLOTS)))
    assert not run.crossings.unsettled
    for step in (5, 6):
        run.crossings.finish(step)
    assert (run.told, run.handle.awaited) == ([], 0)
    run.crossings.finish(7)
    assert run.told == [(5, [MASK])]
    run.crossings.finish(8)
    assert len(run.told) == 1


@pytest.mark.parametrize("step", [4, 6, 7])
def test_the_result_of_another_step_is_a_violation(step: int) -> None:
    run = Run(plan_of())
    run.handle.succeed(reduction(shape_of(step), sorted(SLOTS)))
    with pytest.raises(ViolationError, match="wrong result"):
        run.crossings.finish(7)


def test_the_result_of_another_tag_is_a_violation() -> None:
    run = Run(plan_of())
    run.handle.succeed(reduction(shape_of(5, tag=8), sorted(SLOTS)))
    with pytest.raises(ViolationError, match="wrong result"):
        run.crossings.finish(7)


def test_a_result_that_does_not_bear_this_peers_mark_is_a_violation() -> None:
    run = Run(plan_of())
    run.handle.succeed(reduction(shape_of(5), [2, 3, 7]))
    with pytest.raises(ViolationError, match="the result is over"):
        run.crossings.finish(7)


def test_one_that_a_lost_peer_fails_is_given_up() -> None:
    run = Run(plan_of())
    run.handle.fail(pccl.PeerLostError, pccl.Result.RANK_CONNECTION_LOST)
    run.crossings.finish(7)
    assert run.told == [(5, [0])]


def test_one_with_retry_never_fails_for_a_lost_peer() -> None:
    run = Run(plan_of(retry=True))
    run.handle.fail(pccl.PeerLostError, pccl.Result.RANK_CONNECTION_LOST)
    with pytest.raises(ViolationError, match="with retry, and yet"):
        run.crossings.finish(7)


def test_one_that_failed_and_has_changed_its_input_is_a_violation() -> None:
    for end in (lambda run: run.crossings.finish(7), lambda run: run.crossings.drop()):
        run = Run(plan_of())
        run.handle.target[3] += 1
        run.handle.fail(pccl.PeerLostError, pccl.Result.RANK_CONNECTION_LOST)
        with pytest.raises(ViolationError, match="input was changed"):
            end(run)


def test_who_is_alone_tells_nothing() -> None:
    run = Run(plan_of())
    run.handle.fail(pccl.TooFewPeersError, pccl.Result.TOO_FEW_PEERS)
    run.crossings.finish(7)
    assert run.told == []


def test_those_in_flight_bar_joint_calls_until_they_are_awaited() -> None:
    run = Run(plan_of())
    run.handle.succeed(reduction(shape_of(5), sorted(SLOTS)))
    assert run.crossings.bar_joint_calls, "at other peers it may not be over"
    run.crossings.finish(7)
    assert not run.crossings.bar_joint_calls


def test_those_that_are_to_be_over_bar_nothing() -> None:
    assert not Run(plan_of(over=True)).crossings.bar_joint_calls


def test_what_was_settled_for_newcomers_bars_nothing_and_is_still_verified() -> None:
    run = Run(plan_of())
    run.handle.succeed(reduction(shape_of(6), sorted(SLOTS)))
    run.crossings.settle()
    assert not run.crossings.bar_joint_calls
    assert run.handle.awaited == 0
    with pytest.raises(ViolationError, match="wrong result"):
        run.crossings.finish(7)


def test_a_peer_that_waits_with_its_start_does_so_no_longer_than_others_can_wait() -> None:
    run = Run(plan_of(), at_once=False)
    run.crossings.start_some(6)
    assert run.comm.handles == {}
    assert run.crossings.unsettled
    run.crossings.start_some(7)
    assert list(run.comm.handles) == [9]


def test_what_was_not_started_is_before_a_joint_call() -> None:
    run = Run(plan_of(over=True), at_once=False)

    def start(*arguments: object, **options: object) -> Handle:
        handle = Communicator.all_reduce_async(run.comm, *arguments, **options)  # type: ignore[arg-type]
        handle.succeed(reduction(shape_of(5), sorted(SLOTS)))
        return handle

    run.comm.all_reduce_async = start  # type: ignore[method-assign]
    run.crossings.settle()
    run.crossings.finish(7)
    assert run.told == [(5, [MASK])]


def test_what_is_dropped_was_either_right_or_left_as_it_was() -> None:
    run = Run(plan_of())
    run.handle.succeed(contribution(shape_of(5), SLOT))
    with pytest.raises(ViolationError, match="the result is over"):
        run.crossings.drop()
    run = Run(plan_of())
    run.handle.fail(pccl.EvictedError, pccl.Result.EVICTED)
    run.crossings.drop()
    run.crossings.finish(7)
    assert run.told == []


class Single:
    """A peer's communicator whose ops succeed at once, over itself alone."""

    def __init__(self) -> None:
        self.joint_calls = 0

    def all_reduce(self, send: np.ndarray, recv: np.ndarray | None, **options: object) -> pccl.ReduceInfo:
        return pccl.ReduceInfo(1, 0, 0)

    def update_topology(self) -> None:
        self.joint_calls += 1


@pytest.mark.parametrize("unsettled", [False, True])
def test_a_joint_call_is_misplaced_only_where_it_stands_for_one_op(unsettled: bool) -> None:
    comm, mischief = Single(), Mischief(lambda what: None)
    mischief.misplaced = True
    step = Step(comm, SLOT, watch, mischief, random.Random(1), unsettled)  # type: ignore[arg-type]
    step.run([Batch("sync", "reduce", (shape_of(5),), (True,), False)])
    assert comm.joint_calls == (not unsettled)
    assert mischief.misplaced == unsettled, "later, else"
