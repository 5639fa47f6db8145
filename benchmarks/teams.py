"""Contestants, started and ready to be asked."""

from __future__ import annotations

import contextlib
from pathlib import Path

from . import rivals
from .launch import Team
from .peer import spawn_master, spawn_peers

__all__ = ["ONE_OP", "OURSELVES", "start_ourselves", "start_rival"]

OURSELVES = "pccl"
ONE_OP = "one-op"  # the same team: what it does at once, in one op


def start_ourselves(
    stack: contextlib.ExitStack,
    directory: Path,
    world_size: int,
    streams: int,
    timeout_s: float,
    *,
    tcp_only: bool = False,
) -> tuple[Team, Team]:
    """Peers of pccl, and their master, until `stack` closes. Their files go to `directory`."""
    master = _enter(stack, directory, "master", 1, timeout_s)
    team = _enter(stack, directory, OURSELVES, world_size, timeout_s)
    spawn_peers(team, spawn_master(master), streams, tcp_only=tcp_only)
    team.wait_until_ready()
    return team, master


def start_rival(
    stack: contextlib.ExitStack, directory: Path, name: str, world_size: int, timeout_s: float
) -> Team:
    """The processes of a rival, until `stack` closes. Their files go to `directory`."""
    module = rivals.load(name)
    team = _enter(stack, directory, name, world_size, timeout_s)
    module.spawn(team)
    team.wait_until_ready()
    module.connect(team)
    return team


def _enter(
    stack: contextlib.ExitStack, directory: Path, name: str, world_size: int, timeout_s: float
) -> Team:
    (directory / name).mkdir()
    return stack.enter_context(Team(name, world_size, directory / name, timeout_s))
