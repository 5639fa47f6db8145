"""A peer that does as it is told: commands in, answers out, one JSON object per line.

    {"id": 3, "do": "all_reduce", "step": 1, "count": 1000, "op": "sum", "in_place": true}
    {"id": 3, "ok": true, "world": 4, "digest": "9c…", "seconds": 0.01}
    {"id": 3, "ok": false, "error": "PeerLostError", "text": "…", "intact": true, "seconds": 0.2}

The main thread makes the calls, one after the other (Ctrl-C is a matter of the main thread). A command with
"aside" is carried out at once by the thread that reads, whatever the main thread waits in.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import pccl

from .collectives import CollectiveCommands
from .data import contribution, digest, with_signature
from .many import ManyCommands
from .memory import MemoryCommands
from .model import Model
from .state import StateCommands

Command = dict[str, Any]
Answer = dict[str, Any]


class Op:
    """The arrays of one all-reduce, and a copy of its input."""

    def __init__(self, seed: int, index: int, command: Command) -> None:
        self.before = contribution(
            seed, index, command.get("step", 0), command["count"], command.get("dtype", "float32")
        )
        self.send = self.before.copy()
        self.recv = None if command.get("in_place") else np.full_like(self.send, 77)
        self.options = {
            "op": command.get("op", "sum"),
            "tag": command.get("tag", 0),
            "retry": command.get("retry", False),
            "early_return": command.get("early_return", False),
            "timeout": command.get("op_timeout"),
        }

    def answer(self, world: int) -> Answer:
        return {"world": world, "digest": digest(self.result()), "intact": self.recv is None or self.intact()}

    def result(self) -> np.ndarray:
        return self.send if self.recv is None else self.recv

    def failure(self) -> Answer:
        return {"intact": self.intact()}

    def intact(self) -> bool:
        return bool(np.array_equal(self.send, self.before))


class Peer(CollectiveCommands, ManyCommands, MemoryCommands, StateCommands):
    def __init__(self, seed: int, index: int, commands: socket.socket) -> None:
        self.seed, self.index = seed, index
        self._commands = commands.makefile("r")
        self._answers = commands.makefile("w")
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._communicator: pccl.Communicator | None = None
        self._started: dict[str, tuple[Any, pccl.AsyncReduceHandle]] = {}

    def run(self) -> None:
        threading.Thread(target=self._read, name="commands", daemon=True).start()
        while True:
            # A signal that comes between two calls is for the next one.
            try:
                command = self._queue.get()
                self._perform(command)
            except KeyboardInterrupt:
                continue

    def _read(self) -> None:
        for line in self._commands:
            command = json.loads(line)
            if command.get("aside"):
                self._perform(command)
            else:
                self._queue.put(command)
        os._exit(0)  # whoever commands is gone

    def _perform(self, command: Command) -> None:
        answer: Answer = {"id": command["id"], "ok": True}
        started = time.monotonic()
        try:
            answer |= getattr(self, "do_" + command["do"])(command) or {}
        except (Exception, KeyboardInterrupt) as error:
            answer |= {"ok": False, "error": type(error).__name__, "text": str(error)}
            answer |= getattr(error, "answer", {})
        answer["seconds"] = time.monotonic() - started
        with self._lock:
            self._answers.write(json.dumps(answer) + "\n")
            self._answers.flush()

    @property
    def communicator(self) -> pccl.Communicator:
        assert self._communicator is not None
        return self._communicator

    # --- the commands ------------------------------------------------------------------------------------

    def do_create(self, command: Command) -> None:
        self._communicator = pccl.Communicator(**command["options"])

    def do_connect(self, command: Command) -> Answer:
        self.communicator.connect(n_attempts=command.get("attempts", 1))
        return self.do_info(command)

    def do_info(self, command: Command) -> Answer:
        one = self.communicator
        return {
            "world": one.world_size,
            "global_world": one.global_world_size,
            "rank": one.rank,
            "epoch": one.epoch,
            "peer_id": one.peer_id,
        }

    def do_update_topology(self, command: Command) -> Answer:
        self.communicator.update_topology()
        return self.do_info(command)

    def do_are_peers_pending(self, command: Command) -> Answer:
        return {"pending": self.communicator.are_peers_pending()}

    def do_optimize_topology(self, command: Command) -> None:
        self.communicator.optimize_topology()

    def do_all_reduce(self, command: Command) -> Answer:
        return self._reduce(Op(self.seed, self.index, command))

    def _reduce(self, op: Op) -> Answer:
        try:
            info = self.communicator.all_reduce(op.send, op.recv, **op.options)
        except (Exception, KeyboardInterrupt) as error:
            error.answer = op.failure()  # type: ignore[attr-defined]
            raise
        return op.answer(info.local_world_size)

    def do_start(self, command: Command) -> None:
        """An async all-reduce, under the name `handle`."""
        op = Op(self.seed, self.index, command)
        self._started[command["handle"]] = (
            op,
            self.communicator.all_reduce_async(op.send, op.recv, **op.options),
        )

    def do_await(self, command: Command) -> Answer:
        op, handle = self._started.pop(command["handle"])
        try:
            info = handle.result()
        except (Exception, KeyboardInterrupt) as error:
            error.answer = op.failure()  # type: ignore[attr-defined]
            raise
        return op.answer(info.local_world_size)

    def do_multiple(self, command: Command) -> Answer:
        """all_reduce_multiple_with_retry of the `ops`: the digest of each result."""
        ops = [Op(self.seed, self.index, op) for op in command["ops"]]
        descriptors = [
            pccl.ReduceOpDescriptor.from_numpy(
                op.send,
                op.send if op.recv is None else op.recv,
                pccl.ReduceDescriptor(
                    count=op.send.size,
                    op=pccl.ReduceOp.SUM,
                    tag=op.options["tag"],
                    operand_descriptor=pccl.ReduceOperandDescriptor(pccl.DataType.FLOAT),
                    quantization_options=pccl.QuantizationOptions(algorithm=pccl.QuantizationAlgorithm.NONE),
                ),
            )
            for op in ops
        ]
        try:
            info = self.communicator.all_reduce_multiple_with_retry(
                descriptors, max_in_flight=command["max_in_flight"]
            )
        except pccl.PCCLError as error:
            error.answer = {"intact": all(op.intact() for op in ops)}  # type: ignore[attr-defined]
            raise
        return {"world": info.local_world_size, "digests": [op.answer(0)["digest"] for op in ops]}

    def do_train(self, command: Command) -> Answer:
        """Steps `first` … until `last`, each until it succeeds: worlds and digests, one for each step, and
        the states after it."""
        worlds, digests, states, failures = [], [], [], 0
        model = Model(self.communicator)
        for step in range(command["first"], command["last"]):
            with contextlib.suppress(pccl.TooFewPeersError):
                model.synchronise()
            op = Op(self.seed, self.index, command | {"step": step})
            while True:
                try:
                    answer = self._reduce(op)
                    break
                except pccl.PeerLostError as error:
                    if not error.answer["intact"]:  # type: ignore[attr-defined]
                        raise
                    failures += 1
            model.advance(op.result())
            worlds.append(answer["world"])
            digests.append(answer["digest"])
            states.append((model.place, model.digest()))
        return {"worlds": worlds, "digests": digests, "states": states, "failures": failures}

    def do_burst(self, command: Command) -> Answer:
        """`ops` all-reduces in a row, with nothing between them but a sleep of `pause` seconds before number
        `pause_at`."""
        ops = [Op(self.seed, self.index, command | {"step": step}) for step in range(command["ops"])]
        worlds = []
        for number, op in enumerate(ops):
            if number == command.get("pause_at"):
                time.sleep(command["pause"])
            worlds.append(self._reduce(op)["world"])
        return {"worlds": worlds, "digests": [op.answer(0)["digest"] for op in ops]}

    def do_live(self, command: Command) -> None:
        """What a program does that wants to stay in, whatever happens: synchronise, reduce, let others in.
        Writes a line to `journal` for each all-reduce that succeeded. Ends only with an error that it cannot
        cure, as that of a state that differed."""
        self._model = Model(self.communicator)
        turn = self._live_join if command.get("join") else self._live_synchronise
        following = {
            self._live_join: self._live_synchronise,
            self._live_synchronise: self._live_reduce,
            self._live_reduce: self._live_admit,
            self._live_admit: self._live_synchronise,
        }
        while True:
            try:
                turn(command)
                turn = following[turn]
            except pccl.TooFewPeersError:
                time.sleep(0.01)
                turn = self._live_admit
            except (pccl.EvictedError, pccl.MasterLostError):
                turn = self._live_join

    def _live_synchronise(self, command: Command) -> None:
        self._model.synchronise()

    def _live_reduce(self, command: Command) -> None:
        array = with_signature(self.seed, self.index, command["count"])
        before = array.copy()
        try:
            info = self.communicator.all_reduce(array, retry=True)
        except Exception:
            assert np.array_equal(array, before), "the input was changed"
            raise
        self._model.advance(array)
        state = f"{self._model.place} {self._model.digest()}"
        with Path(command["journal"]).open("a") as file:
            file.write(f"{self.index} {info.local_world_size} {int(array[0])} {digest(array)} {state}\n")

    def _live_admit(self, command: Command) -> None:
        self.communicator.update_topology()

    def _live_join(self, command: Command) -> None:
        self.communicator.connect()
        self._model.begin()

    def do_close(self, command: Command) -> None:
        self.communicator.close()

    def do_destroy(self, command: Command) -> None:
        self._communicator = None

    def do_sleep(self, command: Command) -> None:
        time.sleep(command["seconds"])

    def do_memory(self, command: Command) -> Answer:
        """Resident memory and open files, for leaks."""
        with open("/proc/self/statm") as file:  # noqa: PTH123
            pages = int(file.read().split()[1])
        return {"bytes": pages * os.sysconf("SC_PAGE_SIZE"), "files": len(os.listdir("/proc/self/fd"))}  # noqa: PTH208

    def do_exit(self, command: Command) -> None:
        sys.exit(0)


def serve(seed: int, index: int, commands: socket.socket) -> None:
    """The life of a peer process."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    Peer(seed, index, commands).run()
