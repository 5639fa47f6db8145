"""The master, run inside this process."""

from __future__ import annotations

import os
import weakref
from types import TracebackType
from typing import Any

from ._address import format_address, resolve
from ._arguments import c_string
from ._enums import Result
from ._errors import check
from ._exit import add_master, forget_master
from ._native import ffi, lib

__all__ = ["MasterNode"]

_SECONDS_BETWEEN_SIGNALS = 0.05


def _destroy(master: Any, process_id: int) -> None:
    # A forked child has a copy of the handle but none of its threads.
    if os.getpid() == process_id:
        lib.pcclDestroyMaster(master)


class MasterNode:
    """Decides who is in. One per run; never touches the peers' arrays.

        with pccl.MasterNode("0.0.0.0:48148") as master:
            ...

    listen_address: in use from here on; port 0 picks a free one (see `port`).
    run: the name of the only run to serve, at most 63 bytes; None: PCCL_RUN of the environment, else none.
        Then the first peer decides which run it is, or that it has no name, until all have left. Peers of
        another run get a RefusedError.

    One that runs does so until it is interrupted, whatever becomes of this object: a script whose last line
    is run() serves until Ctrl-C.
    """

    def __init__(self, listen_address: str, *, run: str | None = None) -> None:
        params = ffi.new("pcclMasterCreateParams_t *")
        params.listen_address = resolve(listen_address, Result.INVALID_ARGUMENT)[0]
        params.run = run_name = c_string(run, "run")
        check(lib.pcclInit())
        handle = ffi.new("pcclMasterInstance_t **")
        check(lib.pcclCreateMasterWithParams(params, handle))
        del run_name  # it has been copied
        self._master = handle[0]
        self._process_id = os.getpid()
        self._alive = weakref.finalize(self, _destroy, self._master, self._process_id)
        self._interrupted = False
        bound = ffi.new("ccoip_socket_address_t *")
        check(lib.pcclMasterGetAddress(self._master, bound))
        self._address = format_address(bound)
        self._port = int(bound.port)

    @property
    def address(self) -> str:
        """Where it listens, such as "127.0.0.1:48148"."""
        return self._address

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    def run(self) -> None:
        """Start serving, in a thread of its own. Does not block; from here on the process lives until
        interrupt() is called, or its main thread ends by an exception."""
        check(lib.pcclRunMaster(self._master))
        if not self._interrupted:
            add_master(self)

    def interrupt(self) -> None:
        """Ask it to stop. Does not block; may be called in a signal handler."""
        self._interrupted = True
        forget_master(self)
        if os.getpid() == self._process_id and self._alive.alive:
            check(lib.pcclInterruptMaster(self._master))

    def wait(self) -> None:
        """Block until it has stopped. Ctrl-C and other signal handlers have their turn meanwhile."""
        while not self.has_ended(_SECONDS_BETWEEN_SIGNALS):
            pass

    def has_ended(self, seconds: float = 0) -> bool:
        """Whether it has stopped; waits for that no longer than `seconds`."""
        if os.getpid() != self._process_id:
            return True
        ended = ffi.new("bool *")
        check(lib.pcclMasterAwaitTerminationFor(self._master, int(seconds * 1000), ended))
        return bool(ended[0])

    def __enter__(self) -> MasterNode:
        self.run()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.interrupt()
        self.wait()
