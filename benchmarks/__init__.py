"""Measurements of pccl, shipped with it as `pccl.benchmarks` and run by `pccl bench NAME`.

allreduce   all-reduce over sizes, in the columns of nccl-tests, alone or beside rivals in the same call
recovery    from the death of a peer to the next all-reduce of the survivors

Below them: `launch` and `control` start local processes and talk to them, `peer` and `rivals` are those
processes, `measure` is the loop that all Python ones run, `pattern` knows the exact results, `summary` the
numbers and `table` how they are printed.
"""
