"""The command line. Results on stdout, logs on stderr; exit status 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

__all__ = ["main"]

# `pccl bench NAME`: the module of pccl.benchmarks whose main(arguments) it is, and its line in the help.
BENCHMARKS = {
    "kernels": "reductions, checksum, hash and copy on one core, beside NumPy and memcpy",
    "p2p": "what the link between two peers carries, beside raw TCP",
    "allreduce": "all-reduce over sizes, in the columns of nccl-tests",
    "sync": "shared state to newcomers, beside what TCP carries",
    "recovery": "from the death of a peer to the survivors' next all-reduce",
}


def _parser() -> argparse.ArgumentParser:
    import argparse

    from . import __version__, master

    parser = argparse.ArgumentParser(prog="pccl", description="Fault-tolerant collective communication.")
    parser.add_argument("--version", action="version", version=f"pccl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    master.add_arguments(
        commands.add_parser(
            "master", help="run a master", description="Run a master until SIGINT or SIGTERM."
        )
    )
    # For the help; see main().
    commands.add_parser("bench", help="measure this machine or network")
    commands.add_parser("stress", help="churn on this machine, with every number checked")
    return parser


def _bench(arguments: list[str]) -> int:
    names = "\n".join(f"  {name:12}{text}" for name, text in BENCHMARKS.items())
    usage = f"usage: pccl bench NAME [OPTION ...]\n\n{names}\n\npccl bench NAME --help tells the options."
    if arguments[:1] in (["-h"], ["--help"]):
        print(usage)
        return 0
    if not arguments or arguments[0] not in BENCHMARKS:
        print(usage, file=sys.stderr)
        return 2
    return _optional(f"pccl.benchmarks.{arguments[0]}", "bench", arguments[1:])


def _optional(name: str, extra: str, arguments: list[str]) -> int:
    """The main() of a module that wants what pccl[extra] installs."""
    try:
        return int(importlib.import_module(name).main(arguments) or 0)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("pccl"):
            raise
        print(f"pccl {extra}: {error.name} is missing: pip install 'pccl[{extra}]'", file=sys.stderr)
        return 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["bench"]:  # each benchmark reads its own options, --help among them
        return _bench(words[1:])
    if words[:1] == ["stress"]:
        return _optional("pccl.stress.run", "stress", words[1:])
    options = _parser().parse_args(words)
    from .master import serve

    return serve(options.listen_address, options.run)
