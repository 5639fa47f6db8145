"""What else a user could pick, measured the same way. Each module of RIVALS has

    missing(world_size, datatype, redop) -> str | None    why it cannot be measured here, and what to do
    spawn(team)                                           start its processes
    connect(team)                                         what is left to do when all are ready
    encode(request)                                       a Request as its processes read it

and none of them is imported before it is asked for: their processes run these modules as programs.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["RIVALS", "load"]

RIVALS = {
    "gloo": "torch.distributed's gloo backend, in place; out of place is a copy and then in place",
    "mpi": "Open MPI over TCP",
    "raw": "as many bytes each way over one TCP connection, without any reduction: the limit for 2 peers",
}


def load(name: str) -> Any:
    """The module of a rival."""
    return importlib.import_module(f"{__name__}.{name}")
