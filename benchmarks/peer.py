"""The processes of pccl that are measured: peers, and their master."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy

import pccl

from .control import serve
from .launch import BenchmarkError, Team, python_command
from .measure import MakeOp, Request, measure

__all__ = ["join", "make_op_of", "master_cpu_ns", "spawn_master", "spawn_peers"]

_PAUSE_S = 0.02


def join(
    master: str, world_size: int, streams: int, name: str, *, tcp_only: bool = False
) -> pccl.Communicator:
    """Connect, and let others in until the run has `world_size` peers."""
    communicator = pccl.Communicator(
        master, p2p_connection_pool_size=streams, name=name, tcp_only=tcp_only
    ).connect()
    while communicator.world_size < world_size:
        if communicator.world_size == 1:
            time.sleep(_PAUSE_S)
        communicator.update_topology()
    if communicator.world_size > world_size:
        raise BenchmarkError(f"the run has {communicator.world_size} peers instead of {world_size}")
    return communicator


def make_op_of(communicator: pccl.Communicator, request: Request) -> MakeOp:
    """How this peer runs one all-reduce, or as many at once as `request` says, over equal parts."""
    concurrent = request.concurrent
    options: Any = {"algorithm": request.algorithm, "early_return": request.early_return}

    def make_op(send: Any, recv: Any, redop: str) -> Callable[[], object]:
        target = None if recv is send else recv
        if concurrent == 1:
            return lambda: communicator.all_reduce(send, target, op=redop, **options)
        sends = numpy.split(send, concurrent)
        targets = [None] * concurrent if target is None else numpy.split(target, concurrent)

        def run() -> list[pccl.ReduceInfo]:
            handles = [
                communicator.all_reduce_async(source, result, op=redop, tag=tag, **options)
                for tag, (source, result) in enumerate(zip(sends, targets, strict=True))
            ]
            return [handle.result() for handle in handles]

        return run

    return make_op


def spawn_master(team: Team) -> str:
    """Start a master on a free port of the loopback interface, as a team of one; its address."""
    team.spawn(python_command("peer", "master", team.socket_path))
    team.wait_until_ready()
    return str(team.ask_all({})[0]["address"])


def master_cpu_ns(team: Team) -> int:
    """What a team of spawn_master() has used so far, in user and system."""
    return int(team.ask_all({})[0]["cpu_ns"])


def spawn_peers(team: Team, master: str, streams: int, *, tcp_only: bool) -> None:
    """Start one peer process per rank."""
    options = (team.world_size, master, streams, int(tcp_only))
    for rank in range(team.world_size):
        team.spawn(python_command("peer", "peer", team.socket_path, rank, *options))


def _serve_master(path: str) -> int:
    with pccl.MasterNode("127.0.0.1:0") as master:

        def answer(_: Any) -> Any:
            return {"address": master.address, "cpu_ns": time.process_time_ns()}

        return serve(path, 0, lambda: answer)


def _outlive(communicator: pccl.Communicator, world_size: int, size_bytes: int) -> Any:
    """All-reduce over and over until one has been committed without a peer that was lost, or this peer is
    told that it is alone. The answer is the time of CLOCK_MONOTONIC, which processes share."""
    ones = numpy.ones(max(1, size_bytes // 4), dtype=numpy.float32)
    result = numpy.empty_like(ones)
    while True:
        try:
            survivors = communicator.all_reduce(ones, result, retry=True).local_world_size
        except pccl.TooFewPeersError:
            return {"at_ns": time.monotonic_ns(), "survivors": 1}
        if survivors < world_size:
            at_ns = time.monotonic_ns()
            if numpy.any(result != survivors):
                raise BenchmarkError(f"the sum of {survivors} ones is wrong")
            return {"at_ns": at_ns, "survivors": survivors}


def _serve_peer(path: str, rank: int, world_size: int, master: str, streams: int, tcp_only: bool) -> int:
    def prepare() -> Callable[[Any], Any]:
        communicator = join(master, world_size, streams, f"bench-{rank}", tcp_only=tcp_only)

        def answer(request: Any) -> Any:
            if "outlive_bytes" in request:
                return _outlive(communicator, world_size, request["outlive_bytes"])
            batch = Request(**request)
            reply = measure(make_op_of(communicator, batch), batch, rank, world_size)
            return dataclasses.asdict(reply)

        return answer

    return serve(path, rank, prepare)


def _main(arguments: list[str]) -> int:
    if arguments[0] == "master":
        return _serve_master(arguments[1])
    path, rank, world_size, master, streams, tcp_only = arguments[1:]
    return _serve_peer(path, int(rank), int(world_size), master, int(streams), tcp_only == "1")


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
