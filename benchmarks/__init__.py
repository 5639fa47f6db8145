"""Measurements of pccl, shipped with it as `pccl.benchmarks` and run by `pccl bench NAME`.

allreduce   all-reduce over sizes, in the columns of nccl-tests, alone or beside rivals in the same call
p2p         what the link between two peers carries, beside raw TCP
kernels     reductions, checksum, hash and copy on one core, beside NumPy and memcpy
recovery    from the death of a peer to the next all-reduce of the survivors
sync        shared state to newcomers, beside what TCP carries

Below them: `contest` lets pccl and its rivals take turns at what a `plan` says; `launch` and `control` start
local processes and talk to them, `teams` are those of a contestant, `peer` and `rivals` the processes
themselves; `measure` is the loop that all Python ones run, `pattern` knows the exact results, `summary` the
numbers. `table` prints them, `plot` draws them, `progress` says how far a run is, and `record` writes
the table of the README.
"""
