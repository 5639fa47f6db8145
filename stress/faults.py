"""How each fault of a schedule is made to happen: one method per kind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from .checks import Disturbance
from .flat import Flat
from .schedule import Fault

if TYPE_CHECKING:
    from .orchestrator import Orchestrator

__all__ = ["Faults"]

_TAKING = (
    "kill",
    "term",
    "replace",
    "leave",
    "pause",
)  # a peer from the others, without a goodbye between ops


class Faults:
    """happen() makes one happen; what it takes to end it is done later, by the orchestrator's clock."""

    def __init__(self, run: Orchestrator) -> None:
        self._run = run

    def happen(self, fault: Fault, now: float) -> None:
        until = now + fault.duration_s
        kind = fault.kind
        victims = [name for slot in fault.slots if (name := self._run.by_slot.get(slot)) is not None]
        if kind not in ("spawn", "burst") and fault.slots and not victims:
            return  # it has ended by itself, which was told
        if kind == "close" and fault.variant >= 0.5:
            kind = "leave"  # in the middle of its calls
        self._run.checks.disturbed(Disturbance(kind, now, until, frozenset(victims)))
        taken = self._run.peers[victims[0]] if victims and kind in _TAKING else None
        self._run.tally.fault(
            fault.kind,
            now,
            until,
            taken.group if taken is not None else None,
            taken.process.config.slot if taken is not None else None,
        )
        self._run.tally.event(
            now, f"{kind} {' '.join(victims) or ' '.join(f's{slot}' for slot in fault.slots)}"
        )
        self._run.write(
            "schedule", {"kind": kind, "at": now, "peers": victims, "slots": fault.slots, "until": until}
        )
        getattr(self, "_do_" + kind)(fault, victims, until)
        self._run.settle_recoveries()

    def _do_spawn(self, fault: Fault, victims: list[str], until: float) -> None:
        for slot in fault.slots:
            self._run.spawn(slot, fault.group)

    _do_burst = _do_spawn

    def _do_kill(self, fault: Fault, victims: list[str], until: float) -> None:
        self._run.peers[victims[0]].ending = True
        self._run.peers[victims[0]].process.signal(signal.SIGTERM if fault.kind == "term" else signal.SIGKILL)

    _do_term = _do_kill

    def _do_replace(self, fault: Fault, victims: list[str], until: float) -> None:
        self._do_kill(fault, victims, until)
        self._run.spawn(fault.slots[1], fault.group)

    def _do_close(self, fault: Fault, victims: list[str], until: float) -> None:
        self._run.finish(victims[0], time.monotonic())
        self._must_end(victims[0])

    def _do_leave(self, fault: Fault, victims: list[str], until: float) -> None:
        self._run.peers[victims[0]].ending = True
        self._run.peers[victims[0]].process.order("leave")
        self._must_end(victims[0])

    def _must_end(self, name: str) -> None:
        def check(now: float) -> None:
            if name in self._run.peers:
                self._run.checks.violate(now, f"{name} was told to end and did not", [name])
                self._run.dump([name])

        self._run.at(time.monotonic() + self._run.limits.bound_s + 5 * self._run.setting.timeout_s, check)

    def _do_rejoin(self, fault: Fault, victims: list[str], until: float) -> None:
        self._run.peers[victims[0]].process.order("rejoin")

    def _do_regroup(self, fault: Fault, victims: list[str], until: float) -> None:
        self._run.peers[victims[0]].process.order("group", group=fault.group)

    def _do_pause(self, fault: Fault, victims: list[str], until: float) -> None:
        living = self._run.peers[victims[0]]
        if living.stopped_until is None:
            living.process.signal(signal.SIGSTOP)
        living.stopped_until = max(until, living.stopped_until or 0)

        def go_on(now: float) -> None:
            if living.stopped_until is not None and now >= living.stopped_until:
                living.stopped_until = None
                living.process.signal(signal.SIGCONT)

        self._run.at(until, go_on)

    def _do_slow(self, fault: Fault, victims: list[str], until: float) -> None:
        self._run.peers[victims[0]].process.order("slow", seconds=fault.duration_s)

    def _do_mismatch(self, fault: Fault, victims: list[str], until: float) -> None:
        self._run.peers[victims[0]].process.order(fault.kind)

    _do_misplaced = _do_mismatch

    def _do_links(self, fault: Fault, victims: list[str], until: float) -> None:
        port = self._run.peers[victims[0]].process.port()
        if port is not None and os.geteuid() == 0 and shutil.which("ss"):
            command = ["ss", "--kill", "--no-header", "--tcp", "dport", "=", f":{port}"]
            if subprocess.run(command, check=False, capture_output=True).stdout:
                return
        self._run.tally.faults[fault.kind] -= 1
        self._run.tally.faults["links (could not be reset)"] += 1

    def _do_reset(self, fault: Fault, victims: list[str], until: float) -> None:
        self._run.proxy.ask("reset", name=victims[0])

    def _do_stall(self, fault: Fault, victims: list[str], until: float) -> None:
        proxy, name = self._run.proxy, victims[0]
        one_way = fault.kind == "oneway"
        upstream = not one_way or fault.variant < 0.5
        proxy.ask("stall", name=name, upstream=upstream, downstream=not one_way or not upstream)
        self._run.at(until, lambda now: proxy.ask("stall", name=name, upstream=False, downstream=False))

    _do_oneway = _do_stall

    def _do_garbage(self, fault: Fault, victims: list[str], until: float) -> None:
        self._run.strangers.visit(int(self._run.master.address.rpartition(":")[2]), fault.variant)
        port = self._run.peers[victims[0]].process.port()
        if port is not None:
            self._run.strangers.visit(port, fault.variant)

    def _do_master_kill(self, fault: Fault, victims: list[str], until: float) -> None:
        if not self._run.master.is_alive():
            return  # already, and the next one is to come
        self._run.master.kill()

        def start(now: float) -> None:
            self._run.master.start()
            self._run.master_flat = Flat(time.monotonic())

        self._run.at(until, start)

    def _do_master_pause(self, fault: Fault, victims: list[str], until: float) -> None:
        self._run.master.signal(signal.SIGSTOP)
        self._run.at(until, lambda now: self._run.master.signal(signal.SIGCONT))
