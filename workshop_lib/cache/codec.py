"""Answers as JSON that a person can read with GET, and back with every type and value as it was.

    {"created_at":1767225600.0,"cost_seconds":0.004,"fresh_until":null,"tags":{},
     "columns":["id","salary"],"types":["int","Decimal"]}
    [[1,2],["12.50",null]]#9f0a1c3e

An answer is kept column by column, so that a column of one type is read in C by a decoder made for
that type. A column of several types, or of nested values, is `mixed`: there, what JSON has no form
for is a list of a type's name and its parts, as in `["Decimal","12.50"]`. The eight digits at the
end are a CRC-32 of all that stands before them.

It is not pickle: whoever can write to the cache could otherwise run code in all who read it. For
the same reason reading is bounded: whatever the bytes are, it takes at most 200 times `max_bytes`
of memory (a row of one small value takes about 70 bytes, and may be written as two), and time in
proportion.
"""

import zlib
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import lru_cache
from math import inf, isfinite
from types import NoneType
from typing import Annotated, Any
from uuid import UUID

import msgspec

MAX_DEPTH = 64  # levels of list, tuple and dict in one value; a value inside itself has no end
MAX_BYTES = 1_000_000  # what is read where nothing else is said
MAX_TIME = 1e10  # seconds, also of Unix time: in the year 2286
MAX_SAME_HASH = 32  # keys of one dict: each further one is compared with all of them
EXACT = (
    "None, bool, int, float, str, bytes, Decimal, date, time or datetime without a named zone, "
    "timedelta, UUID, or a list, tuple or dict of these"
)
CHECK_LENGTH = 9  # "#" and eight hexadecimal digits
ADVICE = "Delete the key: the next read fills it again."


class Uncacheable(TypeError):  # noqa: N818 - it reads as what it says of the value
    """The value would not come back from the cache as it is, so nothing was encoded."""


class CorruptEntry(ValueError):  # noqa: N818 - likewise
    """The bytes are no entry of ours: treat them as a miss."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer as the cache keeps it.

    Attributes:
        columns: their names, in the query's order.
        rows: each a tuple as long as `columns`.
        cost_seconds: what the source took when the entry was filled.
        created_at: when it was filled, Unix seconds.
        fresh_until: when it should no longer be served without asking, Unix seconds.
        tags: the versions of its tags, by the tags' keys, at the time when it was loaded.
        size: of what it was read from, bytes; 0 if it has not been stored.

    """

    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    cost_seconds: float
    created_at: float
    fresh_until: float = inf
    tags: Mapping[str, str] = field(default_factory=dict)
    size: int = field(default=0, compare=False)


Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_TIME)]


class Head(msgspec.Struct, forbid_unknown_fields=True):
    """What stands before an entry's values."""

    created_at: Seconds
    cost_seconds: Seconds
    fresh_until: Seconds | None
    """None if only the server's own TTL counts."""
    tags: dict[str, str]

    def entry(self, columns: Iterable[str], rows: list[tuple[object, ...]], size: int) -> Entry:
        """The entry with these values."""
        until = inf if self.fresh_until is None else self.fresh_until
        return Entry(
            tuple(columns), rows, self.cost_seconds, self.created_at, until, self.tags, size
        )


class _Head(Head):
    """The first line; the second one has the columns' values."""

    columns: tuple[str, ...]
    types: tuple[str, ...]


def encode(entry: Entry) -> bytes:
    """Return the stored form of an answer.

    >>> decode(encode(Entry(("id", "name"), [(1, "Mercury"), (2, None)], 0.004, 0.0))).rows
    [(1, 'Mercury'), (2, None)]

    Raises Uncacheable, naming column and type, for what would not come back equal.
    """
    _check_rows(entry)
    columns = list(zip(*entry.rows, strict=True)) if entry.rows else [()] * len(entry.columns)
    types, values = _encode_columns(entry.columns, columns)
    head = encode_head(_Head, entry, columns=entry.columns, types=tuple(types))
    return seal(b"%b\n%b" % (head, values))


def encode_head(kind: type[Head], entry: Entry, **more: Any) -> bytes:
    """Return an entry's head of some kind. Raises Uncacheable for times that no clock has shown."""
    until = None if entry.fresh_until == inf else entry.fresh_until
    times = (entry.created_at, entry.cost_seconds, until)
    if not all(0 <= seconds <= MAX_TIME for seconds in times if seconds is not None):
        raise Uncacheable(f"The entry's times cannot be right: {times}. Set the clock.")
    return _dump(kind(*times, dict(entry.tags), **more), "A column's name")


def decode(data: bytes, max_bytes: int = MAX_BYTES) -> Entry:
    """Return the answer in the bytes, equal in types and values to what `encode` was given.

    Raises CorruptEntry, and nothing else, for bytes that `encode` did not make, and for more than
    `max_bytes` of them.
    """
    text = unseal(data, max_bytes)
    line, _, values = text.partition(b"\n")
    try:
        head = _HEAD.decode(line)
        if len(head.columns) != len(head.types):
            raise ValueError("as many columns as types are needed")
        columns = _decoder(head.types).decode(values)
        if _MIXED in head.types:
            columns = [
                [_unpack(value) for value in column] if kind == _MIXED else column
                for kind, column in zip(head.types, columns, strict=True)
            ]
        return head.entry(head.columns, list(zip(*columns, strict=True)), len(data))
    except Exception as error:  # forged, as the checksum fits: anything can be wrong in it
        raise CorruptEntry(f"These bytes are no answer of ours: {error}. {ADVICE}") from error


def encode_value(value: object) -> bytes:
    """Return one value as JSON, as for a field of a hash.

    >>> encode_value(3), encode_value(None), encode_value("Mercury"), encode_value(Decimal("1.50"))
    (b'3', b'null', b'"Mercury"', b'["Decimal","1.50"]')

    Raises Uncacheable, naming the type, for what would not come back equal.
    """
    return _dump(_pack(value, "The value"), "The value")


def decode_values(parts: Sequence[bytes]) -> list[object]:
    """Return the values in as many pieces of JSON, equal to what `encode_value` was given.

    >>> decode_values([encode_value(3), encode_value(Decimal("1.50"))])
    [3, Decimal('1.50')]

    Raises CorruptEntry, and nothing else, for anything else.
    """
    try:
        packed = _VALUES.decode(b"[%b]" % b",".join(parts))
        if len(packed) != len(parts):
            raise ValueError("as many pieces as values are needed")
        return [_unpack(value) for value in packed]
    except Exception as error:
        raise CorruptEntry(f"These are no values of ours: {error}.") from error


def canonical(value: object, where: str = "A parameter or argument") -> bytes:
    """Return the bytes that stand for a value in a key: never the same for two types or values.

    1, True and "1" differ, and so do Decimal("1") and Decimal("1.0"), which a database may answer
    differently, and dicts in another order, which a function may.

    >>> canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})
    False
    >>> canonical(1) == canonical(True)
    False

    Raises Uncacheable, naming `where` and the type, as `encode_value` does.
    """
    return _dump(_pack(value, where), where)


def seal(text: bytes) -> bytes:
    """Return the bytes with their checksum at the end."""
    return text + b"#%08x" % zlib.crc32(text)


def unseal(data: bytes, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes that `seal` was given. Raises CorruptEntry, also for more than so many."""
    check_size(len(data), max_bytes)
    text = data[:-CHECK_LENGTH]
    if seal(text) != data:
        raise CorruptEntry(f"The checksum at the end does not fit the bytes. {ADVICE}")
    return text


def check_size(size: int, max_bytes: int) -> None:
    """Raise CorruptEntry for more bytes than an entry may have: nothing stores so many."""
    if size > max_bytes:
        raise CorruptEntry(f"{size:,} bytes are more than an entry may have here: {max_bytes:,}.")


def _check_rows(entry: Entry) -> None:
    if odd := set(map(type, entry.rows)) - {tuple}:
        raise Uncacheable(f"A row is of type {_name(odd.pop())}. Turn each into a tuple first.")
    if odd_widths := set(map(len, entry.rows)) - {len(entry.columns) or None}:
        width = len(entry.columns) or "no"
        raise Uncacheable(f"A row has {odd_widths.pop()} values where there are {width} columns.")


def _encode_columns(
    names: Sequence[str], columns: Sequence[tuple[object, ...]]
) -> tuple[list[str], bytes]:
    """The names of the columns' types, and their values."""
    types, written = [], []
    for name, values in zip(names, columns, strict=True):
        kind, data = _type_of(values), b""
        if kind != _MIXED:
            with suppress(OverflowError, TypeError, ValueError):  # of more digits than 64 bits
                data = _ENCODER.encode(values)
        if not data:
            kind, where = _MIXED, f"Column {name!r}"
            data = _dump([_pack(value, where) for value in values], where)
        types.append(kind)
        written.append(data)
    return types, b"[%b]" % b",".join(written)


def _type_of(values: tuple[object, ...]) -> str:
    """The type that all values have, but for None, if JSON keeps them as they are."""
    kinds = set(map(type, values)) - {NoneType}
    kind = kinds.pop() if kinds else NoneType
    if kinds or kind not in _COLUMNS:
        return _MIXED
    is_plain = _PLAIN.get(kind)
    return kind.__name__ if is_plain is None or all(map(is_plain, values)) else _MIXED


@lru_cache(maxsize=256)
def _decoder(types: tuple[str, ...]) -> msgspec.json.Decoder[Any]:
    """Reads columns of these types in one go. Raises KeyError for an unknown one."""
    columns: Any = tuple([_LISTS[name] for name in types])
    return msgspec.json.Decoder(tuple[columns])


def _pack(value: object, where: str, depth: int = 0) -> object:
    """Return the value if JSON keeps it exactly, or else [the type's name, its parts].

    Raises Uncacheable, naming `where` and the type, for what would not come back equal.
    """
    kind = type(value)
    if kind in _KEPT_AS_IS or (type(value) is float and isfinite(value)):
        return value
    if type(value) is int and -(2**63) <= value < 2**64:
        return value
    if depth > MAX_DEPTH:
        raise Uncacheable(f"{where} is nested more than {MAX_DEPTH} deep, or contains itself.")

    def inner(part: object) -> object:
        return _pack(part, where, depth + 1)

    if type(value) is list or type(value) is tuple:
        return [kind.__name__, [inner(part) for part in value]]
    if type(value) is dict:
        _require_spread(value)
        return [kind.__name__, [[inner(key), inner(item)] for key, item in value.items()]]
    if kind in _SCALARS and type(getattr(value, "tzinfo", None)) in {NoneType, timezone}:
        write, read = _SCALARS[kind]
        written = write(value)
        # A zone with a name, or a fold, is in no text of a time.
        if kind not in {time, datetime} or repr(read(written)) == repr(value):
            return [kind.__name__, written]
    raise Uncacheable(
        f"{where} holds a value of type {_name(kind)} that has no exact form in the cache. Turn "
        f"it into one of these first: {EXACT}."
    )


def _unpack(packed: Any) -> object:
    """Return the value that `_pack` was given. Raises anything for what it did not make."""
    if type(packed) is list:
        name, parts = packed
        return _UNPACKERS[name](parts)
    if type(packed) is dict:
        raise ValueError("a JSON object, which is never written")
    return packed


def _unpack_dict(items: list[Any]) -> dict[object, object]:
    pairs = [(_unpack(key), _unpack(value)) for key, value in items]
    _require_spread([key for key, _ in pairs])
    return dict(pairs)


def _require_spread(keys: Collection[object]) -> None:
    """Refuse a dict that would take time as the square of its size."""
    if len(keys) > MAX_SAME_HASH < max(Counter(map(hash, keys)).values()):
        raise Uncacheable("A dict has too many keys with one and the same hash.")


def _dump(value: object, where: str) -> bytes:
    try:
        return _ENCODER.encode(value)
    except (OverflowError, TypeError, ValueError) as error:  # a lone surrogate in a str, above all
        raise Uncacheable(f"{where} cannot be encoded: {error}.") from error


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


_ENCODER = msgspec.json.Encoder()
_HEAD = msgspec.json.Decoder(_Head)
_VALUES = msgspec.json.Decoder(list[Any])

_MIXED = "mixed"
_COLUMNS = (NoneType, bool, int, float, str, bytes, Decimal, date, datetime, UUID)
_LISTS: dict[str, Any] = {kind.__name__: list.__class_getitem__(kind | None) for kind in _COLUMNS}
_LISTS[_MIXED] = list[Any]
_PLAIN: dict[type, Callable[[Any], bool]] = {
    float: lambda value: value is None or isfinite(value),
    # ISO 8601 has no words for a zone's name or its rules, nor for a fold.
    datetime: lambda value: (
        value is None or (not value.fold and (value.tzinfo is None or value.tzinfo is UTC))
    ),
}
"""Of some types JSON keeps some values only."""

_KEPT_AS_IS = frozenset({NoneType, bool, str})  # and most numbers
_SCALARS: dict[type, tuple[Callable[[Any], object], Callable[[Any], object]]] = {
    int: (hex, lambda digits: int(digits, base=16)),
    float: (repr, float),
    bytes: (lambda value: b64encode(value).decode(), lambda text: b64decode(text, validate=True)),
    Decimal: (str, Decimal),
    date: (date.isoformat, date.fromisoformat),
    timedelta: (lambda span: (span.days, span.seconds, span.microseconds), lambda p: timedelta(*p)),
    UUID: (str, UUID),
    time: (time.isoformat, time.fromisoformat),
    datetime: (datetime.isoformat, datetime.fromisoformat),
}
IMMUTABLE = frozenset({*_KEPT_AS_IS, *_SCALARS})
"""The types of values that can be encoded and never change."""


_UNPACKERS: dict[str, Callable[[Any], object]] = {
    "list": lambda parts: [_unpack(part) for part in parts],
    "tuple": lambda parts: tuple([_unpack(part) for part in parts]),
    "dict": _unpack_dict,
    **{kind.__name__: unpack for kind, (_, unpack) in _SCALARS.items()},
}
