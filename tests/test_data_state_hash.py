"""csrc/data/state_hash*.c against its specification, written out below once more, and as a hash.

The known answers of tests/vectors/state_hash.json serve other implementations too. After a deliberate
change of the specification, `python tests/test_data_state_hash.py` writes them anew, by the scalar kernel.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native import load

ffi, lib = load("data/reduce.h", "data/state_hash.h")

VECTORS = Path(__file__).parent / "vectors" / "state_hash.json"
LEAF_BYTES = lib.STATE_LEAF_BYTES
STRIPE_BYTES = 512
BATCH_BYTES = 8 * STRIPE_BYTES

Hash = tuple[int, int]

# --- the specification of csrc/data/state_hash.h, slowly -------------------------------------------------

WORD = (1 << 64) - 1
HALF = (1 << 32) - 1


def key(i: int) -> int:
    z = (i + 1) * 0x9E3779B97F4A7C15 & WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & WORD
    return z ^ z >> 31


def absorb(lane: Hash, x: int, y: int) -> Hash:
    a, b = lane[0] ^ x, lane[1] ^ y
    for _ in range(2):
        b = b + (a & HALF) * (a >> 32) & WORD
        a = (a << 32 | a >> 32) & WORD
        a = a + (b & HALF) * (b >> 32) & WORD
        b = (b << 32 | b >> 32) & WORD
    return a, b


def finish(lane: Hash, x: int, y: int) -> Hash:
    lane = absorb(lane, x, y)
    for _ in range(4):
        lane = absorb(lane, 0, 0)
    return lane


def expected_leaf(data: bytes, index: int = 0) -> Hash:
    lanes = [(key(j), key(32 + j)) for j in range(32)]
    padded = data + bytes(-len(data) % 512)
    for start in range(0, len(padded), 512):
        words = np.frombuffer(padded, "<u8", 64, start).tolist()
        lanes = [absorb(lane, words[j], words[32 + j]) for j, lane in enumerate(lanes)]
    for half in (16, 8, 4, 2, 1):
        lanes = [absorb(lanes[j], *lanes[j + half]) for j in range(half)]
    return finish(lanes[0], len(data), index)


def expected_tensor(datatype: int, count: int, leaves: list[Hash]) -> Hash:
    state = key(64), key(65)
    for leaf in leaves:
        state = absorb(state, *leaf)
    return finish(state, count, datatype + 256 * len(leaves))


def expected_state(tensors: list[tuple[bytes, Hash]]) -> Hash:
    state = key(66), key(67)
    for name, tensor in tensors:
        state = absorb(state, *expected_leaf(name))
        state = absorb(state, *tensor)
    return finish(state, len(tensors), 0)


# --- the code under test -----------------------------------------------------------------------------------


def levels() -> list[int]:
    best = lib.reduce_best_level()
    if best == lib.REDUCE_NEON:
        return [lib.REDUCE_SCALAR, lib.REDUCE_NEON]
    return list(range(lib.REDUCE_SCALAR, best + 1))


LEVELS = levels()


def words(out) -> Hash:
    return out.words[0], out.words[1]


def leaf(data, index: int = 0, level: int | None = None) -> Hash:
    out = ffi.new("struct state_hash *")
    if level is None:
        lib.state_hash_leaf(ffi.from_buffer(data), len(data), index, out)
    else:
        lib.state_hash_leaf_at(level, ffi.from_buffer(data), len(data), index, out)
    return words(out)


def tensor(datatype: int, count: int, leaves: list[Hash]) -> Hash:
    array = ffi.new("struct state_hash[]", [{"words": list(each)} for each in leaves])
    out = ffi.new("struct state_hash *")
    lib.state_hash_tensor(datatype, count, array, len(leaves), out)
    return words(out)


def state(tensors: list[tuple[bytes, Hash]]) -> Hash:
    digest = ffi.new("struct state_digest *")
    lib.state_digest_init(digest)
    for name, each in tensors:
        lib.state_digest_add(digest, name, len(name), ffi.new("struct state_hash *", {"words": list(each)}))
    out = ffi.new("struct state_hash *")
    lib.state_digest_final(digest, out)
    return words(out)


def leaves_of(data: bytes) -> list[Hash]:
    return [
        leaf(data[at : at + LEAF_BYTES], index) for index, at in enumerate(range(0, len(data), LEAF_BYTES))
    ]


def noise(size: int, seed: int = 1) -> bytearray:
    return bytearray(random.Random(seed).randbytes(size))


# --- agreement ---------------------------------------------------------------------------------------------

SMALL_SIZES = [0, 1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 255, 256, 257, 263, 264, 265, 511, 512, 513, 1023, 1024]
SMALL_SIZES += [1025, 3584, 4095, 4096, 4097, 4608, 8191, 8192, 8193, 12289]
LARGE_SIZES = [LEAF_BYTES - 513, LEAF_BYTES - 1, LEAF_BYTES]


@pytest.mark.parametrize("size", SMALL_SIZES + LARGE_SIZES)
def test_every_level_follows_the_specification(size):
    data = noise(size, seed=size)
    expected = expected_leaf(bytes(data), size + 5)
    assert [leaf(data, size + 5, level) for level in LEVELS] == [expected] * len(LEVELS)
    assert leaf(data, size + 5) == expected


def test_levels_agree_at_every_size_and_alignment():
    data = noise(2 * BATCH_BYTES + 64)
    memory = ffi.from_buffer(data)
    out = ffi.new("struct state_hash *")
    for size in [*range(2 * STRIPE_BYTES + 2), *range(BATCH_BYTES - 2, 2 * BATCH_BYTES, 397)]:
        for offset in (0, 1, 8, 33):
            found = set()
            for level in LEVELS:
                lib.state_hash_leaf_at(level, memory + offset, size, 0, out)
                found.add(words(out))
            assert len(found) == 1, (size, offset)


@given(data=st.binary(max_size=64), repeat=st.integers(1, 40), index=st.integers(0, WORD))
def test_any_bytes_and_index_follow_the_specification(data, repeat, index):
    assert leaf(data * repeat, index) == expected_leaf(data * repeat, index)


@given(
    datatype=st.integers(0, 11),
    count=st.integers(0, WORD),
    leaves=st.lists(st.tuples(st.integers(0, WORD), st.integers(0, WORD)), max_size=20),
)
def test_tensor_follows_the_specification(datatype, count, leaves):
    assert tensor(datatype, count, leaves) == expected_tensor(datatype, count, leaves)


@given(
    tensors=st.lists(
        st.tuples(st.binary(max_size=80), st.tuples(st.integers(0, WORD), st.integers(0, WORD))), max_size=6
    )
)
def test_state_follows_the_specification(tensors):
    assert state(tensors) == expected_state(tensors)


# --- known answers -----------------------------------------------------------------------------------------


def pattern(name: str, size: int) -> bytes:
    if name == "zeros":
        return bytes(size)
    if name == "ones":
        return b"\xff" * size
    i = np.arange(size, dtype=np.uint64)  # "counter": byte i is (167 i + (i >> 8)) mod 256
    return ((i * np.uint64(167) + (i >> np.uint64(8))) & np.uint64(255)).astype(np.uint8).tobytes()


def as_text(value: Hash) -> list[str]:
    return [f"0x{word:016x}" for word in value]


def from_text(value: list[str]) -> Hash:
    first, second = (int(word, 16) for word in value)
    return first, second


def vectors() -> dict:
    return json.loads(VECTORS.read_text())


def test_known_answers_of_leaves():
    known = vectors()["leaves"]
    assert len(known) >= 40
    for entry in known:
        data = pattern(entry["pattern"], entry["size"])
        for level in LEVELS:
            assert leaf(data, entry["index"], level) == from_text(entry["hash"]), (entry, level)


def test_known_answers_of_leaves_follow_the_specification():
    for entry in vectors()["leaves"]:
        if entry["size"] <= 10000:
            expected = expected_leaf(pattern(entry["pattern"], entry["size"]), entry["index"])
            assert expected == from_text(entry["hash"]), entry


def test_known_answers_of_tensors():
    for entry in vectors()["tensors"]:
        data = pattern(entry["pattern"], entry["size"])
        leaves = leaves_of(data)
        known = from_text(entry["hash"])
        assert tensor(entry["datatype"], entry["count"], leaves) == known
        assert expected_tensor(entry["datatype"], entry["count"], leaves) == known


def test_known_answers_of_states():
    for entry in vectors()["states"]:
        tensors = [(name.encode(), from_text(value)) for name, value in entry["tensors"]]
        assert state(tensors) == from_text(entry["hash"])
        assert expected_state(tensors) == from_text(entry["hash"])


def write_vectors() -> None:
    sizes = [
        0,
        1,
        7,
        8,
        15,
        16,
        17,
        63,
        64,
        65,
        255,
        256,
        257,
        511,
        512,
        513,
        4095,
        4096,
        4097,
        1048575,
        1048576,
    ]
    cases = [("counter", size, 0) for size in sizes]
    cases += [("zeros", size, 0) for size in sizes if size > 0]
    cases += [("ones", size, 0) for size in (1, 512, 4096, 1048576)]
    cases += [("counter", 4097, index) for index in (1, 2, 1 << 32, WORD)]
    leaves = [
        {"pattern": name, "size": size, "index": index, "hash": as_text(leaf(pattern(name, size), index, 0))}
        for name, size, index in cases
    ]
    tensors = [
        {
            "pattern": name,
            "size": size,
            "datatype": datatype,
            "count": size // bytes_each,
            "hash": as_text(tensor(datatype, size // bytes_each, leaves_of(pattern(name, size)))),
        }
        for name, size, datatype, bytes_each in [
            ("counter", 0, 10, 4),
            ("counter", 4, 10, 4),
            ("counter", 4, 5, 4),
            ("counter", 4096, 11, 8),
            ("zeros", 1048576, 9, 2),
            ("counter", 1048577, 0, 1),
            ("counter", 3145732, 10, 4),
        ]
    ]
    lists = [[], [("w", leaf(b"", 0, 0))], [("layer.0.weight", leaf(b"a", 0, 0)), ("βias", leaf(b"b", 0, 0))]]
    states = [
        {
            "tensors": [[name, as_text(value)] for name, value in each],
            "hash": as_text(state([(name.encode(), value) for name, value in each])),
        }
        for each in lists
    ]
    parts = {"leaves": leaves, "tensors": tensors, "states": states}
    rows = [
        f' "{part}": [\n' + ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in table) + "\n ]"
        for part, table in parts.items()
    ]
    VECTORS.parent.mkdir(exist_ok=True)
    VECTORS.write_text("{\n" + ",\n".join(rows) + "\n}\n")


# --- as a hash ---------------------------------------------------------------------------------------------


def assert_all_differ(hashes: list[Hash]) -> None:
    """In each of the two words by itself, which asks for more than that the pairs differ."""
    assert len({first for first, _ in hashes}) == len(hashes)
    assert len({second for _, second in hashes}) == len(hashes)


def flipped(data: bytearray, *bits: int) -> Hash:
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
    found = leaf(data)
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
    return found


def assert_avalanche(differences: Iterator[Hash]) -> None:
    """`differences`: the hash before xor the hash after the flip of one bit, for many flips."""
    raw = np.array(list(differences), dtype="<u8")
    bits = np.unpackbits(raw.view(np.uint8).reshape(len(raw), 16), axis=1, bitorder="little")
    counts = bits.sum(axis=1)
    assert counts.min() >= 28, "a flip that changes few bits of the hash"  # 6.4 sigma of 128 fair coins
    assert counts.max() <= 100
    margin = 6 * 0.5 / len(raw) ** 0.5
    assert np.abs(bits.mean(axis=0) - 0.5).max() < margin, "an output bit that prefers to stay or to change"
    pairs = np.corrcoef(bits.T) - np.eye(128)
    assert np.abs(pairs).max() < 6.5 / len(raw) ** 0.5, "two output bits that change together"


@pytest.mark.parametrize("size", [1, 8, 17, 512, 700, 1024])
@pytest.mark.parametrize("contents", ["noise", "zeros"])
def test_avalanche_from_every_bit_of_a_leaf(size, contents):
    def differences() -> Iterator[Hash]:
        for message in range(-(-4096 // (8 * size))):
            # 8 * size flips each; the index makes messages of few bytes differ.
            data = noise(size, seed=message) if contents == "noise" else bytearray(size)
            before = leaf(data, message)
            for bit in range(8 * size):
                data[bit // 8] ^= 1 << bit % 8
                after = leaf(data, message)
                data[bit // 8] ^= 1 << bit % 8
                yield before[0] ^ after[0], before[1] ^ after[1]

    assert_avalanche(differences())


def test_avalanche_in_every_lane_of_first_and_last_stripes_of_a_long_leaf():
    data = noise(9 * BATCH_BYTES - 3)
    before = leaf(data)
    last_stripe = len(data) // STRIPE_BYTES * STRIPE_BYTES
    places = [*range(STRIPE_BYTES), *range(last_stripe - STRIPE_BYTES, len(data))]
    after = [flipped(data, 8 * place + (place * 5 + 3 * turn) % 8) for place in places for turn in range(3)]
    assert_avalanche((before[0] ^ first, before[1] ^ second) for first, second in after)


def test_avalanche_from_leaves_type_and_count_of_a_tensor():
    def differences() -> Iterator[Hash]:
        for message in range(20):
            words_of = np.frombuffer(noise(6 * 8, seed=message), np.uint64).tolist()
            inputs = [message % 12, 1000 + message, *words_of]
            before = tensor(inputs[0], inputs[1], list(zip(inputs[2::2], inputs[3::2], strict=True)))
            for which in range(len(inputs)):
                for bit in range(3 if which == 0 else 64):
                    inputs[which] ^= 1 << bit
                    after = tensor(inputs[0], inputs[1], list(zip(inputs[2::2], inputs[3::2], strict=True)))
                    inputs[which] ^= 1 << bit
                    yield before[0] ^ after[0], before[1] ^ after[1]

    assert_avalanche(differences())


def test_zeros_of_every_length_differ():
    sizes = [
        *range(3 * STRIPE_BYTES),
        *range(BATCH_BYTES - 9, BATCH_BYTES + 9),
        *range(LEAF_BYTES - 9, LEAF_BYTES + 1),
    ]
    assert_all_differ([leaf(bytes(size)) for size in sizes])


def test_every_prefix_differs_from_the_same_prefix_with_zeros_behind_it():
    data = noise(STRIPE_BYTES + 40).replace(b"\0", b"\1")
    hashes = [leaf(data[:size]) for size in range(len(data))]
    hashes += [leaf(data[:size] + b"\0") for size in range(len(data))]
    assert_all_differ(hashes)


def test_any_two_flips_differ_from_any_other_two():
    """In one lane over three stripes, and the bits beside it: where a change could undo another."""
    data = noise(3 * STRIPE_BYTES)
    lane = 5
    bits = [
        8 * (stripe * STRIPE_BYTES + word) + bit
        for stripe in range(3)
        for word in (8 * lane, 256 + 8 * lane)
        for bit in (0, 1, 15, 30, 31, 32, 33, 47, 62, 63)
    ]
    pairs = [flipped(data, first, second) for at, first in enumerate(bits) for second in bits[:at]]
    assert_all_differ([leaf(data), *pairs, *(flipped(data, bit) for bit in bits)])


def test_two_flipped_signs_at_any_distance_show():
    """Rows of float32 where one column changes sign: the same flip at regular distances."""
    data = noise(LEAF_BYTES)
    first = 8 * 4 * 321 + 31
    hashes = [flipped(data, first, first + 32 * 8 * distance) for distance in range(1, 1500, 7)]
    hashes += [flipped(data, first, first + 8 * STRIPE_BYTES * stripes) for stripes in range(3, 2040, 97)]
    assert_all_differ([leaf(data), flipped(data, first), *hashes])


@pytest.mark.parametrize("unit", [1, 2, 4, 8, 16, 32, 64, 256, 512, 4096])
def test_swapped_blocks_show(unit):
    data = noise(max(4 * STRIPE_BYTES, 6 * unit))
    count = len(data) // unit
    pairs = [(i, j) for i in range(count) for j in range(i)]
    picked = random.Random(unit).sample(pairs, min(len(pairs), 1200))
    hashes, contents = [leaf(data)], {bytes(data)}
    for i, j in picked:
        other = bytearray(data)
        other[i * unit : (i + 1) * unit], other[j * unit : (j + 1) * unit] = (
            data[j * unit : (j + 1) * unit],
            data[i * unit : (i + 1) * unit],
        )
        if bytes(other) not in contents:
            contents.add(bytes(other))
            hashes.append(leaf(other))
    assert len(hashes) > len(picked) * 0.9
    assert_all_differ(hashes)


def test_one_value_at_every_place_of_zeros_shows_where_it_is():
    hashes = [leaf(bytes(LEAF_BYTES))]
    for place in [*range(0, 2 * BATCH_BYTES, 4), *range(LEAF_BYTES - STRIPE_BYTES, LEAF_BYTES, 4)]:
        data = bytearray(2 * BATCH_BYTES if place < 2 * BATCH_BYTES else LEAF_BYTES)
        data[place : place + 4] = b"\0\0\x80\x3f"
        hashes.append(leaf(data))
    assert_all_differ(hashes)


def test_same_bytes_at_another_index_differ():
    data = noise(1000)
    assert_all_differ([leaf(data, index) for index in [*range(100), 1 << 20, 1 << 32, 1 << 63, WORD]])


def test_order_number_and_type_show_in_a_tensor():
    data = bytes(noise(3 * LEAF_BYTES))
    a, b, c = leaves_of(data)
    hashes = [tensor(10, 786432, list(order)) for order in [(a, b, c), (a, c, b), (b, a, c), (c, b, a)]]
    hashes += [tensor(datatype, 786432, [a, b, c]) for datatype in range(10)]
    hashes += [tensor(10, count, [a, b, c]) for count in (786431, 786433, 0)]
    hashes += [tensor(10, 786432, leaves) for leaves in ([], [a], [a, b], [a, b, c, c], [(0, 0), a, b, c])]
    assert_all_differ(hashes)


def test_equal_contents_in_different_leaves_differ():
    """Leaves know their place: exchanging two chunks of a tensor shows in their own hashes too."""
    same = bytes(2 * LEAF_BYTES)
    first, second = leaves_of(same)
    assert first != second


def test_names_order_and_boundaries_show_in_a_state():
    x, y = leaf(b"x"), leaf(b"y")
    lists = [[], [(b"", x)], [(b"a", x)], [(b"a", y)], [(b"b", x)], [(b"a\0", x)], [(b"a", x), (b"b", y)]]
    lists += [[(b"b", y), (b"a", x)], [(b"a", y), (b"b", x)], [(b"ab", x), (b"", y)], [(b"", x), (b"ab", y)]]
    lists += [[(b"a", x), (b"a", x)], [(b"a", x), (b"a", x), (b"a", x)]]
    assert_all_differ([state(tensors) for tensors in lists])


def test_state_can_go_on_after_final():
    digest, out = ffi.new("struct state_digest *"), ffi.new("struct state_hash *")
    lib.state_digest_init(digest)
    tensors = [(b"a", leaf(b"x")), (b"b", leaf(b"y"))]
    for at, (name, value) in enumerate(tensors):
        lib.state_digest_add(digest, name, len(name), ffi.new("struct state_hash *", {"words": list(value)}))
        lib.state_digest_final(digest, out)
        assert words(out) == state(tensors[: at + 1])


def test_input_ends_where_it_says():
    """Bytes behind the leaf do not count, whatever they are."""
    data = noise(2 * BATCH_BYTES)
    out = ffi.new("struct state_hash *")
    for size in (1, 511, 512, 513, BATCH_BYTES, BATCH_BYTES + 1):
        for level in LEVELS:
            lib.state_hash_leaf_at(level, ffi.from_buffer(data), size, 0, out)
            assert words(out) == leaf(bytes(data[:size])), (size, level)


@pytest.mark.parametrize(("half_bits", "likeliest"), [(4, 2**-6.3), (5, 2**-8.1)])
def test_no_difference_is_likely_after_one_absorb_of_a_small_twin(half_bits, likeliest):
    """The claim of the header: all states, and before them all changes of one bit, and some of more."""
    half, word = (1 << half_bits) - 1, (1 << 2 * half_bits) - 1
    state_bits = 4 * half_bits

    def small_swap(v: np.ndarray) -> np.ndarray:
        return (v << half_bits | v >> half_bits) & word

    def small_absorb(states: np.ndarray) -> np.ndarray:
        a, b = states & word, states >> 2 * half_bits
        for _ in range(2):
            b = b + (a & half) * (a >> half_bits) & word
            a = small_swap(a)
            a = a + (b & half) * (b >> half_bits) & word
            b = small_swap(b)
        return a | b << 2 * half_bits

    every = np.arange(1 << state_bits, dtype=np.int32)
    after = small_absorb(every)
    assert len(np.unique(after)) == len(every), "absorb() can be undone"
    ones = [1 << bit for bit in range(state_bits)]
    pairs = [first | second for first in ones for second in ones if first < second]
    for change in [*ones, half, word, *(pairs if half_bits == 4 else pairs[::20])]:
        assert np.bincount(after ^ after[every ^ change]).max() < likeliest * len(every), f"{change:#x}"


if __name__ == "__main__":
    write_vectors()
