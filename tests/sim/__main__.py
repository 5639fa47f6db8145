"""Runs the simulator.

python -m tests.sim                          10 000 seeds, then all scenarios
python -m tests.sim --seed 7 --trace         one seed, with its story
python -m tests.sim --seed 7 --count 500     seeds 7 to 506; a failing one is made small and told
python -m tests.sim --scenarios              the scenarios alone
python -m tests.sim --rewrite                takes what scenarios tell now as what they should tell
python -m tests.sim --mutations              how many seeds it takes to catch each planted fault

Other arguments go to the program: --without 1,2 (faults left out), --no-jitter, --max-hosts N,
--wire / --no-wire (messages through the encoder or not), --keep-going N (go on after N failures),
--no-shrink. --sanitize builds with AddressSanitizer and UBSan.
"""

import argparse
import subprocess
import sys

from . import scenario
from .build import build, build_mutant, mutations

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
MUTANT_SEEDS = 4000


def run_mutation(name: str) -> tuple[bool, str]:
    """Whether the planted fault was caught, and the first line about it with the number of seeds run."""
    mutation = next(mutation for mutation in mutations() if mutation.name == name)
    program = build_mutant(name, mutation)
    command = [str(program), "--seed", "1", "--count", str(MUTANT_SEEDS), "--no-shrink"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    program.unlink()
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED seed ")]
    if done.returncode == 0 or not failed:
        return False, f"not caught in {MUTANT_SEEDS} seeds"
    seed = failed[0].split()[2].rstrip(":")
    return True, f"{seed} seeds, {failed[0].split(': ', 1)[1][:110]}"


def run_mutations() -> int:
    missed = 0
    for mutation in mutations():
        try:
            caught, line = run_mutation(mutation.name)
        except ValueError as error:  # the code has moved on
            caught, line = False, str(error)
        missed += not caught
        print(f"{'caught' if caught else 'MISSED':7} {mutation.name:32} {line}", flush=True)
    return 1 if missed else 0


def run_scenarios(rewrite: bool) -> int:
    failed = 0
    for path in scenario.scenarios():
        if rewrite:
            print(f"{'rewritten' if scenario.rewrite(path) else 'the same':10} {path.name}")
            continue
        difference = scenario.difference(path)
        failed += bool(difference)
        if difference:
            print(f"{path.name}:\n{difference}\n(if it is as it should be: python -m tests.sim --rewrite)")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rewrite", action="store_true")
    parser.add_argument("--scenarios", action="store_true")
    parser.add_argument("--mutations", action="store_true")
    parser.add_argument("--sanitize", action="store_true")
    known, rest = parser.parse_known_args()
    if known.mutations:
        return run_mutations()
    if known.rewrite or known.scenarios:
        return run_scenarios(known.rewrite)
    program = build("sim-sanitized", flags=SANITIZE) if known.sanitize else build()
    if rest:
        return subprocess.run([str(program), *rest]).returncode
    seeds = subprocess.run([str(program), "--seed", "1", "--count", "10000"]).returncode
    return max(seeds, run_scenarios(rewrite=False))


if __name__ == "__main__":
    sys.exit(main())
