"""Turn a query's answer into bytes for the cache, and back with every type and value as it was.

A frame is 4 bytes that say what it is and of which version, 4 bytes of CRC-32, and a MessagePack
body. Answers are kept column by column: a column of one type is written and read in C, by a
decoder made for that type. Mixed and nested values take a slower road, tagged one by one.

It is not pickle: whoever can write to the cache could otherwise run code in all who read it. For
the same reason decoding is bounded: whatever the bytes are, it takes at most 200 times `max_bytes`
of memory (a row of one small value takes over 100 bytes, and may be written as one), and time in
proportion.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import lru_cache
from math import inf
from types import NoneType
from typing import Any, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

MAX_DEPTH = 64  # levels of list, tuple and dict in one value; a value inside itself has no end
MAX_BYTES = 1_000_000  # what is read where nothing else is said
MAX_TIME = 1e10  # seconds of Unix time: in the year 2286
MAX_COST_S = 1e10
MAX_SAME_HASH = 32  # keys of one dict: each further one is compared with all of them

T = TypeVar("T")


class Uncacheable(TypeError):  # noqa: N818 - it reads as what it says of the value
    """The value would not come back from the cache as it is, so nothing was encoded."""


class CorruptEntry(ValueError):  # noqa: N818 - likewise
    """The bytes are not a whole frame of this version: treat them as a miss."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A query's answer as the cache keeps it."""

    columns: tuple[str, ...]
    """The columns' names, in the query's order."""
    rows: list[tuple[object, ...]]
    """The rows in order, each a tuple as long as `columns`."""
    cost_seconds: float
    """What the database query took when the entry was filled."""
    created_at: float
    """When the entry was filled, in seconds of Unix time."""
    fresh_until: float = inf
    """When it should no longer be served without asking, in seconds of Unix time."""


def encode(entry: Entry) -> bytes:
    """Return the frame of a query's answer.

    >>> decode(encode(Entry(("id", "name"), [(1, "Mercury"), (2, None)], 0.004, 0.0))).rows
    [(1, 'Mercury'), (2, None)]

    Raises Uncacheable, naming column and type, for what would not come back equal.
    """
    check_times(entry)
    columns = [
        _encode_column(values, f"Column {name!r}")
        for name, values in zip(entry.columns or ("",), _turn_to_columns(entry), strict=True)
    ]
    times = (entry.cost_seconds, entry.created_at, entry.fresh_until)
    body = _Body(entry.columns, times, columns)
    return _seal(_ENTRY, _dump(body, "A column's name or the entry's time"))


def decode(data: bytes, max_bytes: int = MAX_BYTES) -> Entry:
    """Return the answer in a frame, equal in types and values to what `encode` was given.

    Raises CorruptEntry, and nothing else, for bytes that `encode` of this version did not make, and
    for more than `max_bytes` of them.
    """
    return _unseal(_ENTRY, data, _parse_entry, max_bytes)


def encode_value(value: object) -> bytes:
    """Return the frame of one value, such as what a cached function returned.

    >>> decode_value(encode_value({"born": date(1906, 12, 9)}))
    {'born': datetime.date(1906, 12, 9)}

    Raises Uncacheable, naming the type, for what would not come back equal.
    """
    return _seal(_VALUE, _dump(pack(value, "The value"), "The value"))


def decode_value(data: bytes, max_bytes: int = MAX_BYTES) -> object:
    """Return the value in a frame, equal in type and value to what `encode_value` was given.

    Raises CorruptEntry, and nothing else, for bytes that it did not make in this version, and for
    more than `max_bytes` of them.
    """
    return _unseal(_VALUE, data, lambda body: unpack(_load(body)), max_bytes)


def canonical(value: object) -> bytes:
    """Return the bytes that stand for a value in a key: never the same for two types or values.

    1, True and "1" differ, and so do Decimal("1") and Decimal("1.0"), which a database may answer
    differently. Only the order of a dict's items makes no difference.

    >>> canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})
    True
    >>> canonical(1) == canonical(True)
    False

    Raises Uncacheable, naming the type, as `encode_value` does.
    """
    where = "A part of the key"
    return _dump(pack(value, where, sort_dicts=True), where)


# The first byte opens no MessagePack, JSON, text or pickle. The last one is the version: raise it
# with every change to what follows, and entries of the old layout become misses.
_ENTRY = b"\xc1WE\x01"
_VALUE = b"\xc1WV\x01"


class _Body(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    names: tuple[str, ...]
    times: tuple[float, float, float]
    """cost_seconds, created_at and fresh_until."""
    columns: list[tuple[str, bytes]]
    """For each column the name of its decoder, and its values as a MessagePack array."""


def check_size(data: bytes, max_bytes: int) -> None:
    """Raise CorruptEntry for more bytes than an entry may have: nothing stores so many."""
    if len(data) > max_bytes:
        raise CorruptEntry(
            f"{len(data):,} bytes are more than an entry may have here ({max_bytes:,}). Delete "
            "the key, or raise max_bytes."
        )


def check_times(entry: Entry) -> None:
    """Raise Uncacheable for times that no clock has shown; `inf` is a fresh_until without end."""
    until = entry.created_at if entry.fresh_until == inf else entry.fresh_until
    sane = 0 <= entry.cost_seconds <= MAX_COST_S
    if not (sane and 0 <= entry.created_at <= MAX_TIME and 0 <= until <= MAX_TIME):
        raise Uncacheable(
            f"The entry's times cannot be right: cost_seconds {entry.cost_seconds}, created_at "
            f"{entry.created_at}, fresh_until {entry.fresh_until}. Set the clock, or keep seconds."
        )


def check_rows(entry: Entry) -> None:
    """Raise Uncacheable, with the reason, for rows that are no tuples as long as the columns."""
    width = len(entry.columns)
    if odd := set(map(type, entry.rows)) - {tuple}:
        raise Uncacheable(
            f"A row is a {_name(odd.pop())}, which would come back as a tuple. Use the default "
            "cursor, or turn each row into a tuple first."
        )
    if odd_widths := set(map(len, entry.rows)) - {width}:
        raise Uncacheable(
            f"A row has {odd_widths.pop()} values where there are {width} columns. Take the "
            "columns and the rows from the same query."
        )


def _turn_to_columns(entry: Entry) -> list[tuple[object, ...]]:
    check_rows(entry)
    width = len(entry.columns)
    if not width:  # as `SELECT FROM t` answers: a column of None keeps the count of rows
        return [(None,) * len(entry.rows)]
    return list(zip(*entry.rows, strict=True)) or [()] * width


def _encode_column(values: tuple[object, ...], where: str) -> tuple[str, bytes]:
    kinds = set(map(type, values)) - {NoneType}
    kind = kinds.pop() if kinds else NoneType
    uniform = not kinds and kind in _COLUMN_DECODERS
    if uniform and (kind is not datetime or all(map(is_plain_datetime, values))):
        with suppress(OverflowError):  # MessagePack's integers end at 64 bits
            return kind.__name__, _dump(values, where)
    return _TAGGED, _dump([pack(value, where) for value in values], where)


def is_plain_datetime(value: Any) -> bool:
    """Say whether its ISO text or MessagePack's datetime keeps all of it: no zone but UTC, no fold.

    None is as plain.
    """
    return value is None or (not value.fold and (value.tzinfo is None or value.tzinfo is UTC))


def pack(value: object, where: str, depth: int = 0, *, sort_dicts: bool = False) -> object:
    """Return the value if MessagePack keeps it exactly, or else [the type's name, its parts].

    Raises Uncacheable, naming `where` and the type, for what would not come back equal.
    """
    kind = type(value)
    if kind in _KEPT_AS_IS or (type(value) is int and -(2**63) <= value < 2**64):
        return value
    if depth > MAX_DEPTH:
        deep = f"{where} is nested more than {MAX_DEPTH} levels deep, or contains itself."
        raise Uncacheable(f"{deep} Keep a flatter value.")

    def inner(part: object) -> object:
        return pack(part, where, depth + 1, sort_dicts=sort_dicts)

    if type(value) is list or type(value) is tuple:
        return [kind.__name__, [inner(part) for part in value]]
    if type(value) is dict:
        if _many_share_a_hash(value):
            raise Uncacheable(f"{where} holds a dict of too many keys with one and the same hash.")
        items = [[inner(key), inner(item)] for key, item in value.items()]
        if sort_dicts:
            items.sort(key=lambda item: _dump(item, where))
        return [kind.__name__, items]
    if type(value) is datetime or type(value) is time:
        clock = value.replace(tzinfo=None).isoformat()
        return [kind.__name__, [clock, value.fold, inner(value.tzinfo)]]
    if kind not in _SCALARS or (type(value) is ZoneInfo and value.key is None):
        raise Uncacheable(
            f"{where} holds a {_name(kind)}, which would not come back as one. Turn it into a "
            "plain Python value first, or read this straight from the database."
        )
    write, _ = _SCALARS[kind]
    return [kind.__name__, write(value)]


def _name(kind: type) -> str:
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return module + kind.__qualname__


def _dump(value: object, where: str) -> bytes:
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError) as error:  # a lone surrogate in a str, above all
        raise Uncacheable(
            f"{where} cannot be encoded: {error}. Put it right where it comes from, or read this "
            "straight from the database."
        ) from error


def _seal(header: bytes, body: bytes) -> bytes:
    return header + zlib.crc32(body).to_bytes(4, "little") + body


def _unseal(header: bytes, data: bytes, parse: Callable[[bytes], T], max_bytes: int) -> T:
    next_step = "Delete the key: the next read fills it again."
    check_size(data, max_bytes)
    if data[:4] != header:
        raise CorruptEntry(
            f"The bytes begin with {data[:4]!r}, not with {header!r}: another program or another "
            f"version wrote them. {next_step}"
        )
    body = data[8:]
    if data[4:8] != zlib.crc32(body).to_bytes(4, "little"):
        raise CorruptEntry(
            f"The checksum does not fit the other {len(body)} bytes: they were cut short or "
            f"changed. {next_step}"
        )
    try:
        return parse(body)
    except Exception as error:  # forged, as the checksum fits: anything can be wrong in it
        raise CorruptEntry(f"The bytes have no readable body ({error}). {next_step}") from error


def _parse_entry(body: bytes) -> Entry:
    parts = _BODY.decode(body)
    columns = [_decode_column(name, data) for name, data in parts.columns]
    rows = list(zip(*columns, strict=True))
    if not parts.names:
        rows = [()] * len(rows)
    elif len(parts.names) != len(columns):
        raise ValueError(f"{len(parts.names)} names for {len(columns)} columns")
    entry = Entry(parts.names, rows, *parts.times)
    check_times(entry)
    return entry


def _decode_column(decoder: str, data: bytes) -> list[Any]:
    if decoder == _TAGGED:
        return [unpack(value) for value in _load(data)]
    values: list[Any] = _DECODERS[decoder].decode(data)
    return values


def _load(data: bytes, depth: int = 0) -> Any:
    """Return what `pack` made, from MessagePack.

    A map, which `pack` never makes, would become a dict, and keys with one and the same hash take
    it the square of their number in time. So only small pieces are decoded as they are, and those
    that hold no byte that a map could begin with.
    """
    if len(data) <= _SMALL or len(data.translate(None, _MAPS)) == len(data):
        return _ANY.decode(data)
    if data[0] in _ARRAYS and depth <= 4 * MAX_DEPTH:  # one level of ours is up to three of these
        return [_load(bytes(part), depth + 1) for part in _PARTS.decode(data)]
    if data[0] in _ARRAYS or data[0] in _MAPS:
        raise ValueError("nested too deep, or in an unknown form")
    return _ANY.decode(data)


def unpack(packed: Any) -> object:
    """Return the value that `pack` was given. Raises anything for what `pack` did not make."""
    if type(packed) is int or type(packed) in _KEPT_AS_IS:
        return packed
    name, parts = packed
    return _UNPACKERS[name](parts)


def _unpack_dict(items: list[Any]) -> dict[object, object]:
    if len(items) > MAX_SAME_HASH and _many_share_a_hash([unpack(key) for key, _ in items]):
        raise ValueError("a dict of too many keys with one and the same hash")
    return {unpack(key): unpack(value) for key, value in items}


def _many_share_a_hash(keys: Collection[object]) -> bool:
    if len(keys) <= MAX_SAME_HASH:
        return False
    return max(Counter(map(hash, keys)).values()) > MAX_SAME_HASH


def _pack_timezone(zone: timezone) -> tuple[int, str]:
    """Return the offset in microseconds and the name, which may be one given to the zone."""
    return zone.utcoffset(None) // timedelta(microseconds=1), zone.tzname(None)


def _unpack_timezone(parts: tuple[int, str]) -> timezone:
    microseconds, name = parts
    zone = timezone(timedelta(microseconds=microseconds))
    return zone if zone.tzname(None) == name else timezone(zone.utcoffset(None), name)


def _unpack_clock(kind: Any, parts: tuple[str, int, object]) -> object:
    clock, fold, zone = parts
    return kind.fromisoformat(clock).replace(fold=fold, tzinfo=unpack(zone))


_ENCODER = msgspec.msgpack.Encoder(uuid_format="bytes")
_ANY = msgspec.msgpack.Decoder()
_PARTS = msgspec.msgpack.Decoder(list[msgspec.Raw])
_SMALL = 10_000  # bytes
_ARRAYS = bytes([*range(0x90, 0xA0), 0xDC, 0xDD])  # the first bytes, by MessagePack's table
_MAPS = bytes([*range(0x80, 0x90), 0xDE, 0xDF])
_BODY = msgspec.msgpack.Decoder(_Body)

_TAGGED = "tagged"  # the name for a column of mixed or nested values, which `pack` wrote
_COLUMN_DECODERS: dict[type, msgspec.msgpack.Decoder[Any]] = {
    NoneType: msgspec.msgpack.Decoder(list[None]),
    bool: msgspec.msgpack.Decoder(list[bool | None]),
    int: msgspec.msgpack.Decoder(list[int | None]),
    float: msgspec.msgpack.Decoder(list[float | None]),
    str: msgspec.msgpack.Decoder(list[str | None]),
    bytes: msgspec.msgpack.Decoder(list[bytes | None]),
    Decimal: msgspec.msgpack.Decoder(list[Decimal | None]),
    date: msgspec.msgpack.Decoder(list[date | None]),
    datetime: msgspec.msgpack.Decoder(list[datetime | None]),
    UUID: msgspec.msgpack.Decoder(list[UUID | None]),
}
_DECODERS = {kind.__name__: decoder for kind, decoder in _COLUMN_DECODERS.items()}

_KEPT_AS_IS = frozenset({NoneType, bool, float, str, bytes})  # and int, up to 64 bits
_SCALARS: dict[type, tuple[Callable[[Any], object], Callable[[Any], object]]] = {
    int: (hex, lambda digits: int(digits, base=16)),
    Decimal: (str, Decimal),
    date: (date.isoformat, date.fromisoformat),
    timedelta: (lambda span: (span.days, span.seconds, span.microseconds), lambda p: timedelta(*p)),
    UUID: (lambda value: value.bytes, lambda data: UUID(bytes=data)),
    timezone: (_pack_timezone, _unpack_timezone),
    # Python itself remembers few zones; one that it does not is read from a file each time.
    ZoneInfo: (lambda zone: zone.key, lru_cache(maxsize=1024)(ZoneInfo)),
}
_UNPACKERS: dict[str, Callable[[Any], object]] = {
    "list": lambda parts: [unpack(part) for part in parts],
    "tuple": lambda parts: tuple(unpack(part) for part in parts),
    "dict": _unpack_dict,
    "time": lambda parts: _unpack_clock(time, parts),
    "datetime": lambda parts: _unpack_clock(datetime, parts),
    **{kind.__name__: unpack for kind, (_, unpack) in _SCALARS.items()},
}
