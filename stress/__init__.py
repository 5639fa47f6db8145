"""Churn on one machine, shipped with pccl as `pccl.stress` and run by `pccl stress`. See docs/stress.md.

run          the command: options, exit status
schedule     which fault happens when and to whom: a function of the seed
orchestrator starts a master and peers, lets faults happen, takes in what the peers tell
processes    a master and peers as processes
peer         the program that each peer runs; `operations` are the ops it makes, `arithmetic` their exact results
proxy        a network between peers and master that stalls and resets; `garbage` strangers that talk nonsense
checks       what must hold in every run; `flat` that nothing grows
view         what is seen while it runs; `report` and `timeline` what is left
"""
