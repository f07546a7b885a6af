"""Cache-aside for query results: look in the cache; on a miss ask the database, keep the answer."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import pandas as pd
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from workshop_lib.cache import codec, keys
from workshop_lib.cache.codec import CorruptEntry, Entry, Uncacheable
from workshop_lib.rows import Params, Row, Rows

REST_S = 1.0
"""After the cache failed to answer, how long queries go straight to the database."""
SCAN_COUNT = 500


class Database(Protocol):
    """What the cache asks on a miss."""

    @property
    def identity(self) -> str:
        """Which database this is: part of every key, so that two never share an entry."""

    def query(self, statement: str, params: Params = None) -> Rows:
        """The rows that the statement selects."""


class Source(Protocol):
    """Where a cache gets its parts from; a Workshop is one."""

    @property
    def database(self) -> Database:
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


@dataclass(frozen=True, slots=True)
class Answer:
    """A query's result; nothing but `source` tells a hit from a miss.

    Attributes:
        columns, rows: as in Rows.
        source: "cache" or "database".
        seconds: from asking until the answer was here, on a miss including the database and the
            write to the cache: what a user of the application waits for.
        cost_seconds: what the database query took when the entry was filled.

    """

    columns: tuple[str, ...]
    rows: list[Row]
    source: str
    seconds: float
    cost_seconds: float

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def as_dicts(self) -> list[dict[str, object]]:
        """Each row as a dict from column name to value."""
        return Rows(self.columns, self.rows, self.seconds).as_dicts()

    def to_frame(self) -> pd.DataFrame:
        """The result as a pandas frame."""
        return Rows(self.columns, self.rows, self.seconds).to_frame()

    def _repr_html_(self) -> str:
        return Rows(self.columns, self.rows, self.seconds)._repr_html_()


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """What is stored for a query.

    Attributes:
        size: bytes of the stored value.
        ttl_seconds: until it expires.
        age_seconds: since it was filled.
        rows: in the stored result.
        cost_seconds: what the database query took when it was filled.

    """

    key: str
    size: int
    ttl_seconds: float
    age_seconds: float
    rows: int
    cost_seconds: float


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counters since the cache object was made.

    Attributes:
        hits, misses: answers from the cache and from the database.
        errors: times the cache gave no answer or took no entry (misses, too).
        corrupt: entries that could not be read; treated as misses and overwritten.
        uncacheable: results or parameters of a type that would not come back equal; not stored.
        bytes_read, bytes_written: sizes of entries.
        seconds_saved: database time that hits did not spend, less what the hits took.

    """

    hits: int = 0
    misses: int = 0
    errors: int = 0
    corrupt: int = 0
    uncacheable: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    seconds_saved: float = 0.0

    @property
    def hit_ratio(self) -> float:
        """Hits among all answers, 0 to 1; 0 before the first answer."""
        answers = self.hits + self.misses
        return self.hits / answers if answers else 0.0


class QueryCache:
    """Results of queries, kept in Valkey under the statement and its parameters.

    Empty results are kept like any other. When the cache is down, answers come from the database.

    Args:
        source: an open workshop.
        ttl: time to live of an entry, seconds; VALKEY_TTL if left out.

    Raises:
        ValueError: a ttl that is not a positive number of seconds.

    """

    def __init__(self, source: Source, ttl: float | None = None) -> None:
        self.ttl = source.default_ttl if ttl is None else ttl
        if not isinstance(self.ttl, int | float) or not 0.001 <= self.ttl < float("inf"):
            raise ValueError(f"ttl is {ttl!r}; it must be a number of seconds, at least 0.001")
        self._database = source.database
        self._valkey = source.valkey
        self._namespace = source.namespace
        self._counts: Counter[str] = Counter()
        self._seconds_saved = 0.0
        self._lock = threading.Lock()
        self._resting_until = 0.0

    def fetch(self, statement: str, params: Params = None) -> Answer:
        """The statement's result, from the cache if it is there, else from the database.

        Raises:
            psycopg2.Error: the database refused the statement. Errors are never cached.

        """
        started = time.perf_counter()
        try:
            key = self.key(statement, params)
        except Uncacheable:  # a parameter that no key can stand for: the database may know it
            self._count(misses=1, uncacheable=1)
            found = self._database.query(statement, params)
            seconds = time.perf_counter() - started
            return Answer(found.columns, found.rows, "database", seconds, found.seconds)
        entry = self._read(key)
        if entry is not None:
            seconds = time.perf_counter() - started
            self._count(hits=1, saved=entry.cost_seconds - seconds)
            return Answer(entry.columns, entry.rows, "cache", seconds, entry.cost_seconds)
        found = self._database.query(statement, params)
        self._write(key, Entry(found.columns, found.rows, found.seconds, time.time()))
        self._count(misses=1)
        seconds = time.perf_counter() - started
        return Answer(found.columns, found.rows, "database", seconds, found.seconds)

    def key(self, statement: str, params: Params = None) -> str:
        """The key under which this statement's result is kept."""
        return keys.query_key(self._namespace, statement, params, scope=self._database.identity)

    def inspect(self, statement: str, params: Params = None) -> EntryInfo | None:
        """What is stored for a statement, or None. Counts neither as a hit nor as a miss.

        Raises:
            CorruptEntry: it cannot be read; `fetch` would overwrite it.
            redis.RedisError: the cache gave no answer, or holds a list or hash under the key.

        """
        key = self.key(statement, params)
        data, ttl_ms = self._valkey.get(key), self._valkey.pttl(key)
        if not isinstance(data, bytes):
            return None
        entry = codec.decode(data)
        age, left = time.time() - entry.created_at, int(str(ttl_ms)) / 1000
        return EntryInfo(key, len(data), left, age, len(entry.rows), entry.cost_seconds)

    def delete(self, statement: str, params: Params = None) -> bool:
        """Remove one entry. Returns whether it was there.

        Raises:
            redis.RedisError: the cache gave no answer.

        """
        return bool(self._valkey.delete(self.key(statement, params)))

    def clear(self) -> int:
        """Remove this namespace's entries and no others, found with SCAN. Returns how many.

        Raises:
            redis.RedisError: the cache gave no answer.

        """
        return clear_namespace(self._valkey, self._namespace)

    def stats(self) -> CacheStats:
        """The counters so far."""
        with self._lock:
            return CacheStats(**self._counts, seconds_saved=self._seconds_saved)

    def _read(self, key: str) -> Entry | None:
        if time.monotonic() < self._resting_until:
            self._count(errors=1)
            return None
        try:
            data = self._valkey.get(key)
        except ResponseError as error:
            # Somebody else's list or hash under our key: the write that follows replaces it.
            self._count(**{"corrupt" if str(error).startswith("WRONGTYPE") else "errors": 1})
            return None
        except RedisError:
            self._failed()
            return None
        if not isinstance(data, bytes):
            return None
        try:
            entry = codec.decode(data)
        except CorruptEntry:
            self._count(corrupt=1)
            return None
        self._count(bytes_read=len(data))
        return entry

    def _write(self, key: str, entry: Entry) -> None:
        if time.monotonic() < self._resting_until:
            return
        try:
            data = codec.encode(entry)
            # One command: there is no moment at which the entry exists without its TTL.
            self._valkey.set(key, data, px=max(1, round(self.ttl * 1000)))
        except Uncacheable:
            self._count(uncacheable=1)
        except ResponseError:  # for example no memory left: the server is up, the entry is not
            self._count(errors=1)
        except RedisError:
            self._failed()
        else:
            self._count(bytes_written=len(data))

    def _failed(self) -> None:
        self._resting_until = time.monotonic() + REST_S
        self._count(errors=1)

    def _count(self, *, saved: float = 0.0, **more: int) -> None:
        with self._lock:
            self._counts.update(more)
            self._seconds_saved += saved


def clear_namespace(valkey: Redis, namespace: str) -> int:
    """Remove all keys of a namespace and no others. Returns how many there were.

    SCAN walks the keys in small steps; KEYS would stop the server for everybody while it looks.
    """
    removed = 0
    for key in valkey.scan_iter(match=keys.match_all(namespace), count=SCAN_COUNT):
        removed += int(str(valkey.unlink(key)))
    return removed
