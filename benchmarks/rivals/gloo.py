"""Gloo, as torch.distributed ships it, over the loopback interface."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from ..control import serve
from ..launch import Team, python_command
from ..measure import Request, measure

__all__ = ["TIMEOUT_S", "connect", "encode", "init_process_group", "missing", "spawn"]

# As long as pccl waits for a sign of life. Torch's own default is 30 minutes.
TIMEOUT_S = 10

_REDOPS = {"sum": "SUM", "prod": "PRODUCT", "max": "MAX", "min": "MIN"}


def missing(world_size: int, datatype: str, redop: str) -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "gloo needs torch: pip install torch==2.13.0"
    if redop not in _REDOPS:
        return f"gloo cannot {redop}: choose among {', '.join(_REDOPS)}"
    if datatype in ("int16", "uint16", "uint32", "uint64"):
        return f"gloo cannot reduce {datatype}"
    return None


def spawn(team: Team) -> None:
    for rank in range(team.world_size):
        team.spawn(
            python_command(
                "rivals.gloo", team.socket_path, rank, team.world_size, team.directory / "rendezvous"
            ),
            {"GLOO_SOCKET_IFNAME": "lo"},
        )


def connect(team: Team) -> None:
    pass


def encode(request: Request) -> Any:
    return dataclasses.asdict(request)


def init_process_group(rank: int, world_size: int, rendezvous: str) -> None:
    """Join the gloo group that meets at the file `rendezvous`."""
    import torch.distributed as dist

    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=TIMEOUT_S),
    )


def _tensor(array: Any) -> Any:
    import torch

    if array.dtype.name == "bfloat16":  # torch does not know ml_dtypes
        return torch.from_numpy(array.view("uint16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def _make_op(send: Any, recv: Any, redop: str) -> Callable[[], object]:
    import torch.distributed as dist

    source, target, op = _tensor(send), _tensor(recv), getattr(dist.ReduceOp, _REDOPS[redop])
    if recv is send:
        return lambda: dist.all_reduce(target, op)

    def copy_and_reduce() -> None:
        target.copy_(source)
        dist.all_reduce(target, op)

    return copy_and_reduce


def _notice(size_bytes: int) -> Any:
    """All-reduce over and over until one fails; the answer is the time of CLOCK_MONOTONIC."""
    import torch
    import torch.distributed as dist

    tensor = torch.zeros(max(1, size_bytes // 4))
    try:
        while True:
            dist.all_reduce(tensor)
    except RuntimeError:
        return {"at_ns": time.monotonic_ns()}


def _main(path: str, rank: int, world_size: int, rendezvous: str) -> int:
    def prepare() -> Callable[[Any], Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about its dependencies
            init_process_group(rank, world_size, rendezvous)

        def answer(request: Any) -> Any:
            if "outlive_bytes" in request:
                return _notice(request["outlive_bytes"])
            return dataclasses.asdict(measure(_make_op, Request(**request), rank, world_size))

        return answer

    return serve(path, rank, prepare)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
