"""Addresses: "127.0.0.1:48148", "[::1]:48148", "host.example:48148"."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterable
from typing import Any

from ._enums import Result
from ._errors import error_for
from ._native import ffi, lib

__all__ = ["c_addresses", "format_address", "look_up", "parse_address", "resolve"]

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_ADDRESSES = 16  # that pcclSetMasterAddresses takes
_LOOK_UP_SECONDS = 10.0


def _no_address(text: str, why: str) -> ValueError:
    return ValueError(f"{text!r} is not an address: {why}")


def parse_address(text: str) -> tuple[str, int]:
    """Split into host and port."""
    if not isinstance(text, str):
        raise TypeError(f"an address is a str such as '127.0.0.1:48148', not {type(text).__name__}")
    if any(character.isspace() or not character.isprintable() for character in text):
        raise _no_address(text, "there is white space in it")
    if "://" in text:
        raise _no_address(text, "write host:port, without anything before it")
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not colon or text.endswith("]"):
        raise _no_address(text, f"its port is missing: write host:port, such as {text or '127.0.0.1'}:48148")
    if ":" in host and not bracketed:
        raise _no_address(text, f"write IPv6 addresses in brackets, and the port behind: [{text}]:48148")
    if not host:
        raise _no_address(text, "its host is missing: write host:port, or [host]:port for IPv6")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise _no_address(text, "its port must be a number from 0 to 65535")
    _literal(text, host)
    return host, int(port)


def _literal(text: str, host: str) -> IPAddress | None:
    """The host as an IP address; None if it is a name."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    if _is_link_local(ip):
        raise ValueError(
            f"{text!r} can't be used: a link-local IPv6 address (fe80::) holds for one interface only, "
            "so peers can't pass it on: use the machine's IPv4 address, or a global IPv6 address"
        )
    return ip


def _is_link_local(ip: IPAddress) -> bool:
    return ip.version == 6 and ip.is_link_local


def _system_look_up(host: str, port: int) -> list[IPAddress]:
    found: dict[IPAddress, None] = {}  # each once, in order
    for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        ip = ipaddress.ip_address(str(entry[4][0]))
        if not _is_link_local(ip):
            found[ip] = None
    if not found:
        raise OSError("it stands for link-local IPv6 addresses only, which peers can't tell to each other")
    # The usual master listens on 0.0.0.0, which is IPv4.
    return sorted(found, key=lambda ip: ip.version)[:_MAX_ADDRESSES]


def look_up(text: str, failure: Result, timeout: float = _LOOK_UP_SECONDS) -> list[IPAddress]:
    """What the host of an address stands for now, IPv4 first; the error for `failure` if that is not known
    within `timeout` seconds. The system's resolver may take longer, and can't be interrupted: so it runs in a
    thread of its own."""
    host, port = parse_address(text)
    ip = _literal(text, host)
    if ip is not None:
        return [ip]
    answers: list[list[IPAddress] | Exception] = []
    answered = threading.Event()

    def ask() -> None:
        try:
            answers.append(_system_look_up(host, port))
        except Exception as error:  # a UnicodeError is one: what can't be a name in the DNS
            answers.append(error)
        finally:
            answered.set()

    threading.Thread(target=ask, name="pccl-look-up", daemon=True).start()
    if not answered.wait(timeout):
        raise error_for(failure, f"the host of {text!r} could not be looked up within {timeout:.1f} s")
    (answer,) = answers
    if isinstance(answer, Exception):
        raise error_for(failure, f"the host of {text!r} could not be looked up: {answer}") from answer
    return answer


def c_addresses(ips: Iterable[IPAddress], port: int) -> Any:
    """An array of ccoip_socket_address_t."""
    ips = list(ips)
    addresses = ffi.new("ccoip_socket_address_t[]", len(ips))
    for address, ip in zip(addresses, ips, strict=True):
        if ip.version == 4:
            address.inet.protocol = lib.inetIPv4
            address.inet.ipv4.data = list(ip.packed)
        else:
            address.inet.protocol = lib.inetIPv6
            address.inet.ipv6.data = list(ip.packed)
        address.port = port
    return addresses


def resolve(text: str, failure: Result) -> Any:
    """The ccoip_socket_address_t * of the first address that the host stands for now."""
    _, port = parse_address(text)
    addresses = c_addresses(look_up(text, failure)[:1], port)
    return ffi.new("ccoip_socket_address_t *", addresses[0])


def format_address(address: Any) -> str:
    """The text of a ccoip_socket_address_t."""
    if address.inet.protocol == lib.inetIPv4:
        return f"{socket.inet_ntop(socket.AF_INET, bytes(address.inet.ipv4.data))}:{address.port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, bytes(address.inet.ipv6.data))}]:{address.port}"
