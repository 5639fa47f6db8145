"""`pccl bench sync`: shared state to newcomers, beside what TCP carries, and between peers that are equal.

Run with arguments of its own, this module is one of the processes that are measured.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy

import pccl

from . import loopback
from .command import exit_status, new_parser, whole_number
from .control import serve
from .elements import size_bytes
from .launch import BenchmarkError, Team, python_command
from .peer import join, spawn_master

__all__ = ["main"]

SCHEMA = "pccl.bench.sync/1"
_DESCRIPTION = """\
Measure sync_shared_state on this machine, with one tensor of --size bytes in each process. Transfers: from
the moment that the differences are known until the last byte is right, and the whole call, hashing included,
in GB/s for each newcomer. raw is one TCP connection between the same processes in the same run, user memory
to user memory. Exit status: 0 done, 1 failed, 2 wrong usage."""

# Holders and newcomers.
_SCENARIOS = ((1, 1), (2, 1), (4, 1), (1, 3))
_WRITE_BYTES = 256 << 10


@dataclass(frozen=True)
class Transfer:
    """Medians over the rounds; GB/s of each newcomer, and of the raw connection."""

    holders: int
    newcomers: int
    transfer_gbs: float
    call_gbs: float
    raw_gbs: float

    @property
    def together(self) -> float:
        """What all newcomers get together, as a part of the raw limit."""
        return self.transfer_gbs * self.newcomers / self.raw_gbs


@dataclass(frozen=True)
class Equal:
    """Two peers with equal states: seconds of hashing and of the call; memory speed beside it."""

    hash_s: float
    call_s: float
    hash_gbs: float
    copy_gbs: float

    @property
    def ratio(self) -> float:
        return self.call_s / self.hash_s


# --- the processes that are measured -----------------------------------------------------------------------


class _Worker:
    def __init__(self, communicator: pccl.Communicator, size: int) -> None:
        self._communicator = communicator
        self._array = numpy.zeros(size, numpy.uint8)
        self._state = pccl.SharedState({"w": self._array})
        self._listener: socket.socket | None = None
        self._socket: socket.socket | None = None

    def answer(self, request: Any) -> Any:
        return getattr(self, request.pop("do"))(**request)

    def fill(self, value: int, revision: int) -> Any:
        self._array[:] = value
        self._state.revision = revision
        return {}

    def sync(self) -> Any:
        moments: dict[str, list[float]] = {}
        begin = time.perf_counter()
        info = self._communicator.sync_shared_state(
            self._state,
            progress=lambda step: moments.setdefault(step.phase.name, []).append(time.perf_counter()),
        )
        call_s = time.perf_counter() - begin
        receiving = moments.get("RECEIVING", [0.0])
        return {
            "call_s": call_s,
            "hash_s": moments["HASHING"][-1] - begin,
            "transfer_s": receiving[-1] - receiving[0],
            "rx_bytes": info.rx_bytes,
            "value": int(self._array[0]),
            "uniform": bool((self._array == self._array[0]).all()),
        }

    def copy(self) -> Any:
        target = numpy.ones_like(self._array)  # its pages are there
        begin = time.perf_counter()
        numpy.copyto(target, self._array)
        return {"seconds": time.perf_counter() - begin}

    def listen(self) -> Any:
        self._listener, port = loopback.listen()
        return {"port": port}

    def accept(self) -> Any:
        assert self._listener is not None
        self._socket = loopback.accept(self._listener)
        return {}

    def connect(self, port: int) -> Any:
        self._socket = loopback.connect(port)
        return {}

    def send(self) -> Any:
        assert self._socket is not None
        view = self._array.data
        for start in range(0, len(view), _WRITE_BYTES):
            self._socket.sendall(view[start : start + _WRITE_BYTES])
        return {}

    def receive(self) -> Any:
        assert self._socket is not None
        view, received = self._array.data, 0
        begin = time.perf_counter()
        while received < len(view):
            n = self._socket.recv_into(view[received : received + _WRITE_BYTES])
            if n == 0:
                raise ConnectionError("the other process is gone")
            received += n
        return {"seconds": time.perf_counter() - begin}


def _serve(path: str, rank: int, world_size: int, master: str, streams: int, size: int) -> int:
    def prepare() -> Callable[[Any], Any]:
        return _Worker(join(master, world_size, streams, f"sync-{rank}"), size).answer

    return serve(path, rank, prepare)


# --- the process that measures -----------------------------------------------------------------------------


def _raw_seconds(team: Team) -> float:
    team.ask(0, {"do": "send"})
    team.ask(1, {"do": "receive"})
    return float(team.receive_all([0, 1])[1]["seconds"])


def _connect_raw(team: Team) -> None:
    team.ask(0, {"do": "listen"})
    port = team.receive_all([0])[0]["port"]
    team.ask(0, {"do": "accept"})
    team.ask(1, {"do": "connect", "port": port})
    team.receive_all([0, 1])


def _sync(team: Team, values: Sequence[int], revisions: Sequence[int]) -> list[Any]:
    """One sync, in which the value of the newest revision must win."""
    for rank, (value, revision) in enumerate(zip(values, revisions, strict=True)):
        team.ask(rank, {"do": "fill", "value": value, "revision": revision})
    team.receive_all(range(team.world_size))
    answers = team.ask_all({"do": "sync"})
    if any(answer["value"] != values[0] or not answer["uniform"] for answer in answers):
        raise BenchmarkError("wrong bytes after a sync")
    return answers


def _measure_transfer(team: Team, holders: int, newcomers: int, size: int, rounds: int) -> Transfer:
    _connect_raw(team)
    transfers, calls, raws = [], [], []
    for turn in range(1, rounds + 2):
        values = [turn] * holders + [100 + turn] * newcomers
        answers = _sync(team, values, [turn] * holders + [0] * newcomers)[holders:]
        raw_s = _raw_seconds(team)
        if turn == 1:  # windows and pages are cold
            continue
        transfers += [size / answer["transfer_s"] / 1e9 for answer in answers]
        calls += [size / answer["call_s"] / 1e9 for answer in answers]
        raws.append(size / raw_s / 1e9)
    median = statistics.median
    return Transfer(holders, newcomers, median(transfers), median(calls), median(raws))


def _measure_equal(team: Team, size: int, rounds: int) -> Equal:
    answers, copies = [], []
    for revision in range(rounds + 2, 2 * rounds + 2):  # behind those of the transfers
        answers += _sync(team, [7, 7], [revision, revision])
        copies += [answer["seconds"] for answer in team.ask_all({"do": "copy"})]
    hash_s = statistics.median(answer["hash_s"] for answer in answers)
    call_s = statistics.median(answer["call_s"] for answer in answers)
    return Equal(hash_s, call_s, size / hash_s / 1e9, size / min(copies) / 1e9)


def _team(
    master: str, holders: int, newcomers: int, options: argparse.Namespace, folder: Path
) -> tuple[Team, int]:
    world_size = holders + newcomers
    team = Team(f"{holders} to {newcomers}", world_size, folder, options.timeout)
    for rank in range(world_size):
        team.spawn(
            python_command("sync", team.socket_path, rank, world_size, master, options.streams, options.size)
        )
    return team, world_size


def _run(options: argparse.Namespace) -> tuple[list[Transfer], Equal | None]:
    transfers: list[Transfer] = []
    equal = None
    with tempfile.TemporaryDirectory(prefix="pccl-bench-") as name:
        for index, (holders, newcomers) in enumerate(_SCENARIOS):
            master_folder, folder = Path(name, f"m{index}"), Path(name, f"t{index}")
            master_folder.mkdir()
            folder.mkdir()
            with Team("master", 1, master_folder, options.timeout) as masters:
                master = spawn_master(masters)
                team, _ = _team(master, holders, newcomers, options, folder)
                with team:
                    team.wait_until_ready()
                    transfers.append(
                        _measure_transfer(team, holders, newcomers, options.size, options.rounds)
                    )
                    if (holders, newcomers) == (1, 1):
                        equal = _measure_equal(team, options.size, options.rounds)
    return transfers, equal


def _print(transfers: Sequence[Transfer], equal: Equal | None, size: int) -> None:
    print(f"# state of {size} bytes in each process; GB/s = 1e9 bytes/s for each newcomer")
    print(f"{'holders':>8}{'newcomers':>11}{'transfer':>10}{'call':>8}{'raw TCP':>9}{'together/raw':>14}")
    for one in transfers:
        print(
            f"{one.holders:8}{one.newcomers:11}{one.transfer_gbs:10.2f}{one.call_gbs:8.2f}{one.raw_gbs:9.2f}"
            f"{one.together:14.2f}"
        )
    if equal is not None:
        print(
            f"# equal states of 2 peers: call {equal.call_s * 1e3:.1f} ms = {equal.ratio:.2f} x hashing "
            f"({equal.hash_gbs:.1f} GB/s each; copying memory {equal.copy_gbs:.1f} GB/s each)"
        )


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("sync", _DESCRIPTION)
    add = parser.add_argument
    add("-s", "--size", type=size_bytes, default="1G", metavar="SIZE", help="of the state (default 1G)")
    add(
        "--streams",
        type=whole_number(0, 64),
        default=0,
        metavar="N",
        help="TCP connections per newcomer (0: default)",
    )
    add("--rounds", type=whole_number(1), default=3, metavar="N", help="timed rounds (default 3)")
    add("--timeout", type=float, default=300, metavar="SECONDS", help="for one round (default 300)")
    add("--json", action="store_true", help=f"one document, {SCHEMA}, instead of tables")
    return parser


def main(arguments: list[str]) -> int:
    """Run it with the words behind `pccl bench sync`; the exit status."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: _measure_and_print(options))


def _measure_and_print(options: argparse.Namespace) -> int:
    transfers, equal = _run(options)
    if options.json:
        rows = [asdict(one) | {"together": one.together} for one in transfers]
        document = {
            "schema": SCHEMA,
            "version": pccl.__version__,
            "size_bytes": options.size,
            "transfers": rows,
            "equal": None if equal is None else asdict(equal) | {"ratio": equal.ratio},
        }
        print(json.dumps(document, indent=1))
    else:
        _print(transfers, equal, options.size)
    return 0


if __name__ == "__main__":
    _path, _rank, _world, _master, _streams, _size = sys.argv[1:]
    sys.exit(_serve(_path, int(_rank), int(_world), _master, int(_streams), int(_size)))
