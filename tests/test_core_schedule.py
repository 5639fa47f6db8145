"""Schedules, for all worlds of 2 to 17: who owns what, what moves when, and what comes of it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from native import load

ffi, lib = load(
    "base/limits.h",
    "base/id.h",
    "base/address.h",
    "wire/message.h",
    "wire/frame.h",
    "core/schedule.h",
    "core/ring.h",
    "core/tree.h",
)

WORLDS = range(2, 18)
BLOCK_BYTES = 64
COUNTS = [1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 65, 255, 1000, 4097, 65_537, 1_000_003]
HUGE = [2**32 - 1, 2**32 + 17, 2**33 + 5, 3 * 2**34 + 1]
NONE = lib.EDGE_NONE
RING, TREE = False, True
#: kind, tree, whether it has a root
SHAPES = [
    (lib.OP_ALL_REDUCE, RING, False),
    (lib.OP_ALL_REDUCE, TREE, False),
    (lib.OP_BROADCAST, RING, True),
    (lib.OP_BROADCAST, TREE, True),
    (lib.OP_ALL_GATHER, RING, False),
    (lib.OP_REDUCE_SCATTER, RING, False),
]
NAMES = [
    "ring-all-reduce",
    "tree-all-reduce",
    "ring-broadcast",
    "tree-broadcast",
    "all-gather",
    "reduce-scatter",
]


def make(kind: int, tree: bool, place: int, world: int, count: int, root: int = 0, size: int = 4) -> Any:
    return ffi.new("struct schedule *", lib.schedule_make(kind, tree, place, world, root, count, size))


def all_reduce(world: int, count: int, element_bytes: int) -> list[Any]:
    return [make(lib.OP_ALL_REDUCE, RING, place, world, count, size=element_bytes) for place in range(world)]


def partner(schedule: Any, edge: int) -> int:
    """Whose place is at the other end."""
    if edge == lib.EDGE_NEXT:
        return (schedule.place + 1) % schedule.world
    if edge == lib.EDGE_PREVIOUS:
        return (schedule.place - 1) % schedule.world
    return lib.tree_partner(schedule.world, schedule.place, edge)


@pytest.mark.parametrize("element_bytes", [1, 2, 4, 8])
@pytest.mark.parametrize("world", WORLDS)
def test_segments_and_chunks_part_the_buffer(world: int, element_bytes: int) -> None:
    for count in COUNTS + HUGE:
        schedule = make(lib.OP_ALL_REDUCE, RING, 0, world, count, size=element_bytes)
        end, longest = 0, 0
        for segment in range(world):
            whole = lib.schedule_segment(schedule, segment)
            assert whole.offset == end
            assert whole.count == 0 or whole.offset * element_bytes % BLOCK_BYTES == 0
            end += whole.count
            chunks = lib.schedule_segment_chunks(schedule, segment)
            longest = max(longest, chunks)
            assert (chunks == 0) == (whole.count == 0)
            # Of very long segments the ends are looked at: all others are alike.
            for chunk in {0, 1, chunks // 2, chunks - 2, chunks - 1} & set(range(chunks)):
                part = lib.schedule_chunk(schedule, segment, chunk)
                assert part.offset == whole.offset + chunk * schedule.chunk_elements
                last = chunk == chunks - 1
                assert part.count == (
                    whole.count - chunk * schedule.chunk_elements if last else schedule.chunk_elements
                )
                assert 0 < part.count * element_bytes <= lib.MAX_CHUNK_BYTES
        assert end == count
        assert longest == schedule.chunks_per_segment


@pytest.mark.parametrize("segment_bytes", [1 << 16, 100_000, 1 << 17, 1 << 18, 1 << 20, 3_000_000, 1 << 26])
def test_no_frame_needs_more_than_four_tcp_segments_of_loopback(segment_bytes: int) -> None:
    """Long ones fill four segments, as many as a write should carry; short ones are few."""
    segment = 65463  # IPv6 over an MTU of 65536, with timestamps; 20 bytes more in IPv4
    schedule = make(lib.OP_ALL_REDUCE, RING, 0, 2, 2 * segment_bytes, size=1)
    headers = lib.FRAME_HEADER_BYTES + lib.FRAME_TRAILER_BYTES
    assert schedule.chunk_elements + headers <= 4 * segment
    fewest = -(-segment_bytes // (4 * segment - headers))
    assert schedule.chunks_per_segment <= max(fewest + fewest // 100, 2)
    assert schedule.chunk_elements >= min(segment_bytes, 64 * 1024)


@pytest.mark.parametrize("world", WORLDS)
def test_segments_differ_by_a_block_at_most(world: int) -> None:
    for count in COUNTS:
        schedule = make(lib.OP_ALL_REDUCE, RING, 0, world, count)
        blocks = [-(-lib.schedule_segment(schedule, segment).count // 16) for segment in range(world)]
        assert max(blocks) - min(blocks) <= 1


@pytest.mark.parametrize("kind", [lib.OP_ALL_GATHER, lib.OP_REDUCE_SCATTER])
def test_segments_of_ranks_are_as_long_as_was_said(kind: int) -> None:
    schedule = make(kind, RING, 3, 5, 2**33 + 1)
    assert schedule.count == 5 * (2**33 + 1)
    for segment in range(5):
        whole = lib.schedule_segment(schedule, segment)
        assert (whole.offset, whole.count) == (segment * (2**33 + 1), 2**33 + 1)
    own, other = lib.BUFFER_INPUT, lib.BUFFER_RESULT
    if kind == lib.OP_REDUCE_SCATTER:
        own, other = other, own
    assert lib.schedule_buffer(schedule, own).offset == 3 * (2**33 + 1)
    assert lib.schedule_buffer(schedule, own).count == 2**33 + 1
    assert lib.schedule_buffer(schedule, other).count == schedule.count


@pytest.mark.parametrize("world", WORLDS)
def test_what_a_rank_sends_in_the_ring_the_next_one_receives(world: int) -> None:
    ranks = all_reduce(world, 1000, 4)
    assert ranks[0].steps == 2 * (world - 1)
    for number in range(ranks[0].steps):
        steps = [lib.schedule_step(rank, number) for rank in ranks]
        sent = [step.sends for step in steps]
        received = [step.receives for step in steps]
        assert sorted(sent) == list(range(world))
        assert [sent[rank - 1] for rank in range(world)] == received
        assert {step.reduces for step in steps} == {number < world - 1}
        assert {step.finishes for step in steps} == {number == world - 2}
        assert {step.forwards for step in steps} == {number >= world}
    finished = [lib.schedule_step(rank, world - 2).receives for rank in ranks]
    assert finished == [(rank + 1) % world for rank in range(world)]


@pytest.mark.parametrize("world", WORLDS)
def test_a_rank_scatters_to_itself_what_it_has_finished(world: int) -> None:
    for rank in range(world):
        schedule = make(lib.OP_REDUCE_SCATTER, RING, rank, world, 10)
        last = lib.schedule_step(schedule, schedule.steps - 1)
        assert (schedule.steps, last.receives, last.finishes) == (world - 1, rank, True)


@pytest.mark.parametrize("world", range(2, 130))
def test_places_of_a_tree_meet_each_other(world: int) -> None:
    edges = range(lib.EDGE_FOLD, lib.MAX_EDGES)
    met = {
        (place, edge): other
        for place in range(world)
        for edge in edges
        if (other := lib.tree_partner(world, place, edge)) != lib.NO_PLACE
    }
    corners = 1 << (world.bit_length() - 1)
    for (place, edge), other in met.items():
        assert other != place
        assert other < world
        assert met[other, edge] == place
    for place in range(world):
        dimensions = sum((place, edge) in met for edge in edges if edge != lib.EDGE_FOLD)
        assert dimensions == (corners.bit_length() - 1 if place < corners else 0)
        assert ((place, lib.EDGE_FOLD) in met) == (place >= corners or place + corners < world)


@pytest.mark.parametrize("world", WORLDS)
def test_hops_and_bytes_of_a_tree(world: int) -> None:
    """k hops for 2^k peers, else two more; k, k + 1 or 1 times the vector out of each."""
    dimensions = world.bit_length() - 1
    whole = world == 1 << dimensions
    steps = set()
    for place in range(world):
        schedule = make(lib.OP_ALL_REDUCE, TREE, place, world, 100)
        sends = [i for i in range(schedule.steps) if lib.schedule_step(schedule, i).to != NONE]
        steps |= set(sends)
        folded = place >= 1 << dimensions
        has_fold = lib.tree_partner(world, place, lib.EDGE_FOLD) != lib.NO_PLACE
        assert len(sends) == (1 if folded else dimensions + has_fold)
    assert len(steps) == (dimensions if whole else dimensions + 2)


Value = Any  # what a chunk holds: a place, or a pair of operands


class Peer:
    """One peer's transfer, and what its buffers hold: for each chunk the sum as the tree of its operands."""

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule
        self.memory = ffi.new("uint64_t[]", lib.transfer_bytes(schedule) // 8 + 1)
        self.transfer = ffi.new("struct transfer *")
        lib.transfer_init(self.transfer, schedule, self.memory)
        self.held: dict[tuple[int, int, int, int], Value] = {}
        self.finished: set[tuple[int, int]] = set()

    def read(self, buffer: int, level: int, segment: int, chunk: int) -> Value:
        if buffer == lib.BUFFER_INPUT:
            own = lib.schedule_buffer(self.schedule, buffer)
            part = lib.schedule_chunk(self.schedule, segment, chunk)
            assert own.offset <= part.offset
            assert part.offset + part.count <= own.offset + own.count
            return self.schedule.place
        return self.held[buffer, level, segment, chunk]

    def outgoing(self) -> list[tuple[int, int, int, Value]]:
        ready = []
        item = ffi.new("struct chunk_id *")
        while lib.transfer_next(self.transfer, item):
            step = lib.schedule_step(self.schedule, item.step)
            value = self.read(step.source, step.source_level, step.sends, item.chunk)
            ready.append((step.to, item.step, item.chunk, value))
        return ready

    def combine(self, step: Any, chunk: int, arrived: Value) -> Value:
        if not step.reduces:
            return arrived
        own = self.read(step.own, step.own_level, step.receives, chunk)
        if step.finishes:
            self.finished.add((step.receives, chunk))
        return (own, arrived) if step.own_first else (arrived, own)

    def receive(self, edge: int, number: int, chunk: int, value: Value) -> None:
        assert lib.transfer_expects(self.transfer, number, chunk)
        step = lib.schedule_step(self.schedule, number)
        assert getattr(step, "from") == edge
        lib.transfer_received(self.transfer, number, chunk)
        assert not lib.transfer_expects(self.transfer, number, chunk)
        key = (step.target, step.target_level, step.receives, chunk)
        if not self.schedule.in_order:
            assert step.reduces or key not in self.held or step.target == lib.BUFFER_RESULT
            self.held[key] = self.combine(step, chunk, value)
            lib.transfer_done(self.transfer, number, chunk)
            return
        assert key not in self.held  # nothing that may still be on its way out is overwritten
        self.held[key] = value
        due = ffi.new("uint32_t *")
        while lib.transfer_due(self.transfer, chunk, due):
            step = lib.schedule_step(self.schedule, due[0])
            key = (step.target, step.target_level, step.receives, chunk)
            self.held[key] = self.combine(step, chunk, self.held[key])
            lib.transfer_done(self.transfer, due[0], chunk)

    def result(self, segment: int, chunk: int) -> Value:
        place = lib.schedule_result_place(self.schedule)
        return self.held[place.buffer, place.level, segment, chunk]


def run(peers: list[Peer], seed: int) -> int:
    """Chunks arrive in any order; returns how many there were."""
    shuffle = random.Random(seed)
    moved = 0
    wire = [(place, item) for place, peer in enumerate(peers) for item in peer.outgoing()]
    while wire:
        place, (edge, *item) = wire.pop(shuffle.randrange(len(wire)))
        to = partner(peers[place].schedule, edge)
        back = {lib.EDGE_NEXT: lib.EDGE_PREVIOUS}.get(edge, edge)
        assert not lib.transfer_whole(peers[to].transfer)
        peers[to].receive(back, *item)
        wire += [(to, more) for more in peers[to].outgoing()]
        moved += 1
    assert all(lib.transfer_whole(peer.transfer) for peer in peers)
    return moved


def flat(value: Value) -> tuple[int, ...]:
    return (*flat(value[0]), *flat(value[1])) if isinstance(value, tuple) else (value,)


def chunks_of(schedule: Any, segment: int) -> range:
    return range(lib.schedule_segment_chunks(schedule, segment))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("count", [1, 5, 17, 100, 1000, 40_000, 400_000])
def test_a_ring_ends_with_everything_in_ring_order(world: int, count: int) -> None:
    peers = [Peer(schedule) for schedule in all_reduce(world, count, 4)]
    moved = run(peers, world * 1_000_003 + count)
    schedule = peers[0].schedule
    assert moved == schedule.steps * sum(len(chunks_of(schedule, segment)) for segment in range(world))
    for peer in peers:
        for segment in range(world):
            order = tuple((segment + place) % world for place in range(world))
            for chunk in chunks_of(schedule, segment):
                assert flat(peer.result(segment, chunk)) == order


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("count", [1, 100, 40_000])
def test_all_ends_of_a_tree_are_the_same_sum(world: int, count: int) -> None:
    for seed in range(5):
        peers = [Peer(make(lib.OP_ALL_REDUCE, TREE, place, world, count)) for place in range(world)]
        run(peers, seed)
        for chunk in chunks_of(peers[0].schedule, 0):
            results = {peer.result(0, chunk) for peer in peers}
            assert len(results) == 1  # the same operands, paired and ordered alike
            assert sorted(flat(results.pop())) == list(range(world))
        corners = 1 << (world.bit_length() - 1)
        for peer in peers:  # `avg` divides once, and before the result goes out to the places beyond
            assert len(peer.finished) == (
                len(chunks_of(peer.schedule, 0)) if peer.schedule.place < corners else 0
            )


@pytest.mark.parametrize("tree", [RING, TREE], ids=["ring", "tree"])
@pytest.mark.parametrize("world", WORLDS)
def test_a_broadcast_brings_the_root_to_all(world: int, tree: bool) -> None:
    for root in range(world):
        peers = [Peer(make(lib.OP_BROADCAST, tree, place, world, 40_000, root)) for place in range(world)]
        chunks = chunks_of(peers[0].schedule, 0)
        assert run(peers, root) == (world - 1) * len(chunks)
        for peer in peers:
            for chunk in chunks:
                assert peer.schedule.place == root or peer.result(0, chunk) == root
            assert peer.schedule.place != root or not peer.held  # it writes to nobody's memory


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("count", [1, 40_000])
def test_a_gather_brings_each_rank_to_all(world: int, count: int) -> None:
    peers = [Peer(make(lib.OP_ALL_GATHER, RING, place, world, count)) for place in range(world)]
    run(peers, count)
    for peer in peers:
        for segment in set(range(world)) - {peer.schedule.place}:
            for chunk in chunks_of(peer.schedule, segment):
                assert peer.result(segment, chunk) == segment


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("count", [1, 40_000])
def test_a_scatter_brings_each_rank_its_sum(world: int, count: int) -> None:
    peers = [Peer(make(lib.OP_REDUCE_SCATTER, RING, place, world, count)) for place in range(world)]
    run(peers, count)
    for rank, peer in enumerate(peers):
        for chunk in chunks_of(peer.schedule, rank):
            order = flat(peer.result(rank, chunk))
            assert order == tuple((rank + 1 + place) % world for place in range(world))
            assert (rank, chunk) in peer.finished


def test_a_barrier_is_whole_at_once() -> None:
    peer = Peer(make(lib.OP_BARRIER, RING, 1, 3, 0, size=1))
    assert lib.transfer_whole(peer.transfer)
    assert not peer.outgoing()
    assert lib.schedule_sends_over(peer.schedule) == 0
    assert not lib.transfer_expects(peer.transfer, 0, 0)


@pytest.mark.parametrize(("kind", "tree", "rooted"), SHAPES, ids=NAMES)
@pytest.mark.parametrize("world", WORLDS)
def test_edges_that_are_used_are_those_that_are_told(world: int, kind: int, tree: bool, rooted: bool) -> None:
    for place in range(world):
        schedule = make(kind, tree, place, world, 100, root=world - 1 if rooted else 0)
        sends = {lib.schedule_step(schedule, step).to for step in range(schedule.steps)} - {NONE}
        assert lib.schedule_sends_over(schedule) == sum(1 << edge for edge in sends)
        for step in range(schedule.steps + 1):
            receives = [
                later
                for later in range(step, schedule.steps)
                if getattr(lib.schedule_step(schedule, later), "from") != NONE
            ]
            assert lib.schedule_next_receive(schedule, step) == min(receives, default=schedule.steps)


@pytest.mark.parametrize(("kind", "tree", "rooted"), SHAPES, ids=NAMES)
@pytest.mark.parametrize("world", WORLDS)
def test_nothing_is_expected_beyond_the_schedule(world: int, kind: int, tree: bool, rooted: bool) -> None:
    one = Peer(make(kind, tree, 0, world, 1000))
    steps, chunks = one.schedule.steps, one.schedule.chunks_per_segment
    for step, chunk in [(steps, 0), (2**32 - 1, 0), (0, chunks), (0, 2**32 - 1)]:
        assert not lib.transfer_expects(one.transfer, step, chunk)
