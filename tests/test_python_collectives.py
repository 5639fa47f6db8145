"""The collectives other than all-reduce in one process: arguments, arrays, handles, objects."""

from __future__ import annotations

import struct
import time
import tracemalloc
from array import array
from collections.abc import Iterator

import msgpack
import numpy
import pytest
from in_process import group_of, in_threads

import pccl
from pccl import Communicator, Result, _objects


@pytest.fixture
def trio(master) -> Iterator[list[Communicator]]:
    """By rank."""
    with group_of(master, 3) as peers:
        yield sorted(peers, key=lambda peer: peer.rank)


# --- arrays -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_all_gather_allocates_what_it_returns(shape, trio) -> None:
    sends = [numpy.full(shape, rank, "i2") for rank in range(3)]
    for result in in_threads(*(lambda i=i: trio[i].all_gather(sends[i]) for i in range(3))):
        assert result.dtype == numpy.int16
        numpy.testing.assert_array_equal(result, numpy.stack(sends))


def test_torch_tensors_give_torch_tensors(trio, torch) -> None:
    sends = [torch.full((2, 2), float(rank), dtype=torch.bfloat16) for rank in range(3)]
    for result in in_threads(*(lambda i=i: trio[i].all_gather(sends[i]) for i in range(3))):
        assert torch.equal(result, torch.stack(sends))
    send = torch.arange(6.0).reshape(3, 2)
    results = in_threads(*(lambda i=i: trio[i].reduce_scatter(send) for i in range(3)))
    assert torch.equal(torch.stack(results), 3 * send)
    in_threads(*(lambda i=i: trio[i].broadcast(sends[i], 2) for i in range(3)))
    assert all(torch.equal(sends[i], sends[2]) for i in range(3))


@pytest.mark.parametrize("flat", [False, True])
def test_recv_may_be_flat(flat, trio) -> None:
    def gather(i: int) -> numpy.ndarray:
        recv = numpy.zeros(12 if flat else (3, 2, 2), "f4")
        assert trio[i].all_gather(numpy.full((2, 2), i, "f4"), recv) is recv
        return recv.reshape(3, 4)

    for recv in in_threads(*(lambda i=i: gather(i) for i in range(3))):
        assert recv.tolist() == [[0.0] * 4, [1.0] * 4, [2.0] * 4]

    def scatter(i: int) -> numpy.ndarray:
        send = numpy.arange(12.0) if flat else numpy.arange(12.0).reshape(3, 2, 2)
        return trio[i].reduce_scatter(send, numpy.zeros((2, 2))).ravel()

    results = in_threads(*(lambda i=i: scatter(i) for i in range(3)))
    assert numpy.concatenate(results).tolist() == [3.0 * value for value in range(12)]


def test_buffers_without_a_shape_need_recv(trio) -> None:
    recvs = [bytearray(6) for _ in range(3)]
    in_threads(*(lambda i=i: trio[i].all_gather(bytes([i, i]), recvs[i]) for i in range(3)))
    assert recvs == [b"\0\0\1\1\2\2"] * 3
    with pytest.raises(TypeError, match="recv="):
        trio[0].all_gather(bytearray(3))
    with pytest.raises(TypeError, match="recv="):
        trio[0].reduce_scatter(array("f", [1.0] * 3))


def test_in_place_the_own_part_lies_at_the_rank(trio) -> None:
    wholes = [numpy.full((3, 5), 9, "i4") for _ in range(3)]
    for rank in range(3):
        wholes[rank][rank] = rank
    in_threads(*(lambda i=i: trio[i].all_gather(wholes[i][i], wholes[i]) for i in range(3)))
    assert all(whole.tolist() == [[0] * 5, [1] * 5, [2] * 5] for whole in wholes)
    parts = in_threads(*(lambda i=i: trio[i].reduce_scatter(wholes[i], wholes[i][i]) for i in range(3)))
    assert [part.tolist() for part in parts] == [[0] * 5, [3] * 5, [6] * 5]
    assert wholes[0][1].tolist() == [1] * 5  # the rest of the input stays


def test_in_place_at_another_rank_fails_for_all_and_overwrites_nothing(trio) -> None:
    wholes = [numpy.arange(3 * 50_000).reshape(3, -1) for _ in range(3)]
    places = [0, 2, 2]

    def gather(i: int) -> None:
        with pytest.raises(pccl.PeerLostError, match="ranks"):
            trio[i].all_gather(wholes[i][places[i]], wholes[i])

    in_threads(*(lambda i=i: gather(i) for i in range(3)))
    for whole, place in zip(wholes, places, strict=True):
        assert whole[place].tolist() == list(range(place * 50_000, (place + 1) * 50_000))


def test_retry_does_not_repeat_what_is_called_for_others_than_there_are(trio) -> None:
    in_threads(trio[2].close)
    pair = trio[:2]
    calls = [
        lambda peer: peer.all_gather(numpy.ones(4), numpy.ones((3, 4)), retry=True),
        lambda peer: peer.reduce_scatter(numpy.ones((3, 4)), retry=True),
        lambda peer: peer.broadcast(numpy.ones(4), root=2, retry=True),
        lambda peer: peer.broadcast_object(root=2, retry=True),
        lambda peer: (lambda whole: peer.all_gather(whole[1 - peer.rank], whole, retry=True))(
            numpy.ones((2, 4))
        ),
        lambda peer: (lambda whole: peer.reduce_scatter(whole, whole[1 - peer.rank], retry=True))(
            numpy.ones((2, 4))
        ),
    ]

    def fail(peer: Communicator) -> None:
        for call in calls:
            with pytest.raises(pccl.PeerLostError, match="ranks"):
                call(peer)

    in_threads(*(lambda peer=peer: fail(peer) for peer in pair))
    in_threads(*(lambda peer=peer: peer.barrier(retry=True) for peer in pair))


def test_handles_have_the_array_and_how_it_went(trio) -> None:
    gathers = [peer.all_gather_async(numpy.full(7, peer.rank), tag=1) for peer in trio]
    scatters = [peer.reduce_scatter_async(numpy.ones(6), op="prod", tag=2) for peer in trio]
    copies = [peer.broadcast_async(numpy.ones(6), 1, tag=3, algorithm="ring") for peer in trio]
    barriers = [peer.barrier_async(tag=4, retry=True) for peer in trio]
    reduces = [peer.all_reduce_async(numpy.ones(6), tag=5, algorithm="tree") for peer in trio]
    handles = [*gathers, *scatters, *copies, *barriers, *reduces]
    infos = in_threads(*(handle.result for handle in handles))
    assert [info.algorithm for info in infos] == ["ring"] * 9 + [""] * 3 + ["tree"] * 3
    assert {info.local_world_size for info in infos} == {3}
    assert all(handle.array.shape == (3, 7) for handle in gathers)
    assert all(handle.array.tolist() == [1.0, 1.0] for handle in scatters)
    assert all(handle.array is None for handle in (*copies, *barriers, *reduces))


# --- arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda peer: peer.broadcast(numpy.ones(3), -1), ValueError, "root"),
        (lambda peer: peer.broadcast(numpy.ones(3), "0"), TypeError, "root"),
        (lambda peer: peer.broadcast(numpy.ones(3), 3), ValueError, "root is 3"),
        (lambda peer: peer.broadcast(numpy.ones(3), 2**32 - 1), ValueError, "root is 4294967295"),
        (lambda peer: peer.broadcast(numpy.ones(3)[::2]), ValueError, "x is strided"),
        (lambda peer: peer.broadcast(b"abc"), ValueError, "read-only"),
        (lambda peer: peer.broadcast(numpy.ones(3), algorithm="star"), ValueError, "'auto', 'ring', 'tree'"),
        (lambda peer: peer.broadcast(numpy.ones(3), algorithm=1), TypeError, "algorithm"),
        (lambda peer: peer.all_reduce(numpy.ones(3), algorithm="star"), ValueError, "algorithm"),
        (lambda peer: peer.broadcast(numpy.ones(3), timeout=0), ValueError, "timeout"),
        (lambda peer: peer.barrier(tag=-1), ValueError, "tag"),
        (lambda peer: peer.barrier(tag="1"), TypeError, "tag"),
        (lambda peer: peer.all_gather(numpy.ones(3), numpy.ones((3, 3), "f4")), ValueError, "element type"),
        (lambda peer: peer.all_gather(numpy.ones(3), numpy.ones(10)), ValueError, "times as many"),
        (lambda peer: peer.all_gather(numpy.ones(3), numpy.ones(2)), ValueError, "times as many"),
        (lambda peer: peer.all_gather(numpy.ones((3, 2)), numpy.ones((2, 3, 3))), ValueError, "shape"),
        (lambda peer: peer.all_gather(numpy.ones(3), numpy.ones((4, 3))), ValueError, "for 4 peers"),
        (lambda peer: peer.all_gather(numpy.ones(3), numpy.ones((2, 3))), ValueError, "for 2 peers"),
        (lambda peer: peer.all_gather(numpy.ones(1), numpy.ones(600)), ValueError, "world_size is 600"),
        (lambda peer: peer.reduce_scatter(numpy.ones(4)), ValueError, "dealt out evenly"),
        (lambda peer: peer.reduce_scatter(numpy.ones((2, 3))), ValueError, "for 2 peers"),
        (lambda peer: peer.reduce_scatter(numpy.ones(3), op="mean"), ValueError, "op"),
        (lambda peer: peer.reduce_scatter(numpy.ones(3), b"12345678"), (TypeError, ValueError), "recv"),
    ],
)
def test_wrong_arguments_send_nothing(call, error, words, trio) -> None:
    with pytest.raises(error, match=words) as raised:
        call(trio[0])
    if isinstance(raised.value, pccl.PCCLError):
        assert raised.value.result is Result.INVALID_ARGUMENT
    in_threads(*(peer.barrier for peer in trio))


def test_overlaps_other_than_in_place_are_refused(trio) -> None:
    whole = numpy.ones(20, "f4")
    for call in (
        lambda: trio[0].all_gather(whole[1:6], whole[:15]),
        lambda: trio[0].reduce_scatter(whole[:15], whole[1:6]),
        lambda: trio[0].all_gather(whole[:5], whole[2:17]),
    ):
        with pytest.raises(pccl.InvalidArgumentError, match="overlap"):
            call()


def test_before_connect_there_are_no_ranks(master) -> None:
    comm = Communicator(master.address)
    for call in (
        lambda: comm.all_gather(numpy.ones(3)),
        lambda: comm.all_gather(numpy.ones(3), numpy.ones((2, 3))),
        lambda: comm.broadcast(numpy.ones(3)),
        lambda: comm.broadcast(numpy.ones(3), retry=True),
        comm.barrier,
        lambda: comm.all_gather_object(1),
        lambda: comm.broadcast_object(1),
    ):
        with pytest.raises(pccl.PCCLError, match="connect") as raised:
            call()
        assert raised.value.result is Result.INVALID_USAGE


def test_an_op_has_a_bound_if_it_is_given_one(trio) -> None:
    for call in (
        lambda: trio[0].barrier(timeout=0.2),
        lambda: trio[0].broadcast(numpy.ones(3), timeout=0.2, retry=True),
        lambda: trio[0].all_gather(numpy.ones(3), timeout=0.2),
        lambda: trio[0].all_gather_object(3, timeout=0.2, retry=True),
        lambda: trio[0].broadcast_object(3, timeout=0.2),
    ):
        with pytest.raises(pccl.PCCLTimeoutError):
            call()
        for peer in trio[1:]:  # the op has failed for those who had not called it too
            with pytest.raises(pccl.PCCLTimeoutError):
                peer.barrier()


# --- objects ----------------------------------------------------------------------------------------------

OBJECTS = [
    None, True, -1, 2**64 - 1, -(2**63), 1.5, float("inf"), "", "é\0", b"", b"\xff", [], {}, [[], [None]],
    {"a": 1, b"b": [2], 3: None, 2.5: {}, None: 1, False: 2},
    [0] * 100_000, "x" * 70_000, {str(i): i for i in range(70_000)},
]  # fmt: skip


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: f"{type(value).__name__}-{len(repr(value))}")
def test_objects_come_out_as_they_went_in(value) -> None:
    back = _objects.decode(_objects.encode(value))
    assert back == value
    assert type(back) is type(value)


def test_tuples_become_lists_and_bytes_like_things_bytes() -> None:
    assert _objects.decode(_objects.encode((1, (2, [3])))) == [1, [2, [3]]]
    assert _objects.decode(_objects.encode([bytearray(b"a"), memoryview(b"b")])) == [b"a", b"b"]


class Text(str):
    pass


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (object(), TypeError, "builtins.object"),
        ({1, 2}, TypeError, "builtins.set"),
        (1j, TypeError, "builtins.complex"),
        (Text("a"), TypeError, "Text"),
        (pccl.ReduceOp.SUM, TypeError, "ReduceOp"),
        (Result.SUCCESS, TypeError, "Result"),
        (numpy.float64(1), TypeError, r"numpy.float64.*item\(\)"),
        ([numpy.int32(1)], TypeError, "numpy.int32"),
        ({"a": numpy.ones(3)}, TypeError, r"numpy.ndarray.*broadcast\(\)"),
        ({(1, 2): 3}, TypeError, "list or tuple"),
        (2**64, ValueError, "64 bits"),
        (-(2**63) - 1, ValueError, "64 bits"),
        ("\ud800", ValueError, "surrogates"),
        (msgpack.ExtType(5, b"x"), ValueError, "extension"),
        (msgpack.Timestamp(5), ValueError, "extension"),
    ],
    ids=str,
)
def test_what_messagepack_cannot_carry_is_told_before_anything_is_sent(value, error, words, trio) -> None:
    for call in (trio[0].all_gather_object, trio[0].broadcast_object):
        with pytest.raises(error, match=words):
            call(value)
    in_threads(*(peer.barrier for peer in trio))


def deep(levels: int) -> bytes:
    return b"\x91" * levels + b"\xc0"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x01\x01",
        b"\x92\x01",
        b"\xd9\x05abc",
        b"\xdb\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xffabc",
        b"\xdd\x00\xff\xff\xff" * 500 + b"\x01",
        b"\xdf\x00\xff\xff\xff\x01" * 500,
        b"\xc7\x03\x05abc",
        b"\xd6\xff\0\0\0\1",
        b"\xa1\xff",
        b"\x81\x90\x01",
        b"\x81\x81\x01\x01\x01",
        deep(5000),
    ],
    ids=lambda data: data[:8].hex(),
)
def test_hostile_bytes_are_a_value_error_and_take_no_memory(data) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="no object that can be sent"):
            _objects.decode(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


class Hostile:
    """In the place of a communicator: what comes from the others is what `answers` say."""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = answers

    def _place(self) -> tuple[int, int]:
        return 3, 0

    def _give(self, target: object) -> None:
        view = memoryview(target).cast("B")
        answer = self.answers.pop(0)
        view[: len(answer)] = answer

    def broadcast(self, x: object, root: int, **_: object) -> None:
        self._give(x)

    def all_gather(self, send: object, recv: object, **_: object) -> None:
        self._give(recv)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [((1, 2**64 - 1, 1), "rank 1"), ((2**40, 1, 1), "rank 0"), ((1, 1, _objects.OBJECT_BYTES + 1), "rank 2")],
)
def test_sizes_beyond_the_limit_are_refused_before_memory_is_taken(sizes, words) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=words):
            _objects.all_gather(Hostile([struct.pack("<3Q", *sizes)]), b"\x01", 0, None)
        with pytest.raises(ValueError, match="rank 2"):
            _objects.broadcast(Hostile([struct.pack("<2Q", max(sizes), 7)]), None, 2, 0, None)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_many_objects_are_bounded_together(monkeypatch) -> None:
    monkeypatch.setattr(_objects, "GATHERED_BYTES", 1000)
    with pytest.raises(ValueError, match="rank 1 has 400"):
        _objects.all_gather(Hostile([struct.pack("<3Q", 1, 400, 1)]), b"\x01", 0, None)


def test_a_part_that_lies_about_its_size_is_refused() -> None:
    parts = b"".join(struct.pack("<Q", size) + b"\x01\x01" for size in (1, 3, 1))
    with pytest.raises(ValueError, match="rank 1 says"):
        _objects.all_gather(Hostile([struct.pack("<3Q", 2, 2, 2), parts]), b"\x01\x01"[:1], 0, None)


def test_another_root_than_the_one_that_was_asked_is_a_lost_peer() -> None:
    with pytest.raises(pccl.PeerLostError, match="ranks have changed"):
        _objects.broadcast(Hostile([bytes(16)]), None, 1, 0, None)
    announced = struct.pack("<2Q", 1, 12345)
    with pytest.raises(pccl.PeerLostError, match="ranks have changed"):
        _objects.broadcast(Hostile([announced, bytes(9)]), None, 1, 0, None)
    sent = struct.pack("<Q", 12345) + b"\x05"
    assert _objects.broadcast(Hostile([announced, sent]), None, 1, 0, None) == 5


def test_a_lost_master_is_told_by_ops_that_name_ranks_too() -> None:
    """Also when it was lost before the call: not as if connect() had never been called."""
    with pccl.MasterNode("127.0.0.1:0") as node:
        comm = pccl.Communicator(node.address)
        comm.connect()
    deadline = time.monotonic() + 60
    while comm.world_size:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    x = numpy.ones(4, numpy.float32)
    for call in (
        lambda: comm.all_gather(x, numpy.empty((1, 4), numpy.float32), retry=True),
        lambda: comm.reduce_scatter(numpy.ones((1, 4), numpy.float32), x, retry=True),
        lambda: comm.broadcast(x, retry=True),
    ):
        with pytest.raises(pccl.MasterLostError):
            call()
    comm.close()


# --- nothing to move ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["auto", "ring", "tree"])
def test_ops_without_elements_are_ops_like_others(algorithm, master) -> None:
    with group_of(master, 3) as comms:

        def run(comm: pccl.Communicator) -> None:
            empty = numpy.zeros((0, 4), numpy.float32)
            comm.all_reduce(empty, algorithm=algorithm)
            comm.all_reduce(numpy.zeros(0), numpy.zeros(0), op="avg", early_return=True)
            comm.broadcast(empty, 1, algorithm=algorithm)
            assert comm.all_gather(empty).shape == (3, 0, 4)
            assert comm.all_gather(numpy.zeros(0), numpy.zeros(0)).shape == (0,)
            assert comm.reduce_scatter(numpy.zeros((3, 0))).shape == (0,)
            assert comm.reduce_scatter(numpy.zeros(0)).shape == (0,)
            ones = numpy.ones(5)
            comm.all_reduce(ones, algorithm=algorithm)
            assert ones.tolist() == [3.0] * 5

        in_threads(*(lambda comm=comm: run(comm) for comm in comms))


@pytest.mark.parametrize("kind", ["all_reduce", "broadcast", "all_gather", "reduce_scatter"])
@pytest.mark.parametrize("odd", [0, 2])
def test_no_elements_at_one_peer_alone_are_a_mismatch(kind, odd, master) -> None:
    with group_of(master, 3) as comms:

        def run(i: int) -> None:
            count = 0 if i == odd else 6
            with pytest.raises(pccl.MismatchError, match=r"\b0 float64"):
                getattr(comms[i], kind)(numpy.zeros(count))

        in_threads(*(lambda i=i: run(i) for i in range(3)))


# --- for ranks that are no more ----------------------------------------------------------------------------


def test_in_place_at_a_wrong_rank_says_at_all_peers_that_ranks_differ(trio) -> None:
    def run(i: int) -> None:
        whole = numpy.zeros((3, 4))
        with pytest.raises(
            pccl.PeerLostError, match=r"ranks have changed since the call was made.*call again"
        ):
            trio[i].all_gather(whole[(i + 1) % 3 if i == 1 else i], whole)

    in_threads(*(lambda i=i: run(i) for i in range(3)))
