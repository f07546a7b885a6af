"""Objects come back byte for byte, are renewed by ETag; the store is asked only when needed."""

from __future__ import annotations

import io
import random
import re
import time
from dataclasses import dataclass, field

import pytest

from workshop_lib.cache.object_cache import ObjectCache
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.objects import StoredObject, Unchanged

NOISE = random.Random(0).randbytes(5_000)
BODIES = {
    "empty": b"",
    "one byte": b"\x00",
    "a text": "Grüße, 世界\r\n".encode(),
    "an entry of ours": b"\xc1WE\x01 is how a frame begins",
    "zeros": bytes(50_000),
    "noise": NOISE,
}


@dataclass
class Memory:
    """A store in memory that counts what it is asked."""

    bodies: dict[str, bytes] = field(default_factory=dict)
    identity: str = "memory"
    prefix: str = ""
    asked: list[str] = field(default_factory=list)
    error: Exception | None = None
    seconds: float = 0.0

    def get(self, name):
        return self._answer("get", self.bodies.get(name))

    def get_if_changed(self, name, etag):
        body = self.bodies.get(name)
        if body is not None and etag == self._etag(body):
            self._note("unchanged")
            return Unchanged(0.0)
        return self._answer("changed", body)

    def get_range(self, name, first, last):
        part = self.bodies.get(name, b"")[first : last + 1]
        return self._answer(f"{first}-{last}", part or None)

    def put(self, name, body):
        self._note("put")
        self.bodies[name] = body
        return self._etag(body)

    def delete(self, name):
        self._note("delete")
        self.bodies.pop(name, None)

    def _note(self, what):
        self.asked.append(what)
        time.sleep(self.seconds)
        if self.error:
            raise self.error

    def _answer(self, what, body):
        self._note(what)
        return None if body is None else StoredObject(body, self._etag(body), 0.01)

    @staticmethod
    def _etag(body):
        return f'"{hash(body)}"'


@dataclass
class Source:
    objects: Memory
    valkey: object
    namespace: str
    default_ttl: float = 30.0


@pytest.fixture
def memory():
    return Memory({"a": b"first", "large": NOISE})


@pytest.fixture
def source(ws, memory):
    return Source(memory, ws.valkey, ws.namespace)


# --- equality, on the real store


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("compress_above", [None, 0])
def test_a_hit_is_the_object_byte_for_byte_with_the_same_etag(ws, body, compress_above):
    ws.objects.put("thing", body)
    cache = ObjectCache(ws, ttl=30, compress_above=compress_above)
    miss, hit = cache.fetch("thing"), cache.fetch("thing")
    assert (miss.source, hit.source) == ("store", "cache")
    assert miss.body == hit.body == body
    assert type(hit.body) is bytes
    assert miss.etag == hit.etag == ws.objects.get("thing").etag
    assert hit.cost_seconds == miss.cost_seconds > 0


def test_the_key_reads_as_bucket_and_name_and_no_two_objects_share_one(ws, source):
    cache = ObjectCache(ws)
    assert cache.key("filename7.txt") == (
        f"{ws.namespace}:v3:object:{ws.objects.identity}:{ws.namespace}/filename7.txt"
    )
    assert re.fullmatch("local-[0-9a-f]{12}/workshop", ws.objects.identity)
    names = ["a", "a:0-1", "b/a", "b", "ä", "", "a b", "x" * 201, "str~a"]
    assert len({cache.key(name) for name in names}) == len(names)
    assert ObjectCache(source).key("a") != cache.key("a")


# --- missing ones


def test_a_missing_object_is_kept_as_missing_for_a_time_of_its_own(ws, source, memory):
    cache = ObjectCache(source, ttl=60, missing_ttl=5)
    assert [cache.get("none") for _ in range(3)] == [None] * 3
    assert memory.asked == ["get"]
    assert 4_000 < ws.valkey.pttl(cache.key("none")) <= 5_000
    answer = cache.fetch("none")
    assert (answer.body, answer.etag, answer.source) == (None, "", "cache")
    assert repr(answer).startswith("<no object, from: cache")


def test_an_object_that_is_put_is_there_at_once_though_it_was_missing(source, memory):
    cache = ObjectCache(source)
    assert cache.get("new") is None
    cache.put("new", b"here")
    assert cache.fetch("new").source == "cache"
    assert cache.get("new") == memory.bodies["new"] == b"here"
    cache.delete("new")
    assert cache.get("new") is None
    assert "new" not in memory.bodies


# --- renewal by ETag


def test_beyond_its_ttl_an_unchanged_object_is_renewed_and_no_body_travels(source, memory):
    cache = ObjectCache(source, ttl=0.5, keep_seconds=60)
    cache.get("a")
    time.sleep(0.55)
    renewed = cache.fetch("a")
    assert (renewed.source, renewed.body, renewed.cost_seconds) == ("renewed", b"first", 0.01)
    assert cache.fetch("a").source == "cache"
    assert memory.asked == ["get", "unchanged"]


def test_beyond_its_ttl_a_changed_object_is_read_anew(source, memory):
    cache = ObjectCache(source, ttl=0.02, keep_seconds=60)
    cache.get("a")
    memory.bodies["a"] = b"second"
    time.sleep(0.03)
    answer = cache.fetch("a")
    assert (answer.source, answer.body) == ("store", b"second")
    del memory.bodies["a"]
    time.sleep(0.03)
    assert cache.fetch("a").body is None
    memory.bodies["a"] = b"third"  # an absence has no ETag
    time.sleep(0.03)
    assert cache.fetch("a").body == b"third"
    assert memory.asked == ["get", "changed", "changed", "get"]


# --- large ones, and ranges


def test_a_successor_that_is_too_large_takes_the_older_object_away(ws, source, memory):
    cache = ObjectCache(source, ttl=0.02, keep_seconds=60, stale_if_error=60, max_bytes=1_000)
    cache.get("a")
    memory.bodies["a"] = NOISE
    time.sleep(0.03)
    assert cache.get("a") == NOISE
    assert cache.size("a") == 0
    memory.error = ServiceUnreachableError("away")
    with pytest.raises(ServiceUnreachableError):  # and not the object before
        cache.get("a")


@pytest.mark.parametrize("body", [bytearray(b"text"), memoryview(b"text")], ids=["array", "view"])
def test_what_is_put_comes_back_as_bytes(source, memory, body):
    cache = ObjectCache(source)
    cache.put("s", body)
    hit = cache.fetch("s")
    assert (hit.source, type(hit.body), hit.body) == ("cache", bytes, b"text")
    assert type(memory.bodies["s"]) is bytes


@pytest.mark.parametrize(
    "body", ["text", None, 3, [1], io.BytesIO(b"text")], ids=lambda body: type(body).__name__
)
def test_what_is_not_bytes_is_refused_before_anything_is_written(ws, source, memory, body):
    with pytest.raises(TypeError, match=r"body of an object must be bytes.*Turn it into bytes"):
        ObjectCache(source).put("s", body)
    assert "s" not in memory.bodies
    with pytest.raises(TypeError, match="Turn it into bytes"):
        ws.objects.put("s", body)
    assert ws.objects.get("s") is None


def test_what_is_too_large_unpacked_is_not_kept_however_well_it_compresses(source, memory):
    memory.bodies["zeros"] = bytes(50_000)
    cache = ObjectCache(source, max_bytes=10_000)
    assert cache.get("zeros") == cache.get("zeros") == bytes(50_000)
    assert cache.size("zeros") == 0
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.too_large, stats.corrupt) == (0, 2, 2, 0)


def test_compression_saves_room_and_leaves_alone_what_would_grow(source, memory):
    memory.bodies["zeros"] = bytes(9_000)
    cache = ObjectCache(source, max_bytes=10_000)
    assert cache.get("zeros") == cache.get("zeros") == bytes(9_000)
    assert 0 < cache.size("zeros") < 1_000
    cache.get("large")
    assert len(NOISE) < cache.size("large") < len(NOISE) + 200


def test_a_range_is_cut_out_of_what_is_kept_or_asked_of_the_store_alone(source, memory):
    cache = ObjectCache(source)
    part = cache.fetch_range("large", 10, 19)
    assert (part.body, part.source) == (NOISE[10:20], "store")
    cache.get("large")
    for first, last in ((0, 0), (4_990, 9_999), (10, 19)):
        part = cache.fetch_range("large", first, last)
        assert (part.body, part.source) == (NOISE[first : last + 1], "cache")
    assert cache.fetch_range("large", 5_000, 5_001).body is None
    assert memory.asked == ["10-19", "get"]
    assert (cache.stats().hits, cache.stats().misses) == (4, 2)


def test_ranges_of_the_real_store_are_those_of_http(ws):
    ws.objects.put("thing", b"0123456789")
    for first, last, expected in ((0, 3, b"0123"), (8, 99, b"89"), (9, 9, b"9"), (10, 12, None)):
        found = ws.objects.get_range("thing", first, last)
        assert (found and found.body) == expected
        assert ObjectCache(ws).fetch_range("thing", first, last).body == expected


def test_a_range_or_a_threshold_that_is_none_is_refused(source):
    for first, last in ((-1, 5), (3, 2)):
        with pytest.raises(ValueError, match="0 <= first <= last"):
            ObjectCache(source).fetch_range("a", first, last)
    with pytest.raises(ValueError, match="compress_above is -1"):
        ObjectCache(source, compress_above=-1)


# --- many at once


def test_many_are_one_round_trip_and_only_those_that_miss_are_loaded(source, memory):
    cache = ObjectCache(source)
    cache.get("a")
    found = cache.get_many(["large", "a", "none", "a"])
    assert found == {"large": NOISE, "a": b"first", "none": None}
    assert list(found) == ["large", "a", "none"]
    assert sorted(memory.asked) == ["get"] * 3
    assert cache.get_many(["none", "large"]) == {"none": None, "large": NOISE}
    assert len(memory.asked) == 3
    assert cache.get_many([]) == {}


# --- when something is away


def test_while_the_store_is_away_what_is_kept_is_answered_and_then_stale_if_asked_for(
    source, memory
):
    cache = ObjectCache(source, ttl=0.5, stale_if_error=60)
    cache.get("a")
    memory.error = ServiceUnreachableError("away")
    assert cache.fetch("a").source == "cache"
    time.sleep(0.55)
    answer = cache.fetch("a")
    assert (answer.source, answer.body) == ("stale", b"first")
    with pytest.raises(ServiceUnreachableError, match="away"):
        cache.get("large")


def test_what_is_kept_only_to_be_renewed_is_not_given_out_when_the_store_is_away(source, memory):
    cache = ObjectCache(source, ttl=0.02, keep_seconds=60)
    cache.get("a")
    memory.error = ServiceUnreachableError("away")
    time.sleep(0.03)
    with pytest.raises(ServiceUnreachableError, match="away"):
        cache.get("a")
