"""What must come out of an op is exact, and each result tells over whom it was taken."""

from __future__ import annotations

import random

import numpy as np
import pytest
from pccl.stress.arithmetic import (
    MOST_MEMBERS,
    SLOTS,
    Shape,
    contribution,
    draw_shape,
    members_of,
    reduction,
)

UFUNCS = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}


def shapes() -> list[Shape]:
    choice = random.Random(1)
    return [draw_shape(choice, f"key {i}", i, 1 << 14) for i in range(300)]


@pytest.mark.parametrize("world", [2, 3, 7, MOST_MEMBERS])
def test_a_result_is_that_of_its_members_in_any_order(world: int) -> None:
    choice = random.Random(world)
    for shape in shapes():
        members = sorted(choice.sample(range(SLOTS), world))
        inputs = [contribution(shape, slot) for slot in members]
        assert all(len(one) == shape.count and one.dtype == shape.dtype for one in inputs)
        expected = reduction(shape, members)
        assert members_of(shape, expected) == members
        if shape.op == "avg":
            assert np.array_equal(expected, (sum(inputs[1:], inputs[0]) / world).astype(shape.dtype))
            continue
        for _ in range(3):  # one after the other, rounded each time, as peers do it
            choice.shuffle(inputs)
            together = inputs[0]
            for one in inputs[1:]:
                together = UFUNCS[shape.op](together, one)
            assert np.array_equal(together, expected)


def test_all_types_ops_and_sizes_come_up() -> None:
    found = shapes()
    assert {shape.op for shape in found} == {"sum", "avg", "prod", "max", "min"}
    assert len({shape.dtype for shape in found}) == 11
    assert any(shape.masked for shape in found)
    assert max(shape.count for shape in found) > 4000


def test_a_peer_that_counts_twice_is_not_overlooked() -> None:
    for shape in shapes():
        if shape.op in ("sum", "prod"):
            members = [3, 5]
            ufunc = UFUNCS[shape.op]
            twice = ufunc(reduction(shape, members), contribution(shape, 5))
            assert not np.array_equal(twice, reduction(shape, members_of(shape, twice)))


def test_another_step_has_other_values() -> None:
    one, other = (Shape(f"1 0 {step}", 0, 1000, "int64", "sum") for step in (1, 2))
    assert not np.array_equal(contribution(one, 3), contribution(other, 3))
