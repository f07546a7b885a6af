"""Objects come back byte for byte, are renewed by ETag; the store is asked only when needed."""

from __future__ import annotations

import io
import random
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest

from workshop_lib.cache.object_cache import ObjectCache
from workshop_lib.errors import ServiceUnreachableError

NOISE = random.Random(0).randbytes(5_000)
BODIES = {"empty": b"", "one byte": b"\x00", "a text": "Grüße, 世界\r\n".encode(),
          "lines": b"\n\n{}#00000000", "zeros": bytes(50_000), "noise": NOISE}  # fmt: skip


class Watched:
    """A store that notes what it is asked, and may be away."""

    def __init__(self, store: Any) -> None:
        self._store, self.asked, self.away = store, [], False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)

        def call(*args: Any) -> Any:
            self.asked.append(name)
            if self.away:
                raise ServiceUnreachableError("away")
            return found(*args)

        return call if callable(found) else found


@pytest.fixture
def store(ws) -> Watched:
    ws.objects.put("a", b"first")
    ws.objects.put("large", NOISE)
    return Watched(ws.objects)


@pytest.fixture
def source(ws, store) -> SimpleNamespace:
    known = {"valkey": ws.valkey, "namespace": ws.namespace, "default_ttl": 30.0}
    return SimpleNamespace(objects=store, **known)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("compress_above", [None, 0])
def test_a_hit_is_the_object_byte_for_byte_with_the_same_etag(ws, body, compress_above):
    ws.objects.put("thing", body)
    cache = ObjectCache(ws, ttl=30, compress_above=compress_above)
    miss, hit = cache.fetch("thing"), cache.fetch("thing")
    assert (miss.source, hit.source) == ("store", "cache")
    assert miss.body == hit.body == body
    assert type(hit.body) is bytes
    assert repr(body) not in repr(hit)
    assert miss.etag == hit.etag == ws.objects.get("thing").etag
    assert hit.cost_seconds == miss.cost_seconds > 0


def test_the_key_reads_as_bucket_and_name_and_no_two_objects_share_one(ws):
    cache = ObjectCache(ws)
    assert cache.key("filename7.txt") == (
        f"{ws.namespace}:v3:object:{ws.objects.identity}:{ws.namespace}/filename7.txt"
    )
    assert re.fullmatch("local-[0-9a-f]{12}/workshop", ws.objects.identity)
    names = ["a", "a:0-1", "b/a", "b", "ä", "", "a b", "x" * 201, "str~a"]
    assert len({cache.key(name) for name in names}) == len(names)


def test_a_missing_object_is_kept_as_missing_for_a_time_of_its_own(ws, source, store):
    cache = ObjectCache(source, ttl=60, empty_ttl=5)
    assert [cache.get("none") for _ in range(3)] == [None] * 3
    assert store.asked == ["get"]
    assert 0 < ws.valkey.pttl(cache.key("none")) <= 5_000
    answer = cache.fetch("none")
    assert (answer.body, answer.etag, answer.source) == (None, "", "cache")
    cache.put("none", b"here")
    assert (cache.fetch("none").source, cache.get("none")) == ("cache", b"here")
    assert ws.objects.get("none").body == b"here"
    cache.delete("none")
    assert cache.get("none") is ws.objects.get("none") is None


# --- beyond the TTL


def test_beyond_its_ttl_an_object_is_renewed_or_read_anew(ws, source, store):
    cache = ObjectCache(source, ttl=0.02, keep_seconds=60)
    cost = cache.fetch("a").cost_seconds
    time.sleep(0.03)
    renewed = cache.fetch("a")  # no body travels
    assert (renewed.source, renewed.body, renewed.cost_seconds) == ("renewed", b"first", cost)
    ws.objects.put("a", b"second")
    time.sleep(0.03)
    assert (cache.fetch("a").source, store.asked[-1]) == ("store", "get_if_changed")
    ws.objects.delete("a")
    time.sleep(0.03)
    assert cache.fetch("a").body is None
    ws.objects.put("a", b"third")  # an absence has no ETag
    time.sleep(0.03)
    assert cache.fetch("a").body == b"third"
    assert store.asked == ["get", *["get_if_changed"] * 3, "get"]


def test_what_is_kept_only_to_be_renewed_is_not_served_while_the_store_is_away(source, store):
    cache = ObjectCache(source, ttl=0.02, keep_seconds=60)
    cache.get("a")
    store.away = True
    time.sleep(0.03)
    with pytest.raises(ServiceUnreachableError, match="away"):
        cache.get("a")


def test_a_successor_that_is_too_large_takes_the_older_object_away(ws, source, store):
    cache = ObjectCache(source, ttl=0.02, keep_seconds=60, stale_if_error=60, max_bytes=1_000)
    cache.get("a")
    ws.objects.put("a", NOISE)
    time.sleep(0.03)
    assert cache.get("a") == NOISE
    assert cache.size("a") == 0
    store.away = True
    with pytest.raises(ServiceUnreachableError):  # and not the object before
        cache.get("a")


# --- what is put


@pytest.mark.parametrize("body", [bytearray(b"text"), memoryview(b"text")], ids=["array", "view"])
def test_what_is_put_comes_back_as_bytes(ws, body):
    cache = ObjectCache(ws)
    cache.put("s", body)
    hit = cache.fetch("s")
    assert (hit.source, type(hit.body), hit.body) == ("cache", bytes, b"text")
    assert hit.etag == ws.objects.get("s").etag


@pytest.mark.parametrize(
    "body", ["text", None, 3, [1], io.BytesIO(b"text")], ids=lambda body: type(body).__name__
)
def test_what_is_not_bytes_is_refused_before_anything_is_written(ws, body):
    for store in (ObjectCache(ws), ws.objects):
        with pytest.raises(TypeError, match=r"body of an object must be bytes.*Turn it into bytes"):
            store.put("refused", body)
    assert ws.objects.get("refused") is None


# --- size


def test_compression_saves_room_and_leaves_alone_what_would_grow_or_is_too_large(ws, source):
    ws.objects.put("zeros", bytes(9_000))
    ws.objects.put("more zeros", bytes(50_000))
    cache = ObjectCache(source, max_bytes=10_000)
    for name in ("zeros", "large", "more zeros"):
        assert cache.get(name) == cache.get(name) == ws.objects.get(name).body
    assert 0 < cache.size("zeros") < 1_000
    assert len(NOISE) < cache.size("large") < len(NOISE) + 200
    assert cache.size("more zeros") == 0
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.too_large, stats.corrupt) == (2, 4, 2, 0)
