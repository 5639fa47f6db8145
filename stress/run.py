"""`pccl stress`: churn on this machine, with every number checked."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from .arithmetic import MOST_MEMBERS
from .collectives import COLLECTIVES
from .namespaces import UnavailableError, enter_hub
from .operations import CROSSING, REDUCE, STATE, STYLES
from .orchestrator import Load, Orchestrator
from .processes import StressError
from .report import document, text
from .schedule import PROFILES, Setting, needs_namespaces
from .view import view

__all__ = ["main"]

_DESCRIPTION = """\
Starts a master and peers as processes of this machine, which reduce tensors and keep a shared state in
step, and kills, stops, cuts off and starts them at random moments. Each peer verifies each result to the
bit; states are compared among all at every revision; every error must have a cause among the faults; no
call may hang; nothing may grow.

The same seed gives the same schedule of faults. Exit status: 0 all held, 1 something did not, 2 wrong
usage."""


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition("-")
    try:
        pair = float(low), float(high or low)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0.5-2") from None
    if not 0 < pair[0] <= pair[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: two positive numbers of seconds, the lower one first")
    return pair


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _peers(text: str) -> int:
    value = int(text)
    if not 4 <= value <= MOST_MEMBERS:
        raise argparse.ArgumentTypeError(f"{text}: from 4 to {MOST_MEMBERS}")
    return value


def _size(text: str) -> int:
    units = {"K": 10, "M": 20, "G": 30}
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in units else (text, "")
    try:
        size = int(digits) << units.get(unit, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 64K or 2M") from None
    if not 1024 <= size <= 1 << 30:
        raise argparse.ArgumentTypeError(f"{text}: from 1K to 1G")
    return size


def _kinds(text: str) -> tuple[str, ...]:
    known = [*STYLES, CROSSING, *(name for name in COLLECTIVES if name != REDUCE), STATE]
    names = tuple(known) if text == "all" else tuple(text.split(","))
    wrong = [name for name in names if name not in known]
    if wrong:
        raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: the kinds are {', '.join(known)}, and all")
    if not set(names) & set(STYLES):
        names = (STYLES[0], *names)
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pccl stress",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=_positive, default=2.0, help="of faults (default 2)")
    add(
        "--peers",
        type=_peers,
        default=8,
        metavar="MAX",
        help=f"at most so many, 4 to {MOST_MEMBERS} (default 8)",
    )
    add("--seed", type=int, help="of the schedule and all values (default: a random one, which is printed)")
    add("--profile", choices=PROFILES, default="mixed", help="which faults (default mixed; none: to compare)")
    add(
        "--ops",
        type=_kinds,
        default=_kinds("all"),
        metavar="KIND,...",
        help="sync, async, multiple, crossing, state, … (default all)",
    )
    add("--groups", type=int, choices=(1, 2), help="peer groups (default 2 for mixed with 6 peers or more)")
    add(
        "--namespaces",
        choices=("auto", "yes", "no"),
        default="auto",
        help="network namespaces, for faults between peers (default auto: where root can make them)",
    )
    add("--fault-every", type=_range, default=(0.5, 2.0), metavar="LOW-HIGH", help="seconds (default 0.5-2)")
    add("--timeout", type=_positive, default=3.0, metavar="SECONDS", help="of the communicators (default 3)")
    add("--step-ms", type=_positive, default=100.0, metavar="MS", help="what a step computes (default 100)")
    add("--max-bytes", type=_size, default="1M", metavar="SIZE", help="of a tensor (default 1M)")
    add(
        "--state-bytes",
        type=_size,
        default="1280K",
        metavar="SIZE",
        help="of the shared state (default 1280K)",
    )
    add("--report", type=Path, metavar="FILE", help="JSON; a picture beside it if matplotlib is there")
    add("--json", action="store_true", help="the report as JSON on stdout instead of text")
    add("--most-violations", type=int, default=10, metavar="N", help="end after so many (default 10)")
    add(
        "--keep", type=Path, metavar="FOLDER", help="where logs go (default: a temporary one, kept if needed)"
    )
    return parser


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _carry_out(run: Orchestrator) -> str:
    """The outcome."""
    try:
        run.run()
    except KeyboardInterrupt:
        return "interrupted"
    except StressError as error:
        if not run.checks.violations:
            return f"not carried out: {error}"
    return "violated" if run.checks.violations else "held"


def _enter_namespaces(wanted: str, profile: str, parser: argparse.ArgumentParser) -> bool:
    """Whether the peers have namespaces of their own. This process is in that of the hub then."""
    if wanted == "no" or (wanted == "auto" and not needs_namespaces(profile)):
        return False
    try:
        enter_hub()
    except UnavailableError as error:
        if wanted == "yes":
            parser.error(f"--namespaces yes: {error}")
        print(f"pccl stress: no faults between peers: network namespaces: {error}", file=sys.stderr)
        return False
    return True


def _draw(run: Orchestrator, path: Path) -> None:
    from .timeline import draw

    try:
        draw(run, path)
        print(f"pccl stress: timeline in {path}", file=sys.stderr)
    except ModuleNotFoundError as error:
        print(f"pccl stress: no timeline without {error.name}: pip install 'pccl[stress]'", file=sys.stderr)


def main(arguments: list[str]) -> int:
    """Run it with the words behind `pccl stress`; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    importlib.import_module("psutil")  # else this is where it is missed
    if options.report is not None and not options.report.absolute().parent.is_dir():
        parser.error(f"--report: {options.report.parent} is no folder")
    if options.groups == 2 and options.peers < 6:
        parser.error("--groups 2: wants --peers 6 or more")
    namespaces = _enter_namespaces(options.namespaces, options.profile, parser)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 31)
    setting = Setting(
        seed=seed,
        profile=options.profile,
        peers=options.peers,
        duration_s=options.minutes * 60,
        timeout_s=options.timeout,
        gap_s=options.fault_every,
        groups=options.groups or (2 if options.profile == "mixed" and options.peers >= 6 else 1),
        namespaces=namespaces,
    )
    load = Load(options.ops, options.step_ms / 1000, options.max_bytes, options.state_bytes)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="pccl-stress-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"pccl stress: {setting.profile}, seed {seed}, up to {setting.peers} peers", file=sys.stderr)
    # The peers share this machine: no threads of BLAS.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    before = signal.signal(signal.SIGTERM, _interrupt)
    look = view()
    run = Orchestrator(setting, load, folder, options.most_violations, look)
    try:
        outcome = _carry_out(run)
    finally:
        look.close()
        signal.signal(signal.SIGTERM, before)
    report = document(run, ["pccl", "stress", *arguments], outcome)
    if options.report is not None:
        options.report.write_text(json.dumps(report, indent=1) + "\n")
        _draw(run, options.report.with_suffix(".png"))
    print(json.dumps(report, indent=1) if options.json else text(report))
    if options.keep is None and outcome == "held":
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if outcome == "held" else 1
