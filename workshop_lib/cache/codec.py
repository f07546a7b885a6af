"""Answers as JSON that a person can read with GET, decoded with every type and value as it was.

    {"created_at":1767225600.0,"cost_seconds":0.004,"columns":["id","salary"],
     "types":["int","Decimal"]}
    [[1,2],["12.50",null]]#9f0a1c3e

An answer is stored column by column, so that a decoder written in C reads a column of one type. A
column of several types, or of nested values, is `mixed`: there, a value that JSON has no form for
is a list of its type's name and its parts, as in `["Decimal","12.50"]`. The entry ends with the
CRC-32 of everything before it.

Why not pickle? Anyone who can write to the cache could run code in every reader. For the same
reason decoding is bounded: whatever the bytes are, it takes at most 200 times their size in memory
(a row of one small value takes about 70 bytes, and may be written as two), and linear time.
"""

import zlib
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import lru_cache
from math import isfinite
from types import NoneType
from typing import Annotated, Any
from uuid import UUID

import msgspec

MAX_DEPTH = 64
"""Levels of list, tuple and dict in one value; a value that contains itself has no end."""
MAX_TIME = 1e10
"""Seconds, also of Unix time: in the year 2286."""
MAX_SAME_HASH = 32
"""Keys of one dict with the same hash: each further one is compared with all of them."""
EXACT = (
    "None, bool, int, float, str, bytes, Decimal, date, time or datetime without a named zone, "
    "timedelta, UUID, or a list, tuple or dict of these"
)
MAX_COLUMNS = 1_664
"""Columns of one answer, as PostgreSQL limits them: a decoder is kept for each list of types."""
CHECK_LENGTH = 9
"""Of "#" and eight hexadecimal digits."""


class Uncacheable(TypeError):  # noqa: N818 - it reads as what it says of the value
    """The value would not come back from the cache as it is, so nothing was encoded."""


class CorruptEntry(ValueError):  # noqa: N818 - likewise
    """The bytes are not an entry of ours: treat them as a miss."""


class Entry(msgspec.Struct, frozen=True):
    """An answer as the cache keeps it.

    Attributes:
        columns: their names, in the query's order.
        rows: each a tuple as long as `columns`.
        cost_seconds: how long the source took when the entry was filled.
        created_at: when it was filled, Unix seconds.
        fresh_until: when its TTL ends, Unix seconds; None if only the server's own TTL counts.
        tags: the versions of its tags when it was loaded, by the tags' keys.
        size: of its stored form, bytes; 0 if it was not read from the cache.

    """

    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    cost_seconds: float
    created_at: float
    fresh_until: float | None = None
    tags: Mapping[str, str] = {}
    size: int = 0


class Unkept(Entry, frozen=True):
    """An answer that is given and not kept: it has no stored form."""


Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_TIME)]


class Head(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """What precedes an entry's values."""

    created_at: Seconds
    cost_seconds: Seconds
    columns: tuple[str, ...]
    types: tuple[str, ...] = ()
    fresh_until: Seconds | None = None
    tags: dict[str, str] = {}

    def entry(self, columns: Sequence[str], rows: list[tuple[object, ...]], size: int) -> Entry:
        """The entry with these values."""
        times = self.cost_seconds, self.created_at, self.fresh_until
        return Entry(tuple(columns), rows, *times, self.tags, size)


# --- entries


def encode(entry: Entry) -> bytes:
    """Return the stored form of an answer.

    >>> decode(encode(Entry(("id", "name"), [(1, "Mercury"), (2, None)], 0.004, 0.0))).rows
    [(1, 'Mercury'), (2, None)]

    Raises Uncacheable, naming column and type, for what would not come back equal.
    """
    return seal(encode_lines(entry))


def decode(data: bytes) -> Entry:
    """Return the answer in the bytes, equal in types and values to what `encode` was given.

    Raises CorruptEntry, and nothing else, for bytes that `encode` did not make.
    """
    head, _, values = unseal(data).partition(b"\n")
    return decode_lines(head, values, len(data))


def encode_lines(entry: Entry) -> bytes:
    """Return an answer as two lines: its head, and its columns' values. Raises Uncacheable."""
    widths = set(map(len, entry.rows))
    if widths - {len(entry.columns)} or 0 in widths:
        raise Uncacheable(f"Rows are {widths} wide where there are {len(entry.columns)} columns.")
    columns = list(zip(*entry.rows, strict=True)) if entry.rows else [()] * len(entry.columns)
    encoded = [_encode_column(*one) for one in zip(entry.columns, columns, strict=True)]
    head = encode_head(entry, tuple(kind for kind, _ in encoded))
    return b"%b\n[%b]" % (head, b",".join(values for _, values in encoded))


def decode_lines(line: bytes, values: bytes, size: int) -> Entry:
    """Return the answer in two lines of an entry of this size. Raises CorruptEntry only."""
    try:
        head = decode_head(line)
        if not len(head.columns) == len(head.types) <= MAX_COLUMNS:
            raise ValueError(f"as many columns as types are needed, and at most {MAX_COLUMNS:,}")
        columns = _decoder(head.types).decode(values)
        if _MIXED in head.types:
            columns = [
                [_unpack(value) for value in column] if kind == _MIXED else column
                for kind, column in zip(head.types, columns, strict=True)
            ]
        return head.entry(head.columns, list(zip(*columns, strict=True)), size)
    except Exception as error:  # forged, as the checksum fits: anything can be wrong in it
        raise CorruptEntry(f"These bytes are not an answer of ours: {error}.") from error


def encode_head(entry: Entry, types: tuple[str, ...] = ()) -> bytes:
    """Return what precedes an entry's values. Raises Uncacheable."""
    if isinstance(entry, Unkept):
        raise Uncacheable("This answer is given and not kept.")
    times = entry.created_at, entry.cost_seconds
    head = Head(*times, entry.columns, types, entry.fresh_until, dict(entry.tags))
    return _dump(head, "A column's name")


def seal(text: bytes) -> bytes:
    """Return the bytes with their checksum at the end."""
    return text + b"#%08x" % zlib.crc32(text)


def unseal(data: bytes) -> bytes:
    """Return the bytes that `seal` was given. Raises CorruptEntry."""
    text = data[:-CHECK_LENGTH]
    if seal(text) != data:
        raise CorruptEntry("The checksum does not fit the bytes before it.")
    return text


# --- single values


def encode_value(value: object, where: str = "The value") -> bytes:
    """Return one value as JSON, as in a field of a hash.

    >>> encode_value(3), encode_value(None), encode_value("Mercury"), encode_value(Decimal("1.50"))
    (b'3', b'null', b'"Mercury"', b'["Decimal","1.50"]')

    Two values have the same bytes only if nothing tells them apart: 1, True and "1" differ, and so
    do Decimal("1") and Decimal("1.0"), and dicts in another order. So they can be part of a key.

    Raises Uncacheable, naming `where` and the type, for what would not come back equal.
    """
    return _dump(_pack(value, where), where)


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
        raise CorruptEntry(f"These are not values of ours: {error}.") from error


def _encode_column(name: str, values: Collection[object]) -> tuple[str, bytes]:
    """The name of a column's type, and its values."""
    kinds = set(map(type, values)) - {NoneType}
    kind = kinds.pop() if len(kinds) == 1 else NoneType
    is_exact = _EXACT_IF.get(kind)
    if kind in _COLUMN_TYPES and (is_exact is None or all(map(is_exact, values))):
        with suppress(OverflowError, TypeError, ValueError):  # of more digits than 64 bits have
            return kind.__name__, _ENCODER.encode(values)
    where = f"Column {name!r}"
    return _MIXED, _dump([_pack(value, where) for value in values], where)


@lru_cache(maxsize=256)
def _decoder(types: tuple[str, ...]) -> msgspec.json.Decoder[Any]:
    """Reads columns of these types in one go. Raises KeyError for an unknown one."""
    columns: Any = tuple([_LISTS[name] for name in types])
    return msgspec.json.Decoder(tuple[columns])


def _pack(value: object, where: str, depth: int = 0) -> object:
    """Return the value if JSON keeps it exactly, or else [its type's name, its parts].

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
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    raise Uncacheable(
        f"{where} holds a value of type {name} that has no exact form in the cache. Turn it into "
        f"one of these first: {EXACT}."
    )


def _unpack(packed: Any) -> object:
    """Return the value that `_pack` was given. Raises anything for what it did not make."""
    if type(packed) is list:
        name, parts = packed
        return _UNPACKERS[name](parts)
    if type(packed) is dict:
        raise ValueError("a JSON object, which is never written")
    return packed


def _unpack_dict(items: Iterable[Any]) -> dict[object, object]:
    pairs = [(_unpack(key), _unpack(value)) for key, value in items]
    _require_spread([key for key, _ in pairs])
    return dict(pairs)


def _require_spread(keys: Collection[object]) -> None:
    """Refuse a dict that would take quadratic time."""
    if len(keys) > MAX_SAME_HASH < max(Counter(map(hash, keys)).values()):
        raise Uncacheable("A dict has too many keys with one and the same hash.")


def _dump(value: object, where: str) -> bytes:
    try:
        return _ENCODER.encode(value)
    except (OverflowError, TypeError, ValueError) as error:  # a lone surrogate in a str, above all
        raise Uncacheable(f"{where} cannot be encoded: {error}.") from error


_ENCODER = msgspec.json.Encoder()
_VALUES = msgspec.json.Decoder(list[Any])
decode_head = msgspec.json.Decoder(Head).decode

_MIXED = "mixed"
_COLUMN_TYPES = (bool, int, float, str, bytes, Decimal, date, datetime, UUID)
_LISTS: dict[str, Any] = {
    kind.__name__: list.__class_getitem__(kind | None) for kind in _COLUMN_TYPES
}
_LISTS[_MIXED] = list[Any]
_EXACT_IF: dict[type, Callable[[Any], bool]] = {
    float: lambda value: value is None or isfinite(value),
    # ISO 8601 has no words for a zone's name or its rules, nor for a fold.
    datetime: lambda value: (
        value is None or (not value.fold and (value.tzinfo is None or value.tzinfo is UTC))
    ),
}
"""JSON keeps only some values of these types exactly."""

_KEPT_AS_IS = frozenset({NoneType, bool, str})
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

_UNPACKERS: dict[str, Callable[[Any], object]] = {
    "list": lambda parts: [_unpack(part) for part in parts],
    "tuple": lambda parts: tuple([_unpack(part) for part in parts]),
    "dict": _unpack_dict,
    **{kind.__name__: unpack for kind, (_, unpack) in _SCALARS.items()},
}
