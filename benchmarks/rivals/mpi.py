"""Open MPI over TCP: mpi.c, compiled when it is wanted."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ..launch import BenchmarkError, Team
from ..measure import Request

__all__ = ["connect", "encode", "missing", "spawn"]

_DATATYPES = frozenset(
    {"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float", "double"}
)
_REDOPS = ("sum", "prod", "max", "min")

_TCP_ONLY = (
    ("--mca", "pml", "ob1"),
    ("--mca", "btl", "tcp,self"),
    ("--mca", "btl_tcp_if_include", "lo"),
)


def missing(world_size: int, datatype: str, redop: str) -> str | None:
    for program in ("mpicc", "mpirun"):
        if shutil.which(program) is None:
            return f"mpi needs {program}: apt-get install openmpi-bin libopenmpi-dev"
    if redop not in _REDOPS:
        return f"mpi cannot {redop}: choose among {', '.join(_REDOPS)}"
    if datatype not in _DATATYPES:
        return f"mpi cannot reduce {datatype}"
    return None


def spawn(team: Team) -> None:
    program = team.directory / "mpi"
    compiled = subprocess.run(
        ["mpicc", "-std=c11", "-O2", "-o", program, Path(__file__).with_name("mpi.c")],
        capture_output=True,
        text=True,
        check=False,
    )
    if compiled.returncode != 0:
        raise BenchmarkError(f"mpi: mpicc failed:\n{compiled.stderr}")
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
    for words in _TCP_ONLY:
        command += words
    team.spawn([*command, "-n", str(team.world_size), str(program), team.socket_path])


def connect(team: Team) -> None:
    pass


def encode(request: Request) -> str:
    """Words that sscanf can read: the C program neither reads JSON nor checks results."""
    return (
        f"{request.count} {request.datatype} {request.redop} {int(request.in_place)} "
        f"{request.warmup} {request.iterations}"
    )
