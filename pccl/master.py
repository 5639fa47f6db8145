"""The master as a program: `pccl master`, `pccl_master`, or `python -m pccl.master`."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from ._errors import PCCLError
from ._log import say
from ._master import MasterNode

if TYPE_CHECKING:
    import argparse

__all__ = ["MasterNode", "main"]

DEFAULT_LISTEN_ADDRESS = "0.0.0.0:48148"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
    """Run a master until SIGINT or SIGTERM. Returns the exit status: 0 if it has served, whether or not
    somebody has read its log; 1 if it could not, 2 if the address is none."""
    # Whoever starts a master by hand wants to see who joins and leaves. The level is read at the first line.
    os.environ.setdefault("PCCL_LOG_LEVEL", "INFO")
    try:
        master = MasterNode(listen_address, run=run)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: master.interrupt())
        master.run()
    except (PCCLError, ValueError) as error:
        say(logging.ERROR, "master", str(error))
        return 1 if isinstance(error, PCCLError) else 2
    say(logging.INFO, "master", f"listening on {master.address}")
    master.wait()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # it ends already, and has ended well
    say(logging.INFO, "master", "stopped")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """`python -m pccl.master` and `pccl_master`."""
    import argparse
    from pathlib import Path

    name = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(
        prog="python -m pccl.master" if name == "master.py" else name, description="Run a master."
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    return serve(options.listen_address, options.run)


if __name__ == "__main__":
    sys.exit(main())
