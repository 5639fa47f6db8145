"""Real processes with real faults: what the tests/test_faults_*.py have in common.

peer      a process that makes the calls it is told to, and answers with what came out
many      its commands for many ops at once
model     what it trains: parity of all peers at every step
data      what it reduces, computed alike by the tests, which so know every result to the bit
spawner   forks such processes, and masters, in milliseconds
cluster   a master and its peers: commands to many at once, signals, deadlines, logs when a test fails
netns     a network whose packets can be lost without a sign (needs root)
proxy     a connection that goes dead or is reset (needs nothing)
recovery  measures how long a run needs after a kill; no test
"""
