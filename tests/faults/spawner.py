"""Starts the processes: one server that has imported everything and forks, so that a peer costs milliseconds.

The test holds one end of a socket pair; each request is a JSON object with two file descriptors, that of the
commands and that of the log, and is answered with the process id.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG = 1
CLONE_NEWNET = 0x40000000
REQUEST_BYTES = 4096


class Spawner:
    """The test's side."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PCCL_LOG_LEVEL": "INFO"}
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(TESTS), *filter(None, [environment.get("PYTHONPATH")])]
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.spawner", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            cwd="/",  # so that pccl is the one that is installed
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        mine.settimeout(60)
        self._socket = mine

    def spawn(self, request: dict[str, Any], commands: int, log: int) -> int:
        """Fork a process that serves `request`; its id."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], [commands, log])
        answer = self._socket.recv(REQUEST_BYTES)
        assert answer, "the process that forks has ended"
        return int(answer)

    def close(self) -> None:
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
            return
        self._process.kill()
        self._process.wait()


_spawner: Spawner | None = None


def spawner() -> Spawner:
    """The one of this test session."""
    global _spawner
    if _spawner is None:
        _spawner = Spawner()
        atexit.register(_spawner.close)
    return _spawner


def main() -> None:
    """The server's side."""
    import numpy  # noqa: F401

    from . import peer  # noqa: F401

    requests = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 2)
        if not data:
            return
        child = os.fork()
        if child == 0:
            requests.close()
            _become(json.loads(data), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(str(child).encode())


def _become(request: dict[str, Any], commands: int, log: int) -> None:
    """In the child. Does not return."""
    status = 1
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(log, 2)
        os.dup2(log, 1)
        os.close(log)
        faulthandler.enable()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if request.get("netns"):
            with open(f"/run/netns/{request['netns']}") as file:  # noqa: PTH123
                if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
        if request["role"] == "master":
            from pccl.master import serve as serve_master

            status = serve_master(request["listen"])
        else:
            from .peer import serve as serve_peer

            serve_peer(request["seed"], request["index"], socket.socket(fileno=commands))
            status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
