"""One peer of a training run that others may join, leave, or die in at any moment.

    pccl master --listen-address 127.0.0.1:48148
    python examples/digits/worker.py 127.0.0.1:48148    # as often, and whenever, you like

What keeps the peers together is in train() and share_state(), and comes down to three rules:

1. All peers make the same calls in the same order. So what is called next may depend only on what all of
   them know alike: results of joint calls and collectives. It may not depend on comm.rank or
   comm.world_size, which can change between two lines when a peer dies, sooner here and later there.
2. Newcomers are let in by update_topology() and nowhere else. So the call right after it, at old and new
   peers, is the one that gives newcomers the state of the training.
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
SECONDS_BETWEEN_LOOKS = 0.05  # for newcomers, while there are too few peers to train


class TrainingState:
    """All that a newcomer must be given, in one piece of memory: parameters, momentum and step."""

    def __init__(self, seed: int) -> None:
        start = network.initial_parameters(seed)
        self.memory = np.zeros(2 * start.nbytes + 8, np.uint8)
        self.parameters, self.momentum = self.memory[:-8].view(np.float32).reshape(2, -1)
        self._step = self.memory[-8:].view(np.int64)
        self.parameters[:] = start
        self.known = False  # whether this is the state of the run, or only where a run starts

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

    def digest(self) -> str:
        """Differs if a single bit does."""
        return hashlib.blake2b(self.memory, digest_size=8).hexdigest()


def report(
    comm: pccl.Communicator, event: str, state: TrainingState, info: pccl.ReduceInfo, **more: object
) -> None:
    """What has just been done with the other peers, as a line of JSON on stdout."""
    line = {
        "event": event,
        "seconds": time.monotonic(),
        "step": state.step,
        "epoch": comm.epoch,
        "rank": comm.rank,
        "peers": info.local_world_size,
        "sent_bytes": info.tx_bytes,
    }
    print(json.dumps(line | more), flush=True)


def share_state(comm: pccl.Communicator, state: TrainingState) -> int:
    """Give newcomers the state of the training. Returns how many peers share it now.

    Everybody who knows the state offers it, the others offer zeros, and the largest of each byte is the
    state, whoever dies meanwhile. Nobody knew it if all is zero: then it stays what all start with.
    """
    offer = state.memory.copy() if state.known else np.zeros_like(state.memory)
    try:
        info = comm.all_reduce(offer, op="max", retry=True)
    except pccl.TooFewPeersError:
        info = pccl.ReduceInfo(1, 0, 0)  # alone: what this peer has is the state
    if offer.any():
        state.memory[:] = offer
    state.known = True
    report(comm, "shared", state, info, hash=state.digest())
    return info.local_world_size


def own_batch(step: int, rank: int, peers: int, examples: int, options: argparse.Namespace) -> np.ndarray:
    """Which examples this peer learns from in this step: all draw the same order, each takes its own part.
    The rank may be out of date just after a death. Two peers then learn from the same examples once, which
    does no harm: what they average is what counts."""
    order = np.random.default_rng((options.seed, step)).permutation(examples)
    return order[rank::peers][: options.batch]


def train(
    comm: pccl.Communicator, state: TrainingState, data: network.Digits, options: argparse.Namespace
) -> None:
    """Join in, and train until `options.steps` steps are done."""
    peers = share_state(comm, state)
    while state.step < options.steps:
        if comm.are_peers_pending():
            comm.update_topology()
            peers = share_state(comm, state)
            continue  # to where newcomers begin
        if peers < (options.start_with if state.step == 0 else 2):
            time.sleep(SECONDS_BETWEEN_LOOKS)
            continue
        batch = own_batch(state.step, comm.rank, peers, len(data.train_labels), options)
        loss, gradient = network.loss_and_gradient(
            state.parameters, data.train_images[batch], data.train_labels[batch]
        )
        try:
            info = comm.all_reduce(gradient, op="avg", retry=True)
        except pccl.TooFewPeersError:
            peers = 1  # all others are gone: wait for new ones
            continue
        peers = info.local_world_size
        state.advance(gradient, options.learning_rate)
        digest = {"hash": state.digest()} if state.step % options.hash_every == 0 else {}
        report(comm, "step", state, info, loss=loss, **digest)
    tested = network.accuracy(state.parameters, data.test_images, data.test_labels)
    report(comm, "done", state, pccl.ReduceInfo(peers, 0, 0), hash=state.digest(), accuracy=tested)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train with whatever peers there are.")
    parser.add_argument("master", help="address of the master, such as 127.0.0.1:48148")
    parser.add_argument("--name", help="shown in logs and errors")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32, help="examples per peer and step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0, help="of parameters and batches; equal at all peers")
    parser.add_argument("--start-with", type=int, default=2, help="peers to wait for before the first step")
    parser.add_argument("--hash-every", type=int, default=10, help="steps between two hashes of the state")
    parser.add_argument("--timeout", type=float, default=10.0, help="of the communicator, in seconds")
    parser.add_argument("--hold", action="store_true", help="wait for a line on stdin before connecting")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    data = network.load()
    comm = pccl.Communicator(options.master, name=options.name, timeout=options.timeout)
    if options.hold:
        print(json.dumps({"event": "ready"}), flush=True)
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
