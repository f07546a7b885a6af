"""Cache-aside for query results: look in the cache; on a miss, ask the database and store."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from redis import Redis

from workshop_lib.cache import keys
from workshop_lib.cache.base import Cache
from workshop_lib.cache.codec import Entry, Uncacheable, Unkept
from workshop_lib.cache.connection import do
from workshop_lib.cache.mechanism import Fetched
from workshop_lib.cache.side_effects import SIDE_EFFECTS
from workshop_lib.rows import Params, Rows

BATCH = 5_000
"""Keys looked through, and removed, in one round trip: a millisecond of the server's time."""


@dataclass(frozen=True, slots=True)
class Answer(Rows):
    """A query's result; nothing but `source` tells a hit from a miss.

    Attributes:
        columns, rows: as in Rows.
        seconds: response time, on a miss including the database and the write to the cache.
        source: "cache", "database" (loaded just now, by this or a simultaneous request), or "stale"
            (older than its TTL, because the database did not answer).
        cost_seconds: how long the database query took when the entry was filled.

    """

    source: str
    cost_seconds: float


class QueryCache(Cache):
    """Results of queries, kept in Valkey under the statement and its parameters.

    Empty results are kept like any other. When the cache is down, answers come from the database.

    Beyond `cache_aside.py` of notebooks 02 to 07 it has all types of PostgreSQL but ranges, a
    checksum in each entry, single-flight also among threads, renewed locks for slow loads, tags,
    early refresh, answers beyond their TTL when the database is down, and a limit on the size of
    entries. `make benchmarks` says what that costs.

    What writes is refused by the database, in a read-only transaction. A few functions have effects
    there as well, such as `pg_notify` and `pg_advisory_lock`: a statement that names one of
    PostgreSQL's is answered each time and not kept, and `stats().uncacheable` counts it. Functions
    of your own and views that call them are not looked into, and what should differ each time, such
    as random() or now(), is kept like anything else: do not fetch these through a cache.

    Args:
        source: an open workshop.
        ttl: time to live of an entry, seconds; VALKEY_TTL if left out.
        behaviour: the other attributes of Policy by name, for example jitter=0.1.

    Raises:
        ValueError: a ttl or another number out of its range.

    """

    def __init__(self, source: Any, ttl: float | None = None, **behaviour: Any) -> None:
        super().__init__(source, ttl, **behaviour)
        self._database = source.database

    def fetch(self, statement: str, params: Params = None, tags: Iterable[str] = ()) -> Answer:
        """The statement's result, from the cache if it is there, else from the database.

        Args:
            statement: SQL with placeholders.
            params: the values for them. With one of a type that no key can stand for, the database
                is asked each time, and `stats().uncacheable` counts it.
            tags: names under which `invalidate_tag` finds the entry if this fetch fills it, for
                example of tables. Give the same at each fetch of a statement: an entry that is
                filed under others is not taken.

        Raises:
            psycopg2.Error: the database refused the statement, for example as it writes
                (psycopg2.errors.ReadOnlySqlTransaction). Errors are never cached.
            TypeError: params are neither a sequence nor a mapping, or a tag is not a str.
            ValueError: the statement asks for nothing, or could leave the read-only transaction.

        """
        try:
            key = self.key(statement, params)
        except Uncacheable:  # a parameter that no key can stand for: the database may know it
            entry = self._load(statement, params)
            self._mechanism.counters.add(misses=1, uncacheable=1)
            return _answer(Fetched(entry, "database", entry.cost_seconds))
        tag_keys = keys.tag_keys(self._namespace, tags)
        return _answer(self._mechanism.fetch(key, lambda: self._load(statement, params), tag_keys))

    def key(self, statement: str, params: Params = None) -> str:
        """The key under which this statement's result is kept.

        Raises:
            TypeError: a parameter of a type that no key can stand for.

        """
        return keys.query_key(self._namespace, statement, params, scope=self._database.identity)

    def invalidate_tag(self, tag: str) -> None:
        """Invalidate all entries that were filled under a tag, in one short command.

        Raises:
            ServiceUnreachableError: the cache did not answer; try again.

        """
        (key,) = keys.tag_keys(self._namespace, [tag])
        self._mechanism.invalidate_tag(key)

    def _load(self, statement: str, params: Params) -> Entry:
        found = self._database.query(statement, params, read_only=True)
        made = Unkept if SIDE_EFFECTS.search(statement.lower()) else Entry
        return made(found.columns, found.rows, found.seconds, time.time())


def _answer(fetched: Fetched) -> Answer:
    entry = fetched.entry
    return Answer(entry.columns, entry.rows, fetched.seconds, fetched.source, entry.cost_seconds)


def clear_namespace(valkey: Redis, namespace: str) -> int:
    """Remove all keys of a namespace and no others. Returns how many there were.

    SCAN walks the keys in small steps; KEYS would stop the server for everybody while it looks.
    Found keys are removed in batches, by one command each: on a cluster they are in many slots.
    """
    removed = 0
    found = valkey.scan_iter(match=keys.match_all(namespace), count=BATCH)
    while batch := list(islice(found, BATCH)):
        removed += sum(do(valkey, *[("UNLINK", key) for key in batch]))
    return removed
