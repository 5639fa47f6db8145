"""Churn on one machine, shipped with pccl as `pccl.stress` and run by `pccl stress`. See docs/stress.md.

run          the command: options, exit status
schedule     which fault happens when and to whom: a function of the seed
orchestrator starts a master and peers, takes in what the peers tell; `faults` makes the faults happen
processes    a master and peers as processes
peer         the program that each peer runs; `steps` how it makes `operations` and `collectives`;
             `arithmetic` what comes out
proxy        a network between peers and master that stalls and resets; `namespaces` one between peers
             that loses packets; `garbage` strangers
lifeline     no process is left behind; `forker` is what all peers are forked from
checks       what must hold in every run; `causes` which fault explains which error; `flat` that nothing grows
tally        what has happened, in numbers
view         what is seen while it runs; `report` and `timeline` what is left
"""
