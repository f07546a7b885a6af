"""Cache-aside for objects of a store: whole or in part, renewed by their ETag, missing ones too.

An entry has the two lines of an answer about the object (its ETag, and whether it is compressed),
then its bytes as they are or as zlib compressed them, and a checksum.
"""

from __future__ import annotations

import re
import time
import zlib
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

from msgspec.structs import replace

from workshop_lib.cache import keys
from workshop_lib.cache.base import Cache
from workshop_lib.cache.codec import (
    CorruptEntry,
    Entry,
    decode_lines,
    encode_lines,
    seal,
    unseal,
)
from workshop_lib.cache.connection import do
from workshop_lib.cache.mechanism import Fetched
from workshop_lib.cache.storage import Packed, Storage

COLUMNS = ("etag", "body")
_ABOUT = ("etag", "compressed")
ZLIB_LEVEL = 1
"""The fastest: a cache is asked for speed, and higher levels win few bytes for much time."""


class ObjectStorage(Storage):
    """Each entry is one string, with the object's bytes as they are or as zlib compressed them.

    No body above `max_bytes` is compressed or decompressed, so that a few bytes cannot fill a
    reader's memory.

    Attributes:
        compress_above: size from which on a body is compressed, bytes, unless that makes it larger.

    """

    compress_above: float = inf

    def pack(self, entry: Entry) -> Packed:
        """The stored form of an entry of COLUMNS, with one row or none."""
        body, compressed = _body(entry) or b"", False
        if self.compress_above < len(body) <= self.max_bytes:
            smaller = zlib.compress(body, ZLIB_LEVEL)
            compressed, body = len(smaller) < len(body), min(body, smaller, key=len)
        rows = [(_etag(entry), compressed)] if entry.rows else []
        about = encode_lines(replace(entry, columns=_ABOUT, rows=rows))
        return (seal(b"%b\n%b" % (about, body)),)

    def unpack(self, packed: Packed) -> Entry:
        """As Storage's."""
        try:
            head, values, body = unseal(packed[0]).split(b"\n", 2)
            about = decode_lines(head, values, len(packed[0]))
            if not about.rows:
                return replace(about, columns=COLUMNS)
            ((etag, compressed),) = about.rows
            if not re.fullmatch(r"[!-~]{1,200}", str(etag)):  # it is sent to the store, in a header
                raise ValueError("its ETag is not one")
            body = _decompressed(body, self.max_bytes) if compressed else body
            return replace(about, columns=COLUMNS, rows=[(etag, body)])
        except Exception as error:  # forged, as the checksum fits: anything can be wrong in it
            raise CorruptEntry(f"The bytes are not an object of ours: {error}.") from error


def _decompressed(body: bytes, limit: int) -> bytes:
    unpacker = zlib.decompressobj()
    # A limit of 0 would mean none; one byte more shows what is too large.
    plain = unpacker.decompress(body, limit + 1)
    if len(plain) > limit or not unpacker.eof or unpacker.unused_data:
        raise ValueError("its body is cut off, too long, or followed by something else")
    return plain


@dataclass(frozen=True, slots=True)
class ObjectAnswer:
    """An object and where it came from.

    Attributes:
        body: its bytes, which may be many and are not shown; None if there is no such object.
        etag: names this content; empty if there is no object.
        source: "cache"; "store" (read just now, whole); "renewed" (the store was asked, and said
            that the kept one is still right); "stale" (older than its TTL, because the store did
            not answer).
        seconds: response time.
        cost_seconds: how long the store took when the entry was filled.

    """

    body: bytes | None = field(repr=False)
    etag: str
    source: str
    seconds: float
    cost_seconds: float


class ObjectCache(Cache):
    """Objects, kept in Valkey under bucket and name.

    What is not there is kept, too (`empty_ttl`). When the cache is down, the store answers.

    Args:
        source: an open workshop; its `objects` is asked on a miss, an ObjectStore.
        ttl: time to live of an entry, seconds; VALKEY_TTL if left out.
        compress_above: size from which on bodies are compressed, bytes; None for never.
        behaviour: the other attributes of Policy by name. With `keep_seconds`, an entry beyond its
            TTL is renewed if the store says that it has not changed, and no body travels. Entries
            above `max_bytes`, before they are compressed, are not kept.

    Raises:
        ValueError: a number out of its range.

    """

    _storage: ObjectStorage

    def __init__(
        self,
        source: Any,
        ttl: float | None = None,
        *,
        compress_above: int | None = 1_024,
        **behaviour: Any,
    ) -> None:
        super().__init__(source, ttl, ObjectStorage, **behaviour)
        self._storage.compress_above = inf if compress_above is None else compress_above
        self._store = source.objects

    def get(self, name: str) -> bytes | None:
        """The object's bytes, from the cache if they are there, else from the store.

        Raises:
            ServiceUnreachableError: the store did not answer, and there was nothing to fall back
                on.

        """
        return self.fetch(name).body

    def fetch(self, name: str) -> ObjectAnswer:
        """As `get`, with where the answer came from and how long it took."""
        fetched = self._mechanism.fetch(
            self.key(name),
            lambda: _entry(self._store.get(name)),
            renew=partial(self._renewed, name),
        )
        return _answer(fetched)

    def put(self, name: str, body: bytes) -> None:
        """Write an object to the store, then through to the cache.

        Of two writers of one object the slower may leave the older one in the cache. Where that
        can be, both should write to the store and invalidate.

        Raises:
            TypeError: the body is neither bytes, bytearray nor memoryview; nothing has changed.
            ServiceUnreachableError: the store did not take it, and nothing has changed; or the
                cache did not, and readers may see the old one until its TTL ends.

        """
        body = as_bytes(body)
        entry = Entry(COLUMNS, [(self._store.put(name, body), body)], 0.0, time.time())
        self._mechanism.put(self.key(name), entry)

    def delete(self, name: str) -> None:
        """Delete an object from the store, then from the cache.

        Raises:
            ServiceUnreachableError: as `put`.

        """
        self._store.delete(name)
        self.invalidate(name)

    def key(self, name: str) -> str:
        """The key under which an object is kept."""
        store = self._store
        return keys.object_key(self._namespace, store.identity, store.prefix + name)

    def size(self, name: str) -> int:
        """Bytes that the entry of an object takes in the cache, without Valkey's own; 0 if none."""
        length = self._mechanism.attempt(do, self._storage.valkey, ("STRLEN", self.key(name)))
        return int(length[0]) if length else 0

    def _renewed(self, name: str, known: Entry) -> Entry:
        """The entry again, if the store says that it has not changed; else its successor."""
        etag = _etag(known)
        if not etag:
            return _entry(self._store.get(name))
        answer = self._store.get_if_changed(name, etag)
        return _entry(answer) if answer is None or hasattr(answer, "body") else known


def as_bytes(body: object) -> bytes:
    """The body of an object, as the store will return it.

    Raises:
        TypeError: it could be more than one thing in bytes.

    """
    if not isinstance(body, bytes | bytearray | memoryview):
        raise TypeError(
            f"The body of an object must be bytes, and this is of type {type(body).__name__}: a "
            "hit would differ from what the store returns. Turn it into bytes first, as in "
            "text.encode() or file.read()."
        )
    return bytes(body)


def _entry(found: Any) -> Entry:
    if found is None:
        return Entry(COLUMNS, [], 0.0, time.time())
    return Entry(COLUMNS, [(found.etag, found.body)], found.seconds, time.time())


def _etag(entry: Entry) -> str:
    return str(entry.rows[0][0]) if entry.rows else ""


def _body(entry: Entry) -> bytes | None:
    body: Any = entry.rows[0][1] if entry.rows else None
    return body  # type: ignore[no-any-return]


def _answer(fetched: Fetched) -> ObjectAnswer:
    entry = fetched.entry
    source = "store" if fetched.source == "database" else fetched.source
    return ObjectAnswer(_body(entry), _etag(entry), source, fetched.seconds, entry.cost_seconds)
