"""all_reduce(early_return=True) between threads of this process: what is allowed, and what comes after it."""

from __future__ import annotations

import numpy as np
import pytest
from in_process import group_of, in_threads

import pccl


def early_sum(communicator: pccl.Communicator, count: int, tag: int = 0, *, in_place: bool = True) -> bool:
    """Whether the sum of ones is the world size, in `count` elements."""
    ones = np.ones(count, np.float32)
    recv = None if in_place else np.empty_like(ones)
    info = communicator.all_reduce(ones, recv, tag=tag, early_return=True)
    return bool(((ones if recv is None else recv) == info.local_world_size).all())


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("count", [1, 1024, 16384, 16385])
def test_results_are_those_of_any_all_reduce(pair, count, in_place) -> None:
    def run(one: pccl.Communicator) -> bool:
        return all(early_sum(one, count, tag, in_place=in_place) for tag in (0, 0, 1, 0, 2))

    assert in_threads(*(lambda one=one: run(one) for one in pair)) == [True, True]


def test_async_ops_may_return_early_too(pair) -> None:
    def run(one: pccl.Communicator) -> list[float]:
        arrays = [np.full(8, tag, np.float32) for tag in range(100)]
        handles = [
            one.all_reduce_async(array, tag=tag, early_return=True) for tag, array in enumerate(arrays)
        ]
        for handle in handles:
            handle.result()
        return [float(array[-1]) for array in arrays]

    assert in_threads(*(lambda one=one: run(one) for one in pair)) == [[2.0 * tag for tag in range(100)]] * 2


def test_joint_calls_follow_at_once(pair) -> None:
    def run(one: pccl.Communicator) -> bool:
        state = {"weights": np.zeros(4, np.float32)}
        good = True
        for revision in range(20):
            good = good and early_sum(one, 8)
            one.update_topology()
            good = good and early_sum(one, 8, tag=revision)
            one.sync_shared_state(pccl.SharedState(state, revision=revision))
        return good

    assert in_threads(*(lambda one=one: run(one) for one in pair)) == [True, True]


def test_who_closes_at_once_leaves_the_result_to_the_others(master) -> None:
    for _ in range(20):
        with group_of(master, 2) as (a, b):

            def last_op(one: pccl.Communicator = a) -> bool:
                good = early_sum(one, 8)
                one.close()
                return good

            assert in_threads(last_op, lambda one=b: early_sum(one, 8)) == [True, True]


def test_it_is_part_of_what_must_be_equal(pair) -> None:
    def run(one: pccl.Communicator, early_return: bool) -> str:
        with pytest.raises(pccl.MismatchError) as caught:
            one.all_reduce(np.ones(4, np.float32), early_return=early_return)
        return str(caught.value)

    texts = in_threads(lambda: run(pair[0], True), lambda: run(pair[1], False))
    assert all("returning early" in text for text in texts)
