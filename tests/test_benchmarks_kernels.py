"""pccl bench kernels: each is what it is called, and all are measured."""

import json

import numpy
import pytest
from benching import bench
from pccl.benchmarks import elements, kernels

from pccl import _kernels


@pytest.mark.parametrize(
    "kernel",
    kernels.kernels(elements.ALL_DATATYPES, elements.ALL_REDOPS),
    ids=lambda kernel: f"{kernel.name}-{kernel.datatype}",
)
def test_kernels_do_what_they_are_called(kernel) -> None:
    """Each level of each, over the memory that its reference is over."""
    place = kernels.Place("cache", 3 << 20, numpy.empty(9 << 20, numpy.uint8))
    kernels._fill(place.pool, kernel)
    (memory,) = place.pieces(kernel.operands)
    calls = kernel.bind(*memory)
    levels = [name for name in calls if name != kernel.reference]
    assert levels == (["best"] if kernel.name == "copy" else ["scalar", *levels[1:]])
    results = []
    for name in (kernel.reference, *levels):
        memory[0][:] = 0xA5
        returned = calls[name]()
        results.append((name, memory[0].copy(), returned))
    (_, expected, _), *found = results
    for name, written, returned in found:
        if kernel.name == "copy":
            assert numpy.array_equal(written, expected), name
        elif kernel.operands == 2:
            assert (written == 0xA5).all(), name
            assert returned == found[0][2], name
        elif kernel.name == "avg":
            dtype = elements.numpy_dtype(kernel.datatype)
            exact = expected.view(dtype).astype(numpy.float64) / 2
            assert numpy.array_equal(written.view(dtype), exact.astype(dtype)), name
        else:
            assert numpy.array_equal(written, expected), name
    if kernel.name == "crc32c":
        assert found[0][2] > 0


def test_no_piece_is_found_where_the_one_before_has_left_it() -> None:
    place = kernels.Place("memory", 64, numpy.zeros(64 * 7, numpy.uint8))
    for operands, count in ((1, 7), (2, 3), (3, 2)):
        pieces = place.pieces(operands)
        assert pieces.shape == (count, operands, 64)
        pieces[:] += 1
        assert place.pool[: count * operands * 64].min() == 1  # each byte belongs to one piece
        assert place.pool.max() == 1
        place.pool[:] = 0


def test_kernels_are_measured_at_all_levels() -> None:
    sizes = ["--cache-size", "4K", "--piece-size", "64K", "--memory-size", "1M", "--rounds", "2"]
    done = bench("kernels", "-d", "float", "-o", "sum", *sizes, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == kernels.SCHEMA == "pccl.bench.kernels/1"
    levels = document["levels"]
    assert levels[0] == "scalar"
    assert [(row["kernel"], row["level"], row["reference"]) for row in document["rows"]] == [
        *(("sum", level, "add") for level in levels),
        *(("crc32c", level, "memcpy") for level in _kernels.checksum_levels()),
        *(("hash", level, "memcpy") for level in levels),
        ("copy", "best", "memcpy"),
    ]
    for row in document["rows"]:
        assert set(row["places"]) == {"cache", "memory"}
        for speed in row["places"].values():
            assert speed["gb_s"] > 0
            assert speed["reference_gb_s"] > 0
            assert len(speed["ratio"]["rounds"]) == 2
    lines = bench("kernels", "-d", "half", "-o", "max", *sizes).stdout.splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert [row[:4] for row in rows[: len(levels)]] == [["max", "half", name, "maximum"] for name in levels]


@pytest.mark.parametrize(
    "arguments",
    [["-d", "complex"], ["-o", "xor"], ["--cache-size", "12"], ["--piece-size", "1"], ["--rounds", "0"]],
)
def test_kernels_want_what_can_be_measured(arguments) -> None:
    with pytest.raises(SystemExit) as ended:
        kernels.main(arguments)
    assert ended.value.code == 2
