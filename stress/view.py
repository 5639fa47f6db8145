"""What is seen while it runs: a table that changes in place on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from .orchestrator import Orchestrator
from .tally import percentile

__all__ = ["Live", "Plain", "view"]

_SECONDS_BETWEEN_LINES = 10.0
_EVENTS = 8


def _state(run: Orchestrator, now: float) -> dict[str, str]:
    tally = run.tally
    times = tally.recovery_times()
    living = run.peers.values()
    recovery = f"p50 {percentile(times, 0.5):.2f} s, p99 {percentile(times, 0.99):.2f} s" if times else "-"
    memory = sum(one.sample.memory_bytes for one in living if one.sample is not None)
    epochs = {one.info["epoch"] for one in living if one.info}
    return {
        "peers": f"{len(run.peers)}",
        "epoch": f"{max(epochs, default=0)}",
        "step": "/".join(str(step) for _, step in sorted(run.checks.steps.items())) or "-",
        "steps/s": f"{tally.rate(now):.1f}",
        "faults": f"{tally.faults.total()}",
        "recoveries": f"{len(times)} ({recovery})",
        "ops": f"{tally.counts['ops']}",
        "retried": f"{tally.counts['retries']}",
        "parity checks": f"{run.checks.parity_checks}",
        "memory": f"{memory / 2**20:.0f} MiB",
        "violations": f"{len(run.checks.violations)}",
    }


class Plain:
    """A line every ten seconds, and one for each violation."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = time.monotonic() + _SECONDS_BETWEEN_LINES
        self._told = 0

    def __call__(self, run: Orchestrator, now: float) -> None:
        for violation in run.checks.violations[self._told :]:
            print(f"{now - run.began:7.1f} s  VIOLATION  {violation.what}", file=self._stream, flush=True)
        self._told = len(run.checks.violations)
        if now >= self._next:
            self._next = now + _SECONDS_BETWEEN_LINES
            words = ", ".join(f"{name} {value}" for name, value in _state(run, now).items())
            print(f"{now - run.began:7.1f} s  {words}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to put away."""


class Live:
    """Rich's table, redrawn twice a second, with the last events below."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._live = RichLive(console=Console(stderr=True), auto_refresh=False, transient=True)
        self._live.start()

    def __call__(self, run: Orchestrator, now: float) -> None:
        self._live.update(self._picture(run, now), refresh=True)

    def _picture(self, run: Orchestrator, now: float) -> Any:
        from rich.console import Group
        from rich.table import Table

        setting = run.setting
        head = Table(title=f"pccl stress: {setting.profile}, seed {setting.seed}, {now - run.began:.0f} s")
        state = _state(run, now)
        for name in state:
            head.add_column(name, justify="right")
        head.add_row(*state.values())
        peers = Table(box=None)
        for name in ("peer", "group", "step", "in the last step", "memory", "files", ""):
            peers.add_column(name, justify="right")
        for name, one in sorted(run.peers.items()):
            sample = one.sample
            peers.add_row(
                name,
                str(one.group),
                str(one.info.get("step", "-")),
                str(one.info["members"][-1].bit_count() if one.info.get("members") else "-"),
                f"{sample.memory_bytes / 2**20:.0f} MiB" if sample is not None else "-",
                str(sample.files) if sample is not None else "-",
                "stopped" if one.stopped_until is not None else "ending" if one.ending else "",
            )
        lines = [f"{at - run.began:7.1f} s  {text}" for at, text in list(run.tally.events)[-_EVENTS:]]
        lines += [f"VIOLATION  {violation.what}" for violation in run.checks.violations[-3:]]
        return Group(head, peers, "\n".join(lines))

    def close(self) -> None:
        self._live.stop()


def view() -> Plain | Live:
    """The one that suits stderr."""
    return Live() if sys.stderr.isatty() else Plain(sys.stderr)
