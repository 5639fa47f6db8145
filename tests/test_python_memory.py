"""Memory that C works on stays where it is, whatever becomes of the objects that it was found through."""

import logging
import mmap
import tempfile
from typing import Any

import numpy
import pytest
from in_process import in_threads

import pccl
from pccl import DataType, ReduceDescriptor, ReduceOpDescriptor, ReduceOperandDescriptor

SIZES = [10_000, 1_000_000]  # in the heap, and in a mapping of its own, whose end is a crash


def neighbours(size: int) -> list[numpy.ndarray]:
    """What the allocator is likely to place where an array has just been freed."""
    return [numpy.full(size, 7, "f4") for _ in range(4)]


def assert_untouched(arrays: list[numpy.ndarray]) -> None:
    assert [int((array != 7).sum()) for array in arrays] == [0] * len(arrays)


# --- torch ------------------------------------------------------------------------------------------------


def let_go_of(tensor: Any, how: str, torch: Any) -> None:
    if how == "other type":
        tensor.data = tensor.data.half()
    elif how == "other data":
        tensor.data = torch.empty(1)
    elif how == "set_":
        tensor.set_()
    elif how == "storage":
        with pytest.raises(RuntimeError, match="not resizable"):
            tensor.untyped_storage().resize_(0)
    else:
        with pytest.raises(RuntimeError, match="not resizable"):
            tensor.resize_(10 * tensor.numel())


@pytest.mark.parametrize("how", ["other type", "other data", "set_", "storage", "resize_"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("in_place", [True, False])
def test_a_tensor_lets_go_of_its_storage_while_an_op_runs(in_place, size, how, pair, torch) -> None:
    tensor = torch.ones(size)
    recv = None if in_place else torch.zeros(size)
    handle = pair[0].all_reduce_async(tensor, recv)
    let_go_of(tensor if in_place else recv, how, torch)
    others, theirs = neighbours(size), numpy.full(size, 5, "f4")
    pair[1].all_reduce(theirs)
    assert handle.wait()[0]
    assert_untouched(others)
    assert theirs.tolist() == [6.0] * size
    assert in_place or tensor.tolist() == [1.0] * size


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_a_storage_of_any_type_is_held(dtype, pair, torch) -> None:
    values = torch.ones(10_000, dtype=getattr(torch, dtype))
    handle = pair[0].all_reduce_async(values[5000:])  # a part of it
    with pytest.raises(RuntimeError, match="not resizable"):
        values.untyped_storage().resize_(0)
    pair[1].all_reduce(torch.ones(5000, dtype=values.dtype))
    handle.result()
    assert values.tolist() == [1] * 5000 + [2] * 5000


def test_a_blocking_op_holds_the_storage_against_other_threads(pair, torch) -> None:
    tensor = torch.ones(1_000_000)

    def resize() -> None:
        while tensor.untyped_storage().resizable():  # the call has not begun
            pass
        with pytest.raises(RuntimeError, match="not resizable"):
            tensor.untyped_storage().resize_(0)
        pair[1].all_reduce(numpy.ones(1_000_000, "f4"))

    in_threads(lambda: pair[0].all_reduce(tensor), resize)
    assert tensor.tolist() == [2.0] * 1_000_000


def test_a_result_that_the_tensor_does_not_have_any_more_is_said(pair, torch, caplog) -> None:
    tensors = [torch.ones(10), torch.ones(10)]
    handles = [pair[0].all_reduce_async(tensor, tag=tag) for tag, tensor in enumerate(tensors)]
    tensors[1].data = torch.zeros(10)
    for tag in range(2):
        pair[1].all_reduce(numpy.ones(10, "f4"), tag=tag)
    with caplog.at_level(logging.WARNING, "pccl"):
        assert [handle.wait()[0] for handle in handles] == [True, True]
    assert len(caplog.records) == 1
    assert "tag 1" in caplog.text
    assert "other memory" in caplog.text


def test_the_memory_of_a_tensor_behind_a_numpy_array_is_held(pair, torch) -> None:
    tensor = torch.ones(1_000_000)
    handle = pair[0].all_reduce_async(tensor.numpy())
    tensor.data = torch.empty(1)
    others = neighbours(1_000_000)
    pair[1].all_reduce(numpy.ones(1_000_000, "f4"))
    handle.result()
    assert_untouched(others)


# --- autograd ---------------------------------------------------------------------------------------------


def test_a_tensor_of_an_autograd_graph_is_refused(pair, torch) -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    product = weight * 3
    for call in (pair[0].all_reduce, pair[0].all_reduce_async, pair[0].broadcast, pair[0].all_gather):
        with pytest.raises(ValueError, match=r"autograd graph.*detach\(\).*grad"):
            call(product)
    product.sum().backward()
    with torch.no_grad():
        ours = [weight, weight.grad, weight.data, product.detach()]
        others = [tensor.clone() for tensor in ours]
    for mine, other in zip(ours, others, strict=True):
        in_threads(lambda mine=mine: pair[0].all_reduce(mine), lambda other=other: pair[1].all_reduce(other))


# --- NumPy and buffers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_a_view", [False, True])
def test_an_array_is_not_resized_while_an_op_runs(of_a_view, pair) -> None:
    owner = numpy.ones(1_000_000, "f4")
    handle = pair[0].all_reduce_async(owner[:500_000] if of_a_view else owner)
    count = 500_000 if of_a_view else 1_000_000
    with pytest.raises(ValueError, match="cannot resize"):
        owner.resize(20_000_000, refcheck=False)
    pair[1].all_reduce(numpy.ones(count, "f4"))
    handle.result()
    assert owner.tolist() == [2.0] * count + [1.0] * (1_000_000 - count)
    owner.resize(5, refcheck=False)  # and can be once it is over


def test_a_mapping_is_not_closed_while_an_op_runs(pair) -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(4096)
        mapped = numpy.memmap(file, "f4", "r+")
        handle = pair[0].all_reduce_async(mapped)
        with pytest.raises(BufferError):
            mapped._mmap.close()
        pair[1].all_reduce(numpy.ones(1024, "f4"))
        handle.result()
        assert mapped.tolist() == [1.0] * 1024
        mapped._mmap.close()


@pytest.mark.parametrize("through_numpy", [False, True])
def test_a_buffer_does_not_move_while_an_op_runs(through_numpy, pair) -> None:
    owner = bytearray(1000)
    handle = pair[0].all_reduce_async(numpy.ndarray(1000, "u1", owner) if through_numpy else owner)
    with pytest.raises(BufferError):
        owner.extend(bytes(1_000_000))
    pair[1].all_reduce(numpy.ones(1000, "u1"))
    handle.result()
    assert owner == b"\1" * 1000
    owner.extend(bytes(1_000_000))


def test_a_mapping_of_no_file_is_held(pair) -> None:
    mapped = mmap.mmap(-1, 4096)
    handle = pair[0].all_reduce_async(mapped)
    with pytest.raises(BufferError):
        mapped.close()
    pair[1].all_reduce(numpy.ones(4096, "u1"))
    handle.result()
    mapped.close()


# --- descriptors of several ops ---------------------------------------------------------------------------


def described(tensor: Any, tag: int = 0) -> ReduceOpDescriptor:
    quantization = pccl.QuantizationOptions(DataType.FLOAT, pccl.QuantizationAlgorithm.NONE)
    operand = ReduceOperandDescriptor(DataType.FLOAT)
    return ReduceOpDescriptor.from_torch(
        tensor, tensor, ReduceDescriptor(tensor.numel(), "sum", tag, operand, quantization)
    )


def test_a_descriptor_looks_anew_where_its_tensor_lies(pair, torch) -> None:
    ours, theirs = torch.ones(1_000_000), torch.ones(1_000_000)
    ops = [[described(ours)], [described(theirs)]]
    ours.data = torch.full((1_000_000,), 10.0)
    others = neighbours(1_000_000)
    in_threads(
        *(
            lambda peer=peer, op=op: peer.all_reduce_multiple_with_retry(op)
            for peer, op in zip(pair, ops, strict=True)
        )
    )
    assert_untouched(others)
    assert ours.tolist() == theirs.tolist() == [11.0] * 1_000_000


def test_a_descriptor_whose_tensor_has_changed_is_refused(pair, torch) -> None:
    tensor = torch.ones(1000)
    op = described(tensor)
    tensor.data = torch.ones(999)
    with pytest.raises(ValueError, match="1000 elements but the arrays have 999"):
        pair[0].all_reduce_multiple_with_retry([op])
    tensor.data = torch.ones(1000).half()
    with pytest.raises(ValueError, match="float16"):
        pair[0].all_reduce_multiple_with_retry([op])
