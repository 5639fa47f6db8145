"""Every process in a network namespace of its own, joined by a router: a network that can lose packets.

What the router drops is gone without a sign: no reset, no FIN, no ICMP. Needs root.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from types import TracebackType

_numbers = itertools.count(1)


def reason_not_to() -> str | None:
    """Why no namespaces can be made here; None if they can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "needs iproute2"
    probe = f"pccl-probe-{os.getpid()}"
    try:
        _ip("netns", "add", probe)
        _ip("-n", probe, "rule", "add", "from", "10.77.0.1", "to", "10.77.0.2", "blackhole")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces: {error.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "delete", probe], check=False, capture_output=True)
    return None


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _batch(namespace: str | None, lines: list[str]) -> None:
    command = ["ip", *(["-n", namespace] if namespace else []), "-batch", "-"]
    subprocess.run(command, input="\n".join(lines) + "\n", check=True, capture_output=True, text=True)


class Star:
    """with Star() as network, Cluster(..., network=network) as cluster: …"""

    def __init__(self) -> None:
        self._prefix = f"pccl-{os.getpid()}-{next(_numbers)}"
        self._router = f"{self._prefix}-router"
        self._addresses: dict[str, str] = {}
        self._rules: set[tuple[str, str]] = set()

    def __enter__(self) -> Star:
        _ip("netns", "add", self._router)
        _batch(self._router, ["link set lo up"])
        subprocess.run(
            ["ip", "netns", "exec", self._router, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        for namespace in [*(self._namespace(name) for name in self._addresses), self._router]:
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)

    def _namespace(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def place(self, name: str) -> tuple[str, str]:
        """The namespace of process `name`, made if need be, and its address."""
        namespace = self._namespace(name)
        if name not in self._addresses:
            number = len(self._addresses) + 1
            near, far, leaf, address = f"r{number}", f"10.77.{number}.1", f"l{number}", f"10.77.{number}.2"
            _ip("netns", "add", namespace)
            _batch(self._router, [
                f"link add {near} type veth peer name {leaf} netns {namespace}",
                f"address add {far}/24 dev {near}",
                f"link set {near} up",
            ])  # fmt: skip
            _batch(namespace, [
                "link set lo up",
                f"address add {address}/24 dev {leaf}",
                f"link set {leaf} up",
                f"route add default via {far}",
            ])  # fmt: skip
            self._addresses[name] = address
        return namespace, self._addresses[name]

    def cut(self, source: str, target: str, *, one_way: bool = False) -> None:
        """From now on what `source` sends to `target` is lost; the other way too unless `one_way`."""
        for one, other in [(source, target)] if one_way else [(source, target), (target, source)]:
            rule = self._addresses[one], self._addresses[other]
            if rule not in self._rules:
                self._rules.add(rule)
                _ip("-n", self._router, "rule", "add", "from", rule[0], "to", rule[1], "blackhole")

    def isolate(self, name: str) -> None:
        """Nothing goes from or to it any more."""
        for other in self._addresses:
            if other != name:
                self.cut(name, other)

    def reset(self, name: str, other: str) -> bool:
        """Ends every connection of `name` with `other` by a reset. False if the kernel can't."""
        command = [
            "ip",
            "netns",
            "exec",
            self._namespace(name),
            "ss",
            "-H",
            "-K",
            "-t",
            "dst",
            self._addresses[other],
        ]
        return bool(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())

    def mend(self) -> None:
        """All is well again."""
        for source, target in self._rules:
            _ip("-n", self._router, "rule", "delete", "from", source, "to", target, "blackhole")
        self._rules.clear()
