"""Defects planted in pccl, each of which `pccl stress` has to catch: `python -m tests.planted`."""
