"""pccl.benchmarks: exact operands, the numbers, and the commands from end to end."""

import dataclasses
import functools
import importlib.util
import io
import itertools
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from benching import SUMMARY_KEYS, bench, has_no, plan, printed_by_two
from in_process import in_threads
from pccl.benchmarks import (
    allreduce,
    contest,
    elements,
    pattern,
    recovery,
    summary,
    table,
)
from pccl.benchmarks.launch import BenchmarkError
from pccl.benchmarks.measure import Reply, Request, measure, measure_ops
from pccl.benchmarks.peer import make_op_of
from pccl.benchmarks.plan import Case, Row
from pccl.benchmarks.progress import Progress
from pccl.benchmarks.summary import Batch

import pccl

REDUCTIONS = {
    "sum": numpy.add,
    "prod": numpy.multiply,
    "max": numpy.maximum,
    "min": numpy.minimum,
    "avg": numpy.add,
}

# --- pattern: what is expected is exact, and what is not is counted ----------------------------------------


@pytest.mark.parametrize("redop", elements.ALL_REDOPS)
@pytest.mark.parametrize("datatype", elements.ALL_DATATYPES)
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 16])
def test_a_reduction_in_the_type_itself_is_exact(datatype, redop, world_size) -> None:
    operands = []
    for rank in range(world_size):
        array = numpy.empty(3 * pattern.PERIOD + 17, dtype=elements.numpy_dtype(datatype))
        pattern.fill(array, 7, rank, world_size, redop)
        operands.append(array)
    for order in (operands, operands[::-1]):
        result = functools.reduce(REDUCTIONS[redop], order)
        if redop == "avg":
            result = (result.astype(numpy.float64) / world_size).astype(result.dtype)
        assert pattern.count_wrong(result, 7, world_size, redop) == 0


def reduced(count: int = 5000, seed: int = 1) -> numpy.ndarray:
    result = numpy.zeros(count, dtype=numpy.float32)
    for rank in range(2):
        operand = numpy.empty_like(result)
        pattern.fill(operand, seed, rank, 2, "sum")
        result += operand
    return result


@pytest.mark.parametrize("places", [[0], [4999], [0, 1020, 1021, 4083, 4084]])
def test_each_wrong_element_is_counted(places) -> None:
    result = reduced()
    result[places] += 1
    assert pattern.count_wrong(result, 1, 2, "sum") == len(places)


def test_nan_is_wrong() -> None:
    result = reduced()
    result[10:13] = numpy.nan
    assert pattern.count_wrong(result, 1, 2, "sum") == 3


def test_a_chunk_in_the_wrong_place_is_wrong() -> None:
    result = reduced()
    result[:1024], result[1024:2048] = result[1024:2048].copy(), result[:1024].copy()
    assert pattern.count_wrong(result, 1, 2, "sum") > 1000


@pytest.mark.parametrize("redop", elements.ALL_REDOPS)
def test_a_missing_peer_is_noticed(redop) -> None:
    for left_out in range(3):
        operands = pattern.operands(5, 3, redop, signed=True)
        rest = functools.reduce(REDUCTIONS[redop], numpy.delete(operands, left_out, axis=0))
        if redop == "avg":
            rest //= 3
        assert pattern.count_wrong(rest.astype(numpy.float32), 5, 3, redop) > 100


def test_the_result_of_the_check_before_is_wrong() -> None:
    assert pattern.count_wrong(reduced(seed=1), 2, 2, "sum") > 1000


# --- measure -----------------------------------------------------------------------------------------------


def request(**changes) -> Request:
    fields = {
        "count": 3000,
        "datatype": "float",
        "redop": "sum",
        "in_place": False,
        "warmup": 2,
        "iterations": 5,
        "checks": 2,
        "seed": 1,
    }
    return Request(**{**fields, **changes})


def copying(spoil: int, calls: list[int]):
    """An all-reduce of one rank, that gets the first `spoil` elements wrong."""

    def make_op(send, recv, redop):
        def run() -> None:
            calls.append(1)
            if recv is not send:
                recv[:] = send
            recv[:spoil] += 1

        return run

    return make_op


@pytest.mark.parametrize("in_place", [False, True])
def test_measure_counts_a_planted_wrong_result(in_place) -> None:
    reply = measure(copying(3, []), request(in_place=in_place), 0, 1)
    assert reply.wrong == 2 * 3  # in both checks
    assert measure(copying(0, []), request(in_place=in_place), 0, 1).wrong == 0


def test_an_op_that_does_nothing_is_wrong_everywhere() -> None:
    reply = measure(lambda *_: lambda: None, request(), 0, 1)
    assert reply.wrong == 2 * 3000


def test_measure_times_what_it_is_asked_to() -> None:
    calls: list[int] = []
    reply = measure(copying(0, calls), request(checks=0), 0, 1)
    assert (len(reply.times_ns), len(calls), reply.wrong) == (5, 2 + 5, None)


def test_processor_time_is_that_of_all_threads_while_ops_are_timed() -> None:
    calls: list[int] = []

    def burn_in_a_thread() -> None:
        calls.append(1)
        if len(calls) > 2:  # behind the warm-up
            thread = threading.Thread(target=lambda: functools.reduce(int.__mul__, range(1, 3000)))
            thread.start()
            thread.join()

    busy = measure_ops(burn_in_a_thread, request(warmup=2, iterations=5)).cpu_ns
    idle = measure_ops(lambda: time.sleep(0.02), request(warmup=0, iterations=5)).cpu_ns
    assert 0 <= idle < busy


@pytest.mark.parametrize("in_place", [False, True])
def test_concurrent_ops_are_all_started_before_the_first_is_awaited(in_place) -> None:
    events: list[str] = []

    class Handle:
        def result(self) -> pccl.ReduceInfo:
            events.append("await")
            return pccl.ReduceInfo(1, 100, 100, "ring")

    class Peers:
        def all_reduce_async(self, send, recv, *, op, tag, algorithm, early_return) -> Handle:
            assert (send.size, algorithm, early_return) == (750, "ring", True)
            (send if recv is None else recv)[:] = send
            events.append(f"start {tag}")
            return Handle()

    asked = request(in_place=in_place, concurrent=4, checks=1, warmup=0, iterations=1, algorithm="ring")
    asked = dataclasses.replace(asked, early_return=True)
    reply = measure(
        make_op_of(Peers(), asked),
        asked,
        0,
        1,
    )
    assert events == [*(f"start {tag}" for tag in range(4)), *["await"] * 4] * 2
    assert reply.wrong == 0
    assert reply.wire_bytes == 4 * 100


# --- numbers and text --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("4K", 4096), ("64M", 64 << 20), ("2GiB", 2 << 30)])
def test_sizes_are_powers_of_1024(text, size) -> None:
    assert elements.size_bytes(text) == size


def test_sizes_grow_by_the_factor_up_to_the_last() -> None:
    assert elements.sizes(1000, 9000, 3) == [1000, 3000, 9000]
    assert elements.sizes(1000, 8999, 3) == [1000, 3000]


def test_bandwidths_are_those_of_nccl_tests() -> None:
    batches = [Batch([1e6], 0, 4e6), Batch([3e6], 0, 8e6)]  # 2 ms on average
    found = summary.summarize(batches, 4_000_000, 4)
    assert (found.time_us, found.algbw_gb_s, found.busbw_gb_s) == (2000.0, 2.0, 3.0)
    assert found.p50_us == 2000.0
    assert 2000.0 < found.p99_us <= 3000.0
    # 12 ms for two ops, in each of which the four send 6 MB each.
    assert found.cpu_s_per_gb == pytest.approx(0.012 / 0.048)


def test_the_ratio_compares_adjacent_batches() -> None:
    ours, theirs = [[10, 10, 99], [10, 20, 30]], [[20, 20, 20], [10, 10, 10]]
    found = summary.ratio_of_times(ours, theirs)
    assert found == summary.ratio(*([Batch(times, None, 0) for times in one] for one in (ours, theirs)))
    assert found.rounds == [2.0, 0.5]
    assert (found.median, found.lowest, found.highest) == (1.25, 0.5, 2.0)


def test_times_are_averaged_over_ranks_and_wrong_elements_added() -> None:
    assert Batch.of([Reply([10, 20], 1, 5), Reply([30, 40], 2, 6)]) == Batch([20, 30], 3, 11)
    assert Batch.of([Reply([1], None, 0)]).wrong is None
    assert Batch.of([Reply([1], None, 0, 50), Reply([1], None, 0, 70)]).wire_bytes == 120
    assert Batch.of([Reply([1], None, 0, 50), Reply([1], None, 0)]).wire_bytes is None


def test_the_parts_of_a_batch_are_one() -> None:
    parts = [Batch([1, 2], 3, 10), Batch([4], None, 20)]
    assert summary.joined(parts) == Batch([1, 2, 4], 3, 30)


def test_sizes_are_cut_to_whole_elements() -> None:
    cases = plan(sizes_bytes=[3, 9], datatypes=["float", "int8"]).cases()
    assert [(case.size_bytes, case.count, case.datatype) for case in cases] == [
        (8, 2, "float"),
        (3, 3, "int8"),
        (9, 9, "int8"),
    ]


def test_columns_stand_below_their_names() -> None:
    numbers = summary.summarize([Batch([1.5e6], None, 1e6)], 1024, 2)
    row = Row(Case(1024, 256, "float", "sum"), {"pccl": numbers}, {"pccl": numbers})
    names, units, line = *table.header(plan())[-2:], *table.row_lines(row, plan())
    for name in (
        "size",
        "count",
        "type",
        "redop",
        "root",
        "streams",
        "time",
        "p50",
        "p99",
        "algbw",
        "busbw",
        "cpu",
        "wire",
    ):
        end = names.index(f" {name} ") + len(name)
        assert line[end] != " ", name
        assert line[end + 1 : end + 2] in ("", " "), name
    assert len(line) == len(names) >= len(units)
    assert line.split()[-1] == "N/A"


@pytest.mark.parametrize(
    "arguments",
    [
        ["-b", "4X"],
        ["-b", "0"],
        ["-b", "8K", "-e", "4K"],
        ["-b", "1", "-e", "3"],
        ["-f", "1"],
        ["-d", "complex"],
        ["-o", "xor"],
        ["--peers", "1"],
        ["--streams", "65"],
        ["--versus", "nobody"],
        ["--algorithm", "magic"],
        ["--versus", "raw,raw"],
        ["--master", "127.0.0.1:1", "--versus", "raw"],
        ["--concurrent", "0"],
        ["--concurrent", "1025"],
        ["--concurrent", "4", "--versus", "raw"],
        ["--concurrent", "4", "--master", "127.0.0.1:1"],
    ],
)
def test_wrong_usage_ends_with_2(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        allreduce.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().out == ""


def test_wrong_results_end_with_1(monkeypatch, capsys) -> None:
    right, wrong = (summary.summarize([Batch([1000], count, 0)], 1024, 2) for count in (0, 3))
    rows = [Row(Case(1024, 256, "float", "sum"), {"pccl": right}, {"pccl": wrong})]
    monkeypatch.setattr(contest, "run_contest", lambda *_: iter(rows))
    assert allreduce.main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out)["wrong"] == 3
    assert allreduce.main([]) == 1
    assert "# Out of bounds values : 3 FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rival", "lacks", "command"),
    [("gloo", "torch", "pip install torch"), ("mpi", "mpicc", "apt-get install openmpi-bin")],
)
def test_an_absent_rival_is_an_error_that_says_what_to_install(
    rival, lacks, command, monkeypatch, capsys
) -> None:
    find_spec, which = importlib.util.find_spec, shutil.which
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == lacks else find_spec(name))
    monkeypatch.setattr(shutil, "which", lambda name: None if name == lacks else which(name))
    assert allreduce.main(["--versus", rival]) == 1
    assert command in capsys.readouterr().err


def test_raw_is_for_two() -> None:
    with pytest.raises(BenchmarkError, match="--peers 2"):
        contest.expect_rivals(plan(world_size=3, rivals=["raw"]))


class Answering:
    """A team that has these answers, one after the other."""

    def __init__(self, *answers: list[Any]) -> None:
        self._answers = iter(answers)

    def ask_all(self, _: Any) -> list[Any]:
        return next(self._answers)


def test_the_master_counts_with_its_part_of_the_timed_ops() -> None:
    peers = [{"times_ns": [10, 20, 30], "wrong": 0, "cpu_ns": cpu_ns} for cpu_ns in (5, 6)]
    asked = request(checks=1, warmup=2, iterations=3)
    master = Answering([{"cpu_ns": 100}], [{"cpu_ns": 700}])
    assert contest._ask(Answering(peers), asked, master=master) == Batch([10, 20, 30], 0, 11 + 300)
    assert contest._ask(Answering(peers), asked) == Batch([10, 20, 30], 0, 11)


# --- a batch of some seconds -------------------------------------------------------------------------------


def rows_in_seconds(op_ns: Callable[[int], float], seconds: float) -> tuple[list[Row], list[Request]]:
    """Rows of a contestant whose n-th op takes op_ns(n), and what it was asked for."""
    requests: list[Request] = []
    count = itertools.count()

    def run(asked: Request) -> Batch:
        requests.append(asked)
        return Batch([op_ns(next(count)) for _ in range(asked.iterations)], 0 if asked.checks else None, 1)

    one = plan(seconds=seconds, warmup=2, in_place=False)
    rows = list(contest._Contest(one, {"pccl": run}, Progress(io.StringIO())).rows())
    return rows, requests


def test_a_batch_takes_its_seconds() -> None:
    ((row,), requests) = rows_in_seconds(lambda _: 1e6, 0.1)
    assert sum(asked.iterations for asked in requests) == 100
    assert (row.out_of_place["pccl"].time_us, row.out_of_place["pccl"].wrong) == (1000, 0)
    assert row.in_place == {}
    # Warm-up and checks come once, before all.
    assert [(asked.warmup, asked.checks) for asked in requests[:2]] == [(2, 1), (0, 0)]


def test_ops_that_become_slow_do_not_take_for_ever() -> None:
    _, requests = rows_in_seconds(lambda n: 1e3 if n < 50 else 1e8, 1)
    assert max(asked.iterations for asked in requests) <= contest._MOST_ITERATIONS
    assert len(requests) < 20


def test_one_slow_op_is_enough() -> None:
    _, requests = rows_in_seconds(lambda _: 1e9, 0.5)
    assert [asked.iterations for asked in requests] == [contest._FIRST_ITERATIONS]


# --- from end to end ---------------------------------------------------------------------------------------

TINY = ["-b", "1K", "-e", "64K", "-f", "64", "-n", "3", "-w", "1"]


def test_json_has_its_schema() -> None:
    done = bench("allreduce", *TINY, "-o", "avg", "--streams", "2", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == table.SCHEMA == "pccl.bench.allreduce/1"
    assert (document["peers"], document["streams"], document["wrong"]) == (2, 2, 0)
    assert [row["size_bytes"] for row in document["rows"]] == [1024, 65536]
    assert document["average_busbw_gb_s"] > 0
    for row in document["rows"]:
        assert (row["count"], row["datatype"], row["redop"], row["root"]) == (
            row["size_bytes"] // 4,
            "float",
            "avg",
            -1,
        )
        (system,) = row["systems"]
        assert system["system"] == "pccl"
        for mode in (system["out_of_place"], system["in_place"]):
            assert set(mode) == SUMMARY_KEYS
            assert mode["cpu_s_per_gb"] > 0
            assert mode["wrong"] == 0
            assert 0 < mode["p50_us"] <= mode["p99_us"]


def test_every_type_and_op_is_right_among_three_peers() -> None:
    done = bench(
        "allreduce", "-b", "5K", "-e", "5K", "-n", "1", "-d", "all", "-o", "all", "--peers", "3", "--json"
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {(row["datatype"], row["redop"]) for row in document["rows"]} == {
        (datatype, redop) for datatype in elements.ALL_DATATYPES for redop in elements.ALL_REDOPS
    }
    assert document["wrong"] == 0


def test_the_table_goes_to_stdout_and_logs_do_not() -> None:
    done = bench("allreduce", *TINY)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]
    assert [row[:6] for row in rows] == [
        ["1024", "256", "float", "sum", "-1", "default"],
        ["65536", "16384", "float", "sum", "-1", "default"],
    ]
    assert "# Out of bounds values : 0 OK" in done.stdout


@pytest.mark.parametrize("rival", ["raw", "gloo", "mpi"])
def test_a_rival_takes_turns_and_is_compared(rival) -> None:
    if has_no(rival):
        pytest.skip(f"{rival} is not installed")
    done = bench("allreduce", "-b", "2M", "-e", "2M", "-n", "2", "--versus", rival, "--rounds", "3", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert [system["system"] for system in row["systems"]] == ["pccl", rival]
    (compared,) = row["ratios"]
    assert compared["rival"] == rival
    for mode in (compared["out_of_place"], compared["in_place"]):
        assert len(mode["rounds"]) == 3
        assert 0 < mode["lowest"] <= mode["median"] <= mode["highest"]
    checked = row["systems"][1]["in_place"]["wrong"]
    assert checked == (0 if rival == "gloo" else None)
    assert all(system["in_place"]["cpu_s_per_gb"] > 0 for system in row["systems"])


def test_ops_at_once_are_compared_with_one_op_of_their_size() -> None:
    done = bench(
        "allreduce", "-b", "256K", "-e", "256K", "-n", "2", "--concurrent", "8", "--rounds", "3", "--json"
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["concurrent"], document["wrong"]) == (8, 0)
    (row,) = document["rows"]
    assert (row["size_bytes"], row["count"]) == (256 << 10, 64 << 10)
    assert [system["system"] for system in row["systems"]] == ["pccl", "one-op"]
    (compared,) = row["ratios"]
    assert compared["rival"] == "one-op"
    for system in row["systems"]:
        mode = system["in_place"]
        assert mode["algbw_gb_s"] == pytest.approx((8 * 256 << 10) / (mode["time_us"] * 1e3))


def test_the_algorithm_is_that_which_is_asked_for() -> None:
    asked = ["-b", "4K", "-e", "4K", "-n", "2", "--peers", "3", "--json"]
    printed = [bench("allreduce", *asked, "--algorithm", name).stdout for name in ("ring", "tree")]
    documents = list(map(json.loads, printed))
    assert [document["algorithm"] for document in documents] == ["ring", "tree"]
    assert [document["wrong"] for document in documents] == [0, 0]


@pytest.mark.parametrize("algorithm", ["ring", "tree"])
def test_each_op_takes_the_algorithm(algorithm, pair) -> None:
    asked = request(count=1000, algorithm=algorithm)
    taken: list[str] = []

    def run(rank: int) -> Any:
        send = numpy.ones(asked.count, dtype=numpy.float32)
        info = make_op_of(pair[rank], asked)(send, send, "sum")()
        taken.append(info.algorithm)
        return send

    for result in in_threads(*(functools.partial(run, rank) for rank in range(2))):
        assert (result == 2).all()
    assert taken == [algorithm] * 2


def test_peers_join_a_run_and_rank_0_prints(master) -> None:
    command = [sys.executable, "-m", "pccl", "bench", "allreduce", *TINY, "--json"]
    (document,) = printed_by_two([*command, "--master", master.address])
    assert document["peers"] == 2
    assert document["wrong"] == 0
    assert len(document["rows"]) == 2
    assert all(row["systems"][0]["in_place"]["cpu_s_per_gb"] > 0 for row in document["rows"])


def test_a_master_that_is_not_there_ends_with_1() -> None:
    done = bench("allreduce", *TINY, "--master", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "127.0.0.1:1" in done.stderr


def test_recovery_is_measured() -> None:
    done = bench("recovery", "--peers", "2,3", "--repetitions", "1", "--size", "64K", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == recovery.SCHEMA == "pccl.bench.recovery/1"
    assert [(row["system"], row["peers"], row["event"]) for row in document["rows"]] == [
        ("pccl", 2, "alone"),
        ("pccl", 3, "recovered"),
    ]
    for row in document["rows"]:
        assert len(row["times_s"]) == 1
        assert row["times_s"][0] > 0


@pytest.mark.parametrize("peers", ["1", "9", "x", "2,,3"])
def test_recovery_wants_2_to_8_peers(peers) -> None:
    with pytest.raises(SystemExit) as ended:
        recovery.main(["--peers", peers])
    assert ended.value.code == 2
