"""Whatever bytes lie under a key, a reader's memory and time stay within the stated multiple."""

from __future__ import annotations

import json
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import nan
from uuid import UUID

import pytest

from workshop_lib.cache.codec import (
    CorruptEntry,
    Entry,
    Uncacheable,
    decode,
    encode,
    encode_lines,
    seal,
)
from workshop_lib.cache.object_cache import ObjectCache, ObjectStorage
from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.cache.record_cache import RecordCache

MULTIPLE = 200
"""Bytes of memory for each byte of max_bytes, as the codec's module says."""
LIMIT = 100_000
P = 2**61 - 1
"""Python's hash of an integer is the remainder by it."""


def forged(*columns: tuple[str, str]) -> bytes:
    """An entry with columns of a type and JSON each, and a checksum that fits."""
    names, types = json.dumps(["c"] * len(columns)), json.dumps([kind for kind, _ in columns])
    head = f'{{"created_at":0,"cost_seconds":0,"columns":{names},"types":{types}}}'
    return seal(f"{head}\n[{','.join(values for _, values in columns)}]".encode())


def many(value: str, room: int = LIMIT - 200) -> str:
    """An array of as many copies of a JSON value as there is room for."""
    return f"[{','.join([value] * (room // (len(value) + 1)))}]"


def dict_of(keys: list[object]) -> str:
    return json.dumps([["dict", [[key, None] for key in keys]]])


COLLIDING = [["UUID", str(UUID(int=n * P))] for n in range(1, 30_000)]
BOMBS: dict[str, bytes] = {
    "nothing by the thousand": forged(("mixed", many("null"))),
    "small integers": forged(("int", many("1"))),
    "decimals from integers": forged(("Decimal", many("1"))),
    "short decimals": forged(("Decimal", many('"9"'))),
    "empty lists": forged(("mixed", many("[]"))),
    "lists in lists": forged(("mixed", many("[[]]"))),
    "empty objects": forged(("mixed", many("{}"))),
    "nested beyond reason": forged(("mixed", "[" * (LIMIT // 2 - 99) + "]" * (LIMIT // 2 - 99))),
    "many empty columns": forged(*[("int", "[]")] * 5_000),
    "colliding integers": forged(
        ("mixed", dict_of([["int", hex(n * P)] for n in range(2**10, 3_000)]))
    ),
    "colliding UUIDs": forged(("mixed", dict_of([*COLLIDING[:1_500]]))),
}


@contextmanager
def memory() -> Iterator[list[int]]:
    """In the end: what is still taken, and the peak, bytes."""
    found: list[int] = []
    tracemalloc.start()
    try:
        yield found
        found += tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_a_reader_s_memory_is_bounded_by_the_limit(data: bytes) -> None:
    assert len(data) <= LIMIT
    with memory() as taken, suppress(CorruptEntry):
        decode(data)
    assert taken[1] <= MULTIPLE * LIMIT


def test_memory_of_many_entries_is_bounded_as_that_of_one() -> None:
    """A decoder is kept for each sequence of types."""
    types = ["int"] * 5_000
    with memory() as taken:
        for n in range(40):
            with pytest.raises(CorruptEntry):
                decode(forged(*[(kind, "[]") for kind in [*types[:n], "str", *types[n:]]]))
    assert taken[0] < 10 * LIMIT


def test_colliding_keys_take_no_quadratic_time() -> None:
    data = forged(("mixed", dict_of([*COLLIDING])))
    started = time.process_time()
    with pytest.raises(CorruptEntry):
        decode(data)
    assert time.process_time() - started < 5.0  # without the check: minutes
    keys = [UUID(text) for _, text in COLLIDING[:100]]
    with pytest.raises(Uncacheable, match="same hash"):
        encode(Entry(("it",), [(dict.fromkeys(keys),)], 0.0, 0.0))


def test_what_is_larger_than_the_limit_unpacked_is_neither_packed_nor_unpacked() -> None:
    body = b"the same text" * 10_000
    entry = Entry(("etag", "body"), [("e", body)], 0.0, 0.0)
    exact, less = (ObjectStorage(None, limit) for limit in (len(body), len(body) - 1))
    exact.compress_above = less.compress_above = 10
    (packed,) = exact.pack(entry)
    assert len(packed) < len(body) / 20
    assert exact.parse(packed).rows == entry.rows
    assert len(less.pack(entry)[0]) > len(body)  # it says that it is too large
    with pytest.raises(CorruptEntry):
        less.parse(packed)


# --- at the caches

BOMB = zlib.compress(bytes(200_000_000), 1)


def packed(objects: int) -> bytes:
    """An entry that claims to hold a compressed object, so many times."""
    about = Entry(("etag", "compressed"), [("e", True)] * objects, 0.0, 0.0)
    return seal(encode_lines(about) + b"\n" + BOMB)


@pytest.mark.parametrize(
    "data",
    [packed(1), packed(100), BOMBS["empty objects"], bytes(2_000_000)],
    ids=["zlib", "many", "objects", "large"],
)
def test_a_bomb_is_counted_as_corrupt_and_the_object_read_anew(ws, data) -> None:
    ws.objects.put("thing", b"text")
    cache = ObjectCache(ws)
    ws.valkey.set(cache.key("thing"), data, px=30_000)
    assert [cache.get("thing"), cache.get("thing")] == [b"text"] * 2
    stats = cache.stats()
    assert (stats.corrupt, stats.misses, stats.hits) == (1, 1, 1)


@pytest.mark.parametrize("etag", ["e\r\nRange: bytes=0-0", "e" * 70_000, "€", ""])
def test_an_etag_that_no_store_takes_is_counted_as_corrupt(ws, etag) -> None:
    ws.objects.put("thing", b"text")
    cache = ObjectCache(ws, keep_seconds=60)
    about = Entry(("etag", "compressed"), [(etag, False)], 0.0, 0.0, fresh_until=1.0)
    ws.valkey.set(cache.key("thing"), seal(encode_lines(about) + b"\n"), px=30_000)
    assert cache.fetch("thing").source == "store"
    assert cache.stats().corrupt == 1


def test_of_a_value_under_a_tag_s_key_no_more_is_read_than_a_version_has(source) -> None:
    cache, tag = QueryCache(source), f"{source.namespace}:v3:tag:t"
    source.valkey.setrange(tag, 8_000_000, b"x")
    entry = Entry(("a",), [(666,)], 0.0, 0.0, tags={tag: "x"})
    source.valkey.set(cache.key("SELECT 1"), encode(entry), px=30_000)
    with memory() as taken:
        assert cache.fetch("SELECT 1", tags=["t"]).rows == [(0, 1)]
    source.valkey.delete(tag)
    assert taken[1] < 4_000_000


ABOUT = {
    "created_at": 0,
    "cost_seconds": 0,
    "columns": ["id", "v"],
}
FIELDS = {
    "deep JSON": {"@": b"[" * 100_000},
    "deep JSON within": {"@": b'{"columns":' + b"[" * 100_000},
    "a column a thousand times": {"@": json.dumps({**ABOUT, "columns": ["v"] * 1_000})},
    "NaN": {"@": json.dumps({**ABOUT, "created_at": nan})},
    "the end of all days": {"@": json.dumps({**ABOUT, "cost_seconds": 1e18})},
    "a negative cost": {"@": json.dumps({**ABOUT, "cost_seconds": -1.0})},
    "names that are no text": {"@": json.dumps({**ABOUT, "columns": [1, 2]})},
    "too large a field": {"v": b'"' + b"0" * 1_100_000 + b'"'},
    "an integer of many digits": {"v": b"9" * 900_000},
    "a nested field": {"v": b"[" * 900_000},
    "a value that its type has not": {"v": '["Decimal","twelve"]'},
    "a value of another program": {"v": "12,50"},
    "a column missing": {"@": json.dumps({**ABOUT, "columns": ["id", "v", "w"]})},
}


@pytest.mark.parametrize("spoilt", FIELDS.values(), ids=FIELDS)
def test_a_hostile_record_is_counted_as_corrupt_and_read_anew(ws, source, spoilt) -> None:
    things = RecordCache(source, "thing")
    right = things.get(1)
    ws.valkey.hset(things.key(1), mapping=spoilt)
    assert things.get_fields(1, ["v"]) == {"v": 1}
    assert things.get(1) == things.get_many([1])[1] == right
    assert (things.stats().corrupt, source.database.queries) == (1, 2)


@pytest.mark.parametrize("fields", [1, 20_000], ids=["one large field", "many fields"])
def test_of_a_hash_of_any_size_no_more_is_received_than_a_record_has(source, fields) -> None:
    things = RecordCache(source, "thing")
    reads = (
        lambda: things.get(1),
        lambda: things.get_fields(1, ["id", "v"]),
        lambda: things.get_many([1])[1],
    )
    for read in reads:
        planted = {f"{n}": b"0" * (4_000_000 // fields) for n in range(fields)}
        source.valkey.hset(things.key(1), mapping=planted | {"v": planted["0"]})
        del planted
        with memory() as taken:
            assert read() == {"id": 1, "v": 1}
        assert taken[1] < 2_000_000
        things.invalidate(1)
    assert things.stats().corrupt == len(reads)
