"""csrc/core/master_join.c: where the others are told that a newcomer listens."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from native import PUBLIC_HEADERS, load

ffi, lib = load(
    *PUBLIC_HEADERS, "base/limits.h", "base/id.h", "base/address.h", "wire/message.h", "core/master.h"
)


def set_address(target: Any, host: str, port: int) -> None:
    ip = ipaddress.ip_address(host)
    target.family, target.port = ip.version, port
    ffi.memmove(target.bytes, ip.packed, len(ip.packed))


def proposed_address(remote: str, advertised: str | None) -> str:
    """The host that the master tells to the members of an epoch, of a peer that comes from `remote`."""
    told: list[str] = []

    def perform(context: Any, action: Any) -> None:
        if action.kind == lib.MASTER_SEND and action.message.type == lib.MESSAGE_PROPOSE:
            address = getattr(action.message, "as").propose.members[0].address
            assert address.port == 48149
            told.append(str(ipaddress.ip_address(bytes(address.bytes)[: 4 if address.family == 4 else 16])))

    memory = ffi.new("char[]", lib.master_bytes())
    master, callback = (
        ffi.cast("struct master *", memory),
        ffi.callback("void(void *, const struct master_action *)", perform),
    )
    lib.master_init(master, ffi.new("struct master_options *", {"seed": 7}), callback, ffi.NULL)
    message = ffi.new("struct message *", {"type": lib.MESSAGE_HELLO})
    hello = getattr(message, "as").hello
    hello.version = hello.oldest_version = lib.PROTOCOL_VERSION
    hello.streams, hello.timeout_ms, hello.listen.port = 1, 10_000, 48149
    if advertised is not None:
        set_address(hello.listen, advertised, 48149)
    event = ffi.new("struct master_event *", {"kind": lib.MASTER_MESSAGE, "now_ns": 10**9, "connection": 1})
    event.message = message
    set_address(event.remote, remote, 50000)
    lib.master_step(master, event)
    (host,) = told
    return host


@pytest.mark.parametrize(
    ("remote", "advertised", "told"),
    [
        ("10.0.0.9", None, "10.0.0.9"),
        ("10.0.0.9", "203.0.113.5", "203.0.113.5"),
        ("10.0.0.9", "2001:db8::5", "2001:db8::5"),
        ("127.0.0.1", "127.0.0.2", "127.0.0.2"),
        ("::1", "127.0.0.1", "127.0.0.1"),
        # Nobody could connect there: it is taken for where the connection comes from.
        ("10.0.0.9", "127.0.0.1", "10.0.0.9"),
        ("10.0.0.9", "::1", "10.0.0.9"),
        ("10.0.0.9", "0.0.0.0", "10.0.0.9"),
        ("10.0.0.9", "224.0.0.1", "10.0.0.9"),
        ("10.0.0.9", "fe80::1", "10.0.0.9"),
    ],
)
def test_a_peer_is_looked_for_where_it_can_be(remote: str, advertised: str | None, told: str) -> None:
    assert proposed_address(remote, advertised) == told
