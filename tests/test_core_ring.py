"""The ring's arithmetic, for all worlds of 2 to 16: who owns what, what moves when, and what comes of it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from native import load

ffi, lib = load("base/limits.h", "core/ring.h")

WORLDS = range(2, 17)
BLOCK_BYTES = 64
COUNTS = [1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 65, 255, 1000, 4097, 65_537, 1_000_003]
HUGE = [2**32 - 1, 2**32 + 17, 2**33 + 5, 3 * 2**34 + 1]


def plans(world: int, count: int, element_bytes: int) -> list[Any]:
    return [lib.ring_plan_make(rank, world, count, element_bytes) for rank in range(world)]


def chunks_of(plan: Any, segment: int) -> list[tuple[int, int]]:
    ranges = [
        lib.ring_chunk(ffi.new("struct ring_plan *", plan), segment, chunk)
        for chunk in range(lib.ring_segment_chunks(ffi.new("struct ring_plan *", plan), segment))
    ]
    return [(part.offset, part.count) for part in ranges]


@pytest.mark.parametrize("element_bytes", [1, 2, 4, 8])
@pytest.mark.parametrize("world", WORLDS)
def test_segments_and_chunks_part_the_buffer(world: int, element_bytes: int) -> None:
    for count in COUNTS + HUGE:
        plan = ffi.new("struct ring_plan *", lib.ring_plan_make(0, world, count, element_bytes))
        end, longest = 0, 0
        for segment in range(world):
            whole = lib.ring_segment(plan, segment)
            assert whole.offset == end
            assert whole.count == 0 or whole.offset * element_bytes % BLOCK_BYTES == 0
            end += whole.count
            chunks = lib.ring_segment_chunks(plan, segment)
            longest = max(longest, chunks)
            assert (chunks == 0) == (whole.count == 0)
            # Of very long segments the ends are looked at: all others are alike.
            for chunk in {0, 1, chunks // 2, chunks - 2, chunks - 1} & set(range(chunks)):
                part = lib.ring_chunk(plan, segment, chunk)
                assert part.offset == whole.offset + chunk * plan.chunk_elements
                last = chunk == chunks - 1
                assert part.count == (
                    whole.count - chunk * plan.chunk_elements if last else plan.chunk_elements
                )
                assert 0 < part.count * element_bytes <= lib.MAX_CHUNK_BYTES
        assert end == count
        assert longest == plan.chunks_per_segment


@pytest.mark.parametrize("world", WORLDS)
def test_segments_differ_by_a_block_at_most(world: int) -> None:
    for count in COUNTS:
        plan = ffi.new("struct ring_plan *", lib.ring_plan_make(0, world, count, 4))
        blocks = [-(-lib.ring_segment(plan, segment).count // 16) for segment in range(world)]
        assert max(blocks) - min(blocks) <= 1


@pytest.mark.parametrize("world", WORLDS)
def test_what_a_rank_sends_the_next_one_receives(world: int) -> None:
    ranks = [ffi.new("struct ring_plan *", plan) for plan in plans(world, 1000, 4)]
    steps = lib.ring_steps(ranks[0])
    assert steps == 2 * (world - 1)
    for step in range(steps):
        sent = [lib.ring_segment_sent(plan, step) for plan in ranks]
        received = [lib.ring_segment_received(plan, step) for plan in ranks]
        assert sorted(sent) == list(range(world))
        assert [sent[rank - 1] for rank in range(world)] == received
        assert lib.ring_step_reduces(ranks[0], step) == (step < world - 1)
        assert lib.ring_step_finishes(ranks[0], step) == (step == world - 2)
        if step > 0:  # what came in the step before goes on
            assert sent == [lib.ring_segment_received(plan, step - 1) for plan in ranks]
    finished = [lib.ring_segment_received(plan, world - 2) for plan in ranks]
    assert finished == [(rank + 1) % world for rank in range(world)]


class Rank:
    """One rank's transfer, and for each chunk whose contributions it holds, in the order they were added."""

    def __init__(self, plan: Any, rank: int) -> None:
        self.rank = rank
        self.plan = ffi.new("struct ring_plan *", plan)
        self.memory = ffi.new("uint64_t[]", lib.ring_transfer_bytes(self.plan) // 8 + 1)
        self.transfer = ffi.new("struct ring_transfer *")
        lib.ring_transfer_init(self.transfer, self.plan, self.memory)
        self.held: dict[tuple[int, int], tuple[int, ...]] = {}

    def outgoing(self) -> list[tuple[int, int, tuple[int, ...]]]:
        ready = []
        item = ffi.new("struct ring_chunk_id *")
        while lib.ring_transfer_next(self.transfer, item):
            segment = lib.ring_segment_sent(self.plan, item.step)
            own = (self.rank,) if item.step == 0 else self.held[segment, item.chunk]
            ready.append((item.step, item.chunk, own))
        return ready

    def receive(self, step: int, chunk: int, value: tuple[int, ...]) -> None:
        assert lib.ring_transfer_expects(self.transfer, step, chunk)
        segment = lib.ring_segment_received(self.plan, step)
        reduces = lib.ring_step_reduces(self.plan, step)
        self.held[segment, chunk] = (*value, self.rank) if reduces else value
        lib.ring_transfer_received(self.transfer, step, chunk)
        assert not lib.ring_transfer_expects(self.transfer, step, chunk)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("count", [1, 5, 17, 100, 1000, 40_000, 400_000])
def test_every_rank_ends_with_everything_in_ring_order(world: int, count: int) -> None:
    shuffle = random.Random(world * 1_000_003 + count)
    ranks = [Rank(plan, rank) for rank, plan in enumerate(plans(world, count, 4))]
    wire = [(rank, item) for rank in range(world) for item in ranks[rank].outgoing()]
    moved = 0
    while wire:  # chunks arrive in any order
        sender, item = wire.pop(shuffle.randrange(len(wire)))
        receiver = ranks[(sender + 1) % world]
        assert not lib.ring_transfer_whole(receiver.transfer)
        receiver.receive(*item)
        wire += [(receiver.rank, more) for more in receiver.outgoing()]
        moved += 1
    segments = [lib.ring_segment_chunks(ranks[0].plan, segment) for segment in range(world)]
    assert moved == sum(segments) * lib.ring_steps(ranks[0].plan)
    for one in ranks:
        assert lib.ring_transfer_whole(one.transfer)
        for segment in range(world):
            order = tuple((segment + place) % world for place in range(world))
            for chunk in range(segments[segment]):
                assert one.held[segment, chunk] == order


@pytest.mark.parametrize("world", WORLDS)
def test_nothing_is_expected_beyond_the_schedule(world: int) -> None:
    one = Rank(lib.ring_plan_make(0, world, 1000, 4), 0)
    steps = lib.ring_steps(one.plan)
    for step, chunk in [(steps, 0), (2**32 - 1, 0), (0, one.plan.chunks_per_segment), (0, 2**32 - 1)]:
        assert not lib.ring_transfer_expects(one.transfer, step, chunk)
