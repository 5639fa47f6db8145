"""One peer of a training run that others may join, leave, or die in at any moment.

    pccl master --listen-address 127.0.0.1:48148
    python examples/digits/worker.py 127.0.0.1:48148    # as often, and whenever, you like

What keeps the peers together is in train() and share_state(), and comes down to three rules:

1. All peers make the same calls in the same order. So what is called next may depend only on what all of
   them know alike: results of joint calls and collectives. It may not depend on comm.rank or
   comm.world_size, which can change between two lines when a peer dies, sooner here and later there.
2. Newcomers are let in by update_topology() and nowhere else. So the call right after it, at old and new
   peers, is the one that gives newcomers the state of the training: sync_shared_state().
3. What is sent must be right whoever is left when it arrives. An all-reduce of gradients is: it averages
   those of the survivors. A broadcast from rank 0 is not, for rank 0 may be the one that dies.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the peers share this machine's cores

import argparse
import hashlib
import json
import sys
import time

import network
import numpy as np

import pccl

MOMENTUM = 0.9
SECONDS_BETWEEN_LOOKS = 0.05  # for newcomers, while there are too few peers to begin


class TrainingState:
    """All that a newcomer must be given: parameters, momentum and step."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.parameters = network.initial_parameters(seed)
        self.momentum = np.zeros_like(self.parameters)
        self._step = np.zeros(1, np.int64)
        self.shared = pccl.SharedState(
            {"parameters": self.parameters, "momentum": self.momentum, "step": self._step}
        )
        self.has_joined = False

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self._step[0])

    def advance(self, gradient: np.ndarray, learning_rate: float) -> None:
        """One step of gradient descent with momentum."""
        self.momentum *= MOMENTUM
        self.momentum += gradient
        self.parameters -= np.float32(learning_rate) * self.momentum
        self._step += 1

    def restart(self) -> None:
        """To where every run begins."""
        self.parameters[:] = network.initial_parameters(self._seed)
        self.momentum[:] = 0
        self._step[:] = 0
        self.shared.revision = 0

    def digest(self) -> str:
        """Differs if a single bit does."""
        whole = hashlib.blake2b(digest_size=8)
        for array in (self.parameters, self.momentum, self._step):
            whole.update(array)
        return whole.hexdigest()


def tell(event: str, **more: object) -> None:
    """What has just been done, as a line of JSON on stdout."""
    print(json.dumps({"event": event, "seconds": time.monotonic()} | more), flush=True)


def report(
    comm: pccl.Communicator, event: str, state: TrainingState, peers: int, sent_bytes: int, **more: object
) -> None:
    """What has just been done with the other peers."""
    where = {"step": state.step, "epoch": comm.epoch, "rank": comm.rank}
    tell(event, **where, peers=peers, sent_bytes=sent_bytes, **more)


def report_transfer(progress: pccl.SharedStateSyncProgress) -> None:
    """How much of the state has come."""
    if progress.phase is pccl.SyncPhase.RECEIVING:
        tell("transfer", done_bytes=progress.done_bytes, total_bytes=progress.total_bytes)


def share_state(comm: pccl.Communicator, state: TrainingState) -> None:
    """All peers have the same bits after this: newcomers get them, and who differs is put right.

    A transfer that fails may leave a mix of two states.
    It does no harm while there is somebody to ask again: pccl never elects it. Nobody may train on it.
    """
    info = pccl.SharedStateSyncInfo(0, 0)
    while True:
        try:
            info = comm.sync_shared_state(
                state.shared, progress=None if state.has_joined else report_transfer
            )
            break
        except pccl.PeerLostError:
            continue  # ask those who are left
        except pccl.PCCLError as error:
            if error.result is not pccl.Result.NO_SHARED_STATE_AVAILABLE:
                raise
            state.restart()  # as all others do: each has a mix, and whoever had the state is dead
    if info.rx_bytes or not state.has_joined:
        more = {"received_bytes": info.rx_bytes, "hash": state.digest()}
        report(comm, "shared", state, comm.world_size, info.tx_bytes, **more)
    state.has_joined = True


def own_batch(step: int, rank: int, peers: int, examples: int, options: argparse.Namespace) -> np.ndarray:
    """Which examples this peer learns from in this step: all draw the same order, each takes its own part.
    Rank and peers may be out of date just after a death. Two peers then learn from the same examples once,
    which does no harm: what they average is what counts."""
    order = np.random.default_rng((options.seed, step)).permutation(examples)
    return order[rank::peers][: options.batch]


def train(
    comm: pccl.Communicator, state: TrainingState, data: network.Digits, options: argparse.Namespace
) -> None:
    """Join in, and train until `options.steps` steps are done."""
    peers = 1
    while True:
        share_state(comm, state)
        if state.step >= options.steps:
            break  # here, so that whoever was let in last has the result as well
        batch = own_batch(state.step, comm.rank, comm.world_size, len(data.train_labels), options)
        loss, gradient = network.loss_and_gradient(
            state.parameters, data.train_images[batch], data.train_labels[batch]
        )
        try:
            info = comm.all_reduce(gradient, op="avg", retry=True)
        except pccl.TooFewPeersError:
            info = pccl.ReduceInfo(1, 0, 0)  # alone: its own gradient is the average
        peers = info.local_world_size
        if state.step > 0 or peers >= options.start_with:
            state.advance(gradient, options.learning_rate)
            report(comm, "step", state, peers, info.tx_bytes, loss=loss, hash=state.digest())
        else:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        state.shared.push_revision()
        comm.update_topology()
    tested = network.accuracy(state.parameters, data.test_images, data.test_labels)
    report(comm, "done", state, peers, 0, hash=state.digest(), accuracy=tested)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train with whatever peers there are.")
    parser.add_argument("master", help="address of the master, such as 127.0.0.1:48148")
    parser.add_argument("--name", help="shown in logs and errors")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32, help="examples per peer and step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0, help="of parameters and batches; equal at all peers")
    parser.add_argument("--start-with", type=int, default=2, help="peers to wait for before the first step")
    parser.add_argument("--timeout", type=float, default=10.0, help="of the communicator, in seconds")
    parser.add_argument("--hold", action="store_true", help="wait for a line on stdin before connecting")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    data = network.load()
    comm = pccl.Communicator(options.master, name=options.name, timeout=options.timeout)
    if options.hold:
        tell("ready")
        sys.stdin.readline()
    while True:
        try:
            with comm:  # connects
                train(comm, TrainingState(options.seed), data, options)
            return 0
        except pccl.EvictedError as error:  # this process stood still for too long: join again
            print(f"worker: {error}; joining again", file=sys.stderr, flush=True)
        except pccl.PCCLError as error:  # MasterLostError above all: without a master the run is over
            print(f"worker: {error}", file=sys.stderr, flush=True)
            return 1
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
