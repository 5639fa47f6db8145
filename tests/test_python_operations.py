"""Async ops and their handles, several ops with retry: arguments, results, whose memory is held how long."""

import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable

import numpy
import pytest
from in_process import PATIENCE, in_threads

import pccl
from pccl import Communicator, DataType, ReduceDescriptor, ReduceOpDescriptor, ReduceOperandDescriptor, Result


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def described(send: numpy.ndarray, recv: numpy.ndarray, tag: int) -> ReduceOpDescriptor:
    operand = ReduceOperandDescriptor(DataType.from_numpy_dtype(send.dtype))
    quantization = pccl.QuantizationOptions(operand.datatype, pccl.QuantizationAlgorithm.NONE)
    return ReduceOpDescriptor.from_numpy(
        send, recv, ReduceDescriptor(send.size, "sum", tag, operand, quantization)
    )


# --- handles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("in_place", [True, False])
def test_arrays_live_until_the_op_is_over_and_no_longer(kind, in_place, retry, pair, request) -> None:
    def make() -> object:
        if kind == "numpy":
            return numpy.ones(30_000)
        return request.getfixturevalue("torch").ones(30_000, dtype=request.getfixturevalue("torch").float64)

    send, recv = make(), None if in_place else make()
    watched = [weakref.ref(array) for array in (send, recv) if array is not None]
    pair[0].all_reduce_async(send, recv, tag=7, retry=retry)
    del send, recv
    gc.collect()
    assert all(reference() is not None for reference in watched)
    mine = numpy.ones(30_000)
    assert pair[1].all_reduce(mine, tag=7).local_world_size == 2
    assert mine.tolist() == [2.0] * 30_000

    def are_gone() -> bool:
        pair[0]._in_flight.settle()  # as other calls do
        return all(reference() is None for reference in watched)

    until(are_gone)  # the commit reaches the first peer a little later


def test_a_handle_that_is_kept_holds_no_array_once_it_has_been_awaited(pair) -> None:
    arrays = [numpy.ones(10), numpy.ones(10)]
    watched = [weakref.ref(array) for array in arrays]
    handles = [peer.all_reduce_async(array) for peer, array in zip(pair, arrays, strict=True)]
    del arrays
    assert all(handle.result().local_world_size == 2 for handle in handles)
    gc.collect()
    assert [reference() for reference in watched] == [None, None]


def test_a_tag_is_used_again_before_the_former_op_was_awaited(pair) -> None:
    first = [peer.all_reduce_async(numpy.full(5, 1.0), tag=5) for peer in pair]
    until(lambda: all(handle.done() for handle in first))
    mine = numpy.full(5, 10.0)
    second = pair[0].all_reduce_async(mine, tag=5)
    with pytest.raises(pccl.PCCLError, match="tag 5"):
        pair[0].all_reduce_async(numpy.ones(5), tag=5)
    # The former handle tells of the former op, and does not wait for its successor.
    assert in_threads(first[0].result)[0].local_world_size == 2
    assert not second.done()
    pair[1].all_reduce(numpy.full(5, 20.0), tag=5)
    assert second.result().local_world_size == 2
    assert mine.tolist() == [30.0] * 5
    assert [handle.wait()[0] for handle in first] == [True, True]


def test_ops_that_are_over_do_not_count_though_nobody_has_awaited_them(pair) -> None:
    handles: list[pccl.AsyncReduceHandle] = []
    arrays = []
    for first in range(0, 3000, 500):
        for tag in range(first, first + 500):
            for peer in pair:
                arrays.append(numpy.ones(2, "i4"))
                handles.append(peer.all_reduce_async(arrays[-1], tag=tag))
        until(lambda: all(handle.done() for handle in handles[-1000:]))
    assert all(handle.result().local_world_size == 2 for handle in handles)
    assert all(array.tolist() == [2, 2] for array in arrays)


def test_another_thread_awaits_what_this_one_has_started(pair) -> None:
    handles = [peer.all_reduce_async(numpy.ones(100), tag=tag) for tag in range(10) for peer in pair[:1]]
    waiting = threading.Thread(target=lambda: [handle.result() for handle in handles], daemon=True)
    waiting.start()
    for tag in reversed(range(10)):
        pair[1].all_reduce(numpy.ones(100), tag=tag)
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert all(handle.done() for handle in handles)
    assert [handle.wait()[:2] for handle in handles] == [(True, Result.SUCCESS)] * 10


def test_many_threads_start_ops_at_once(pair) -> None:
    def run(peer: Communicator, thread: int) -> list[float]:
        arrays = [numpy.full(100, 1.0 + i) for i in range(20)]
        handles = [peer.all_reduce_async(array, tag=100 * thread + i) for i, array in enumerate(arrays)]
        assert all(handle.result().local_world_size == 2 for handle in handles)
        return [float(array[0]) for array in arrays]

    results = in_threads(
        *(lambda peer=peer, thread=thread: run(peer, thread) for thread in range(8) for peer in pair)
    )
    assert results == [[2.0 * (1 + i) for i in range(20)]] * 16


def test_closing_fails_what_is_in_flight_and_gives_its_arrays_back(pair) -> None:
    arrays = [numpy.arange(1000.0) for _ in range(4)]
    watched = weakref.ref(arrays[3])
    handles = [
        pair[0].all_reduce_async(array, tag=tag, retry=tag % 2 == 0) for tag, array in enumerate(arrays[:3])
    ]
    pair[0].all_reduce_async(arrays.pop(), tag=3)
    pair[0].close()
    gc.collect()
    assert watched() is None
    for array, handle in zip(arrays, handles, strict=True):
        assert handle.done()
        assert handle.wait()[:2] == (False, Result.INVALID_USAGE)
        with pytest.raises(pccl.PCCLError):
            handle.result()
        assert array.tolist() == list(range(1000))


def test_an_op_of_a_peer_that_is_alone_is_refused_when_it_is_started(master) -> None:
    with Communicator(master.address) as comm:
        array = numpy.ones(3)
        for start in (
            lambda: comm.all_reduce_async(array),
            lambda: comm.all_reduce_async(array, retry=True),
            lambda: comm.broadcast_async(array),
            lambda: comm.all_gather_async(array),
            lambda: comm.barrier_async(),
        ):
            with pytest.raises(pccl.TooFewPeersError, match=r"alone.*update_topology"):
                start()
        assert len(comm._in_flight) == 0


# --- what a call costs beside the op ----------------------------------------------------------------------


def functions_entered(call: Callable[[], object]) -> int:
    """Python functions, in this thread."""
    entered = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal entered
        entered += event == "call"

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_call_enters_few_functions(kind, pair, request) -> None:
    # With cold caches each takes 0.2 to 0.5 us, and a small op has no other cost in Python. The least of
    # several, as a wait that is long asks for signals meanwhile.
    make = numpy.ones if kind == "numpy" else request.getfixturevalue("torch").ones
    send, recv = make(100), make(100)
    blocking, starting = [], []
    for tag in range(8):
        pair[1].all_reduce_async(make(100), tag=tag)
        pair[1].all_reduce_async(make(100), tag=tag + 8)
        blocking.append(functions_entered(lambda tag=tag: pair[0].all_reduce(send, recv, op="sum", tag=tag)))
        starting.append(
            functions_entered(lambda tag=tag: pair[0].all_reduce_async(send, recv, tag=tag + 8).wait())
        )
    assert min(blocking) <= 28
    assert min(starting) <= 42


def test_what_calls_share_is_not_taken_for_another_call(pair) -> None:
    for count in (3, 5, 3):
        for dtype in ("f4", "i4"):
            for op, expected in (("sum", 4), ("prod", 4), ("max", 2), ("sum", 4)):
                mine, others = (numpy.full(count, 2, dtype) for _ in range(2))
                handle = pair[1].all_reduce_async(others, op=op, tag=1)
                pair[0].all_reduce(mine, op=op, tag=1)
                handle.result()
                assert mine.tolist() == others.tolist() == [expected] * count
    for tag in (True, 1.0):  # equal to 1, which has been used
        with pytest.raises(TypeError, match="tag"):
            pair[0].all_reduce(numpy.full(3, 2, "f4"), tag=tag)


@pytest.mark.parametrize("kind", ["int64", "uint8", "tensor"])
def test_whole_numbers_of_other_libraries_are_taken(kind, pair, request) -> None:
    make = request.getfixturevalue("torch").tensor if kind == "tensor" else getattr(numpy, kind)
    handle = pair[0].all_reduce_async(numpy.ones(3), tag=make(7))
    pair[1].all_reduce(numpy.ones(3), tag=7)
    assert handle.result().local_world_size == 2
    handle = pair[0].broadcast_async(numpy.ones(3), make(0), tag=make(8))
    pair[1].broadcast(numpy.ones(3), 0, tag=8)
    handle.result()
    in_threads(*(lambda peer=peer: peer.barrier(tag=make(9)) for peer in pair))
    array = numpy.ones(3)
    op = described(array, array, make(1))
    op.reduce_descriptor.count = make(3)
    others = numpy.ones(3)
    in_threads(
        lambda: pair[0].all_reduce_multiple_with_retry([op], max_in_flight=make(1)),
        lambda: pair[1].all_reduce(others, tag=1),
    )
    state = pccl.SharedState({"x": numpy.ones(3)}, revision=make(4))
    assert state.revision == 4
    assert state.push_revision() == 5
    for wrong in (1.5, "1", None, True, numpy.float32(1)):
        with pytest.raises(TypeError, match="tag must be an int"):
            pair[0].all_reduce_async(numpy.ones(3), tag=wrong)


# --- several ops with retry -------------------------------------------------------------------------------


def test_no_ops_are_done_at_once(pair) -> None:
    info = pair[0].all_reduce_multiple_with_retry([])
    assert (info.local_world_size, info.tx_bytes, info.rx_bytes) == (0, 0, 0)


def test_tags_that_are_not_unique_are_refused_before_anything_is_sent(pair) -> None:
    arrays = [numpy.arange(5.0) for _ in range(4)]
    ops = [described(array, array, tag) for array, tag in zip(arrays, [3, 9, 7, 9], strict=True)]
    for max_in_flight in (1, 4):
        with pytest.raises(pccl.InvalidArgumentError, match="tag 9"):
            pair[0].all_reduce_multiple_with_retry(ops, max_in_flight=max_in_flight)
    assert all(array.tolist() == [0, 1, 2, 3, 4] for array in arrays)
    in_threads(*(lambda peer=peer: peer.all_reduce(numpy.ones(3), tag=3) for peer in pair))


@pytest.mark.parametrize(
    ("max_in_flight", "error"), [(0, ValueError), (-1, ValueError), (2**31, ValueError), (1.0, TypeError)]
)
def test_a_window_has_room_for_one_op_at_least(max_in_flight, error, pair) -> None:
    array = numpy.ones(3)
    with pytest.raises(error, match="max_in_flight"):
        pair[0].all_reduce_multiple_with_retry([described(array, array, 1)], max_in_flight=max_in_flight)


def test_a_wrong_op_among_several_is_found_before_anything_is_sent(pair) -> None:
    arrays = [numpy.arange(5.0) for _ in range(2)]
    ops = [described(array, array, tag) for tag, array in enumerate(arrays)]
    ops[1].reduce_descriptor.count = -1
    with pytest.raises(ValueError, match="count"):
        pair[0].all_reduce_multiple_with_retry(ops)
    with pytest.raises(TypeError, match="ReduceOpDescriptor"):
        pair[0].all_reduce_multiple_with_retry([ops[0], arrays[1]])
    assert all(array.tolist() == [0, 1, 2, 3, 4] for array in arrays)


def test_several_ops_fail_at_all_peers_when_their_results_differ(pair) -> None:
    arrays = [[numpy.ones(100) for _ in range(10)] for _ in pair]
    ops = [[described(array, array, tag) for tag, array in enumerate(mine)] for mine in arrays]
    errors: list[pccl.PCCLError] = []

    def run(i: int, max_in_flight: int) -> None:
        with pytest.raises(pccl.PCCLError, match=r"written while the op ran.*builds") as caught:
            pair[i].all_reduce_multiple_with_retry(ops[i], max_in_flight=max_in_flight)
        errors.append(caught.value)

    first = threading.Thread(target=run, args=(0, 10), daemon=True)
    first.start()
    time.sleep(0.3)  # its small arrays are on their way
    arrays[0][0][:] = 5.0
    in_threads(lambda: run(1, 1))
    first.join(PATIENCE)
    assert not first.is_alive(), "the other has given up the rest of the list"
    assert [error.result for error in errors] == [Result.INTERNAL_ERROR] * 2
    assert all(array.tolist() == [1.0] * 100 for array in arrays[1])
    in_threads(
        *(lambda i=i: pair[i].all_reduce_multiple_with_retry(ops[i], max_in_flight=1 + 9 * i) for i in (0, 1))
    )
    assert arrays[0][1].tolist() == arrays[1][1].tolist() == [2.0] * 100


def test_a_tag_that_is_in_flight_fails_several_ops_and_leaves_their_inputs(pair) -> None:
    other = pair[0].all_reduce_async(numpy.ones(3), tag=2)
    arrays = [[numpy.arange(50.0) for _ in range(4)] for _ in pair]
    ops = [[described(array, array, tag) for tag, array in enumerate(mine)] for mine in arrays]
    for tag in (0, 1):  # what the call has started before it comes to the tag that is taken
        pair[1].all_reduce_async(arrays[1][tag], tag=tag)
    with pytest.raises(pccl.PCCLError, match="in flight"):
        pair[0].all_reduce_multiple_with_retry(ops[0], max_in_flight=1)
    assert all(array.tolist() == list(range(50)) for array in arrays[0])
    pair[1].all_reduce(numpy.ones(3), tag=2)
    assert other.result().local_world_size == 2
