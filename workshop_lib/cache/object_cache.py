"""Cache-aside for objects of a store: whole or in part, renewed by their ETag, missing ones too."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from redis import Redis

from workshop_lib.cache import codec as frames, keys
from workshop_lib.cache.codec import Entry
from workshop_lib.cache.compressed import CompressedCodec
from workshop_lib.cache.mechanism import Fetched, Mechanism, Policy
from workshop_lib.cache.stats import CacheStats
from workshop_lib.cache.storage import NOTHING, Codec, StringStorage

COLUMNS = ("etag", "body")
AT_ONCE = 8
"""Objects that `get_many` loads at the same time."""


class Store(Protocol):
    """What the cache asks on a miss: an ObjectStore is one."""

    @property
    def identity(self) -> str:
        """Which store and bucket this is: part of every key."""

    @property
    def prefix(self) -> str:
        """What the names in the bucket begin with: part of every key."""

    def get(self, name: str) -> Any:
        """The object with `body`, `etag` and `seconds`; None if there is none."""

    def get_if_changed(self, name: str, etag: str) -> Any:
        """As `get`; something without a body if it is still the one with this ETag."""

    def get_range(self, name: str, first: int, last: int) -> Any:
        """As `get`, for the bytes from `first` to `last`."""

    def put(self, name: str, body: bytes) -> str:
        """Write an object. Its ETag."""

    def delete(self, name: str) -> None:
        """Delete an object."""


class Source(Protocol):
    """Where a cache gets its parts from; a Workshop is one."""

    @property
    def objects(self) -> Store:
        """What to ask on a miss."""

    @property
    def valkey(self) -> Redis:
        """Where entries are kept."""

    @property
    def namespace(self) -> str:
        """The first part of every key."""

    @property
    def default_ttl(self) -> float:
        """Time to live where none is given, seconds."""


@dataclass(frozen=True, slots=True, repr=False)
class ObjectAnswer:
    """An object and where it came from.

    Attributes:
        body: its bytes; None if there is no such object, or no such range of it.
        etag: names this content; empty if there is no object.
        source: "cache"; "store" (read just now, whole); "renewed" (the store was asked, and said
            that the kept one is still right); "stale" (older than its TTL, because the store did
            not answer).
        seconds: from asking until the answer was here.
        cost_seconds: what the store took when the entry was filled.

    """

    body: bytes | None
    etag: str
    source: str
    seconds: float
    cost_seconds: float

    def __repr__(self) -> str:  # without the body, which may be large
        what = "no object" if self.body is None else f"{len(self.body):,} bytes"
        return f"<{what}, from: {self.source}, {self.seconds * 1e3:.3f} ms>"


class ObjectCache:
    """Objects, kept in Valkey under bucket and name.

    What is not there is kept, too (`missing_ttl`). When the cache is down, the store answers.

    Args:
        source: an open workshop.
        ttl: time to live of an entry, seconds; VALKEY_TTL if left out.
        missing_ttl: the same for "there is no such object"; as `ttl` if left out.
        compress_above: size from which on bodies are compressed, bytes; None for never.
        valkey: keep entries there, in the place of the source's own cache.
        behaviour: the other attributes of Policy by name. With `keep_seconds`, an entry beyond its
            TTL is renewed if the store says that it has not changed, and no body travels. Entries
            above `max_bytes`, before they are compressed, are not kept.

    Raises:
        ValueError: a number out of its range.

    """

    def __init__(
        self,
        source: Source,
        ttl: float | None = None,
        *,
        missing_ttl: float | None = None,
        compress_above: int | None = 1_024,
        valkey: Redis | None = None,
        **behaviour: Any,
    ) -> None:
        if compress_above is not None and compress_above < 0:
            raise ValueError(f"compress_above is {compress_above}; it must be 0 or more, or None")
        ttl = source.default_ttl if ttl is None else ttl
        self.policy = Policy(ttl=ttl, empty_ttl=missing_ttl, **behaviour)
        self._source = source
        self._store = source.objects
        kept = source.valkey if valkey is None else valkey
        max_bytes = int(self.policy.max_bytes)
        entry_codec: Codec = frames
        if compress_above is not None:
            entry_codec = CompressedCodec(compress_above, max_bytes=max_bytes)
        self._storage = StringStorage(kept, entry_codec, max_bytes)
        self._mechanism = Mechanism(self._storage, self.policy)

    def get(self, name: str) -> bytes | None:
        """The object's bytes, from the cache if they are there, else from the store.

        Raises:
            ServiceUnreachableError: the store did not answer, and there was nothing to fall back
                on.

        """
        return self.fetch(name).body

    def fetch(self, name: str, tags: Iterable[str] = ()) -> ObjectAnswer:
        """As `get`, with where the answer came from and how long it took.

        If the object is loaded, `invalidate_tag` finds it under these tags. An entry that is not
        filed under all of them is not taken.
        """
        renewed: list[bool] = []

        def renew(known: Entry) -> Entry:
            entry = self._renewed(name, known)
            renewed.append(entry.rows is known.rows)
            return entry

        tag_keys = keys.tag_keys(self._source.namespace, tags)
        fetched = self._mechanism.fetch(
            self.key(name), lambda: _entry(self._store.get(name)), tag_keys, renew
        )
        return _answer(fetched, renewed=any(renewed))

    def fetch_range(self, name: str, first: int, last: int) -> ObjectAnswer:
        """The bytes from `first` to `last`, both included, of what may be a large object.

        They are cut out of the whole object if that is in the cache; else they are asked of the
        store, which sends no more, and kept by themselves until the object is invalidated.

        Raises:
            ValueError: not 0 <= first <= last.
            ServiceUnreachableError: as `get`.

        """
        if not 0 <= first <= last:
            raise ValueError(f"the range {first} to {last} is none: 0 <= first <= last")
        started = time.perf_counter()
        found = self._mechanism.attempt(lambda: self._storage.get(self.key(name)), NOTHING)
        whole = found.fresh
        if whole is not None:
            cut = _cut(whole, first, last)
            seconds = time.perf_counter() - started
            self._mechanism.count_hits([found])
            return _answer(Fetched(cut, "cache", seconds), renewed=False)
        fetched = self._mechanism.fetch(
            self.key(name, first, last),
            lambda: _entry(self._store.get_range(name, first, last)),
            [self._ranges(name)],
        )
        return _answer(fetched, renewed=False)

    def get_many(self, names: Iterable[str]) -> dict[str, bytes | None]:
        """Many objects: one round trip for all that are in the cache, then the missing ones.

        A pipeline without a transaction: on a cluster the keys lie in different slots.

        Raises:
            ServiceUnreachableError: as `get`.

        """
        wanted = list(dict.fromkeys(names))

        def read() -> list[Any]:
            pipeline = self._storage.valkey.pipeline(transaction=False)
            for name in wanted:
                pipeline.get(self.key(name))
            return list(pipeline.execute(raise_on_error=False))

        answers: list[Any] = self._mechanism.attempt(read, [None] * len(wanted))
        # What is not bytes is an error, as of another type: `get` deals with it.
        found = {
            name: self._storage.parse(data)
            for name, data in zip(wanted, answers, strict=True)
            if isinstance(data, bytes)
        }
        found = self._mechanism.validated(found)
        hits = {name: known for name, known in found.items() if known.fresh}
        self._mechanism.count_hits(hits.values())
        missing = [name for name in wanted if name not in hits]
        bodies = {name: _body(known.entry) for name, known in hits.items() if known.entry}
        if missing:
            with ThreadPoolExecutor(min(AT_ONCE, len(missing))) as threads:
                bodies |= dict(zip(missing, threads.map(self.get, missing), strict=True))
        return {name: bodies[name] for name in wanted}

    def put(self, name: str, body: bytes, tags: Iterable[str] = ()) -> None:
        """Write an object to the store, then through to the cache, under the tags of `fetch`.

        Of two writers of one object the slower may leave the older one in the cache. Where that
        can be, both should write to the store and invalidate.

        Raises:
            TypeError: the body is neither bytes, bytearray nor memoryview; nothing has changed.
            ServiceUnreachableError: the store did not take it, and nothing has changed; or the
                cache did not, and readers may see the old one until its TTL ends.

        """
        body, tag_keys = as_bytes(body), keys.tag_keys(self._source.namespace, tags)
        etag = self._store.put(name, body)
        self._mechanism.put(
            self.key(name),
            Entry(COLUMNS, [(etag, body)], 0.0, time.time()),
            tag_keys,
            forget=[self._ranges(name)],
        )

    def delete(self, name: str) -> None:
        """Delete an object from the store, then from the cache.

        Raises:
            ServiceUnreachableError: as `put`.

        """
        self._store.delete(name)
        self.invalidate(name)

    def invalidate(self, name: str) -> bool:
        """Remove an object and its ranges from the cache; loads under way will not store them.

        Returns:
            Whether the whole object was there.

        Raises:
            ServiceUnreachableError: the cache did not answer; try again.

        """
        return self._mechanism.invalidate(self.key(name), forget=[self._ranges(name)])

    def invalidate_tag(self, tag: str) -> None:
        """Invalidate all entries that were filled under a tag, in one short command.

        Raises:
            ServiceUnreachableError: the cache did not answer; try again.

        """
        self._mechanism.invalidate_tag(keys.tag_key(self._source.namespace, tag))

    def key(self, name: str, *byte_range: int) -> str:
        """The key under which an object, or a range of it, is kept."""
        store = self._store
        return keys.object_key(
            self._source.namespace, store.identity, store.prefix + name, *byte_range
        )

    def _ranges(self, name: str) -> str:
        """The tag under which all ranges of an object are filed."""
        return keys.ranges_tag(self.key(name))

    def size(self, name: str) -> int:
        """Bytes that the entry of an object takes in the cache, without Valkey's own; 0 if none."""
        length = self._mechanism.attempt(lambda: self._storage.valkey.strlen(self.key(name)), 0)
        return int(length)

    def stats(self) -> CacheStats:
        """The counters so far."""
        return self._mechanism.stats()

    def _renewed(self, name: str, known: Entry) -> Entry:
        """The entry again, if the store says that it has not changed; else its successor."""
        etag = _etag(known)
        if not etag:
            return _entry(self._store.get(name))
        answer = self._store.get_if_changed(name, etag)
        if answer is None or hasattr(answer, "body"):
            return _entry(answer)
        return Entry(known.columns, known.rows, known.cost_seconds, time.time())


def as_bytes(body: object) -> bytes:
    """The body of an object, as the store will return it.

    Raises:
        TypeError: it could be more than one thing in bytes.

    """
    if not isinstance(body, bytes | bytearray | memoryview):
        raise TypeError(
            f"A {type(body).__name__} is no body of an object: a hit would differ from what the "
            "store returns. Turn it into bytes first, as in text.encode() or file.read()."
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


def _cut(entry: Entry, first: int, last: int) -> Entry:
    body = (_body(entry) or b"")[first : last + 1]
    rows: list[tuple[object, ...]] = [(_etag(entry), body)] if body else []
    return Entry(entry.columns, rows, entry.cost_seconds, entry.created_at, entry.fresh_until)


def _answer(fetched: Fetched, *, renewed: bool) -> ObjectAnswer:
    entry = fetched.entry
    source = {"database": "renewed" if renewed else "store"}.get(fetched.source, fetched.source)
    return ObjectAnswer(_body(entry), _etag(entry), source, fetched.seconds, entry.cost_seconds)
