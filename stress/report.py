"""What is left of a run: numbers as text and JSON, with the logs of the peers concerned."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from typing import Any

import pccl

from .orchestrator import Orchestrator
from .tally import percentile

__all__ = ["SCHEMA", "document", "text"]

SCHEMA = "pccl.stress/1"


def _distribution(values: list[float]) -> dict[str, float]:
    return {
        "count": len(values),
        "p50_s": round(percentile(values, 0.5), 4),
        "p99_s": round(percentile(values, 0.99), 4),
        "max_s": round(max(values, default=0.0), 4),
    }


def document(run: Orchestrator, command: list[str], outcome: str) -> dict[str, Any]:
    """The whole report. `outcome`: "held", "violated", "interrupted", or why it could not be carried out."""
    tally, checks, setting = run.tally, run.checks, run.setting
    started = run.faults_began
    ended = run.faults_ended
    seconds = ended - started if started is not None and ended is not None else 0.0
    kinds = sorted({one.kind for one in tally.recoveries})
    made = sum(started <= at < ended for at in tally.step_times) if started and ended else 0
    return {
        "schema": SCHEMA,
        "pccl_version": pccl.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.release()}, {os.cpu_count()} cores, {platform.machine()}",
        "command": command,
        "outcome": outcome,
        "setting": {
            "profile": setting.profile,
            "seed": setting.seed,
            "peers": setting.peers,
            "groups": setting.groups,
            "namespaces": setting.namespaces,
            "minutes": setting.duration_s / 60,
            "timeout_s": setting.timeout_s,
            "fault_every_s": setting.gap_s,
            "ops": run.load.kinds,
            "step_s": run.load.step_s,
        },
        "seconds": round(seconds, 1),
        "faults": dict(sorted(tally.faults.items())),
        "recoveries": {
            "all": _distribution(tally.recovery_times()),
            **{
                kind: _distribution([one.seconds for one in tally.recoveries if one.kind == kind])
                for kind in kinds
            },
        },
        "steps": {str(group): steps for group, steps in sorted(tally.steps.items())},
        "steps_per_s": round(made / seconds, 2) if seconds else 0.0,
        "last_step": {str(group): step for group, step in sorted(checks.steps.items())},
        "ops_committed": tally.counts["ops"],
        "ops_retried": tally.counts["retries"],
        "ops_crossed": tally.counts["crossed"],
        "ops_given_up": tally.counts["given_up"],
        "calls_failed": dict(sorted(checks.errors.items())),
        "bytes_sent": tally.counts["bytes"],
        "processes": tally.counts["lives"],
        "joins": tally.counts["joins"],
        "parity_checks": checks.parity_checks,
        "state_checks": checks.state_checks,
        "memory": _memory(run),
        "violations": [
            {"at_s": round(one.at - run.began, 2), "what": one.what, "peers": one.peers}
            for one in checks.violations
        ],
        "logs": str(run.folder) if checks.violations else None,
    }


def _memory(run: Orchestrator) -> dict[str, Any]:
    """First and most of each thing that must not grow, of the master, which lives for the whole run."""
    flat = run.master_flat
    return {name: {"first": flat.baseline.get(name), "most": flat.most.get(name)} for name in flat.most}


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    setting = report["setting"]
    everything = report["recoveries"]["all"]
    faults = ", ".join(f"{count} {kind}" for kind, count in report["faults"].items()) or "none"
    errors = ", ".join(f"{count} {result}" for result, count in report["calls_failed"].items()) or "none"
    steps = ", ".join(f"{count} in group {group}" for group, count in report["steps"].items())
    name = setting["profile"]
    times = ", ".join(f"{which} {everything[which + '_s']:.3f} s" for which in ("p50", "p99", "max"))
    lines = [
        f"pccl stress: {name}, seed {setting['seed']}, up to {setting['peers']} peers: {report['outcome']}",
        f"  faults         {sum(report['faults'].values())} in {report['seconds']:.0f} s: {faults}",
        f"  recoveries     {everything['count']}: {times}",
        f"  steps          {steps or 'none'}; {report['steps_per_s']:.1f} a second",
        f"  ops            {report['ops_committed']} committed, {report['ops_retried']} retried",
        f"  crossing ops   {report['ops_crossed']} committed, {report['ops_given_up']} given up",
        f"  bytes sent     {report['bytes_sent'] / 1e9:.2f} GB",
        f"  failed calls   {errors}",
        f"  processes      {report['processes']}, which joined {report['joins']} times",
        f"  parity checks  {report['parity_checks']}, {report['state_checks']} of the state",
        f"  violations     {len(report['violations'])}",
    ]
    for violation in report["violations"]:
        lines.append(f"  {violation['at_s']:8.1f} s  {violation['what']}")
    if report["logs"]:
        lines.append(f"  logs of the peers concerned, of the master, and all events: {report['logs']}")
    return "\n".join(lines)
