"""Communicator and MasterNode in one process: arguments, joining and leaving, ops, handles, signals."""

import gc
import signal
import subprocess
import sys
import threading
import time
from array import array

import numpy
import pytest
from in_process import PATIENCE, group_of, in_threads

import pccl
from pccl import (
    Attribute,
    Communicator,
    DataType,
    MasterNode,
    PCCLTimeoutError,
    QuantizationAlgorithm,
    QuantizationOptions,
    ReduceDescriptor,
    ReduceOp,
    ReduceOpDescriptor,
    ReduceOperandDescriptor,
    Result,
)
from pccl._address import format_address, parse_address, resolve

# --- arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:48148", "127.0.0.1", 48148),
        ("[::1]:48148", "::1", 48148),
        ("host.example:1", "host.example", 1),
        ("0.0.0.0:0", "0.0.0.0", 0),
    ],
)
def test_addresses_are_split(text, host, port) -> None:
    assert parse_address(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1",
        ":48148",
        "host:",
        "host:port",
        "[::1]",
        " host:1",
        "host :1",
        "tcp://host:1",
        "host:000001",
        "host:65536",
        "host:-1",
        "::1:48148",
        "host:٣",
    ],
)
def test_what_is_no_address_is_a_value_error(text) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        parse_address(text)
    with pytest.raises(ValueError, match="is not an address"):
        Communicator(text)
    with pytest.raises(ValueError, match="is not an address"):
        MasterNode(text)


@pytest.mark.parametrize("text", ["127.0.0.1:48148", "[::1]:7"])
def test_addresses_survive_the_way_through_c(text) -> None:
    assert format_address(resolve(text, Result.INVALID_ARGUMENT)) == text


def test_localhost_is_found() -> None:
    assert format_address(resolve("localhost:5", Result.INVALID_ARGUMENT)) == "127.0.0.1:5"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"peer_group": -1}, ValueError),
        ({"peer_group": 2**32}, ValueError),
        ({"peer_group": "0"}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"timeout": 0.01}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "10"}, TypeError),
        ({"straggler_timeout": -1.0}, ValueError),
        ({"name": "n" * 64}, ValueError),
        ({"name": "a\0b"}, ValueError),
        ({"name": b"peer"}, TypeError),
        ({"port": 0}, ValueError),
        ({"port": 65536}, ValueError),
        ({"advertise": 5}, TypeError),
        ({"address": 48148}, TypeError),
        ({"address": "127.0.0.1:0"}, ValueError),
    ],
)
def test_wrong_settings_are_refused_at_once(arguments, error) -> None:
    with pytest.raises(error):
        Communicator(**{"address": "127.0.0.1:48148", **arguments})


def test_the_address_may_come_from_the_environment(master, monkeypatch) -> None:
    monkeypatch.delenv("PCCL_MASTER", raising=False)
    with pytest.raises(ValueError, match="PCCL_MASTER"):
        Communicator()
    monkeypatch.setenv("PCCL_MASTER", master.address)
    with Communicator() as comm:
        assert comm.world_size == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"op": "mean"}, ValueError),
        ({"op": 0}, TypeError),
        ({"tag": -1}, ValueError),
        ({"tag": 2**64}, ValueError),
        ({"tag": 1.0}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"operand_descriptor": ReduceOperandDescriptor(DataType.DOUBLE)}, ValueError),
        ({"operand_descriptor": DataType.FLOAT}, TypeError),
        ({"quantization_options": DataType.UINT8}, TypeError),
    ],
)
@pytest.mark.parametrize("retry", [False, True])
def test_wrong_arguments_of_an_op_send_nothing(arguments, error, retry, pair) -> None:
    values = numpy.ones(4, "f4")
    for call in (pair[0].all_reduce, pair[0].all_reduce_async):
        with pytest.raises(error):
            call(values, retry=retry, **arguments)
    in_threads(*(lambda peer=peer: peer.all_reduce(numpy.ones(4, "f4")) for peer in pair))


def test_overlapping_arrays_are_refused(pair) -> None:
    values = numpy.ones(6, "f4")
    with pytest.raises(pccl.InvalidArgumentError, match="overlap"):
        pair[0].all_reduce(values[:4], values[2:])


# --- joining and leaving ----------------------------------------------------------------------------------


def test_before_connect_a_communicator_knows_nothing(master) -> None:
    comm = Communicator(master.address, 3)
    assert (comm.world_size, comm.global_world_size, comm.rank, comm.epoch, comm.group) == (0, 0, 0, 0, 3)
    assert repr(comm) == "<pccl.Communicator group=3, not connected>"
    for call in (comm.update_topology, comm.are_peers_pending, comm.optimize_topology):
        with pytest.raises(pccl.PCCLError, match="connect") as raised:
            call()
        assert raised.value.result is Result.INVALID_USAGE
    with pytest.raises(pccl.PCCLError, match="connect"):
        comm.get_attribute(Attribute.GLOBAL_WORLD_SIZE)
    with pytest.raises(pccl.PCCLError, match="connect"):
        comm.all_reduce(numpy.ones(3))
    comm.close()  # does nothing


def test_alone_there_is_nobody_to_reduce_with(master) -> None:
    with Communicator(master.address) as comm:
        values = numpy.ones(3)
        for retry in (False, True):
            with pytest.raises(pccl.TooFewPeersError):
                comm.all_reduce(values, retry=retry)
            with pytest.raises(pccl.TooFewPeersError):  # when it is started
                comm.all_reduce_async(values, retry=retry)
        assert not comm.are_peers_pending()
        comm.update_topology()
        assert comm.world_size == 1


def test_a_bounded_connect_says_who_does_not_let_it_in_and_may_be_tried_again(master) -> None:
    with Communicator(master.address, name="trainer-2", timeout=1) as first:
        second = Communicator(master.address, name="trainer-3", timeout=1)
        with pytest.raises(PCCLTimeoutError, match=r"not let in within .* trainer-2 .* update_topology\(\)"):
            second.connect(timeout=0.5)
        joining = threading.Thread(target=second.connect, kwargs={"timeout": PATIENCE})
        joining.start()
        while first.world_size < 2:
            first.update_topology()
        joining.join(PATIENCE)
        assert second.world_size == 2
        second.close()
    with pytest.raises(ValueError, match="timeout"):
        second.connect(timeout=-1)


def test_connect_returns_the_communicator_and_with_takes_it(master) -> None:
    with Communicator(master.address).connect() as comm:
        assert comm.world_size == 1
    assert comm.world_size == 0


def test_a_closed_communicator_can_join_again(master) -> None:
    comm = Communicator(master.address)
    ids = set()
    for _ in range(3):
        with comm:
            assert comm.world_size == 1
            ids.add(comm.peer_id)
    assert len(ids) == 3  # never used again
    comm.close()


def test_nobody_answers(monkeypatch) -> None:
    waits = []
    monkeypatch.setattr(pccl.communicator.time, "sleep", waits.append)
    with MasterNode("127.0.0.1:0") as gone:
        address = gone.address
    del gone
    gc.collect()
    with pytest.raises(pccl.PCCLError) as raised:
        Communicator(address).connect(n_attempts=3)
    assert raised.value.result is Result.MASTER_CONNECTION_FAILED
    assert waits == [1.0, 1.0]
    with pytest.raises(ValueError, match="n_attempts"):
        Communicator(address).connect(n_attempts=0)


def test_attributes_count_accepted_peers(master) -> None:
    with group_of(master, 2, peer_group=1) as peers:
        expected = {
            Attribute.GLOBAL_WORLD_SIZE: 2,
            Attribute.PEER_GROUP_WORLD_SIZE: 2,
            Attribute.LOCAL_WORLD_SIZE: 2,
            Attribute.NUM_DISTINCT_PEER_GROUPS: 1,
            Attribute.LARGEST_PEER_GROUP_WORLD_SIZE: 2,
        }
        for peer in peers:
            assert {attribute: peer.get_attribute(attribute) for attribute in expected} == expected
            assert (peer.world_size, peer.global_world_size, peer.group) == (2, 2, 1)
            with pytest.raises(TypeError, match="Attribute"):
                peer.get_attribute(1)  # type: ignore[arg-type]
        assert {peer.rank for peer in peers} == {0, 1}
        assert peers[0].epoch == peers[1].epoch > 0
        assert len({peer.peer_id for peer in peers}) == 2


def test_peers_pending_is_seen_by_all(master) -> None:
    with group_of(master, 2) as peers:
        assert in_threads(*(peer.are_peers_pending for peer in peers)) == [False, False]
        newcomer = Communicator(master.address)
        joining = threading.Thread(target=newcomer.connect, daemon=True)
        joining.start()
        deadline = time.monotonic() + PATIENCE
        while in_threads(*(peer.are_peers_pending for peer in peers)) != [True, True]:
            assert time.monotonic() < deadline
        in_threads(*(peer.update_topology for peer in peers))
        joining.join(PATIENCE)
        assert [peer.world_size for peer in (*peers, newcomer)] == [3, 3, 3]
        newcomer.close()


# --- ops --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["sum", "avg", "prod", "max", "min"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u1"])
def test_all_reduce_combines_elements(op, dtype, pair) -> None:
    inputs = [numpy.arange(1, 301).astype(dtype) % 13, numpy.arange(2, 302).astype(dtype) % 7]
    combine = {"sum": numpy.add, "prod": numpy.multiply, "max": numpy.maximum, "min": numpy.minimum}
    if op == "avg":
        expected = numpy.add(*inputs) / 2
        expected = expected.astype(dtype) if dtype[0] in "f" else numpy.trunc(expected).astype(dtype)
    else:
        expected = combine[op](*inputs)
    outputs = [numpy.zeros_like(values) for values in inputs]
    infos = in_threads(
        *(lambda i=i: pair[i].all_reduce(inputs[i].copy(), outputs[i], op=op, tag=5) for i in range(2))
    )
    for output, info in zip(outputs, infos, strict=True):
        numpy.testing.assert_array_equal(output, expected)
        assert info.local_world_size == 2
        assert info.tx_bytes >= expected.nbytes
        assert info.rx_bytes >= expected.nbytes


def test_other_kinds_of_arrays_are_reduced(pair, torch) -> None:
    tensor = torch.full((3, 5), 2.0, dtype=torch.bfloat16)
    values = bytearray(b"\x01" * 15)
    bfloat16 = DataType.BFLOAT16.to_numpy_dtype()
    other = numpy.full(15, 3.0).astype(bfloat16)
    in_threads(lambda: pair[0].all_reduce(tensor), lambda: pair[1].all_reduce(other))
    assert tensor.flatten().tolist() == [5.0] * 15
    assert other.astype("f4").tolist() == [5.0] * 15
    in_threads(lambda: pair[0].all_reduce(values), lambda: pair[1].all_reduce(array("B", bytes(values))))
    assert values == b"\x02" * 15


def test_many_ops_are_in_flight_and_awaited_in_any_order(pair) -> None:
    def run(peer: Communicator, order: int) -> list[float]:
        arrays = [numpy.full(1000 + tag, float(tag)) for tag in range(20)]
        handles = [peer.all_reduce_async(arrays[tag], tag=tag) for tag in range(20)[::order]][::order]
        for tag in range(20)[::-order]:
            assert handles[tag].result().local_world_size == 2
            assert handles[tag].done()
            assert handles[tag].wait() == handles[tag].wait()
        return [array[-1] for array in arrays]

    results = in_threads(lambda: run(pair[0], 1), lambda: run(pair[1], -1))
    assert results == [[2.0 * tag for tag in range(20)]] * 2


def test_an_op_is_not_done_before_the_others_have_called(pair) -> None:
    mine, other = numpy.ones(10), numpy.ones(10)
    handle = pair[0].all_reduce_async(mine)
    assert not handle.done()
    second = pair[1].all_reduce_async(other)
    assert in_threads(handle.wait, second.wait)[0][0] is True
    assert handle.done()
    assert second.done()
    assert mine.tolist() == other.tolist() == [2.0] * 10


def test_one_handle_can_be_awaited_by_many_threads(pair) -> None:
    handles = [peer.all_reduce_async(numpy.ones(1000)) for peer in pair]
    outcomes = in_threads(*(handle.result for handle in handles for _ in range(4)))
    assert len(outcomes) == 8
    assert all(outcome.local_world_size == 2 for outcome in outcomes)


def test_a_dropped_handle_keeps_its_memory_and_frees_its_tag(pair) -> None:
    for _ in range(20):
        for peer in pair:
            peer.all_reduce_async(numpy.ones(20_000), tag=3)  # array and handle are dropped at once
        # What comes after it under another tag is committed after it.
        in_threads(*(lambda peer=peer: peer.all_reduce(numpy.ones(5), tag=4) for peer in pair))
        deadline = time.monotonic() + PATIENCE
        while any(map(len, (peer._in_flight for peer in pair))):
            assert time.monotonic() < deadline
            time.sleep(0.001)
            for peer in pair:
                peer._in_flight.settle()


def test_a_tag_in_flight_is_taken(pair) -> None:
    handle = pair[0].all_reduce_async(numpy.ones(3), tag=9)
    with pytest.raises(pccl.PCCLError, match="tag 9") as raised:
        pair[0].all_reduce_async(numpy.ones(3), tag=9)
    assert raised.value.result is Result.INVALID_USAGE
    with pytest.raises(pccl.PCCLError) as raised:
        pair[0].optimize_topology()
    assert raised.value.result is Result.PENDING_ASYNC_OPS
    in_threads(handle.result, lambda: pair[1].all_reduce(numpy.ones(3), tag=9))


def test_retrying_ops_run_aside(pair) -> None:
    arrays = [[numpy.ones(100) for _ in range(5)] for _ in pair]
    handles = [
        [peer.all_reduce_async(array, tag=tag, retry=True) for tag, array in enumerate(mine)]
        for peer, mine in zip(pair, arrays, strict=True)
    ]
    for handle in (*handles[0], *handles[1]):
        assert handle.wait()[:2] == (True, Result.SUCCESS)
        assert handle.done()
    assert all(array.tolist() == [2.0] * 100 for mine in arrays for array in mine)


def test_a_lost_peer_fails_an_op_and_retry_says_who_is_left(master) -> None:
    with group_of(master, 3, timeout=2.0) as peers:
        values = [numpy.full(1000, 1.0), numpy.full(1000, 10.0)]

        def reduce(i: int) -> object:
            return peers[i].all_reduce(values[i], retry=True)

        def leave() -> None:
            peers[2].close()

        infos = in_threads(lambda: reduce(0), lambda: reduce(1), leave)
        assert [info.local_world_size for info in infos[:2]] == [2, 2]
        assert values[0].tolist() == values[1].tolist() == [11.0] * 1000


def test_an_op_has_a_bound_if_it_is_given_one(pair) -> None:
    values = numpy.arange(5.0)
    for retry in (False, True):
        with pytest.raises(pccl.PCCLTimeoutError):
            pair[0].all_reduce(values, timeout=0.2, retry=retry)
    assert values.tolist() == [0, 1, 2, 3, 4]


def test_a_misplaced_joint_call_is_held_against_the_op_that_others_wait_in(master) -> None:
    """Not against another one that they have in flight: nobody would fail that at who misplaced it."""

    def train(comm: pccl.Communicator, *, misplaces: bool) -> list[str]:
        if misplaces:
            time.sleep(0.3)  # the others wait by then
            with pytest.raises(pccl.MismatchError, match=r"with tag 1$"):
                comm.update_topology()
        background, array = numpy.ones(8), numpy.ones(8)
        handle = comm.all_reduce_async(background, tag=100)
        if not misplaces:
            with pytest.raises(pccl.MismatchError, match=r"with tag 1$"):
                comm.all_reduce(array, tag=1)
        comm.all_reduce(array, tag=1)
        return ["good" if handle.wait()[0] else "lost", str(array[0])]

    with group_of(master, 3) as (a, b, c):
        ends = in_threads(
            lambda: train(a, misplaces=False),
            lambda: train(b, misplaces=False),
            lambda: train(c, misplaces=True),
        )
    assert ends == [["lost", "3.0"]] * 3


def test_calls_that_differ_are_a_mismatch_at_both(pair) -> None:
    def reduce(peer: Communicator, array: numpy.ndarray) -> BaseException:
        with pytest.raises(pccl.MismatchError) as raised:
            peer.all_reduce(array, tag=1)
        return raised.value

    errors = in_threads(
        lambda: reduce(pair[0], numpy.ones(5, "f4")), lambda: reduce(pair[1], numpy.ones(6, "f4"))
    )
    assert all(error.result is Result.MISMATCH for error in errors)


def test_several_ops_with_retry(pair) -> None:
    quantization = QuantizationOptions(DataType.FLOAT, QuantizationAlgorithm.NONE)

    def run(peer: Communicator, value: float) -> tuple[object, list[float]]:
        sends = [numpy.full(100 + tag, value, "f4") for tag in range(9)]
        recvs = [numpy.zeros_like(send) for send in sends]
        descriptors = [
            ReduceOpDescriptor.from_numpy(
                send,
                recv,
                ReduceDescriptor(
                    send.size, ReduceOp.SUM, tag, ReduceOperandDescriptor(DataType.FLOAT), quantization
                ),
            )
            for tag, (send, recv) in enumerate(zip(sends, recvs, strict=True))
        ]
        info = peer.all_reduce_multiple_with_retry(descriptors, max_in_flight=3)
        return info, [float(recv[-1]) for recv in recvs]

    for info, sums in in_threads(lambda: run(pair[0], 1.0), lambda: run(pair[1], 2.5)):
        assert info.local_world_size == 2
        assert info.tx_bytes > 9 * 100 * 4
        assert sums == [3.5] * 9


def test_descriptors_fit_their_arrays() -> None:
    def descriptor(count: int, datatype: DataType) -> ReduceDescriptor:
        return ReduceDescriptor(count, "sum", 0, ReduceOperandDescriptor(datatype), QuantizationOptions())

    values = numpy.ones(4, "f4")
    with pytest.raises(ValueError, match="counts 5 elements but the arrays have 4"):
        ReduceOpDescriptor.from_numpy(values, values, descriptor(5, DataType.FLOAT))
    with pytest.raises(ValueError, match="float32"):
        ReduceOpDescriptor.from_numpy(values, values, descriptor(4, DataType.DOUBLE))


# --- signals, threads, processes --------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["connect", "update_topology", "all_reduce", "wait"])
def test_ctrl_c_ends_a_wait(call, pair, master) -> None:
    waiting = Communicator(master.address) if call == "connect" else pair[0]
    calls = {
        "connect": waiting.connect,
        "update_topology": waiting.update_topology,
        "all_reduce": lambda: waiting.all_reduce(numpy.ones(3)),
        "wait": lambda: waiting.all_reduce_async(numpy.ones(3)).wait(),
    }
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    # From another thread the handler still runs in this one, as soon as it enters Python code.
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        calls[call]()
    timer.join()
    assert waiting.world_size == 0  # closed, and usable again
    if call != "connect":
        pair[1].update_topology()
        assert pair[1].world_size == 1


def test_other_signal_handlers_run_and_may_raise(pair) -> None:
    seen = []

    def handler(*_: object) -> None:
        seen.append(1)
        if len(seen) == 3:
            raise ZeroDivisionError("from the handler")

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        with pytest.raises(ZeroDivisionError, match="from the handler"):
            pair[0].all_reduce(numpy.ones(3))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(seen) == 3


def test_the_gil_is_free_during_a_wait(pair) -> None:
    # Both peers wait in threads of one process: if a wait held the GIL, the other could never call.
    for _ in range(20):
        in_threads(*(lambda peer=peer: peer.all_reduce(numpy.ones(10)) for peer in pair))


def test_close_ends_the_waits_of_other_threads(pair) -> None:
    def reduce() -> BaseException:
        with pytest.raises(pccl.PCCLError) as raised:
            pair[0].all_reduce(numpy.ones(3))
        return raised.value

    def close() -> None:
        time.sleep(0.2)
        pair[0].close()

    assert in_threads(reduce, close)[0].result is Result.INVALID_USAGE


def test_a_collected_communicator_says_goodbye(master) -> None:
    with group_of(master, 1) as peers:
        comm = Communicator(master.address)
        joining = threading.Thread(target=comm.connect, daemon=True)
        joining.start()
        while joining.is_alive():
            if peers[0].are_peers_pending():
                peers[0].update_topology()
            joining.join(0.01)
        assert peers[0].world_size == 2
        del comm, joining
        gc.collect()
        deadline = time.monotonic() + PATIENCE
        while peers[0].world_size == 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_forked_child_leaves_its_parents_peer_alone() -> None:
    program = """
import gc, os, threading, numpy, pccl
with pccl.MasterNode("127.0.0.1:0") as master, pccl.Communicator(master.address) as comm:
    state = pccl.SharedState({"w": numpy.ones(3)})
    other = pccl.Communicator(master.address)
    newcomer = threading.Thread(target=other.connect)
    newcomer.start()
    while comm.world_size == 1:
        comm.update_topology()
    newcomer.join()
    handle = comm.barrier_async()
    child = os.fork()
    if child == 0:
        joint = (comm.update_topology, lambda: comm.sync_shared_state(state))
        calls = (*joint, comm.barrier, handle.done, handle.wait)
        for call in calls:
            try:
                call()
            except pccl.PCCLError as error:
                assert "forked" in str(error)
            else:
                raise SystemExit(1)
        raise SystemExit(0)  # on the way out, both are closed, collected, and closed again
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    other.barrier()
    handle.result()
    other.close()
    comm.update_topology()
    assert comm.world_size == 1
"""
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=PATIENCE, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_program_may_end_without_closing_anything(master) -> None:
    program = """
import sys, threading, numpy, pccl
comm = pccl.Communicator(sys.argv[1])
comm.connect()
other = pccl.Communicator(sys.argv[1])
threading.Thread(target=other.connect, daemon=True).start()
while comm.world_size == 1:
    comm.update_topology()
handle = comm.all_reduce_async(numpy.ones(1000))
threading.Thread(target=lambda: comm.all_reduce(numpy.ones(10), tag=3), daemon=True).start()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, master.address],
        timeout=PATIENCE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_importing_pccl_imports_no_array_library() -> None:
    program = "import sys, pccl; print(*{'numpy', 'torch', 'jax', 'ctypes', 'argparse'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=PATIENCE, capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"


# --- the master -------------------------------------------------------------------------------------------


def test_a_master_tells_where_it_listens() -> None:
    with MasterNode("127.0.0.1:0") as master:
        assert master.port > 0
        assert master.address == f"127.0.0.1:{master.port}"
        with pytest.raises(pccl.PCCLError, match=str(master.port)):
            MasterNode(master.address)
        address = master.address
        with Communicator(address) as comm:
            assert comm.world_size == 1
    del master
    gc.collect()
    with MasterNode(address), Communicator(address) as comm:
        assert comm.world_size == 1


def test_a_master_on_ipv6() -> None:
    with MasterNode("[::1]:0") as master:
        assert master.address == f"[::1]:{master.port}"
        with Communicator(master.address) as comm:
            assert comm.world_size == 1


def test_a_lost_master_is_told_apart() -> None:
    with MasterNode("127.0.0.1:0") as master:
        comm = Communicator(master.address, timeout=1.0).connect()
    calls = [
        comm.update_topology,
        comm.barrier,
        lambda: comm.broadcast(numpy.ones(3), retry=True),
        lambda: comm.all_gather(numpy.ones(3)),
        lambda: comm.all_gather_object(1),
        lambda: comm.broadcast_object(1),
        lambda: comm.get_attribute(pccl.Attribute.GLOBAL_WORLD_SIZE),
    ]
    for call in calls:
        with pytest.raises(pccl.MasterLostError):
            call()
    comm.close()
    with pytest.raises(pccl.PCCLError) as raised:
        comm.broadcast_object(1)
    assert raised.value.result == Result.INVALID_USAGE
