"""Starts a master and peers, lets the faults of a schedule happen, and takes in what the peers tell."""

from __future__ import annotations

import heapq
import itertools
import json
import math
import selectors
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    import psutil
except ModuleNotFoundError:  # `pccl stress --help` does without it; see main()
    psutil = None

from . import processes
from .causes import Disturbance
from .checks import Checks, Limits
from .faults import Faults
from .flat import Flat, Sample
from .garbage import Strangers
from .namespaces import HUB_ADDRESS, Router
from .peer import Config
from .processes import Master, PeerProcess, StressError
from .proxy import Proxy
from .schedule import Setting, first_peers, schedule
from .tally import Tally

__all__ = ["Living", "Load", "Orchestrator", "Progress"]

_SECONDS_BETWEEN_SAMPLES = 2.0
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_DUMP = 1.0


@dataclass(frozen=True)
class Load:
    """What the peers do between faults."""

    kinds: tuple[str, ...]
    step_s: float
    max_bytes: int
    state_bytes: int


Progress = Callable[["Orchestrator", float], None]


@dataclass
class Living:
    """A peer, as the orchestrator sees it."""

    process: PeerProcess
    flat: Flat
    stopped_until: float | None = None  # by SIGSTOP
    ending: bool = False  # by order, or because it has violated something
    group: int = 0
    info: dict[str, Any] = field(default_factory=dict)  # the last step it told of
    sample: Sample | None = None


class Orchestrator:
    """run() is one stress run. `look` is called about twice a second, to show how it goes."""

    def __init__(
        self, setting: Setting, load: Load, folder: Path, most_violations: int, look: Progress
    ) -> None:
        self.setting, self.load, self.folder = setting, load, folder
        self._most_violations, self._look = most_violations, look
        self.limits = Limits.of(setting.timeout_s)
        self.began = time.monotonic()
        self.faults_began: float | None = None
        self.faults_ended: float | None = None
        self.tally = Tally(self.began)
        self.checks = Checks(self.limits, self.began)
        self.master = Master(folder / "master.log")
        self.master_flat = Flat(self.began)
        self.peers: dict[str, Living] = {}
        self.by_slot: dict[int, str] = {}
        self._lives = itertools.count()
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()
        self._selector = selectors.DefaultSelector()
        self.strangers = Strangers()
        self.proxy = Proxy(processes.start)
        self.router = Router()
        self._journal = (folder / "journal.jsonl").open("w", buffering=1)  # is read while it grows
        self.samples: list[tuple[float, int, float, int]] = []  # at, peers, steps/s, memory of all

    # --- the run -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the schedule is over and the peers that are left have found together; or there were too many
        violations. Ends all processes."""
        try:
            self.master.start()
            host, _, port = self.master.address.rpartition(":")
            self.proxy.ask("target", host=host, port=int(port))
            for slot, group in first_peers(self.setting).items():
                self.spawn(slot, group)
            self._every(_SECONDS_BETWEEN_LOOKS, self._look_after)
            self._every(_SECONDS_BETWEEN_SAMPLES, self._sample)
            self._until(self._all_together, self.limits.bound_s, "the first peers do not find together")
            self._let_faults_happen()
            self._settle()
            self._part()
            self.checks.judge(math.inf)
        finally:
            self._end_all()

    def _let_faults_happen(self) -> None:
        self.faults_began = began = time.monotonic()
        faults = Faults(self)
        for fault in schedule(self.setting):
            if not self._pump(began + fault.at_s):
                return
            faults.happen(fault, time.monotonic())
        self._pump(began + self.setting.duration_s)

    def _settle(self) -> None:
        """No more faults: all that live must find together."""
        self.faults_ended = time.monotonic()
        if self._is_over():
            return
        for living in self.peers.values():
            living.info = {}
        self._until(
            self._all_together,
            2 * self.limits.bound_s,
            "the peers did not find together after the last fault",
        )

    def _part(self) -> None:
        """All leave, one after the other finds itself alone; each must end well."""
        if self._is_over():
            return
        for name in list(self.peers):
            self.finish(name, time.monotonic())
        self._until(lambda: not self.peers, self.limits.bound_s, "peers did not end though they were told to")

    def _until(self, condition: Callable[[], bool], within_s: float, otherwise: str) -> None:
        deadline = time.monotonic() + within_s
        while not condition() and not self._is_over():
            if time.monotonic() > deadline:
                state = {name: living.info.get("members", "no step") for name, living in self.peers.items()}
                self.checks.violate(time.monotonic(), f"{otherwise}: {state}", list(self.peers))
                self.dump(list(self.peers))
                return
            self._pump(time.monotonic() + 0.1)

    def _all_together(self) -> bool:
        """Whether the last step of every group was made by all of it."""
        if not self.peers or any(one.ending or one.stopped_until for one in self.peers.values()):
            return False
        for group in {one.group for one in self.peers.values()}:
            members = [one for one in self.peers.values() if one.group == group]
            mask = sum(1 << one.process.config.slot for one in members)
            if len(members) > 1 and any(set(one.info.get("members", [0])) != {mask} for one in members):
                return False
        return True

    def _is_over(self) -> bool:
        return len(self.checks.violations) >= self._most_violations

    # --- time and messages -------------------------------------------------------------------------------

    def at(self, when: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._due, (when, next(self._numbers), action))

    def _every(self, seconds: float, action: Callable[[float], None]) -> None:
        def again(now: float) -> None:
            action(now)
            self.at(time.monotonic() + seconds, again)

        self.at(time.monotonic(), again)

    def _pump(self, until: float) -> bool:
        """Take in messages and do what is due. False if the run is over."""
        while not self._is_over():
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                heapq.heappop(self._due)[2](now)
            if now >= until:
                return True
            wait = min(until, self._due[0][0] if self._due else until) - time.monotonic()
            for key, _ in self._selector.select(max(wait, 0)):
                self._hear(key.data)
        return False

    def _hear(self, name: str) -> None:
        living = self.peers.get(name)
        if living is None:
            return
        messages, ended = living.process.hear()
        for message in messages:
            if message["kind"] not in ("beat", "agreed", "counted", "step", "crossed"):
                self.write(name, message)
            self.checks.told(name, message)
            getattr(self, "_on_" + message["kind"], lambda *_: None)(living, message)
        if ended:
            self._bury(name, time.monotonic())

    def _on_in(self, living: Living, message: dict[str, Any]) -> None:
        living.group = message["group"]
        self.tally.counts["joins"] += 1

    def _on_step(self, living: Living, message: dict[str, Any]) -> None:
        living.info = message
        self.tally.step(message)

    def _on_crossed(self, living: Living, message: dict[str, Any]) -> None:
        self.tally.crossed(message)

    def _on_out(self, living: Living, message: dict[str, Any]) -> None:
        living.info = {}

    def _on_violation(self, living: Living, message: dict[str, Any]) -> None:
        living.ending = True

    def write(self, who: str, message: dict[str, Any]) -> None:
        self._journal.write(json.dumps({"who": who, **message}) + "\n")

    # --- peers -------------------------------------------------------------------------------------------

    def spawn(self, slot: int, group: int) -> None:
        life = next(self._lives)
        name = f"s{slot}-{life}"
        apart = self.setting.namespaces
        host = HUB_ADDRESS if apart else "127.0.0.1"
        port = self.proxy.ask("open", name=name, host=host)
        config = Config(
            address=f"{host}:{port}",
            seed=self.setting.seed,
            slot=slot,
            life=life,
            group=group,
            timeout_s=self.setting.timeout_s,
            bound_s=self.limits.bound_s,
            log=str(self.folder / f"{name}.log"),
            kinds=self.load.kinds,
            step_s=self.load.step_s,
            max_bytes=self.load.max_bytes,
            state_bytes=self.load.state_bytes,
            namespace=apart,
        )
        process = PeerProcess(config)
        self.peers[name] = Living(process, Flat(process.born), group=group)
        self.by_slot[slot] = name
        self._selector.register(process.socket, selectors.EVENT_READ, name)
        self.checks.born(name, group, process.born)
        self.tally.counts["lives"] += 1

    def _bury(self, name: str, now: float) -> None:
        living = self.peers.pop(name)
        self._selector.unregister(living.process.socket)
        status = living.process.exit_status(5.0)
        self.checks.ended(name, status, now)
        violated = any(name in violation.peers for violation in self.checks.violations)
        if living.ending and status not in (0, -signal.SIGKILL, -signal.SIGTERM) and not violated:
            self.checks.violate(now, f"{name} was told to end and did so with status {status}", [name])
        if not violated:
            Path(living.process.config.log).unlink(missing_ok=True)
        if self.by_slot.get(living.process.config.slot) == name:
            del self.by_slot[living.process.config.slot]
        living.process.end()
        self.proxy.ask("close", name=name)

    def settle_recoveries(self) -> None:
        """After a change of who is there."""
        for group in (0, 1):
            able = [
                one
                for one in self.peers.values()
                if one.group == group and one.info and not one.ending and one.stopped_until is None
            ]
            if len(able) < 2:
                self.tally.lonely(group)

    def finish(self, name: str, now: float) -> None:
        self.checks.disturbed(Disturbance("close", now, now, frozenset([name])))
        self.peers[name].ending = True
        self.peers[name].process.order("finish")

    # --- watching ----------------------------------------------------------------------------------------

    def _look_after(self, now: float) -> None:
        stopped = {name for name, living in self.peers.items() if living.stopped_until is not None}
        hanging = self.checks.look(now, stopped)
        fresh = [name for name in hanging if name in self.peers and not self.peers[name].ending]
        if fresh:
            self.dump(fresh)
        if not self.master.is_alive() and self.tally.faults["master_kill"] == 0:
            self.checks.violate(now, "the master ended by itself")
            raise StressError("the master ended by itself")
        self._look(self, now)

    def dump(self, names: list[str]) -> None:
        """Where they hang, into their logs."""
        for name in names:
            if name in self.peers:
                self.peers[name].ending = True
                self.peers[name].process.signal(signal.SIGUSR1)
        time.sleep(_SECONDS_TO_DUMP)

    def _sample(self, now: float) -> None:
        whole = 0
        for name, living in self.peers.items():
            sample = _take_sample(living.process.handle)
            if sample is not None:
                living.sample = sample
                whole += sample.memory_bytes
                for text in living.flat.add(sample):
                    self.checks.violate(now, f"{name}: {text}", [name])
        sample = _take_sample(self.master.handle) if self.master.is_alive() else None
        if sample is not None:
            for text in self.master_flat.add(sample):
                self.checks.violate(now, f"master: {text}", ["master"])
        self.samples.append((now, len(self.peers), self.tally.rate(now), whole))

    def _end_all(self) -> None:
        for living in self.peers.values():
            living.process.signal(signal.SIGCONT)
            living.process.end()
        self.master.kill()
        self.strangers.close()
        self.proxy.close()
        self._journal.close()
        self._selector.close()


def _take_sample(handle: psutil.Process | None) -> Sample | None:
    try:
        if handle is None:
            return None
        with handle.oneshot():
            return Sample(time.monotonic(), handle.memory_info().rss, handle.num_fds(), handle.num_threads())
    except psutil.Error:
        return None
