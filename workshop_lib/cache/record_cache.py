"""Cache-aside for records: one row of a table as one hash, read and updated field by field.

Each column is a field, its value JSON as `codec.encode_value` writes it. The field `@` says when
the hash was filled, how long that took, and which columns there are: none if there is no record.
A column that is itself called `@` is in the field with the empty name, which no column can have.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from datetime import date
from functools import partial
from types import NoneType
from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import replace
from redis import Redis

from workshop_lib.cache import codec, keys
from workshop_lib.cache.base import Cache
from workshop_lib.cache.codec import CorruptEntry, Entry, Uncacheable, Unkept, encode_value
from workshop_lib.cache.connection import Command, ask
from workshop_lib.cache.mechanism import is_fresh
from workshop_lib.cache.storage import Packed, Storage
from workshop_lib.rows import Row, Rows

Record = dict[str, object]
ABOUT, COLUMN_AT = b"@", b""
BATCH = 1_000
"""Records that `get_many` reads, and loads, at a time."""

# Under a record's key another program may keep a hash of any size. It is sent as one text, and only
# where that can be a record; of some fields, only where all are there (else `concat` fails).
_READ = """
local parts
if ARGV[1] then
  parts = redis.call('HMGET', KEYS[1], unpack(ARGV))
elseif redis.call('HLEN', KEYS[1]) <= {fields} then
  parts = redis.call('HGETALL', KEYS[1])
else
  return 'too large'
end
local text = table.concat(parts, '\\0')
return #text <= {bytes} and text or 'too large'
"""
_SEPARATOR = b"\0"
"""In no name of PostgreSQL's, and in JSON only escaped."""
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
_KEY_TYPE = """
SELECT format_type(atttypid, -1)
  FROM pg_attribute LEFT JOIN pg_collation c ON c.oid = attcollation
 WHERE attrelid = quote_ident(%s)::regclass AND attname = %s
       AND coalesce(collisdeterministic, true)
"""
_ONE_FORM: dict[object, type] = {
    "smallint": int,
    "integer": int,
    "bigint": int,
    "uuid": UUID,
    "date": date,
    "text": str,
    "character varying": str,
}
"""Types of columns in which no two keys of this type of Python's are equal. In others there are:
1.0 and 1.00, a moment in two time zones, 'ab' and 'ab  ' of char(4)."""


class Fetch(msgspec.Struct, frozen=True):
    """A record and where it came from.

    Attributes:
        record: the fields asked for by name; None if there is no such record.
        source: "cache", "database" or "stale".
        seconds: from asking until the answer was here.

    """

    record: Record | None
    source: str
    seconds: float


class HashStorage(Storage):
    """Each entry is one hash: a field for each column, and one about the entry itself."""

    def __init__(self, valkey: Redis, max_bytes: int) -> None:
        super().__init__(valkey, max_bytes)
        fields = codec.MAX_COLUMNS + 1
        self._read = _READ.format(fields=fields, bytes=max_bytes + 2 * fields)  # and separators

    def pack(self, entry: Entry) -> Packed:
        """Fields and values by turns. No record: no columns."""
        if not entry.rows:
            return (ABOUT, codec.encode_head(replace(entry, columns=())))
        packed = [ABOUT, codec.encode_head(entry)]
        for name, value in zip(entry.columns, entry.rows[0], strict=True):
            packed += (_field(name), codec.encode_value(value, f"Column {name!r}"))
        return packed

    def unpack(self, packed: Packed) -> Entry:
        """As Storage's."""
        return _entry(packed[::2], packed[1::2])

    def command(self, key: str) -> Command:
        """What asks for all fields, but for no more than an entry can have."""
        return ("EVAL", self._read, 1, key)

    def parse(self, value: bytes) -> Entry:
        """As Storage's."""
        parts = value.split(_SEPARATOR)
        return _entry(parts[::2], parts[1::2], size=len(value))

    def update(self, key: str, changes: Record) -> bool:
        """Change some fields of a hash that has them. Returns whether it was there."""
        fields = ((_field(name), encode_value(value)) for name, value in changes.items())
        flat = [part for field in fields for part in field]
        return self.run(_UPDATE, [key, keys.lock_key(key)], *flat)

    def get_fields(self, key: str, names: Sequence[str]) -> Entry | None:
        """An entry of these columns only; None if one of them is not there, or is not ours."""
        asked = [ABOUT, *map(_field, names)]
        (found,) = ask(self.valkey, ("EVAL", self._read, 1, key, *asked))
        with suppress(CorruptEntry):
            if isinstance(found, bytes):  # no error: a field is missing, or there is no hash
                return _entry(asked, found.split(_SEPARATOR), names, size=len(found))
        return None


def _field(name: str) -> bytes:
    return COLUMN_AT if name == "@" else name.encode()


def _entry(
    names: Iterable[bytes],
    values: Iterable[bytes],
    columns: Sequence[str] = (),
    *,
    size: int = 0,
) -> Entry:
    """Return the entry in the fields of a hash, or these columns of it.

    Raises CorruptEntry, and nothing else.
    """
    try:
        fields = dict(zip(names, values, strict=True))
        head = codec.decode_head(fields[ABOUT])
        fields[ABOUT] = fields.get(COLUMN_AT, b"")
        if len(set(head.columns)) < len(head.columns):  # one large field, read a thousand times
            raise CorruptEntry("A column is named twice.")
        if not head.columns:
            return head.entry((), [], size)
        columns = columns or head.columns
        row = codec.decode_values([fields[name.encode()] for name in columns])
        return head.entry(columns, [tuple(row)], size)
    except Exception as error:
        raise CorruptEntry(f"The hash is not a record of ours: {error}.") from error


class RecordCache(Cache):
    """Rows of one table by primary key, each kept as a hash.

    Its key reads like `workshop:v3:db~3f2a91bc07de:planet:3`, where `db~…` says which database.
    A row that does not exist is kept, too, for `empty_ttl` seconds. Read, write and invalidate by
    the key that the row has: what the database finds by another one, such as "3" in a column of
    integers, is answered and not kept, as invalidating 3 would not remove it. So is the absence of
    a row, unless its key has one form only: an int, UUID, date or str in a column of that type.
    Where no row has shown the column's type yet, the database is asked for it, once.

    Args:
        source: an open workshop.
        table: its name.
        key: its primary key column, or another one whose values are unique.
        ttl: time to live of a record, seconds; VALKEY_TTL if left out.
        behaviour: the other attributes of Policy by name, for example jitter=0.1, or empty_ttl=5
            for "there is no such record".

    Raises:
        ValueError: a name that is not a plain SQL name, or a number out of its range.

    """

    _storage: HashStorage

    def __init__(
        self,
        source: Any,
        table: str,
        key: str = "id",
        ttl: float | None = None,
        **behaviour: Any,
    ) -> None:
        super().__init__(source, ttl, HashStorage, **behaviour)
        for name in (table, key):
            if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", str(name)):
                raise ValueError(f"{name!r} is not a plain SQL name (small letters, digits and _)")
        self._source = source
        self._table = table
        # Names checked above, in quotes as some are SQL's own (user, order); values are parameters.
        self._select = f'SELECT * FROM "{table}" WHERE "{key}" = %s'  # noqa: S608
        self._select_all = f'SELECT * FROM "{table}" WHERE "{key}" IN %s'  # noqa: S608
        self._key = key
        self._type: type | None = None  # of a key that has one form only, once it is known

    def get(self, primary_key: object) -> Record | None:
        """The record, from the cache if it is there, else from the database; None if none exists.

        Raises:
            psycopg2.Error: the database refused the question.
            TypeError: no key can stand for a value of the primary key's type.
            ValueError: there are several records, as the key column's values are not unique.

        """
        return self.fetch(primary_key).record

    def fetch(self, primary_key: object) -> Fetch:
        """As `get`, with where the answer came from and how long it took."""
        found = self._mechanism.fetch(self.key(primary_key), lambda: self._load(primary_key))
        return Fetch(_record(found.entry), found.source, found.seconds)

    def get_fields(self, primary_key: object, names: Iterable[str]) -> Record | None:
        """Some fields of a record; only these travel if the record is in the cache.

        Raises:
            KeyError: the record has no field of that name.
            TypeError: the names are not a list of texts.

        """
        key, names = self.key(primary_key), keys.texts(names, "Fields", "name")
        part = self._mechanism.attempt(self._storage.get_fields, key, names)
        if part is not None and is_fresh(part):
            self._mechanism.counters.add(hits=1, bytes_read=part.size)
            return _record(part)
        whole = self.get(primary_key)
        return None if whole is None else {name: whole[name] for name in names}

    def get_many(self, primary_keys: Iterable[object]) -> dict[object, Record | None]:
        """Many records: one round trip for all that are in the cache, one SELECT for the others.

        That is for each thousand. What another request is loading is waited for.

        Raises:
            TypeError: as `get`; or one key is given in place of a list.
            ValueError: as `get`.

        """
        if isinstance(primary_keys, str | bytes):
            raise TypeError(f"Keys are a list, as in [{primary_keys!r}], and this is one alone.")
        wanted = {self.key(one): one for one in dict.fromkeys(primary_keys)}
        found: dict[str, Entry] = {}
        for first in range(0, len(wanted), BATCH):
            batch = list(wanted)[first : first + BATCH]
            found |= self._mechanism.fetch_many(batch, partial(self._load_many, wanted))
        return {
            one: _record(found[key]) if key in found else self.get(one)
            for key, one in wanted.items()
        }

    def put(self, primary_key: object, record: Record) -> None:
        """Write through: keep a record that has just been committed to the database.

        A hit is the record as it is given here. For a hit that nothing tells from a miss, give all
        columns in the table's order, with the types that the database returns: a Decimal for a
        numeric column, a date for a date. What the database changes on the way (a default, a
        trigger, a rounded number) is not in it: where that can be, invalidate.

        Of two writers of one record the slower may put the older one. Where that can be, both
        should invalidate.

        Raises:
            TypeError: no columns, or one whose name is no text or empty.
            ServiceUnreachableError: the cache did not answer; try again, or invalidate.

        """
        if not record or not all(isinstance(name, str) and name for name in record):
            raise TypeError(f"{record!r} is not a record. Pass a dict with a name for each column.")
        made = Entry if self._is_of(primary_key, record) else Unkept
        entry = made(tuple(record), [tuple(record.values())], 0.0, time.time())
        self._mechanism.put(self.key(primary_key), entry)

    def update(self, primary_key: object, /, **changes: object) -> bool:
        """Write through some fields that have just been committed; the TTL goes on.

        Their types have to be those that the database returns, as for `put`.

        A record in the cache that cannot take them is removed.

        Returns:
            Whether the record was in the cache. If not, nothing is kept.

        Raises:
            ServiceUnreachableError: as `put`.

        """
        key, updated = self.key(primary_key), None
        try:
            if self._is_of(primary_key, changes):
                updated = self._mechanism.attempt(self._storage.update, key, changes)
        except Uncacheable:
            self._mechanism.counters.add(uncacheable=1)
        if updated is None:  # or readers would see the old values for a whole TTL
            self._mechanism.invalidate(key)
        return bool(updated)

    def key(self, primary_key: object) -> str:
        """The key under which this record is kept."""
        source = self._source
        scope = source.database.identity
        return keys.record_key(source.namespace, self._table, primary_key, scope=scope)

    def _is_of(self, primary_key: object, record: Record) -> bool:
        return repr(record.get(self._key, primary_key)) == repr(primary_key)

    def _load(self, primary_key: object) -> Entry:
        found = self._source.database.query(self._select, (primary_key,))
        return self._entry(primary_key, found, found.rows, found.seconds)

    def _load_many(
        self, primary_keys: dict[str, object], wanted: Collection[str]
    ) -> dict[str, Entry]:
        """An entry for each key, by one SELECT where that can be told apart by the keys found."""
        asked = {primary_keys[key] for key in wanted}
        found = self._source.database.query(self._select_all, (tuple(asked),))
        rows = defaultdict[str, list[Row]](list)
        for own, row in zip(self._own_keys(found, found.rows), found.rows, strict=True):
            rows[repr(own)].append(row)

        def entry(one: object) -> Entry:
            # A database may find a key equal that Python does not: "3" and 3, "a" and "A".
            if found.rows and repr(one) not in rows and not self._has_one_form(one):
                return self._load(one)
            return self._entry(one, found, rows[repr(one)], found.seconds / len(asked))

        return {key: entry(primary_keys[key]) for key in wanted}

    def _entry(self, asked: object, found: Rows, rows: list[Row], seconds: float) -> Entry:
        """The entry of the row that was found by a key, if there is one."""
        own = self._own_keys(found, rows)
        if len(own) > 1:
            raise ValueError(
                f"{len(rows)} rows of {self._table} have the {self._key} {asked!r}, and a record "
                "is one row. Name a column whose values are unique as the key, or use QueryCache."
            )
        if own and type(own[0]) in {int, UUID}:
            self._type = type(own[0])
        is_kept = repr(own[0]) == repr(asked) if own else self._has_one_form(asked)
        made = Entry if is_kept else Unkept
        return made(found.columns, rows, seconds, time.time())

    def _has_one_form(self, asked: object) -> bool:
        """Whether what the database finds by this key, it finds by no other one."""
        if self._type is None and type(asked) in _ONE_FORM.values():
            try:
                found = self._source.database.query(_KEY_TYPE, (self._table, self._key))
            except Exception:  # noqa: BLE001 -- the answer is here, and this one only not kept
                return False
            self._type = _ONE_FORM.get(found.rows[0][0], NoneType) if found.rows else NoneType
        return self._type is type(asked)

    def _own_keys(self, found: Rows, rows: list[Row]) -> list[object]:
        place = found.columns.index(self._key)
        return [row[place] for row in rows]


def _record(entry: Entry) -> Record | None:
    return dict(zip(entry.columns, entry.rows[0], strict=True)) if entry.rows else None
