"""How often an all-reduce touches its bytes: counted by a program into which the core is linked for that."""

import subprocess

from native import LIBRARY


def test_bytes_are_received_into_place_reduced_once_and_saved_once() -> None:
    program = LIBRARY.parent / "drivers" / "driver_copies"
    done = subprocess.run([str(program)], timeout=120, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("copies: all good\n")
