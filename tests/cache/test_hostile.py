"""Whatever bytes lie under a key, a reader's memory and time stay within the stated multiple."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from decimal import Decimal
from math import inf, nan
from uuid import UUID

import msgspec
import pytest

from workshop_lib.cache import codec, json_codec
from workshop_lib.cache.codec import CorruptEntry, Entry, Uncacheable
from workshop_lib.cache.compressed import CompressedCodec
from workshop_lib.cache.fields import decode_field
from workshop_lib.cache.object_cache import ObjectCache
from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.cache.record_cache import RecordCache

MULTIPLE = 200
"""Bytes of memory for each byte of max_bytes, as the codec's module says."""
LIMIT = 100_000
P = 2**61 - 1
"""Python's hash of an integer is the remainder by it."""


def sealed(header: bytes, body: bytes) -> bytes:
    return header + zlib.crc32(body).to_bytes(4, "little") + body


def frame(columns: list[tuple[str, bytes]], times: object = (0.0, 0.0, inf)) -> bytes:
    names = [str(n) for n in range(len(columns))]
    return sealed(b"\xc1WE\x01", msgspec.msgpack.encode([names, times, columns]))


def many(value: bytes, room: int = LIMIT - 100) -> bytes:
    """An array of as many copies of an encoded value as there is room for."""
    count = room // len(value)
    return b"\xdd" + count.to_bytes(4, "big") + value * count


def tagged(*values: object) -> bytes:
    return msgspec.msgpack.encode(list(values))


def colliding_map() -> bytes:
    keys = [b"\x92\xcf" + (n * P).to_bytes(8, "big") + b"\xcf" + bytes(8) for n in range(8)]
    keys = [key[:-8] + (m * P).to_bytes(8, "big") for key in keys for m in range(8)]
    return b"\x91\xdf" + (4_000).to_bytes(4, "big") + b"".join(key + b"\xc0" for key in keys) * 63


BOMBS: dict[str, bytes] = {
    "nothing by the thousand": frame([("NoneType", many(b"\xc0"))]),
    "small integers": frame([("int", many(b"\xe0"))]),
    "decimals from integers": frame([("Decimal", many(b"\x01"))]),
    "short decimals": frame([("Decimal", many(b"\xa19"))]),
    "empty lists": frame([("tagged", many(b"\x90"))]),
    "lists in lists": frame([("tagged", many(b"\x91\x90"))]),
    "empty maps": frame([("tagged", many(b"\x80"))]),
    "maps": frame([("tagged", many(b"\x81\xc0\xc0"))]),
    "extensions": frame([("tagged", many(b"\xd4\x05\x00"))]),
    "nested beyond reason": frame([("tagged", b"\x91" * (LIMIT - 100) + b"\xc0")]),
    "a length that is not there": frame([("int", b"\xdd\xff\xff\xff\xff\x01")]),
    "lengths that are not there": frame([("tagged", many(b"\xdd\xff\xff\xff\xff"))]),
    "bytes that are not there": frame([("bytes", b"\x91\xc6\xff\xff\xff\xff")]),
    "many empty columns": frame([("int", b"\x90")] * 7_000),
    "rows of nothing": sealed(
        b"\xc1WE\x01", msgspec.msgpack.encode([[], (0.0, 0.0, inf), [("NoneType", many(b"\xc0"))]])
    ),
    "zones": frame([("tagged", many(b"\x92\xa8ZoneInfo\xaaEtc/GMT-14"))]),
    "a zone that is a path": frame([("tagged", tagged(["ZoneInfo", "../../../etc/passwd"]))]),
    "a colliding map": frame([("tagged", colliding_map())]),
    "colliding integers": frame(
        [("tagged", tagged(["dict", [[["int", hex(n * P)], None] for n in range(2**10, 4_000)]]))]
    ),
    "colliding UUIDs": frame(
        [
            (
                "tagged",
                tagged(
                    ["dict", [[["UUID", UUID(int=n * P).bytes], None] for n in range(1, 3_000)]]
                ),
            )
        ]
    ),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_a_reader_s_memory_is_bounded_by_the_limit(data: bytes) -> None:
    assert len(data) <= LIMIT
    tracemalloc.start()
    try:
        outcome = _outcome(lambda: codec.decode(data, LIMIT))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert outcome in {"entry", "corrupt"}
    assert peak <= MULTIPLE * LIMIT


def _outcome(decode: Callable[[], object]) -> str:
    try:
        decode()
    except CorruptEntry:
        return "corrupt"
    return "entry"


@pytest.mark.parametrize(
    "name", [name for name in BOMBS if "colli" in name or "map" in name or "there" in name]
)
def test_what_no_encoder_makes_is_corrupt(name: str) -> None:
    with pytest.raises(CorruptEntry):
        codec.decode(BOMBS[name], LIMIT)


def test_colliding_keys_take_no_quadratic_time() -> None:
    keys = [UUID(int=n * P) for n in range(1, 30_000)]
    packed = ["dict", [[["UUID", key.bytes], None] for key in keys]]
    data = frame([("tagged", tagged(packed))])
    started = time.process_time()
    with pytest.raises(CorruptEntry):
        codec.decode(data, len(data))
    assert time.process_time() - started < 5.0  # without the check: minutes
    with pytest.raises(Uncacheable, match="same hash"):
        codec.encode(Entry(("it",), [(dict.fromkeys(keys[:100]),)], 0.0, 0.0))


CODECS = {"frames": codec, "JSON": json_codec, "compressed": CompressedCodec(10)}


@pytest.mark.parametrize("one", CODECS.values(), ids=CODECS)
def test_an_entry_as_large_as_the_limit_is_read_and_a_larger_one_is_corrupt(one) -> None:
    entry = Entry(("it",), [(str(n) * 10,) for n in range(500)], 0.0, 0.0)
    data = one.encode(entry)
    assert one.decode(data, len(data)) == entry
    with pytest.raises(CorruptEntry, match="more than an entry may have"):
        one.decode(data, len(data) - 1)


def test_a_field_as_large_as_the_limit_is_read_and_a_larger_one_is_corrupt() -> None:
    assert decode_field(b"s:abc", 5) == "abc"
    with pytest.raises(CorruptEntry):
        decode_field(b"s:abc", 4)
    with pytest.raises(CorruptEntry):
        decode_field(b"i:" + b"9" * 10_000, LIMIT)


def test_what_is_larger_than_the_limit_unpacked_is_neither_written_packed_nor_unpacked() -> None:
    rows = [("the same text",)] * 10_000
    entry = Entry(("it",), rows, 0.0, 0.0)
    size = len(codec.encode(entry))
    fits, too_small = CompressedCodec(10, max_bytes=size), CompressedCodec(10, max_bytes=size - 1)
    packed = fits.encode(entry)
    assert len(packed) < size / 20
    assert fits.decode(packed, size) == entry
    assert too_small.encode(entry) == codec.encode(entry)  # so its size says that it is too large
    with pytest.raises(CorruptEntry):
        too_small.decode(packed, size)


TIMES = [
    (nan, 0.0, inf),
    (inf, 0.0, inf),
    (-1.0, 0.0, inf),
    (0.0, nan, inf),
    (0.0, inf, inf),
    (0.0, -1.0, inf),
    (0.0, 1e18, inf),
    (0.0, 0.0, nan),
    (0.0, 0.0, -inf),
    (0.0, 0.0, -1.0),
    (0.0, 0.0, 1e18),
]


@pytest.mark.parametrize("times", TIMES, ids=str)
def test_times_that_no_clock_shows_are_corrupt_and_never_written(times) -> None:
    with pytest.raises(CorruptEntry):
        codec.decode(frame([("int", b"\x91\x01")], times))
    with pytest.raises(Uncacheable, match="times cannot be right"):
        codec.encode(Entry(("it",), [(1,)], *times))
    with pytest.raises(Uncacheable, match="times cannot be right"):
        json_codec.encode(Entry(("it",), [(1,)], *times))


# --- at the caches


PACKED = b"\xc1WZ\x01" + zlib.compress(frame([("NoneType", many(b"\xc0", 60_000_000))]), 1)


@pytest.mark.parametrize("data", [PACKED, BOMBS["maps"], bytes(2_000_000)], ids=["z", "m", "large"])
def test_a_bomb_is_counted_as_corrupt_and_the_object_read_anew(ws, data) -> None:
    ws.objects.put("thing", b"text")
    cache = ObjectCache(ws)
    ws.valkey.set(cache.key("thing"), data, px=30_000)
    assert [cache.get("thing"), cache.get("thing")] == [b"text"] * 2
    stats = cache.stats()
    assert (stats.corrupt, stats.misses, stats.hits) == (1, 1, 1)


def test_a_bomb_is_counted_as_corrupt_and_the_query_asked_anew(ws, source) -> None:
    cache = QueryCache(source, codec=CompressedCodec())
    ws.valkey.set(cache.key("SELECT 1"), PACKED, px=30_000)
    assert cache.fetch("SELECT 1").source == "database"
    assert cache.fetch("SELECT 1").source == "cache"
    assert cache.stats().corrupt == 1


ABOUT = [0.0, 0.0, None, ["id", "v"], True]
FIELDS = {
    "deep JSON": {"@": b"[" * 100_000},
    "a column a thousand times": {"@": json.dumps([*ABOUT[:3], ["v"] * 1_000, True])},
    "NaN": {"@": json.dumps([nan, *ABOUT[1:]])},
    "the end of all days": {"@": json.dumps([0.0, 1e18, *ABOUT[2:]])},
    "a negative cost": {"@": json.dumps([-1.0, *ABOUT[1:]])},
    "names that are no text": {"@": json.dumps([*ABOUT[:3], [1, 2], True])},
    "too large a field": {"v": b"s:" + bytes(1_100_000)},
    "an integer of many digits": {"v": b"i:" + b"9" * 1_000_000},
    "a nested frame": {"v": b"v:" + b"A" * 900_000},
}


@pytest.mark.parametrize("spoilt", FIELDS.values(), ids=FIELDS)
def test_a_hostile_record_is_counted_as_corrupt_and_read_anew(ws, source, spoilt) -> None:
    things = RecordCache(source, "thing")
    right = things.get(1)
    ws.valkey.hset(things.key(1), mapping=spoilt)
    assert things.get_fields(1, ["v"]) == {"v": 1}
    assert things.get(1) == right
    assert things.stats().corrupt == 1


CHILD = """
import resource, sys, zlib
from workshop_lib.cache.compressed import CompressedCodec
from workshop_lib.cache.codec import CorruptEntry
data = sys.stdin.buffer.read()
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 500_000_000, used + 500_000_000))
try:
    CompressedCodec().decode(data)
except CorruptEntry:
    print("corrupt")
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="the system has no such limit")
def test_a_reader_with_little_memory_survives_a_compressed_bomb() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=PACKED, capture_output=True, check=False
    )
    assert done.stdout == b"corrupt\n"


def test_large_numbers_are_no_trouble() -> None:
    values = [Decimal("1E+1000000000"), 2**30_000, -(2**70)]
    entry = Entry(("it",), [(value,) for value in values], 0.0, 0.0)
    assert codec.decode(codec.encode(entry)) == entry
