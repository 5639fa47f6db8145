"""The simulator of the protocol: see README.md. `python -m tests.sim --help`."""
