"""One peer is killed at 200 moments of one large all-reduce, from before its start until after its end."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from faults.cluster import TRANSPORTS, Answer, Cluster, Peer, Pending, expect_ok

SEED = 20261122
SURVIVORS = 3
MOMENTS = 200
COUNT = 1_000_000  # float32
BESIDE = {"tag": 9, "count": 300_000, "dtype": "int32"}  # the op beside it
VARIANTS = [
    pytest.param(
        in_place,
        beside,
        id=f"{'in place' if in_place else 'out of place'}, {'two ops' if beside else 'one op'}",
    )
    for in_place in (False, True)
    for beside in (False, True)
]


class Sweep:
    def __init__(self, cluster: Cluster, *, in_place: bool, beside: bool) -> None:
        self.cluster = cluster
        self.survivors = cluster.form(SURVIVORS)
        self.op: dict[str, Any] = {"count": COUNT, "in_place": in_place, "tag": 1}
        self.beside: dict[str, Any] | None = BESIDE | {"in_place": in_place} if beside else None

    def victim(self) -> Peer:
        victim = self.cluster.add()
        self.cluster.admit(self.survivors, [victim])
        return victim

    def start(self, peers: list[Peer], step: int) -> list[Pending]:
        """The op on all peers, and before it the one beside it."""
        if self.beside is not None:
            for peer in peers:
                peer.tell("start", handle="beside", step=step, **self.beside)
        return [peer.tell("all_reduce", step=step, **self.op) for peer in peers]

    def finish(self, ops: list[Pending], peers: list[Peer], step: int) -> list[bool]:
        """What became of the ops at the survivors: one outcome, the exact result or the input as it was."""
        check = self.cluster.check_either
        outcomes = [check(self.cluster.collect(ops), peers, self.survivors, step=step, **self.op)]
        if self.beside is not None:
            answers = self.cluster.ask_all(self.survivors, "await", handle="beside")
            outcomes.append(check(answers, peers, self.survivors, step=step, **self.beside))
        return outcomes

    def duration(self) -> float:
        """Seconds that the op takes when nobody dies."""
        peers = [*self.survivors, self.victim()]
        seconds = []
        for step in range(5):
            ops = self.start(peers, step)
            answers: list[Answer] = self.cluster.collect(ops)
            seconds.append(max(answer["seconds"] for answer in answers))
            if self.beside is not None:
                expect_ok(self.cluster.ask_all(peers, "await", handle="beside"))
        peers[-1].kill()
        return min(seconds)

    def moment(self, seconds: float, step: int) -> bool:
        """The victim dies `seconds` after the start. Whether the op was committed."""
        victim = self.victim()
        peers = [*self.survivors, victim]
        ops = self.start(peers, step)
        time.sleep(seconds)
        victim.kill()
        outcomes = self.finish(ops[:SURVIVORS], peers, step)
        if not all(outcomes):
            retries = self.finish(self.start(self.survivors, step), self.survivors, step)
            assert all(retries), "a retry failed although nobody had died since"
        return outcomes[0]


@pytest.mark.parametrize("tcp_only", TRANSPORTS)
@pytest.mark.parametrize(("in_place", "beside"), VARIANTS)
def test_a_peer_killed_at_any_moment_of_an_op_leaves_one_outcome_and_exact_results(
    in_place, beside, tcp_only
):
    random_source = random.Random(SEED + 2 * in_place + beside)
    with Cluster(seed=SEED, timeout=5, tcp_only=tcp_only) as cluster:
        sweep = Sweep(cluster, in_place=in_place, beside=beside)
        duration = sweep.duration()
        moments = MOMENTS // len(VARIANTS) // len(TRANSPORTS)
        committed = 0
        for step in range(moments):
            fraction = (step + random_source.random()) / moments * 1.2
            committed += sweep.moment(fraction * duration, step)
            cluster.forget_dead()
        print(f"seed {SEED}: {committed} of {moments} committed, the op takes {duration:.4f} s")
        # Else the moments are not those that the sweep is for: before each kill it was over, or never so.
        assert 0 < committed < moments
