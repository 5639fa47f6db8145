"""Commands of a peer that has many ops in flight at once."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import pccl

from .data import contribution, digest

if TYPE_CHECKING:
    from .peer import Op

Command = dict[str, Any]
Answer = dict[str, Any]


class ManyCommands:
    seed: int
    index: int
    communicator: pccl.Communicator
    _started: dict[str, tuple[Op, pccl.AsyncReduceHandle]]

    def do_start(self, command: Command) -> None:
        raise NotImplementedError

    def do_await(self, command: Command) -> Answer:
        raise NotImplementedError

    def do_launch(self, command: Command) -> None:
        """Start the `ops`, in this order, each under its tag as its handle. None of them is awaited."""
        for op in command["ops"]:
            self.do_start(op | {"handle": str(op["tag"])})

    def do_land(self, command: Command) -> Answer:
        """Await the ops with these `tags`, in this order: an answer for each, also of those that failed."""
        return {"ops": [self._land(tag) for tag in command["tags"]]}

    def _land(self, tag: int) -> Answer:
        try:
            return {"ok": True, "tag": tag} | self.do_await({"handle": str(tag)})
        except pccl.PCCLError as error:
            answer = {"ok": False, "tag": tag, "error": type(error).__name__, "text": str(error)}
            return answer | error.answer  # type: ignore[attr-defined]

    def do_done(self, command: Command) -> Answer:
        """The tags of those that are over, of all that were launched and have not landed."""
        return {"tags": [int(tag) for tag, (_, handle) in self._started.items() if handle.done()]}

    def do_drop(self, command: Command) -> None:
        """Forget all handles and arrays."""
        self._started.clear()

    def do_flood(self, command: Command) -> Answer:
        """Small ops with the tags from `first` until `last`, `window` of them in flight at a time, in place;
        what is used afterwards. The ones of all peers add up."""
        flights: deque[tuple[np.ndarray, pccl.AsyncReduceHandle]] = deque()
        spare = [np.empty(4, "i8") for _ in range(command["window"])]
        for tag in range(command["first"], command["last"]):
            if not spare:
                spare.append(self._retire(*flights.popleft()))
            array = spare.pop()
            array[:] = 1
            flights.append((array, self.communicator.all_reduce_async(array, tag=tag)))
        while flights:
            self._retire(*flights.popleft())
        return self.do_usage(command)

    def do_volley(self, command: Command) -> Answer:
        """So many `steps`, small ops that may return early, one after the other: for each a digest and a
        world, or "lost"."""
        outcomes: list[tuple[str, int]] = []
        for step in range(command["steps"]):
            array = contribution(self.seed, self.index, step, command["count"], "float32")
            try:
                info = self.communicator.all_reduce(array, tag=step % command["tags"], early_return=True)
                outcomes.append((digest(array), info.local_world_size))
            except pccl.PeerLostError:
                outcomes.append(("lost", 0))
        return {"outcomes": outcomes}

    @staticmethod
    def _retire(array: np.ndarray, handle: pccl.AsyncReduceHandle) -> np.ndarray:
        world = handle.result().local_world_size
        assert array.tolist() == [world] * 4
        return array

    def do_usage(self, command: Command) -> Answer:
        return usage(os.getpid())


def usage(pid: int) -> Answer:
    """Resident memory in bytes, open files and threads of a process."""
    process = Path(f"/proc/{pid}")
    pages = int((process / "statm").read_text().split()[1])
    return {
        "bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "files": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
    }
