"""pccl/state.py and pccl/_state_memory.py: what can be a shared state, and where its tensors lie."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import pccl

torch = pytest.importorskip("torch")


class Pair:
    """Two peers of one run, in one process."""

    def __init__(self, master: pccl.MasterNode) -> None:
        self.a, self.b = (pccl.Communicator(master.address, name=name, timeout=5) for name in "ab")
        self.a.connect()
        joining = threading.Thread(target=self.b.connect)
        joining.start()
        while self.a.world_size < 2:
            self.a.update_topology()
        joining.join()

    def sync(self, mine: pccl.SharedState, theirs: pccl.SharedState, **options: Any) -> None:
        errors: list[Exception] = []

        def run() -> None:
            try:
                self.b.sync_shared_state(theirs)
            except pccl.PCCLError as error:
                errors.append(error)

        other = threading.Thread(target=run)
        other.start()
        self.a.sync_shared_state(mine, **options)
        other.join()
        assert not errors, errors


@pytest.fixture
def pair() -> Iterator[Pair]:
    with pccl.MasterNode("127.0.0.1:0") as master:
        pair = Pair(master)
        yield pair
        pair.a.close()
        pair.b.close()


def five(count: int) -> pccl.SharedState:
    return pccl.SharedState({"w": np.full(count, 5, np.float32)}, revision=3)


# --- tensors that move -----------------------------------------------------------------------------------


def round_trip(model: Any, other: Any) -> None:
    model.double()
    model.float()


def clone(model: Any, other: Any) -> None:
    model.weight.data = model.weight.data.clone()


def swap(model: Any, other: Any) -> None:
    model.weight.data, other.data = other.data, model.weight.data


@pytest.mark.parametrize("move", [round_trip, clone, swap])
@pytest.mark.parametrize("count", [1000, 400_000])
def test_values_land_where_the_user_sees_them(
    pair: Pair, move: Callable[[Any, Any], None], count: int
) -> None:
    model = torch.nn.Linear(count // 10, 10, bias=False)
    other = torch.nn.Parameter(torch.full((10, count // 10), -1.0))
    state = pccl.SharedState({"w": model.weight})
    move(model, other)
    before = other.detach().clone()
    pair.sync(state, five(count))
    assert (model.weight == 5).all()
    assert (other == before).all()


def test_a_numpy_array_that_was_resized_and_back(pair: Pair) -> None:
    array = np.zeros(1000, np.float32)
    state = pccl.SharedState({"w": array})
    array.resize(500_000, refcheck=False)
    array.resize(1000, refcheck=False)
    pair.sync(state, five(1000))
    assert (array == 5).all()


def test_a_function_is_asked_anew_in_each_sync(pair: Pair) -> None:
    """As after optimizer.load_state_dict(), which puts other tensors under the same names."""
    model = torch.nn.Linear(4, 3)
    state = pccl.SharedState(model.state_dict)
    model.weight = torch.nn.Parameter(torch.zeros(3, 4))
    theirs = {"weight": np.full(12, 5, np.float32), "bias": np.full(3, 6, np.float32)}
    pair.sync(state, pccl.SharedState(theirs, revision=3))
    assert (model.weight == 5).all()
    assert (model.bias == 6).all()


def test_another_array_under_the_same_name_is_the_one(pair: Pair) -> None:
    arrays = {"w": np.zeros(10, np.float32)}
    state = pccl.SharedState(arrays)
    arrays["w"] = np.ones(10, np.float32)
    pair.sync(state, five(10))
    assert (arrays["w"] == 5).all()


def test_tensors_that_became_others_are_named_before_anything_is_sent(pair: Pair) -> None:
    model = torch.nn.Linear(10, 2)
    state = pccl.SharedState(dict(model.named_parameters()))
    model.half()
    with pytest.raises(
        ValueError, match=r"2 tensors .*\n.*'weight' was float32\[20\] .* and is float16\[20\]"
    ):
        pair.a.sync_shared_state(state)
    array = np.zeros(10, np.float32)
    state = pccl.SharedState({"w": array})
    array.resize(20, refcheck=False)
    with pytest.raises(ValueError, match=r"'w' was float32\[10\] .* float32\[20\] now"):
        pair.a.sync_shared_state(state)
    arrays = {"v": array}
    state = pccl.SharedState(arrays)
    del arrays["v"]
    arrays["x"] = array
    with pytest.raises(ValueError, match=r"'v' is missing, 'x' is new"):
        pair.a.sync_shared_state(state)
    pair.sync(five(10), five(10))  # nobody was waited for, nothing is left


def test_the_memory_of_a_state_cannot_be_taken_away() -> None:
    tensor = torch.zeros(1000)
    state = pccl.SharedState({"w": tensor})
    with pytest.raises(RuntimeError, match="not resizable"):
        tensor.untyped_storage().resize_(0)
    short = torch.zeros(10)
    short.untyped_storage().resize_(20)
    with pytest.raises(ValueError, match="'s' is larger than its storage"):
        pccl.SharedState({"s": short})
    state.open()


def test_a_tensor_that_is_replaced_in_the_middle_of_a_sync_is_an_error(pair: Pair) -> None:
    weight = torch.zeros(1000)

    def replace(progress: object) -> None:
        weight.data = torch.zeros(1000)

    with pytest.raises(ValueError, match="'w' got other memory while it was synchronised"):
        pair.sync(pccl.SharedState({"w": weight}), five(1000), progress=replace)


def test_a_state_locks_nothing_between_syncs() -> None:
    memory = bytearray(100)
    state = pccl.SharedState({"w": memory})
    memory += b"x"
    with pytest.raises(ValueError, match=r"uint8\[101\] now"):
        state.open()
    mapped = mmap.mmap(-1, 4096)
    state = pccl.SharedState({"m": mapped})
    state.open()
    mapped.close()
    with pytest.raises((TypeError, ValueError)):
        state.open()


# --- an ordinary model -----------------------------------------------------------------------------------


def ordinary(value: int) -> dict[str, Any]:
    return {
        "bool": torch.full((3,), bool(value)),
        "complex": torch.full((3,), value * 1j, dtype=torch.complex64),
        "float8": torch.full((3,), float(value)).to(torch.float8_e4m3fn),
        "empty": torch.empty(0),
        "scalar": torch.tensor(value),
        "channels_last": torch.full((2, 3, 4, 4), float(value)).to(memory_format=torch.channels_last),
        "numpy bool": np.full(5, bool(value)),
        "fortran": np.asfortranarray(np.full((3, 4), value)),
        "records": np.full(2, value, np.dtype([("a", "i4"), ("b", "f8")])),
    }


def test_what_an_ordinary_state_holds_is_synchronised_as_it_is(pair: Pair) -> None:
    mine = ordinary(0)
    pair.sync(pccl.SharedState(mine), pccl.SharedState(ordinary(1), revision=1))
    for name, expected in ordinary(1).items():
        assert np.array_equal(as_bytes(mine[name]), as_bytes(expected)), name


def as_bytes(array: Any) -> Any:
    if isinstance(array, torch.Tensor):
        array = array.contiguous().view(-1)
        array = array.view(torch.uint8).numpy() if array.numel() else np.empty(0)
    return np.ascontiguousarray(array).view(np.uint8) if array.size else array


@pytest.mark.parametrize(
    "theirs",
    [
        torch.ones(2, 3, 4, 4),
        torch.ones(2, 3, 4, 4, dtype=torch.bool),
        torch.ones(2, 3, 4, 4).to(torch.float8_e5m2),
    ],
)
def test_bytes_that_mean_something_else_are_a_mismatch(pair: Pair, theirs: Any) -> None:
    mine = torch.ones(2, 3, 4, 4).to(torch.float8_e4m3fn).to(memory_format=torch.channels_last)
    with pytest.raises(pccl.MismatchError, match=r"w \(float8_e4m3fn, dimensions in memory 0,2,3,1\)"):
        pair.sync(pccl.SharedState({"w": mine}), pccl.SharedState({"w": theirs}, revision=1))


def test_tied_tensors_are_one_piece_of_memory(pair: Pair) -> None:
    w = torch.zeros(4, 4)
    state = pccl.SharedState({"embed": w, "head": w, "other": torch.zeros(2)})
    theirs = {
        "embed": np.full(16, 7, np.float32),
        "head": np.full(16, 7, np.float32),
        "other": np.ones(2, "f4"),
    }
    pair.sync(state, pccl.SharedState(theirs, revision=1))
    assert (w == 7).all()
    theirs["head"][:] = 8
    state.revision = 0
    with pytest.raises(pccl.MismatchError, match='"embed" and "head" are one piece of memory at peer a'):
        pair.sync(state, pccl.SharedState(theirs, revision=2))
    assert (w == 7).all()


def test_what_cannot_be_synchronised_is_listed_at_once() -> None:
    bad = {
        "expanded": torch.ones(1).expand(4),
        "sliced": np.ones((4, 4))[:, ::2],
        "objects": np.array([None]),
        "graph": torch.ones(2, requires_grad=True) * 2,
        "meta": torch.ones(2, device="meta"),
        "read-only": np.broadcast_to(np.ones(1), (1,)),
        "inner": {"w": np.ones(1)},
        "betas": (0.9, 0.99),
        "lr": 0.1,
    }
    with pytest.raises(ValueError, match="9 tensors of the shared state") as caught:
        pccl.SharedState({"good": np.ones(3), **bad})
    lines = str(caught.value).split("\n")[1:]
    for name, line in zip(bad, lines, strict=True):
        assert repr(name) in line
    assert "flat dict" in lines[6]


def test_a_module_and_other_things_that_are_no_state() -> None:
    model = torch.nn.Linear(2, 2)
    for wrong, said in [
        (model, r"SharedState\(model.state_dict\)"),
        (torch.ones(3), "dict of names and tensors"),
        (np.ones(3), "dict of names and tensors"),
        (3, "dict of names and tensors"),
        ([torch.ones(3)], "TensorInfo.from_torch"),
        (lambda: [1], "must return a dict"),
    ]:
        with pytest.raises(TypeError, match=said):
            pccl.SharedState(wrong)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(TypeError, match="flat dict"):
        pccl.SharedState(optimizer.state_dict())


def test_a_name_twice_is_an_error_at_construction() -> None:
    infos = [pccl.TensorInfo.from_numpy(np.ones(1), name) for name in ("a", "b", "a")]
    with pytest.raises(ValueError, match="several tensors of the shared state are named 'a'"):
        pccl.SharedState(infos)


# --- as PCCL 1.0 ------------------------------------------------------------------------------------------


def test_keywords_and_attributes_of_pccl_1_0(pair: Pair) -> None:
    array = np.zeros(4, np.float32)
    info = pccl.TensorInfo(
        "w", array.ctypes.data, numel=4, dtype=pccl.DataType.FLOAT, device_type=pccl.DeviceType.CPU
    )
    assert (info.data_ptr, info.numel) == (array.ctypes.data, 4)
    assert (info.dtype, info.device_type) == (pccl.DataType.FLOAT, pccl.DeviceType.CPU)
    other = pccl.TensorInfo.from_numpy(tensor=np.ones(3, np.uint8), name="v")
    assert (other.numel, other.dtype) == (3, pccl.DataType.UINT8)
    with pytest.raises(ValueError, match="not in memory of the CPU"):
        pccl.TensorInfo("w", 1, numel=1, dtype=pccl.DataType.INT8, device_type=pccl.DeviceType.CUDA)
    state = pccl.SharedState(tensor_infos=[info])
    theirs = threading.Thread(target=lambda: pair.b.sync_shared_state(shared_state=five(4)))
    theirs.start()
    pair.a.sync_shared_state(shared_state=state)
    theirs.join()
    assert (array == 5).all()
    assert state.revision == 3


def test_revisions_of_other_libraries() -> None:
    state = pccl.SharedState({"w": np.ones(1)}, revision=np.int64(3))  # type: ignore[arg-type]
    state.revision = torch.tensor(7)
    assert (state.revision, type(state.revision)) == (7, int)
    for wrong in (1.0, "1", None, True):
        with pytest.raises(TypeError, match="revision must be an int"):
            state.revision = wrong  # type: ignore[assignment]
    state.revision = 2**64 - 1
    with pytest.raises(ValueError, match="set revision = 0 at all peers"):
        state.push_revision()


def test_alone_the_own_state_is_the_state() -> None:
    with pccl.MasterNode("127.0.0.1:0") as master, pccl.Communicator(master.address) as comm:
        state = five(4)
        assert comm.sync_shared_state(state) == pccl.SharedStateSyncInfo(0, 0)
        assert state.revision == 3
        with pytest.raises(pccl.TooFewPeersError, match="alone in its group"):
            comm.sync_shared_state(state, require_peers=True)
        with pytest.raises(TypeError, match="require_peers"):
            comm.sync_shared_state(state, require_peers=1)  # type: ignore[arg-type]
