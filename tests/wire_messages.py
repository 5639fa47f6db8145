"""Control messages for tests: strategies for their fields, and a second description of their bytes.

A message is (name, fields): fields is a dict that has the same names as the struct in csrc/wire/message.h;
ids are 16 bytes, strings bytes without the zero, arrays lists of what counts.
"""

import struct
from typing import Any, NamedTuple

from hypothesis import strategies as st
from native import load

ffi, lib = load("base/limits.h", "base/id.h", "base/address.h", "wire/message.h")

NAMES = {
    number: ffi.string(lib.message_name(number)).decode()
    for number in range(lib.MESSAGE_HELLO, lib.MESSAGE_TYPE_END)
}
TYPES = {name: number for number, name in NAMES.items()}

MAGIC = b"PCCL\0run"
LAST_RESULT = 18  # pcclOutOfMemory
NO_ADDRESS = {"family": 0, "bytes": b"", "port": 0}


class Message(NamedTuple):
    name: str
    fields: dict[str, Any]


# Strategies ---------------------------------------------------------------------------------------------


def up_to(highest: int, lowest: int = 0) -> st.SearchStrategy[int]:
    """Extremes often, anything between as well."""
    return st.sampled_from([lowest, highest]) | st.integers(lowest, highest)


u8, u16, u32, u64 = (up_to(2**bits - 1) for bits in (8, 16, 32, 64))
ids = st.binary(min_size=16, max_size=16)
results = up_to(LAST_RESULT)
errors = up_to(LAST_RESULT, 1)
_NO_CONTROL = bytes(byte if byte >= 0x20 and byte != 0x7F else 0x20 + byte % 32 for byte in range(256))


def text(max_bytes: int) -> st.SearchStrategy[bytes]:
    whole = st.just(b"x" * max_bytes)
    return whole | st.binary(max_size=max_bytes).map(lambda raw: raw.translate(_NO_CONTROL))


names, reasons = text(lib.MAX_NAME_BYTES), text(lib.MAX_REASON_BYTES)
addresses = st.one_of(
    st.fixed_dictionaries(
        {"family": st.just(family), "bytes": st.binary(min_size=size, max_size=size), "port": u16}
    )
    for family, size in ((0, 0), (4, 4), (6, 16))
)
descriptors = st.fixed_dictionaries(
    {
        "kind": up_to(lib.OP_KIND_END - 1, 1),
        "datatype": up_to(11),
        "reduce_op": up_to(4),
        "quant_datatype": up_to(11),
        "quant_algorithm": up_to(2),
        "algorithm": up_to(lib.OP_ALGORITHM_END - 1),
        "early": st.booleans(),
        "root_or_world": up_to(lib.MAX_PEERS),
        "count": u64,
    }
).map(lambda fields: {**fields, "early": fields["early"] and fields["kind"] == lib.OP_ALL_REDUCE})
digests = ids
votes = up_to(lib.VOTE_KIND_END - 1, 1)
announcements = st.fixed_dictionaries({"kind": up_to(lib.VOTE_KIND_END - 1), "peer": ids})
refusals = st.fixed_dictionaries({"status": errors, "reason": reasons})
ended_op = st.fixed_dictionaries({"tag": u64, "number": u64})
failed = st.lists(ended_op, max_size=5) | ended_op.map(lambda op: [op] * lib.MAX_FAILED_TAGS)
failed_tags = st.lists(u64, max_size=5) | st.just([2**64 - 1] * lib.MAX_FAILED_TAGS)
losses = st.fixed_dictionaries({"epoch": u64, "peer": ids, "reason": reasons})
kept = st.lists(ended_op, max_size=5) | ended_op.map(lambda op: [op] * lib.MAX_KEPT_OPS)
served = st.fixed_dictionaries({"op": ended_op, "rank": up_to(lib.MAX_PEERS - 1)})
served_ops = st.lists(served, max_size=5) | served.map(lambda op: [op] * lib.MAX_OP_SLOTS)
ops = st.fixed_dictionaries(
    {
        "epoch": u64,
        "tag": u64,
        "number": u64,
        "check": u32,
        "returned": st.booleans(),
        "numbered": st.booleans(),
    }
)
members = st.fixed_dictionaries({"id": ids, "address": addresses, "name": names})


@st.composite
def proposals(draw: st.DrawFn) -> dict[str, Any]:
    member_list = draw(st.lists(members, min_size=1, max_size=4))
    if draw(st.booleans()):
        member_list = [member_list[0]] * lib.MAX_PEERS
    rank = up_to(len(member_list) - 1)
    links = st.fixed_dictionaries(
        {"rank": rank, "streams": up_to(lib.MAX_STREAMS, 1), "opener": st.booleans(), "key": ids}
    )
    return draw(
        st.fixed_dictionaries(
            {
                "epoch": u64,
                "fate": up_to(lib.FATE_END - 1, lib.FATE_ABORT),
                "status": results,
                "has_guilty_tag": st.booleans(),
                "guilty_tag": u64,
                "guilty_blocking": st.booleans(),
                "reason": reasons,
                "has_tree": st.booleans(),
                "rank": rank,
                "links": st.lists(links, max_size=lib.MAX_LINKS),
                "places": st.lists(rank, min_size=len(member_list), max_size=len(member_list)),
                "members": st.just(member_list),
            }
        ).filter(lambda fields: fields["fate"] != lib.FATE_ABORT or fields["status"] != 0)
    )


@st.composite
def stragglers(draw: st.DrawFn) -> dict[str, Any]:
    peers = draw(st.lists(ids, max_size=lib.MAX_NAMED_STRAGGLERS))
    return {
        "kind": draw(up_to(lib.VOTE_KIND_END - 1)),
        "epoch": draw(u64),
        "tag": draw(u64),
        "waited_ms": draw(u32),
        "total": draw(up_to(lib.MAX_PEERS, len(peers))),
        "peers": peers,
    }


FIELDS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "HELLO": st.fixed_dictionaries(
        {
            "version": st.just(lib.PROTOCOL_VERSION),
            "oldest_version": u16,
            "group": u32,
            "streams": up_to(lib.MAX_STREAMS, 1),
            "timeout_ms": up_to(lib.MAX_TIMEOUT_MS, lib.MIN_TIMEOUT_MS),
            "straggler_timeout_ms": u32,
            "listen": addresses,
            "name": names,
            "run": text(lib.MAX_RUN_BYTES),
        }
    ),
    "WELCOME": st.fixed_dictionaries({"run": ids, "peer": ids}),
    "REFUSED": refusals,
    "CENSUS": st.fixed_dictionaries(
        dict.fromkeys(("peers", "groups", "largest_group"), up_to(lib.MAX_PEERS))
    ),
    "PROPOSE": proposals(),
    "READY": st.fixed_dictionaries({"epoch": u64, "rtt_us": u32, "kept": kept, "failed": failed}),
    "UNREACHABLE": losses,
    "COMMIT_EPOCH": st.fixed_dictionaries(
        {"epoch": u64, "tree_bytes": u32, "served_ops": served_ops, "failed_tags": failed_tags}
    ),
    "LINK_LOST": losses,
    "VOTE": announcements,
    "VOTE_OPENED": announcements,
    "VOTE_WAITING": stragglers(),
    "VOTE_RESULT": st.fixed_dictionaries({"kind": votes, "status": results, "value": u64, "reason": reasons}),
    "OP_DONE": ops,
    "OP_COMMIT": ops,
    "OP_MISMATCH": st.fixed_dictionaries(
        {"epoch": u64, "tag": u64, "mine": descriptors, "theirs": descriptors, "other": ids}
    ),
    "OP_CONFLICT": st.fixed_dictionaries({"epoch": u64, "tag": u64, "kind": votes, "mine": descriptors}),
    "OP_ABORT": st.fixed_dictionaries({"epoch": u64, "tag": u64, "status": errors, "reason": reasons}),
    "OP_WAITING": st.fixed_dictionaries(
        {
            "epoch": u64,
            "tag": u64,
            "number": u64,
            "part": up_to(lib.WAITING_END - 1),
            "question": u32,
            "waited_ms": u32,
            "stuck": st.booleans(),
            "stuck_tag": u64,
        }
    ),
    "OP_STRAGGLERS": stragglers(),
    "SYNC_OFFER": st.fixed_dictionaries(
        {
            "revision": u64,
            "strategy": up_to(2),
            "mixed": st.booleans(),
            "requires_peers": st.booleans(),
            "keys": digests,
            "content": digests,
        }
    ),
    "SYNC_PLAN": st.fixed_dictionaries(
        {
            "sync": u64,
            "patience_ms": u32,
            "revision": u64,
            "keys": digests,
            "content": digests,
            "role": up_to(lib.SYNC_ROLE_END - 1, 1),
            "key": ids,
            "sources": st.lists(members, max_size=lib.MAX_SYNC_SOURCES),
        }
    ),
    "SYNC_REPORT": st.fixed_dictionaries(
        {
            "sync": u64,
            "progress": up_to(lib.SYNC_PROGRESS_END - 1, 1),
            "peer": ids,
            "status": results,
            "reason": reasons,
        }
    ).filter(lambda fields: fields["progress"] != lib.SYNC_FAILED or fields["status"] != 0),
    "PROBE": st.fixed_dictionaries({"key": ids, "opener": st.booleans(), "member": members}),
    "PROBED": st.fixed_dictionaries({"key": ids, "reached": st.booleans(), "reason": reasons}),
    "PENDING": st.fixed_dictionaries({"waited_ms": u32, "reason": reasons}),
    "HEARTBEAT": st.just({}),
    "GOODBYE": st.just({}),
    "FAREWELL": st.just({}),
    "EVICTED": refusals,
}


def messages_of(name: str) -> st.SearchStrategy[Message]:
    return FIELDS[name].map(lambda fields: Message(name, fields))


messages = st.sampled_from(sorted(FIELDS)).flatmap(messages_of)


# One small message of each type, for what hypothesis is not needed for ------------------------------------

_ID = bytes(range(16))
_V4 = {"family": 4, "bytes": bytes([127, 0, 0, 1]), "port": 48149}
_V6 = {"family": 6, "bytes": bytes(15) + b"\x01", "port": 48150}
_OP = {"epoch": 7, "tag": 3}
_ENDED = {"tag": 5, "number": 9}
_DESCRIPTOR = {
    "kind": 1,
    "datatype": 10,
    "reduce_op": 1,
    "quant_datatype": 0,
    "quant_algorithm": 0,
    "algorithm": 0,
    "early": True,
    "root_or_world": 0,
    "count": 1000,
}
_MEMBERS = [{"id": _ID, "address": _V4, "name": b"ada"}, {"id": _ID[::-1], "address": _V6, "name": b""}]
_LINK = {"rank": 1, "streams": 4, "opener": True, "key": _ID}
_PROPOSE = {
    "epoch": 8,
    "fate": 1,
    "status": 8,
    "has_guilty_tag": True,
    "guilty_tag": 3,
    "guilty_blocking": False,
    "reason": b"peer 2 is gone",
    "has_tree": True,
    "rank": 0,
    "links": [_LINK, {**_LINK, "opener": False}],
    "places": [1, 0],
    "members": _MEMBERS,
}
_WAITING = {"epoch": 7, "tag": 3, "waited_ms": 31000, "total": 3, "peers": [_ID]}
_HELLO = {
    "version": lib.PROTOCOL_VERSION,
    "oldest_version": lib.OLDEST_PROTOCOL_VERSION,
    "group": 2,
    "streams": 4,
    "timeout_ms": 10000,
    "straggler_timeout_ms": 0,
    "listen": _V4,
    "name": b"ada",
    "run": b"digits",
}
_SYNC_PLAN = {
    "sync": 4,
    "patience_ms": 10_000,
    "revision": 9,
    "keys": _ID,
    "content": _ID[::-1],
    "role": 2,
    "key": _ID,
    "sources": _MEMBERS,
}
EXAMPLES = {
    name: Message(name, fields)
    for name, fields in {
        "HELLO": _HELLO,
        "WELCOME": {"run": _ID, "peer": _ID[::-1]},
        "REFUSED": {"status": 17, "reason": b"too old"},
        "CENSUS": {"peers": 5, "groups": 2, "largest_group": 3},
        "PROPOSE": _PROPOSE,
        "READY": {"epoch": 8, "rtt_us": 50, "kept": [_ENDED], "failed": [_ENDED, _ENDED]},
        "UNREACHABLE": {"epoch": 8, "peer": _ID, "reason": b"connection refused"},
        "COMMIT_EPOCH": {
            "epoch": 8,
            "tree_bytes": 65536,
            "served_ops": [{"op": _ENDED, "rank": 1}],
            "failed_tags": [3, 4],
        },
        "LINK_LOST": {"epoch": 8, "peer": _ID, "reason": b"connection reset"},
        "VOTE": {"kind": 1, "peer": bytes(16)},
        "VOTE_OPENED": {"kind": 1, "peer": _ID},
        "VOTE_WAITING": {"kind": 1, **_WAITING, "epoch": 0, "tag": 0},
        "VOTE_RESULT": {"kind": 2, "status": 0, "value": 1, "reason": b""},
        "OP_DONE": {**_OP, "number": 9, "check": 0x12345678, "returned": True, "numbered": False},
        "OP_COMMIT": {**_OP, "number": 9, "check": 0, "returned": False, "numbered": True},
        "OP_MISMATCH": {**_OP, "mine": _DESCRIPTOR, "theirs": {**_DESCRIPTOR, "count": 999}, "other": _ID},
        "OP_CONFLICT": {**_OP, "kind": 3, "mine": _DESCRIPTOR},
        "OP_ABORT": {**_OP, "status": 13, "reason": b"5 s have passed"},
        "OP_WAITING": {
            **_OP,
            "number": 9,
            "part": 1,
            "question": 3,
            "waited_ms": 500,
            "stuck": True,
            "stuck_tag": 4,
        },
        "OP_STRAGGLERS": {"kind": 0, **_WAITING},
        "SYNC_OFFER": {
            "revision": 9,
            "strategy": 2,
            "mixed": False,
            "requires_peers": True,
            "keys": _ID,
            "content": _ID[::-1],
        },
        "SYNC_PLAN": _SYNC_PLAN,
        "SYNC_REPORT": {"sync": 4, "progress": 3, "peer": bytes(16), "status": 15, "reason": b"names differ"},
        "PROBE": {"key": _ID, "opener": True, "member": _MEMBERS[0]},
        "PROBED": {"key": _ID, "reached": False, "reason": b"connection refused"},
        "PENDING": {"waited_ms": 10000, "reason": b"peer ada has not called update_topology()"},
        "HEARTBEAT": {},
        "GOODBYE": {},
        "FAREWELL": {},
        "EVICTED": {"status": 16, "reason": b"silent for 10 s"},
    }.items()
}


# Their bytes ----------------------------------------------------------------------------------------------


def _text(value: bytes) -> bytes:
    return struct.pack("<H", len(value)) + value


def _address(value: dict[str, Any]) -> bytes:
    return struct.pack("<BH", value["family"], value["port"]) + value["bytes"]


_DESCRIPTOR_ORDER = (
    "kind",
    "datatype",
    "reduce_op",
    "quant_datatype",
    "quant_algorithm",
    "algorithm",
    "root_or_world",
    "count",
)


def descriptor_bytes(value: dict[str, Any]) -> bytes:
    packed = {**value, "algorithm": value["algorithm"] | (0x80 if value.get("early") else 0)}
    return struct.pack("<6BHQ", *(packed[key] for key in _DESCRIPTOR_ORDER))


def _ended_op(op: dict[str, Any]) -> bytes:
    return struct.pack("<QQ", op["tag"], op["number"])


def _ended_ops(ops: list[dict[str, Any]]) -> bytes:
    return struct.pack("<H", len(ops)) + b"".join(map(_ended_op, ops))


def _tags(tags: list[int]) -> bytes:
    return struct.pack(f"<H{len(tags)}Q", len(tags), *tags)


def _hello(f: dict[str, Any]) -> bytes:
    start = MAGIC + struct.pack("<HH", f["version"], f["oldest_version"])
    if f["version"] != lib.PROTOCOL_VERSION:
        return start
    numbers = struct.pack("<IHII", f["group"], f["streams"], f["timeout_ms"], f["straggler_timeout_ms"])
    return start + numbers + _address(f["listen"]) + _text(f["name"]) + _text(f.get("run", b""))


def _propose(f: dict[str, Any]) -> bytes:
    numbers = struct.pack(
        "<QBHBQB",
        *(f[key] for key in ("epoch", "fate", "status", "has_guilty_tag", "guilty_tag", "guilty_blocking")),
    )
    world = f.get("world", len(f["members"]))
    counts = struct.pack("<BHHH", f["has_tree"], f["rank"], world, f.get("link_count", len(f["links"])))
    links = [
        struct.pack("<HHB", link["rank"], link["streams"], link["opener"]) + link["key"]
        for link in f["links"]
    ]
    peers = [
        member["id"] + _address(member["address"]) + _text(member["name"]) + struct.pack("<H", place)
        for member, place in zip(f["members"], f["places"], strict=True)
    ]
    return numbers + _text(f["reason"]) + counts + b"".join(links + peers)


def _sync_plan(f: dict[str, Any]) -> bytes:
    peers = [member["id"] + _address(member["address"]) + _text(member["name"]) for member in f["sources"]]
    start = struct.pack("<QIQ", f["sync"], f["patience_ms"], f["revision"]) + f["keys"] + f["content"]
    middle = struct.pack("<B", f["role"]) + f["key"] + struct.pack("<H", len(f["sources"]))
    return start + middle + b"".join(peers)


def _stragglers(f: dict[str, Any]) -> bytes:
    named = f.get("named", len(f["peers"]))
    numbers = struct.pack("<BQQIHH", f["kind"], f["epoch"], f["tag"], f["waited_ms"], f["total"], named)
    return numbers + b"".join(f["peers"])


def _body(name: str, f: dict[str, Any]) -> bytes:
    match name:
        case "HELLO":
            return _hello(f)
        case "WELCOME":
            return MAGIC + f["run"] + f["peer"]
        case "REFUSED":
            return MAGIC + struct.pack("<H", f["status"]) + _text(f["reason"])
        case "EVICTED":
            return struct.pack("<H", f["status"]) + _text(f["reason"])
        case "CENSUS":
            return struct.pack("<III", f["peers"], f["groups"], f["largest_group"])
        case "PROPOSE":
            return _propose(f)
        case "READY":
            start = struct.pack("<QI", f["epoch"], f.get("rtt_us", 0))
            return start + _ended_ops(f.get("kept", [])) + _ended_ops(f["failed"])
        case "COMMIT_EPOCH":
            served = [_ended_op(one["op"]) + struct.pack("<H", one["rank"]) for one in f["served_ops"]]
            start = struct.pack("<QIH", f["epoch"], f["tree_bytes"], len(served)) + b"".join(served)
            return start + _tags(f["failed_tags"])
        case "UNREACHABLE" | "LINK_LOST":
            return struct.pack("<Q", f["epoch"]) + f["peer"] + _text(f["reason"])
        case "VOTE" | "VOTE_OPENED":
            return struct.pack("<B", f["kind"]) + f["peer"]
        case "VOTE_WAITING" | "OP_STRAGGLERS":
            return _stragglers(f)
        case "PROBE":
            member = f["member"]
            other = member["id"] + _address(member["address"]) + _text(member["name"])
            return f["key"] + struct.pack("<B", f["opener"]) + other
        case "PROBED":
            return f["key"] + struct.pack("<B", f["reached"]) + _text(f["reason"])
        case "PENDING":
            return struct.pack("<I", f["waited_ms"]) + _text(f["reason"])
        case "SYNC_OFFER":
            flags = f.get("mixed", False), f.get("requires_peers", False)
            return struct.pack("<QBBB", f["revision"], f["strategy"], *flags) + f["keys"] + f["content"]
        case "SYNC_PLAN":
            return _sync_plan(f)
        case "SYNC_REPORT":
            start = struct.pack("<QB", f["sync"], f["progress"]) + f.get("peer", bytes(16))
            return start + struct.pack("<H", f["status"]) + _text(f["reason"])
        case "VOTE_RESULT":
            return struct.pack("<BHQ", f["kind"], f["status"], f["value"]) + _text(f["reason"])
        case "OP_DONE" | "OP_COMMIT":
            flags = f.get("returned", False), f.get("numbered", False)
            return struct.pack("<QQQIBB", f["epoch"], f["tag"], f.get("number", 0), f["check"], *flags)
        case "OP_WAITING":
            numbers = f["epoch"], f["tag"], f.get("number", 0), f["part"], f["question"], f["waited_ms"]
            return struct.pack("<QQQBIIBQ", *numbers, f["stuck"], f["stuck_tag"])
        case "OP_MISMATCH":
            both = descriptor_bytes(f["mine"]) + descriptor_bytes(f["theirs"])
            return struct.pack("<QQ", f["epoch"], f["tag"]) + both + f["other"]
        case "OP_CONFLICT":
            return struct.pack("<QQB", f["epoch"], f["tag"], f["kind"]) + descriptor_bytes(f["mine"])
        case "OP_ABORT":
            return struct.pack("<QQH", f["epoch"], f["tag"], f["status"]) + _text(f["reason"])
    return b""


def with_header(name: str, body: bytes) -> bytes:
    return struct.pack("<IH", len(body), TYPES[name]) + body


def pack(message: Message) -> bytes:
    """By this module's own description: works for fields beyond the limits too."""
    return with_header(message.name, _body(message.name, message.fields))


# The C core's side ----------------------------------------------------------------------------------------

_MEMBER_OF_UNION = {
    "EVICTED": "refused",
    "LINK_LOST": "unreachable",
    "VOTE_OPENED": "vote",
    "VOTE_WAITING": "stragglers",
    "OP_STRAGGLERS": "stragglers",
    "OP_DONE": "op",
    "OP_COMMIT": "op",
}
_BODILESS = {"HEARTBEAT", "GOODBYE", "FAREWELL"}
_COUNTS = {
    "links": "link_count",
    "members": "world",
    "places": "world",
    "kept": "kept_count",
    "failed": "failed_count",
    "served_ops": "served_count",
    "failed_tags": "failed_count",
    "peers": "named",
    "sources": "source_count",
}
_BYTES_OF_FAMILY = {0: 0, 4: 4, 6: 16}


def _struct_of(message: Any, name: str) -> Any:
    return getattr(getattr(message, "as"), _MEMBER_OF_UNION.get(name, name.lower()))


def _write(target: Any, fields: dict[str, Any]) -> None:
    for key, value in fields.items():
        kind = dict(ffi.typeof(target).fields)[key].type
        if kind.kind == "array" and isinstance(value, list):
            setattr(target, _COUNTS[key], len(value))
            for place, item in enumerate(value):
                if isinstance(item, int):
                    getattr(target, key)[place] = item
                else:
                    _write_one(getattr(target, key)[place], item)
        elif kind.kind in ("struct", "array"):
            _write_one(getattr(target, key), value)
        else:
            setattr(target, key, value)


def _write_one(target: Any, value: Any) -> None:
    if isinstance(value, dict):
        _write(target, value)
    elif ffi.typeof(target).kind == "array":  # a string, or an address's bytes
        ffi.memmove(target, value, len(value))
        if ffi.typeof(target).item.cname == "char":
            target[len(value)] = b"\0"
    else:
        ffi.memmove(target.bytes, value, 16)


def _read(source: Any) -> Any:
    kind = ffi.typeof(source)
    if kind.cname in ("struct id", "struct digest"):
        return bytes(ffi.buffer(source.bytes))
    if kind.cname == "struct address":
        size = _BYTES_OF_FAMILY[source.family]
        assert not any(source.bytes[size:16]), "an address has bytes that its family does not"
        return {"family": source.family, "bytes": bytes(source.bytes[0:size]), "port": source.port}
    fields = {}
    for key, field in kind.fields:
        value = getattr(source, key)
        if key in _COUNTS.values():
            continue
        if key in _COUNTS and field.type.kind == "array":
            items = [value[place] for place in range(getattr(source, _COUNTS[key]))]
            fields[key] = items if field.type.item.kind == "primitive" else [_read(item) for item in items]
        elif field.type.kind == "array":
            fields[key] = ffi.string(value)
        elif field.type.kind == "struct":
            fields[key] = _read(value)
        else:
            fields[key] = value
    return fields


def encode(message: Message, capacity: int = lib.MAX_MESSAGE_BYTES) -> bytes:
    """Empty if `capacity` is too small."""
    native = ffi.new("struct message *")
    native.type = TYPES[message.name]
    if message.name not in _BODILESS:
        _write(_struct_of(native, message.name), message.fields)
    target = ffi.new("uint8_t[]", capacity)
    return bytes(ffi.buffer(target, lib.message_encode(native, target, capacity)))


def decode(data: bytes, limit: int = lib.MAX_MESSAGE_BYTES) -> tuple[int, Message | None, int]:
    """The status, and on DECODE_OK the message and the bytes that it took."""
    native = ffi.new("struct message *")
    ffi.memmove(native, b"\xa5" * ffi.sizeof(native[0]), ffi.sizeof(native[0]))
    used = ffi.new("size_t *")
    source = ffi.new(
        "uint8_t[]", data
    )  # exactly as long as `data`, so that a sanitizer sees any reading past it
    status = lib.message_decode(source, len(data), limit, native, used)
    if status != lib.DECODE_OK:
        return status, None, 0
    name = NAMES[native.type]
    fields = {} if name in _BODILESS else _read(_struct_of(native, name))
    return status, Message(name, fields), used[0]
