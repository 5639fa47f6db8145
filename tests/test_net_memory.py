"""What an all-reduce takes, in fresh processes: memory beside its buffers, and bytes on the wire."""

import pytest
from faults.cluster import Cluster, expect_ok

MIB = 1 << 20
# An op under way, whatever its size: chunks, frames, stacks of threads.
CONSTANT_BYTES = 32 * MIB
IN_PLACE_SCRATCH_BYTES = 4 * MIB

# A frame has a header and a trailer, and may be granted by another frame; but for the last of a segment, no
# chunk is smaller.
HEADER_BYTES = 2 * 64 + 8
LEAST_CHUNK_BYTES = 16 * 1024


@pytest.fixture
def cluster():
    with Cluster(seed=20261121, timeout=10) as cluster:
        yield cluster


def reduce(cluster, peers, size, *, in_place, algorithm="auto"):
    expect_ok(cluster.ask_all(peers, "hold", count=size // 4, in_place=in_place))
    answers = cluster.collect([peer.tell("reduce_held", algorithm=algorithm) for peer in peers], 120)
    expect_ok(answers)
    return answers


LARGE = [pytest.param(64 * MIB, id="64M"), pytest.param(256 * MIB, id="256M", marks=pytest.mark.slow)]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("size", LARGE)
def test_out_of_place_an_op_takes_little_memory_whatever_its_size(cluster, size, world_size):
    for answer in reduce(cluster, cluster.form(world_size), size, in_place=False):
        assert 0 <= answer["extra"] <= CONSTANT_BYTES, answer


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("size", LARGE)
def test_in_place_an_op_takes_its_input_once_more(cluster, size, world_size):
    """The input is saved, to be put back if the op fails; the rest is scratch of chunks."""
    for answer in reduce(cluster, cluster.form(world_size), size, in_place=True):
        assert 0 <= answer["extra"] <= size + IN_PLACE_SCRATCH_BYTES, answer


def expect_bytes(answers, payload, frames):
    """All together have sent, and received, the payload, and the headers of so many frames at most."""
    sent = [answer["tx"] for answer in answers]
    assert payload < sum(sent) <= payload + frames * HEADER_BYTES
    assert sum(answer["rx"] for answer in answers) == sum(sent)
    return sent


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("size", [64, 4096, 100_000, 4 * MIB + 36])
def test_around_a_ring_no_more_bytes_travel_than_an_all_reduce_needs(cluster, size, world_size, in_place):
    """2(n-1)/n times the buffer from each peer, but for what is left over when its elements are divided."""
    answers = reduce(cluster, cluster.form(world_size), size, in_place=in_place, algorithm="ring")
    payload, steps = 2 * (world_size - 1) * size, 2 * (world_size - 1)
    frames = payload / LEAST_CHUNK_BYTES + steps * world_size
    sent = expect_bytes(answers, payload, frames)
    assert min(sent) >= payload / world_size - steps * 4
    assert max(sent) <= (payload + frames * HEADER_BYTES) / world_size + steps * (4 + HEADER_BYTES)


@pytest.mark.parametrize("world_size", [2, 3, 4, 5])
@pytest.mark.parametrize("size", [64, 100_000])
def test_a_tree_moves_the_buffer_once_for_each_dimension(cluster, size, world_size):
    """Corners of a cube exchange it along each; who has none gives it to a corner, and gets the result."""
    answers = reduce(cluster, cluster.form(world_size), size, in_place=False, algorithm="tree")
    dimensions = world_size.bit_length() - 1
    transfers = dimensions * 2**dimensions + 2 * (world_size - 2**dimensions)
    expect_bytes(answers, transfers * size, transfers * (1 + size // LEAST_CHUNK_BYTES))
