"""python -m tests.planted [NAME ...]: is each planted defect caught by a run of at most two minutes?"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .build import ROOT, build, defects

MINUTES = 2
# What each defect takes; the rest are caught by a run of all kinds of faults.
PROFILES = {
    "marks_forgotten": "kill",
    "memory_leaked": "none",
    "oldest_state_elected": "joinstorm",
    "sync_one_early": "joinstorm",
    "vote_forgotten": "joinstorm",
}
LONGEST_S = 400.0  # far beyond a run with all its bounds


def run(python: Path, profile: str, seed: int, *more: str) -> dict[str, object]:
    """The report of one run."""
    command = [str(python), "-m", "pccl", "stress", "--minutes", str(MINUTES), "--peers", "6"]
    command += ["--profile", profile, "--seed", str(seed), "--most-violations", "1", "--json", *more]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LONGEST_S, env=environment, cwd="/", check=False
    )
    if not done.stdout:
        raise RuntimeError(f"no report: {done.stderr[-2000:]}")
    report: dict[str, object] = json.loads(done.stdout)
    report["status"] = done.returncode
    return report


def check() -> int:
    """Apply each to the files that it changes; it raises if its lines are not there."""
    for name, defect in defects().items():
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / defect.file
            target.parent.mkdir(parents=True)
            target.write_bytes((ROOT / defect.file).read_bytes())
            defect.apply(Path(folder))
        print(name)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(defects())}; default all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="only whether each fits the code as it is")
    options = parser.parse_args()
    if options.check:
        return check()
    missed = []
    for name in options.names or defects():
        defect = defects()[name]
        python = build(defect)
        began = time.monotonic()
        report = run(python, PROFILES.get(name, "mixed"), options.seed)
        violations = report["violations"]
        caught = report["status"] == 1 and bool(violations)
        text = violations[0]["what"] if isinstance(violations, list) and violations else report["outcome"]
        print(
            f"{name:24} {'caught' if caught else 'MISSED'} {time.monotonic() - began:6.1f} s  {text}",
            flush=True,
        )
        missed += [] if caught else [name]
    if missed:
        print(f"not caught: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
