"""The other collectives: what a peer is told to call, and what must come out."""

from __future__ import annotations

from typing import Any

import numpy as np

import pccl

from .data import contribution, digest, reduction

Answer = dict[str, Any]
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, 1e-40, -1e-310, 6e-8, 1e30, -3.5, 0.1]


def _digest(array: np.ndarray) -> str:
    return digest(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # bfloat16 has no buffer


def own_input(seed: int, index: int, op: Answer, count: int) -> np.ndarray:
    """What the peer `index` brings; with `special` what is hard on floats, in another order at each peer."""
    dtype = np.dtype(pccl.DataType.from_dtype_name(op.get("dtype", "float32")).to_numpy_dtype())
    if op.get("special"):
        shifted = np.roll(SPECIAL, seed + 5 * index)
        with np.errstate(over="ignore"):
            return np.resize(shifted, count).astype(dtype)
    return contribution(seed, index, op.get("step", 0), count, dtype)


class Collective:
    """The arrays of one op at one peer."""

    def __init__(self, seed: int, index: int, communicator: pccl.Communicator, op: Answer) -> None:
        self.kind, self.op = op["kind"], op
        self.communicator = communicator
        self.world, self.rank = op.get("world", communicator.world_size), communicator.rank
        self.keywords: Answer = {"tag": op.get("tag", 0), "timeout": op.get("op_timeout")}
        if self.kind in ("all_reduce", "broadcast"):
            self.keywords["algorithm"] = op.get("algorithm", "auto")
        if self.kind in ("all_reduce", "reduce_scatter"):
            self.keywords["op"] = op.get("op", "sum")
        if self.kind == "barrier":
            return
        count = op["count"] * (self.world if self.kind == "reduce_scatter" else 1)
        self.before = own_input(seed, index, op, count)
        getattr(self, "_make_" + self.kind)()
        self.filling = None if self.recv is None else self.recv.copy()

    def _make_broadcast(self) -> None:
        self.send, self.recv = self.before.copy(), None
        self.keywords["root"] = self.op.get("root", 0)

    def _make_all_reduce(self) -> None:
        self.send = self.before.copy()
        self.recv = None if self.op.get("in_place") else np.full_like(self.send, 77)

    def _make_all_gather(self) -> None:
        self.recv = np.full((self.world, self.op["count"]), 77, self.before.dtype)
        self.send = self.recv[self.rank % self.world] if self.op.get("in_place") else self.before.copy()
        self.send[:] = self.before

    def _make_reduce_scatter(self) -> None:
        self.send = self.before.copy()
        part = self.send.reshape(self.world, -1)[self.rank % self.world]
        self.recv = part if self.op.get("in_place") else np.full_like(part, 77)

    @property
    def _arguments(self) -> tuple[Any, ...]:
        if self.kind == "barrier":
            return ()
        return (self.send,) if self.recv is None else (self.send, self.recv)

    def run(self) -> Answer:
        call = getattr(self.communicator, self.kind)
        done = call(*self._arguments, **self.keywords)
        return self.answer(done if isinstance(done, pccl.ReduceInfo) else None)

    def start(self) -> pccl.AsyncReduceHandle:
        return getattr(self.communicator, self.kind + "_async")(*self._arguments, **self.keywords)

    def answer(self, info: pccl.ReduceInfo | None) -> Answer:
        answer: Answer = {"rank": self.rank, "algorithm": None if info is None else info.algorithm}
        answer["world"] = self.world if info is None else info.local_world_size
        if self.kind != "barrier":
            answer["digest"] = _digest(self.send if self.recv is None else self.recv)
            answer["intact"] = self.recv is None or bool(self.op.get("in_place")) or self._input_is_there()
        return answer

    def failure(self) -> Answer:
        """Whether the buffers are as they were, as far as that is promised."""
        if self.kind == "barrier":
            return {"intact": True}
        intact = self._input_is_there()
        if self.kind == "reduce_scatter" and not self.op.get("in_place"):
            intact = intact and self.recv.tobytes() == self.filling.tobytes()
        return {"intact": intact}

    def _input_is_there(self) -> bool:
        return self.send.tobytes() == self.before.tobytes()


class CollectiveCommands:
    """For the peer process."""

    def do_collective(self, command: Answer) -> Answer:
        collective = Collective(self.seed, self.index, self.communicator, command)
        return _finish(collective, collective.run)

    def do_start_collective(self, command: Answer) -> None:
        """Under the name `handle`."""
        collective = Collective(self.seed, self.index, self.communicator, command)
        self._started[command["handle"]] = (collective, collective.start())

    def do_await_collective(self, command: Answer) -> Answer:
        collective, handle = self._started.pop(command["handle"])
        return _finish(collective, lambda: collective.answer(handle.result()))

    def do_broadcast_object(self, command: Answer) -> Answer:
        keywords = {name: command[name] for name in ("root", "tag", "retry") if name in command}
        value = _object_of(self.index, command)
        return {"value": self.communicator.broadcast_object(value, **keywords), "index": self.index}

    def do_all_gather_object(self, command: Answer) -> Answer:
        keywords = {name: command[name] for name in ("tag", "retry") if name in command}
        value = _object_of(self.index, command)
        return {"value": self.communicator.all_gather_object(value, **keywords), "index": self.index}


def _object_of(index: int, command: Answer) -> Any:
    if "size" in command:
        return [index, "x" * command["size"]]
    return {"index": index, "items": [1, 2.5, None, True, "é"]}


def _finish(collective: Collective, call: Any) -> Answer:
    try:
        return call()
    except (Exception, KeyboardInterrupt) as error:
        error.answer = collective.failure()  # type: ignore[attr-defined]
        raise


# --- what must come out -------------------------------------------------------------------------------------


def expected(seed: int, by_rank: list[int], rank: int, op: Answer) -> str:
    """The digest of the result at `rank`; `by_rank`: the index of the peer with each rank."""
    kind, count, world = op["kind"], op["count"], len(by_rank)
    dtype = pccl.DataType.from_dtype_name(op.get("dtype", "float32")).to_numpy_dtype()
    reduced = (
        op.get("step", 0),
        count * (world if kind == "reduce_scatter" else 1),
        dtype,
        op.get("op", "sum"),
    )
    if kind == "broadcast":
        return _digest(own_input(seed, by_rank[op.get("root", 0)], op, count))
    if kind == "all_gather":
        return _digest(np.concatenate([own_input(seed, index, op, count) for index in by_rank]))
    whole = reduction(seed, by_rank, *reduced)
    return _digest(whole if kind == "all_reduce" else whole[rank * count : (rank + 1) * count])


def check_results(seed: int, answers: list[Answer], indices: list[int], **op: Any) -> None:
    """All have succeeded, each with exactly what its rank must have."""
    failed = [answer for answer in answers if not answer["ok"]]
    assert not failed, failed
    assert {answer["world"] for answer in answers} == {len(indices)}
    if op["kind"] == "barrier":
        return
    if op["kind"] == "all_reduce":  # ranks do not matter, and may have changed on the way
        assert {answer["digest"] for answer in answers} == {expected(seed, indices, 0, op)}
        return
    ranked = {answer["rank"]: index for answer, index in zip(answers, indices, strict=True)}
    by_rank = [ranked[rank] for rank in range(len(indices))]
    for answer in answers:
        assert answer["digest"] == expected(seed, by_rank, answer["rank"], op), (op, answer)
        assert answer["intact"], (op, answer)
