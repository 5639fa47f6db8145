"""Real processes with real faults: what the tests/test_faults_*.py have in common."""
