"""Addresses: "127.0.0.1:48148", "[::1]:48148", "host.example:48148"."""

from __future__ import annotations

import socket
from typing import Any

from ._enums import Result
from ._errors import error_for
from ._native import ffi, lib

__all__ = ["format_address", "parse_address", "resolve"]


def parse_address(text: str) -> tuple[str, int]:
    """Split into host and port."""
    if not isinstance(text, str):
        raise TypeError(f"an address is a str such as '127.0.0.1:48148', not {type(text).__name__}")
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not colon or not host or (":" in host and not bracketed):
        raise ValueError(f"{text!r} is not an address: write host:port, or [host]:port for IPv6")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"{text!r} is not an address: its port must be a number from 0 to 65535")
    return host, int(port)


def resolve(text: str, failure: Result) -> Any:
    """The ccoip_socket_address_t * for an address; the error for `failure` if its host is not known. Of names
    that have both it takes the IPv4 address, because that is what a master on 0.0.0.0 answers."""
    host, port = parse_address(text)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        message = f"the host of {text!r} could not be looked up: {error}"
        raise error_for(failure, message) from error
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, _, _, _, socket_address = found[0]
    packed = socket.inet_pton(family, str(socket_address[0]).partition("%")[0])
    address = ffi.new("ccoip_socket_address_t *")
    if family == socket.AF_INET:
        address.inet.protocol = lib.inetIPv4
        address.inet.ipv4.data = list(packed)
    else:
        address.inet.protocol = lib.inetIPv6
        address.inet.ipv6.data = list(packed)
    address.port = port
    return address


def format_address(address: Any) -> str:
    """The text of a ccoip_socket_address_t."""
    if address.inet.protocol == lib.inetIPv4:
        return f"{socket.inet_ntop(socket.AF_INET, bytes(address.inet.ipv4.data))}:{address.port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, bytes(address.inet.ipv6.data))}]:{address.port}"
