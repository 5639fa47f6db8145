"""Peers come, go, die and freeze at random while all reduce: results are exact, and in the end all are in.

Each input bears its owner's signature, so that each result tells over whom it was taken.
"""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from faults.cluster import TRANSPORTS, Cluster, Peer, readable, wait_until
from faults.data import digest, signed_by, with_signature
from faults.model import expect_parity

SEED = 20261129
COUNT = 100_000
ACTIONS = 25
MOST, FEWEST = 7, 3


class Chaos:
    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster, self.random = cluster, random.Random(seed)
        self.journal = cluster.folder / "journal"
        self.living: list[Peer] = []
        self.frozen: list[Peer] = []

    def live(self, peer: Peer, *, join: bool = False) -> None:
        peer.tell("live", journal=str(self.journal), count=COUNT, join=join)
        self.living.append(peer)

    def join(self) -> None:
        self.live(self.cluster.add(), join=True)

    def pick(self) -> Peer:
        return self.living.pop(self.random.randrange(len(self.living)))

    def act(self) -> None:
        action = self.random.choice(["join", "join", "kill", "kill", "freeze", "thaw", "blink", "leave"])
        if action == "thaw" and self.frozen:
            peer = self.frozen.pop()
            peer.process.go_on()
            self.living.append(peer)
        elif len(self.living) + len(self.frozen) < FEWEST + 1 or (
            action == "join" and len(self.living) < MOST
        ):
            self.join()
        elif len(self.living) <= FEWEST:
            pass
        elif action == "kill":
            self.pick().kill()
        elif action == "leave":
            peer = self.pick()
            peer.tell("close", aside=True)
            time.sleep(0.01)
            peer.kill()
        elif action == "freeze":
            peer = self.pick()
            peer.process.stop()
            self.frozen.append(peer)
        elif action == "blink":
            peer = self.random.choice(self.living)
            peer.process.stop()
            time.sleep(0.1)
            peer.process.go_on()

    def is_well(self) -> bool:
        """Nobody who should live has given up."""
        descriptors = {peer.connection.fileno(): peer for peer in self.living}
        for descriptor in readable(descriptors, 0):
            peer = descriptors[descriptor]
            under_way = list(peer.open.values())
            peer.receive()
            answers = [pending.answer for pending in under_way if pending.answer is not None]
            assert all(answer["ok"] for answer in answers), f"{peer.name}: {answers}"
        return True

    def memberships(self) -> set[int]:
        return {members for _, _, members, _ in self.results()}

    def results(self) -> list[tuple[int, int, int, str]]:
        lines = [line.split() for line in self.journal.read_text().splitlines()]
        return [(int(index), int(world), int(members), text) for index, world, members, text, *_ in lines]

    def states(self) -> list[tuple[str, str]]:
        """What was trained, after each result: its place and its digest."""
        return [(line.split()[4], line.split()[5]) for line in self.journal.read_text().splitlines()]


@pytest.mark.parametrize("tcp_only", TRANSPORTS)
@pytest.mark.parametrize("seed", range(SEED, SEED + 2))
def test_whatever_happens_results_are_exact_and_the_living_find_together(seed, tcp_only):
    with Cluster(seed=seed, timeout=1.0, tcp_only=tcp_only) as cluster:
        chaos = Chaos(cluster, seed)
        for peer in cluster.form(4):
            chaos.live(peer)
        for _ in range(ACTIONS):
            time.sleep(chaos.random.random() * 0.25)
            chaos.act()
        for peer in chaos.frozen:
            peer.process.go_on()
            chaos.living.append(peer)
        for peer in chaos.living:
            cluster.wait_until_known(peer)
        everybody = sum(1 << peer.index for peer in chaos.living)
        wait_until(lambda: chaos.is_well() and everybody in chaos.memberships(), "all take part again")
        results = chaos.results()
        compared = expect_parity(chaos.states())
        print(f"seed {seed}: {len(results)} results, over {len(chaos.memberships())} memberships; ", end="")
        print(f"{compared} states compared")
        assert compared > ACTIONS
        inputs = {index: with_signature(seed, index, COUNT) for index in range(cluster.next_index)}
        exact: dict[int, str] = {}
        for index, world, members, text in results:
            taken = signed_by(members)
            assert len(taken) == world
            assert index in taken
            if members not in exact:
                exact[members] = digest(np.add.reduce([inputs[one] for one in taken]))
            assert text == exact[members]
