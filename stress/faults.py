"""How each fault of a schedule is made to happen: one method per kind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .causes import Disturbance
from .flat import Flat
from .namespaces import reset_connections_to
from .schedule import Fault

if TYPE_CHECKING:
    from .orchestrator import Orchestrator

__all__ = ["Faults"]

# A peer from the others, without a goodbye between ops.
_TAKING = ("kill", "term", "replace", "leave", "pause")

_SILENT = 0.7  # below: packets between two peers are lost without a sign


class Faults:
    """happen() makes one happen; what it takes to end it is done later, by the orchestrator's clock."""

    def __init__(self, run: Orchestrator) -> None:
        self._run = run
        self._current = Disturbance("", 0.0, 0.0)

    def happen(self, fault: Fault, now: float) -> None:
        until = now + fault.duration_s
        kind = fault.kind
        victims = [name for slot in fault.slots if (name := self._run.by_slot.get(slot)) is not None]
        pair = kind.startswith("pair_")
        if kind not in ("spawn", "burst") and fault.slots and len(victims) < 1 + pair:
            return  # it has ended by itself, which was told
        if kind == "close" and fault.variant >= 0.5:
            kind = "leave"  # in the middle of its calls
        if kind == "cut_off":  # each of the others has lost a link
            disturbance = Disturbance(kind, now, until, frozenset(self._run.peers))
        else:
            disturbance = Disturbance(kind, now, until, frozenset(victims))
        self._run.checks.disturbed(disturbance)
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
        self._current = disturbance
        getattr(self, "_do_" + kind)(fault, victims, until)
        self._run.settle_recoveries()

    def _then(self, action: Callable[[], None], *more: Disturbance) -> None:
        """What ends the current fault, in time. It, and what more it is, explains errors until that was
        really done."""
        until = self._current.until
        disturbances = [self._current, *more]

        def end(now: float) -> None:
            action()
            for one in disturbances:
                one.until = max(one.until, time.monotonic())

        self._run.at(until, end)

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

        def go_on() -> None:
            if living.stopped_until is not None and time.monotonic() >= living.stopped_until:
                living.stopped_until = None
                living.process.signal(signal.SIGCONT)

        self._then(go_on)

    def _do_slow(self, fault: Fault, victims: list[str], until: float) -> None:
        self._run.peers[victims[0]].process.order("slow", seconds=fault.duration_s)

    def _do_mismatch(self, fault: Fault, victims: list[str], until: float) -> None:
        self._run.peers[victims[0]].process.order(fault.kind)

    _do_misplaced = _do_mismatch

    def _do_links(self, fault: Fault, victims: list[str], until: float) -> None:
        process = self._run.peers[victims[0]].process
        if self._run.setting.namespaces:
            done = self._run.router.reset(process.pid, None)
        else:
            port = process.port()
            done = port is not None and os.geteuid() == 0 and reset_connections_to(port)
        self._count_reset(fault.kind, done)

    def _do_pair_reset(self, fault: Fault, victims: list[str], until: float) -> None:
        one, other = (self._run.peers[name].process for name in victims)
        self._count_reset(fault.kind, self._run.router.reset(one.pid, other.host))

    def _count_reset(self, kind: str, done: bool) -> None:
        if not done:
            self._run.tally.faults[kind] -= 1
            self._run.tally.faults[f"{kind} (could not be reset)"] += 1

    def _do_pair_cut(self, fault: Fault, victims: list[str], until: float) -> None:
        one, other = (self._run.peers[name].process.host for name in victims)
        both = fault.kind == "pair_cut"
        ways = [(one, other), (other, one)] if both else [(one, other)]
        self._then(self._run.router.lose(ways, told=both and fault.variant >= _SILENT))

    _do_pair_oneway = _do_pair_cut

    def _do_cut_off(self, fault: Fault, victims: list[str], until: float) -> None:
        host = self._run.peers[victims[0]].process.host
        more = []
        if fault.variant < 0.5:  # from the master, too
            more.append(Disturbance("unheard", self._current.at, until, frozenset(victims)))
            self._run.checks.disturbed(more[0])
        others = "all" if more else "peers"
        self._then(self._run.router.lose([(host, others), (others, host)]), *more)

    def _do_reset(self, fault: Fault, victims: list[str], until: float) -> None:
        self._run.proxy.ask("reset", name=victims[0])

    def _do_stall(self, fault: Fault, victims: list[str], until: float) -> None:
        proxy, name = self._run.proxy, victims[0]
        one_way = fault.kind == "oneway"
        upstream = not one_way or fault.variant < 0.5
        proxy.ask("stall", name=name, upstream=upstream, downstream=not one_way or not upstream)
        self._then(lambda: proxy.ask("stall", name=name, upstream=False, downstream=False))

    _do_oneway = _do_stall

    def _do_garbage(self, fault: Fault, victims: list[str], until: float) -> None:
        host, _, master_port = self._run.master.address.rpartition(":")
        self._run.strangers.visit(host, int(master_port), fault.variant)
        process = self._run.peers[victims[0]].process
        port = process.port()
        if port is not None:
            self._run.strangers.visit(process.host, port, fault.variant)

    def _do_master_kill(self, fault: Fault, victims: list[str], until: float) -> None:
        if not self._run.master.is_alive():
            return  # already, and the next one is to come
        self._run.master.kill()

        def start() -> None:
            self._run.master.start()
            self._run.master_flat = Flat(time.monotonic())

        self._then(start)

    def _do_master_pause(self, fault: Fault, victims: list[str], until: float) -> None:
        self._run.master.signal(signal.SIGSTOP)
        self._then(lambda: self._run.master.signal(signal.SIGCONT))
