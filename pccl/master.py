"""The master as a program: `pccl master`, or `python -m pccl.master --listen-address host:port`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from ._errors import PCCLError
from ._master import MasterNode

if TYPE_CHECKING:
    import argparse

__all__ = ["MasterNode", "main"]

DEFAULT_LISTEN_ADDRESS = "0.0.0.0:48148"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `pccl master`."""
    parser.add_argument(
        "--listen-address",
        default=DEFAULT_LISTEN_ADDRESS,
        metavar="HOST:PORT",
        help="where to listen, [HOST]:PORT for IPv6; port 0 picks a free one (default: %(default)s)",
    )
    parser.add_argument(
        "--run",
        metavar="NAME",
        help="let in only peers of this run (default: PCCL_RUN, else the run of the first peer)",
    )


def serve(listen_address: str, run: str | None = None) -> int:
    """Run a master until SIGINT or SIGTERM. Returns the exit status."""
    # Whoever starts a master by hand wants to see who joins and leaves. The level is read at the first line.
    os.environ.setdefault("PCCL_LOG_LEVEL", "INFO")
    stopped = threading.Event()
    try:
        master = MasterNode(listen_address, run=run)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: master.interrupt())
        master.run()
    except (PCCLError, ValueError) as error:
        print(f"pccl master: {error}", file=sys.stderr)
        return 1 if isinstance(error, PCCLError) else 2
    print(f"pccl master: listening on {master.address}", file=sys.stderr, flush=True)

    def wait() -> None:
        master.wait()
        stopped.set()

    threading.Thread(target=wait, name="pccl-master-wait", daemon=True).start()
    stopped.wait()
    print("pccl master: stopped", file=sys.stderr)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """`python -m pccl.master`."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m pccl.master", description="Run a master.")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    return serve(options.listen_address, options.run)


if __name__ == "__main__":
    sys.exit(main())
