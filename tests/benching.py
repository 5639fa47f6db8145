"""What the tests of pccl.benchmarks share."""

import importlib.util
import json
import shutil
import subprocess
import sys
from typing import Any

from pccl.benchmarks import summary
from pccl.benchmarks.plan import Case, Plan, Row
from pccl.benchmarks.summary import Batch

SUMMARY_KEYS = {
    "time_us",
    "p50_us",
    "p99_us",
    "algbw_gb_s",
    "busbw_gb_s",
    "cpu_s_per_gb",
    "wire_bytes",
    "wrong",
}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pccl", "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def printed_by_two(command: list[str]) -> list[Any]:
    """Runs it twice at once; the documents that they print."""
    peers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        printed = [peer.communicate(timeout=120)[0] for peer in peers]
    finally:
        for peer in peers:
            peer.kill()
            peer.wait()
    assert [peer.returncode for peer in peers] == [0, 0]
    return [json.loads(text) for text in printed if text]


def has_no(rival: str) -> bool:
    return {
        "gloo": importlib.util.find_spec("torch") is None,
        "mpi": shutil.which("mpirun") is None or shutil.which("mpicc") is None,
        "raw": False,
    }[rival]


def plan(**changes) -> Plan:
    fields = {
        "world_size": 2,
        "streams": 0,
        "sizes_bytes": [1024],
        "datatypes": ["float"],
        "redops": ["sum"],
        "iterations": 1,
        "warmup": 0,
        "checks": 1,
        "rounds": 1,
        "rivals": [],
    }
    return Plan(**{**fields, **changes})


def rows_of(*sizes: int, rivals: tuple[str, ...] = ("gloo",)) -> list[Row]:
    """As measured, with times of nobody."""
    found = []
    for size in sizes:
        modes = [
            {
                name: summary.summarize([Batch([size * (2.0 + i)], None, 1e6)], size, 2)
                for i, name in enumerate(("pccl", *rivals))
            }
            for _ in range(2)
        ]
        ratios = {name: summary.ratio_of_times([[1]], [[2]]) for name in rivals}
        found.append(Row(Case(size, size // 4, "float", "sum"), *modes, ratios, ratios))
    return found
