"""Single values as text that a person can read and a program can read back: for hash fields.

A letter for the type, a colon, the value: `i:3`, `s:Mercury`, `d:12.50`, `n:` for None. What has no
short text of its own (lists, dicts, times of day, zones) is `v:` and a frame of the codec.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal
from math import isnan
from types import NoneType
from typing import Any
from uuid import UUID

from workshop_lib.cache.codec import (
    MAX_BYTES,
    CorruptEntry,
    check_size,
    decode_value,
    encode_value,
    is_plain_datetime,
)

MAX_DIGITS = 3_000
"""Of an integer as text. The time to read one grows with their square."""


def _write_int(value: int) -> str:
    if value.bit_length() > 3 * (MAX_DIGITS - 10):  # a digit is more than three bits
        raise ValueError("too many digits")
    return str(value)


def _write_float(value: float) -> str:
    if isnan(value):
        raise ValueError("it has a sign and bits of its own, which no text shows")
    return repr(value)


def _write_datetime(value: datetime) -> str:
    if not is_plain_datetime(value):
        raise ValueError("ISO 8601 has no words for its zone or its fold")
    return value.isoformat()


_LETTERS: dict[type, tuple[str, Callable[[Any], str], Callable[[str], object]]] = {
    NoneType: ("n", lambda _: "", {"": None}.__getitem__),
    bool: (
        "b",
        lambda value: "true" if value else "false",
        {"true": True, "false": False}.__getitem__,
    ),
    int: ("i", _write_int, int),
    float: ("f", _write_float, float),
    str: ("s", str, str),
    Decimal: ("d", str, Decimal),
    date: ("D", date.isoformat, date.fromisoformat),
    datetime: ("t", _write_datetime, datetime.fromisoformat),
    bytes: ("x", bytes.hex, bytes.fromhex),
    UUID: ("u", str, UUID),
}
_READERS = {letter: read for letter, _, read in _LETTERS.values()}
_FRAME = "v"


def encode_field(value: object) -> bytes:
    """The value as text.

    >>> encode_field(3), encode_field(None), encode_field("Mercury"), encode_field(Decimal("1.50"))
    (b'i:3', b'n:', b's:Mercury', b'd:1.50')

    Raises Uncacheable for what would not come back equal.
    """
    known = _LETTERS.get(type(value))
    if known is not None:
        letter, write, _ = known
        # No text for this one, for example an integer of more digits than Python prints.
        with suppress(ValueError):
            return f"{letter}:{write(value)}".encode()
    return f"{_FRAME}:".encode() + b64encode(encode_value(value))


def decode_field(data: bytes, max_bytes: int = MAX_BYTES) -> object:
    """The value in the text, equal in type and value to what `encode_field` was given.

    Raises CorruptEntry for anything else, and for more than `max_bytes`.
    """
    if len(data) > max_bytes or len(data) > MAX_DIGITS:
        check_size(data, max_bytes)
        if data.startswith(b"i:"):
            raise CorruptEntry("An integer of more digits than are written as text.")
    try:
        letter, _, text = data.decode().partition(":")
        if letter == _FRAME:
            return decode_value(b64decode(text, validate=True), max_bytes)
        return _READERS[letter](text)
    except CorruptEntry:
        raise
    except (ArithmeticError, KeyError, ValueError) as error:
        raise CorruptEntry(f"{data[:40]!r} is not a field of ours: {error!r}.") from None
