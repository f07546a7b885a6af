"""Cache-aside for records: one row of a table as one hash, read and updated field by field."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import inf
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from workshop_lib.cache import keys
from workshop_lib.cache.codec import CorruptEntry, Entry, Uncacheable, check_times
from workshop_lib.cache.fields import decode_field, encode_field
from workshop_lib.cache.mechanism import Mechanism, Policy
from workshop_lib.cache.query_cache import Source
from workshop_lib.cache.stats import CacheStats
from workshop_lib.cache.storage import (
    BATCH,
    NOTHING,
    Found,
    Stamps,
    StringStorage,
    read_stamps,
    wrong_type_as_none,
)

Record = dict[str, object]
SPOILT = (CorruptEntry, KeyError, RecursionError, Uncacheable, ValueError)
"""What reading a hash may raise that this program did not write."""
META = b"@"
"""The field that says when the hash was filled, what that cost, and which fields it has."""
TAGS = b"@tags"
"""The field with the versions of the tags that it was filed under, if there were any."""

_ACQUIRE = """
local locked = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2])
return {locked and 1 or 0, redis.pcall('HGETALL', KEYS[1])}
"""
_WRITE = """
if ARGV[1] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[2])
return 1
"""
# Only a hash that has these fields is updated: one made of the changed fields alone would pass for
# whole. One without them says "no such record", or is from before a column was added: it goes.
_UPDATE = """
redis.call('DEL', KEYS[2])
for i = 1, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 0 then
    redis.call('DEL', KEYS[1])
    return 0
  end
end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
"""


class _About(msgspec.Struct, array_like=True, frozen=True):
    """What the field META says, as JSON."""

    cost_seconds: float
    created_at: float
    fresh_until: float | None
    """None if only the server's own TTL counts."""
    columns: tuple[str, ...]
    present: bool
    """Whether there is such a record."""


_ABOUT = msgspec.json.Decoder(_About)


@dataclass(frozen=True, slots=True)
class Fetch:
    """A record and where it came from.

    Attributes:
        record: the fields asked for by name; None if there is no such record.
        source: "cache", "database" or "stale".
        seconds: from asking until the answer was here.

    """

    record: Record | None
    source: str
    seconds: float


class HashStorage(StringStorage):
    """Each entry is one hash: a field for each column, and one or two about the entry itself."""

    def acquire(self, key: str, token: str, lock_ms: int) -> tuple[bool, Found]:
        """Implement Storage."""
        places = (key, keys.lock_key(key))
        locked, flat = self.scripts.run(_ACQUIRE, places, (token, lock_ms))
        if isinstance(flat, list):
            flat = dict(zip(flat[::2], flat[1::2], strict=True))
        return bool(locked), self.validated([self.parse(flat)])[0]

    def pack(self, entry: Entry, stamps: Stamps) -> tuple[Any, int]:
        """Implement Storage."""
        until = None if entry.fresh_until == inf else entry.fresh_until
        about = _About(entry.cost_seconds, entry.created_at, until, entry.columns, bool(entry.rows))
        flat = [META, msgspec.json.encode(about)]
        if stamps:
            flat += [TAGS, msgspec.json.encode(stamps)]
        for row in entry.rows[:1]:
            for name, value in zip(entry.columns, row, strict=True):
                flat += [name.encode(), encode_field(value)]
        return flat, sum(map(len, flat))

    def unpack(self, packed: Any) -> Entry:
        """Implement Storage."""
        return _read(dict(zip(packed[::2], packed[1::2], strict=True)), sum(map(len, packed)))

    def complete(self, key: str, token: str, packed: Any, ttl_ms: int) -> bool:
        """Implement Storage."""
        places = (key, keys.lock_key(key))
        return bool(self.scripts.run(_WRITE, places, (token, ttl_ms, *packed)))

    def put(self, key: str, packed: Any, ttl_ms: int, forget: Collection[str] = ()) -> None:
        """Implement Storage."""
        del forget  # a record has no parts that are kept by themselves
        self.complete(key, "", packed, ttl_ms)

    def acquire_many(self, tokens: Mapping[str, str], lock_ms: int) -> list[tuple[bool, Found]]:
        """As `acquire`, for many entries in one round trip: keys with a token each."""
        pipeline = self.valkey.pipeline(transaction=False)
        for key, token in tokens.items():
            pipeline.set(keys.lock_key(key), token, nx=True, px=lock_ms).hgetall(key)
        answers = pipeline.execute(raise_on_error=False)
        for answer in answers[::2]:
            if isinstance(answer, Exception):
                raise answer
        found = self.validated(list(map(self.parse, answers[1::2])))
        return list(zip(map(bool, answers[::2]), found, strict=True))

    def complete_many(self, writes: Iterable[tuple[str, str, Any, int]]) -> list[bool]:
        """As `complete`, for many entries in one round trip; with no token as `put`."""
        pipeline = self.valkey.pipeline(transaction=False)
        for key, token, packed, ttl_ms in writes:
            pipeline.eval(_WRITE, 2, key, keys.lock_key(key), token, ttl_ms, *packed)
        return list(map(bool, pipeline.execute()))

    def update(self, key: str, changes: Record) -> bool:
        """Change some fields of a hash that has them. Returns whether it was there."""
        flat = [part for name, v in changes.items() for part in (name, encode_field(v))]
        return bool(self.scripts.run(_UPDATE, (key, keys.lock_key(key)), flat))

    def get_fields(self, key: str, names: Sequence[str]) -> Found:
        """An entry of these columns only; none if one of them is not there, or is not ours."""
        try:
            about, tags, *values = self.valkey.hmget(key, [META, TAGS, *names])
        except ResponseError as error:
            wrong_type_as_none(error)
            return NOTHING
        size = sum(len(value) for value in (about, tags, *values) if value)
        try:
            known = _ABOUT.decode(about or b"")
            if known.present and None in values:
                return NOTHING
            found = Found(
                _make(known, names, values, self.max_bytes), size, stamps=read_stamps(tags)
            )
        except SPOILT:
            return NOTHING
        return self.validated([found])[0]

    def parse(self, answer: Any) -> Found:
        """What the fields of a hash hold; its tags are not asked about."""
        fields = wrong_type_as_none(answer)
        if not isinstance(fields, dict):
            return Found(None, corrupt=True)
        if not fields:
            return NOTHING
        size = sum(map(len, fields)) + sum(map(len, fields.values()))
        if size > self.max_bytes:
            return Found(None, size, corrupt=True)
        try:
            entry = _read(fields, self.max_bytes)
            return Found(entry, size, stamps=read_stamps(fields.get(TAGS)))
        except SPOILT:
            return Found(None, size, corrupt=True)

    def _read(self, client: Any, key: str) -> Any:
        # A hash that another program wrote is received whole, however large, before `parse` refuses
        # it: a script that asks for its length first makes each hit 14 % dearer, as measured.
        return client.hgetall(key)


def _read(fields: dict[bytes, bytes], max_bytes: int) -> Entry:
    about = _ABOUT.decode(fields[META])
    columns = about.columns
    if len(set(columns)) < len(columns):  # one large field could be read a thousand times
        raise CorruptEntry("A column is named twice.")
    return _make(about, columns, (fields[name.encode()] for name in columns), max_bytes)


def _make(about: _About, columns: Sequence[str], fields: Iterable[bytes], max_bytes: int) -> Entry:
    """The entry of these columns."""
    rows = [tuple([decode_field(field, max_bytes) for field in fields])] if about.present else []
    until = inf if about.fresh_until is None else about.fresh_until
    entry = Entry(tuple(columns), rows, about.cost_seconds, about.created_at, until)
    check_times(entry)
    return entry


class RecordCache:
    """Rows of one table by primary key, each kept as a hash.

    Its key reads like `workshop:v2:db~3f2a91bc07de:planet:3`, where `db~…` says which database.
    A row that does not exist is kept, too, for `absent_ttl` seconds.

    Args:
        source: an open workshop.
        table: its name.
        key: its primary key column.
        ttl: time to live of a record, seconds; VALKEY_TTL if left out.
        absent_ttl: time to live of "there is no such record", seconds; the TTL if left out.
        behaviour: the other attributes of Policy by name, for example jitter=0.1.

    Raises:
        ValueError: a name that is not a plain SQL name, or a number out of its range.

    """

    def __init__(
        self,
        source: Source,
        table: str,
        key: str = "id",
        ttl: float | None = None,
        absent_ttl: float | None = None,
        **behaviour: Any,
    ) -> None:
        for name in (table, key):
            if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", name):
                raise ValueError(f"{name!r} is not a plain SQL name (small letters, digits and _)")
        ttl = source.default_ttl if ttl is None else ttl
        self.policy = Policy(ttl=ttl, empty_ttl=absent_ttl, **behaviour)
        self._source = source
        self._table = table
        # Names checked above, in quotes as some are SQL's own (user, order); values are parameters.
        self._select = f'SELECT * FROM "{table}" WHERE "{key}" = %s'  # noqa: S608
        self._select_all = f'SELECT * FROM "{table}" WHERE "{key}" IN %s'  # noqa: S608
        self._key = key
        self._storage = HashStorage(source.valkey, max_bytes=int(self.policy.max_bytes))
        self._mechanism = Mechanism(self._storage, self.policy)

    def get(self, primary_key: object) -> Record | None:
        """The record, from the cache if it is there, else from the database; None if none exists.

        Raises:
            psycopg2.Error: the database refused the question.
            TypeError: no key can stand for a value of the primary key's type.

        """
        return self.fetch(primary_key).record

    def fetch(self, primary_key: object, tags: Iterable[str] = ()) -> Fetch:
        """As `get`, with where the answer came from and how long it took.

        If the record is loaded, `invalidate_tag` finds it under these tags. An entry that is not
        filed under all of them is not taken.
        """
        tag_keys = keys.tag_keys(self._source.namespace, tags)
        fetched = self._mechanism.fetch(
            self.key(primary_key), lambda: self._load(primary_key), tag_keys
        )
        return Fetch(_record(fetched.entry), fetched.source, fetched.seconds)

    def get_fields(self, primary_key: object, names: Sequence[str]) -> Record | None:
        """Some fields of a record; only these travel if the record is in the cache.

        Raises:
            KeyError: the record has no field of that name.

        """
        key = self.key(primary_key)
        found = self._mechanism.attempt(lambda: self._storage.get_fields(key, names), NOTHING)
        if found.fresh is None:
            whole = self.get(primary_key)
            return None if whole is None else {name: whole[name] for name in names}
        self._mechanism.count_hits([found])
        return _record(found.fresh)

    def get_many(self, primary_keys: Iterable[object]) -> dict[object, Record | None]:
        """Many records: one round trip for all that are in the cache, one SELECT for the others.

        For each thousand, that is. What another request is loading is waited for.
        """
        wanted = list(dict.fromkeys(primary_keys))
        records: dict[object, Record | None] = {}
        for first in range(0, len(wanted), BATCH):
            left = wanted[first : first + BATCH]
            while left:
                records |= self._get_batch(left)
                left = [key for key in left if key not in records]
                if left:  # one alone, or loaded by another request just now
                    records[left[0]] = self.get(left[0])
                    del left[0]
        return {key: records[key] for key in wanted}

    def put(self, primary_key: object, record: Record, tags: Iterable[str] = ()) -> None:
        """Write through: keep a record that has just been committed to the database.

        A hit is the record as it is given here. For a hit that nothing tells from a miss, give all
        columns in the table's order, with the types that the database returns: a Decimal for a
        numeric column, a date for a date. What the database changes on the way (a default, a
        trigger, a rounded number) is not in it: where that can be, invalidate. Give the tags that
        `fetch` gives.

        Of two writers of one record the slower may put the older one. Where that can be, both
        should invalidate.

        Raises:
            TypeError: no columns, or one whose name is no text.
            ServiceUnreachableError: the cache did not answer; try again, or invalidate.

        """
        if not record or not all(isinstance(name, str) for name in record):
            raise TypeError(f"{record!r} is no record: a dict with a name for each column")
        entry = Entry(tuple(record), [tuple(record.values())], 0.0, time.time())
        tag_keys = keys.tag_keys(self._source.namespace, tags)
        self._mechanism.put(self.key(primary_key), entry, tag_keys)

    def update(self, primary_key: object, **changes: object) -> bool:
        """Write through some fields that have just been committed; the TTL goes on.

        Their types have to be those that the database returns, as for `put`.

        A record in the cache that cannot take them is removed.

        Returns:
            Whether the record was in the cache. If not, nothing is kept.

        Raises:
            ServiceUnreachableError: as `put`.

        """
        key = self.key(primary_key)
        try:
            updated = self._mechanism.attempt(lambda: self._storage.update(key, changes), None)
        except Uncacheable:
            self._mechanism.counters.add(uncacheable=1)
            updated = None
        if updated is None:  # or readers would see the old values for a whole TTL
            self._mechanism.invalidate(key)
        return bool(updated)

    def invalidate(self, primary_key: object) -> bool:
        """Remove a record, and keep loads that are under way from storing. Call it after COMMIT.

        Raises:
            ServiceUnreachableError: the cache did not answer; try again.

        """
        return self._mechanism.invalidate(self.key(primary_key))

    def invalidate_tag(self, tag: str) -> None:
        """Invalidate all entries that were filled under a tag, in one short command.

        Raises:
            ServiceUnreachableError: the cache did not answer; try again.

        """
        self._mechanism.invalidate_tag(keys.tag_key(self._source.namespace, tag))

    def key(self, primary_key: object) -> str:
        """The key under which this record is kept."""
        source = self._source
        scope = source.database.identity
        return keys.record_key(source.namespace, self._table, primary_key, scope=scope)

    def stats(self) -> CacheStats:
        """The counters so far."""
        return self._mechanism.stats()

    def _load(self, primary_key: object) -> Entry:
        found = self._source.database.query(self._select, (primary_key,))
        return Entry(found.columns, found.rows, found.seconds, time.time())

    def _get_batch(self, wanted: list[object]) -> dict[object, Record | None]:
        """The records that are in the cache, or could be loaded together."""

        def read() -> list[Any]:
            # Without a transaction: on a cluster the keys lie in different slots.
            pipeline = self._storage.valkey.pipeline(transaction=False)
            for primary_key in wanted:
                pipeline.hgetall(self.key(primary_key))
            return list(pipeline.execute(raise_on_error=False))

        answers: list[Any] = self._mechanism.attempt(read, [{}] * len(wanted))
        found = {
            primary_key: self._storage.parse(fields)
            for primary_key, fields in zip(wanted, answers, strict=True)
            if isinstance(fields, dict)  # else an error, as of another type: `get` deals with it
        }
        found = self._mechanism.validated(found)
        hits = {key: known.fresh for key, known in found.items() if known.fresh}
        self._mechanism.count_hits([found[key] for key in hits])
        records = {key: _record(entry) for key, entry in hits.items()}
        missing = [key for key in wanted if key not in hits]
        if len(missing) <= 1:
            return records
        try:
            return records | self._load_batch(missing)
        except self.policy.stale_on:
            known = [found[key].entry for key in missing if key in found]
            stale = [entry for entry in known if entry and self._mechanism.may_be_served(entry)]
            if len(stale) < len(missing):
                raise
            self._mechanism.counters.add(stale=len(stale))
            return records | dict(zip(missing, map(_record, stale), strict=True))

    def _load_batch(self, missing: list[object]) -> dict[object, Record | None]:
        """Records by one SELECT, stored; without those that another request is loading."""
        places = {primary_key: self.key(primary_key) for primary_key in missing}
        loaded = self._mechanism.load_many(
            self._storage, places, lambda chosen: self._select_many(list(chosen))
        )
        return {primary_key: _record(entry) for primary_key, entry in loaded.items()}

    def _select_many(self, wanted: list[object]) -> dict[object, Entry]:
        """An entry for each key, by one SELECT where that can be told apart by the keys found."""
        found = self._source.database.query(self._select_all, (tuple(wanted),))
        place = found.columns.index(self._key) if self._key in found.columns else 0
        rows = {row[place]: row for row in found.rows}
        seconds, now = found.seconds / max(1, len(wanted)), time.time()
        kinds, folded = {_kind(key) for key in rows}, {_fold(key) for key in rows}
        strange = not rows.keys() <= set(wanted)

        def entry(key: object) -> Entry:
            if key in rows:
                return Entry(found.columns, [rows[key]], seconds, now)
            # A database may find a key equal that Python does not: "3" and 3, "a" and "A".
            if rows and (strange or kinds != {_kind(key)} or _fold(key) in folded):
                return self._load(key)
            return Entry(found.columns, [], seconds, now)

        return {key: entry(key) for key in wanted}


def _record(entry: Entry) -> Record | None:
    return dict(zip(entry.columns, entry.rows[0], strict=True)) if entry.rows else None


def _kind(key: object) -> type:
    """What keys have to have in common to be compared by Python as by a database."""
    return int if isinstance(key, int | float | Decimal) else type(key)


def _fold(key: object) -> object:
    return key.strip().casefold() if isinstance(key, str) else key
