"""Cache-aside for query results: look in the cache; on a miss ask the database, keep the answer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from redis import Redis

from workshop_lib.cache import keys
from workshop_lib.cache.codec import CorruptEntry, Entry, Uncacheable
from workshop_lib.cache.mechanism import Mechanism, Policy
from workshop_lib.cache.stats import CacheStats
from workshop_lib.cache.storage import Storage
from workshop_lib.rows import Params, Row, Rows

if TYPE_CHECKING:
    import pandas as pd

BATCH = 5_000
"""Keys looked through, and removed, in one round trip: a millisecond of the server's time."""
WRITES = "25006"
"""The SQLSTATE of a statement that writes in a transaction that may only read."""


class Database(Protocol):
    """What the cache asks on a miss."""

    @property
    def identity(self) -> str:
        """Which database this is: part of every key, so that two never share an entry."""

    def query(self, statement: str, params: Params = None, *, read_only: bool = False) -> Rows:
        """The rows that the statement selects; if read_only, it is refused if it writes."""


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
        source: "cache", "database" (loaded just now, by this or a simultaneous request), or "stale"
            (older than its TTL, because the database did not answer).
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
        ttl_seconds: until the server removes it.
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


class QueryCache:
    """Results of queries, kept in Valkey under the statement and its parameters.

    Empty results are kept like any other. When the cache is down, answers come from the database.

    Args:
        source: an open workshop.
        ttl: time to live of an entry, seconds; VALKEY_TTL if left out.
        behaviour: the other attributes of Policy by name, for example jitter=0.1.

    Raises:
        ValueError: a ttl or another number out of its range.

    """

    def __init__(self, source: Source, ttl: float | None = None, **behaviour: Any) -> None:
        self.policy = Policy(ttl=source.default_ttl if ttl is None else ttl, **behaviour)
        self._database = source.database
        self._valkey: Any = source.valkey
        self._namespace = source.namespace
        storage = Storage(source.valkey, int(self.policy.max_bytes))
        self._mechanism = Mechanism(storage, self.policy)

    @property
    def ttl(self) -> float:
        """Time to live of an entry, seconds."""
        return self.policy.ttl

    def fetch(self, statement: str, params: Params = None, tags: Iterable[str] = ()) -> Answer:
        """The statement's result, from the cache if it is there, else from the database.

        Args:
            statement: SQL with placeholders.
            params: the values for them.
            tags: names under which `invalidate_tag` finds the entry if this fetch fills it, for
                example of tables. An entry that is not filed under all of them is not taken.

        Raises:
            psycopg2.Error: the database refused the statement. Errors are never cached.
            ValueError: the database says that the statement writes: it must be run every time.

        """
        try:
            key = self.key(statement, params)
        except Uncacheable:  # a parameter that no key can stand for: the database may know it
            return self._uncached(statement, params)
        tag_keys = keys.tag_keys(self._namespace, tags)
        fetched = self._mechanism.fetch(key, lambda: self._load(statement, params), tag_keys)
        entry = fetched.entry
        return Answer(
            entry.columns, entry.rows, fetched.source, fetched.seconds, entry.cost_seconds
        )

    def key(self, statement: str, params: Params = None) -> str:
        """The key under which this statement's result is kept."""
        return keys.query_key(self._namespace, statement, params, scope=self._database.identity)

    def inspect(self, statement: str, params: Params = None) -> EntryInfo | None:
        """What is stored for a statement; None if nothing that can be read. Counts nothing.

        Raises:
            redis.RedisError: the cache gave no answer.

        """
        key = self.key(statement, params)
        try:
            entry = self._mechanism.storage.get(key)
        except CorruptEntry:
            return None
        if entry is None:
            return None
        age, ttl_ms = time.time() - entry.created_at, max(0, self._valkey.pttl(key))
        return EntryInfo(key, entry.size, ttl_ms / 1000, age, len(entry.rows), entry.cost_seconds)

    def invalidate(self, statement: str, params: Params = None) -> bool:
        """Remove one entry, and keep loads that are under way from storing. Call it after COMMIT.

        Returns:
            Whether there was an entry.

        Raises:
            ServiceUnreachableError: the cache did not answer; try again.

        """
        return self._mechanism.invalidate(self.key(statement, params))

    def invalidate_tag(self, tag: str) -> None:
        """Invalidate all entries that were filled under a tag, in one short command.

        Raises:
            ServiceUnreachableError: the cache did not answer; try again.

        """
        self._mechanism.invalidate_tag(keys.tag_key(self._namespace, tag))

    def clear(self) -> int:
        """Remove this namespace's keys and no others, found with SCAN. Returns how many.

        Raises:
            redis.RedisError: the cache gave no answer.

        """
        return clear_namespace(self._valkey, self._namespace)

    def stats(self) -> CacheStats:
        """The counters so far."""
        return self._mechanism.stats()

    def _load(self, statement: str, params: Params) -> Entry:
        found = self._ask(statement, params)
        return Entry(found.columns, found.rows, found.seconds, time.time())

    def _uncached(self, statement: str, params: Params) -> Answer:
        found = self._ask(statement, params)
        self._mechanism.counters.add(misses=1, uncacheable=1)
        return Answer(found.columns, found.rows, "database", found.seconds, found.seconds)

    def _ask(self, statement: str, params: Params) -> Rows:
        try:
            return self._database.query(statement, params, read_only=True)
        except Exception as error:
            if getattr(error, "pgcode", None) != WRITES:
                raise
            raise ValueError(
                f"This statement writes ({str(error).strip()}), so its result cannot be cached: it "
                "would not be run again. Send it with database.query or run_transaction, and "
                "invalidate what it changes."
            ) from None


def clear_namespace(valkey: Redis, namespace: str) -> int:
    """Remove all keys of a namespace and no others. Returns how many there were.

    SCAN walks the keys in small steps; KEYS would stop the server for everybody while it looks.
    Found keys are removed in batches, by one command each: on a cluster they lie in many slots.
    """
    removed = 0
    found = valkey.scan_iter(match=keys.match_all(namespace), count=BATCH)
    while batch := list(islice(found, BATCH)):
        pipeline = valkey.pipeline(transaction=False)
        for key in batch:
            pipeline.unlink(key)
        removed += sum(pipeline.execute())
    return removed
