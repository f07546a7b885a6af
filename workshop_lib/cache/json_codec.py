"""Entries as JSON that a person can read with GET, and that still lose no type and no value.

What JSON knows is written as it is. Anything else is a list of a type's name and its parts:
`["Decimal", "12.50"]`, `["date", "2026-06-30"]`, `["list", [1, 2]]`. Larger and slower than the
frames of `codec`, and without their checksum: a digit that changed on the way goes unnoticed.
"""

import struct
from collections.abc import Callable
from math import inf, isfinite
from typing import Any

import msgspec

from workshop_lib.cache.codec import (
    MAX_BYTES,
    CorruptEntry,
    Entry,
    Uncacheable,
    check_rows,
    check_size,
    check_times,
    pack,
    unpack,
)


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    columns: tuple[str, ...]
    cost_seconds: float
    created_at: float
    fresh_until: float | None
    rows: list[list[Any]]


_DECODER = msgspec.json.Decoder(_Document)


def encode(entry: Entry) -> bytes:
    """Return the JSON text of a query's answer, in UTF-8.

    >>> encode(Entry(("id", "name"), [(1, "Mercury"), (2, None)], 0.004, 0.0)).decode()[:39]
    '{"columns":["id","name"],"cost_seconds"'

    Raises Uncacheable, naming the column, for what would not come back equal.
    """
    check_rows(entry)
    check_times(entry)
    where = [f"Column {name!r}" for name in entry.columns]
    rows = [[_write(pack(*cell)) for cell in zip(row, where, strict=True)] for row in entry.rows]
    until = None if entry.fresh_until == inf else entry.fresh_until
    document = _Document(entry.columns, entry.cost_seconds, entry.created_at, until, rows)
    try:
        return msgspec.json.encode(document)
    except ValueError as error:  # a lone surrogate in a str
        raise Uncacheable(f"A column or its name cannot be written as JSON: {error}.") from error


def decode(data: bytes, max_bytes: int = MAX_BYTES) -> Entry:
    """Return the answer in the text, equal in types and values to what `encode` was given.

    Raises CorruptEntry, and nothing else, for bytes that make no answer, and for more than
    `max_bytes` of them.
    """
    check_size(data, max_bytes)
    try:
        found = _DECODER.decode(data)
        rows = [tuple(unpack(_read(value)) for value in row) for row in found.rows]
        until = inf if found.fresh_until is None else found.fresh_until
        entry = Entry(found.columns, rows, found.cost_seconds, found.created_at, until)
        check_rows(entry)
        check_times(entry)
    except Exception as error:  # well-formed JSON may hold anything
        raise CorruptEntry(
            f"The bytes are no answer in JSON ({error}). Delete the key: the next read fills it "
            "again."
        ) from error
    return entry


def _write(packed: Any) -> Any:
    """What `pack` made, with an object of our own in place of what JSON has no form for."""
    if type(packed) in {list, tuple}:
        return [_write(part) for part in packed]
    if type(packed) is bytes:
        return {"$bytes": packed.hex()}
    if type(packed) is float and not isfinite(packed):
        return {f"${packed}": struct.pack(">d", packed).hex()}  # $inf, $-inf, $nan
    return packed


def _read(written: Any) -> Any:
    if type(written) is list:
        return [_read(part) for part in written]
    if type(written) is dict:
        ((kind, text),) = written.items()
        return _OBJECTS[kind](bytes.fromhex(text))
    return written


def _read_float(data: bytes) -> float:
    (value,) = struct.unpack(">d", data)
    return float(value)


_OBJECTS: dict[str, Callable[[bytes], object]] = {
    "$bytes": bytes,
    **dict.fromkeys(("$inf", "$-inf", "$nan"), _read_float),
}
