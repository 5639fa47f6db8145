"""How a peer of a stress run checks ops that name ranks."""

from __future__ import annotations

import numpy as np
import pytest
from pccl.stress.arithmetic import Shape, contribution, reduction
from pccl.stress.collectives import AllGather, ReduceScatter
from pccl.stress.operations import ViolationError

SLOTS = [4, 7, 2]  # by rank
SHAPE = Shape("key", 0, 100, "int32", "sum")


class Communicator:
    """What a check asks one."""

    def __init__(self, rank: int) -> None:
        self.rank, self.epoch, self.world_size = rank, 1, len(SLOTS)


def parts(op: ReduceScatter) -> list[np.ndarray]:
    """What each rank gets."""
    return [reduction(op._part(rank), sorted(SLOTS)) for rank in range(len(SLOTS))]


def scattered(rank: int, part: int, epochs: int = 0) -> ReduceScatter:
    """An op after which the peer of `rank` has that part; the epoch has changed so often since."""
    comm = Communicator(rank)
    op = ReduceScatter(SHAPE, SLOTS[rank], False)
    op._prepare(comm)
    op._recv[:] = parts(op)[part]
    comm.epoch += epochs
    return op


def gathered(rank: int, order: list[int], epochs: int = 0) -> AllGather:
    comm = Communicator(rank)
    op = AllGather(SHAPE, SLOTS[rank], False)
    op._prepare(comm)
    op._recv[:] = [contribution(op.shape, slot) for slot in order]
    comm.epoch += epochs
    return op


@pytest.mark.parametrize("rank", range(3))
def test_the_part_of_ones_own_rank_is_right(rank: int) -> None:
    assert scattered(rank, rank).check(0) == sorted(SLOTS)


@pytest.mark.parametrize("part", [0, 2])
def test_the_part_of_another_rank_is_wrong(part: int) -> None:
    with pytest.raises(ViolationError, match="wrong result"):
        scattered(1, part).check(0)


def test_any_part_may_be_right_once_the_epoch_has_changed_but_nothing_else() -> None:
    assert scattered(1, 0, epochs=1).check(0) == sorted(SLOTS)
    op = scattered(1, 1, epochs=1)
    op._recv[-1] += 1
    with pytest.raises(ViolationError, match="wrong result"):
        op.check(0)


def test_a_peer_finds_its_own_part_at_its_rank() -> None:
    assert gathered(1, SLOTS).check(0) == SLOTS
    with pytest.raises(ViolationError, match="rank 1"):
        gathered(1, [7, 4, 2]).check(0)
    assert gathered(1, [7, 4, 2], epochs=1).check(0) == [7, 4, 2]
