"""A network in which packets get lost: every peer in a network namespace of its own, and this process and its
other children in one more, which routes between them. Linux, root, iproute2.

No namespace has a name: each one lasts as long as a process is in it, and takes its devices, routes and rules
with it. So nothing is left behind, however a run ends.

What a rule of the router takes away is gone without a sign, or the router says so (ICMP).
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = [
    "HUB_ADDRESS",
    "Router",
    "UnavailableError",
    "address_of",
    "connect_namespace",
    "enter_hub",
    "reset_connections_to",
]

_CLONE_NEWNET = 0x40000000
HUB_ADDRESS = "10.76.0.1"
_PEERS = "10.77"  # .0.0/16
_PEERS_BITS = 16
# The order in which the router looks at rules: what is lost, then what is its own, then the routes.
_FIRST_CUT, _CUTS, _OWN = 1000, 20000, 30000


class UnavailableError(Exception):
    """Why there can be no namespaces here."""


def _call(name: str, *arguments: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _ip(*lines: str) -> None:
    done = subprocess.run(
        ["ip", "-batch", "-"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise OSError(f"ip: {done.stderr.strip()}")


def _own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter_hub() -> None:
    """Moves this process, and with it all that it starts, into a new namespace that routes between those of
    the peers. Raises UnavailableError, and has done nothing then. Before the first thread is made."""
    if os.geteuid() != 0:
        raise UnavailableError("needs root")
    for tool in ("ip", "nsenter"):
        if shutil.which(tool) is None:
            raise UnavailableError(f"needs {tool}")
    home = _own_namespace()
    try:
        _call("unshare", _CLONE_NEWNET)
        try:
            _ip("link set lo up", f"address add {HUB_ADDRESS}/32 dev lo")
            _ip(f"rule add pref {_OWN} lookup local", "rule del pref 0")
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        except OSError:
            _call("setns", home, _CLONE_NEWNET)
            raise
    except OSError as error:
        raise UnavailableError(str(error)) from None
    finally:
        os.close(home)


def address_of(life: int) -> str:
    """Where the peer of this life is."""
    high, low = divmod(life % (254 * 254), 254)
    return f"{_PEERS}.{high + 1}.{low + 1}"


def connect_namespace(life: int) -> None:
    """Moves this process, whose parent is in the hub, into a new namespace with a cable to the hub. Before
    the first thread is made."""
    address, near = address_of(life), f"peer{life}"
    hub = _own_namespace()
    _call("unshare", _CLONE_NEWNET)
    own = _own_namespace()
    _ip(
        f"link add eth0 type veth peer name {near} netns {os.getppid()}",
        "link set lo up",
        f"address add {address}/32 dev eth0",
        "link set eth0 up",
        f"route add {HUB_ADDRESS} dev eth0",
        f"route add default via {HUB_ADDRESS}",
    )
    _call("setns", hub, _CLONE_NEWNET)
    _ip(f"link set {near} up", f"route add {address} dev {near}")
    _call("setns", own, _CLONE_NEWNET)
    os.close(hub)
    os.close(own)


def _kill_sockets(prefix: list[str], where: list[str]) -> bool:
    command = [*prefix, "ss", "--kill", "--no-header", "--tcp", *where]
    with contextlib.suppress(OSError):
        return bool(subprocess.run(command, capture_output=True, check=False).stdout.strip())
    return False


def reset_connections_to(port: int) -> bool:
    """Ends the connections of this machine to a port by resets. False if there are none, or the kernel can't,
    which it does for root only."""
    return _kill_sockets([], ["dport", "=", f":{port}"])


class Router:
    """What the hub loses. Each method returns what mends it again."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def lose(self, ways: Iterable[tuple[str, str]], told: bool = False) -> Callable[[], None]:
        """From now on, what the first address of each pair sends to the second; "all": whoever; "peers": all
        of them. `told`: the router answers that there is no way."""
        names = {"all": "0.0.0.0/0", "peers": f"{_PEERS}.0.0/{_PEERS_BITS}"}
        place = _FIRST_CUT + next(self._numbers) % _CUTS
        what = "unreachable" if told else "blackhole"
        rules = [
            f"rule add pref {place} from {names.get(source, source)} to {names.get(target, target)} {what}"
            for source, target in ways
        ]
        _ip(*rules)
        return lambda: _ip(*[f"rule del pref {place}"] * len(rules))

    @staticmethod
    def reset(pid: int, address: str | None) -> bool:
        """Ends the connections of a peer with the one at this address (None: with all peers) by resets. False
        if there are none, or the kernel can't."""
        try:
            its, hub = (Path(f"/proc/{who}/ns/net").stat().st_ino for who in (pid, "self"))
        except OSError:
            return False
        if its == hub:  # it has only just begun, and here are everybody's connections to the master
            return False
        target = address if address is not None else f"{_PEERS}.0.0/{_PEERS_BITS}"
        return _kill_sockets(["nsenter", f"--net=/proc/{pid}/ns/net"], ["dst", target])
