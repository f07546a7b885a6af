"""Columns of rows as arrays in PostgreSQL's text form (pure)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from workshop_lib.rows import Row, to_python


def _quote(text: str) -> str:
    escaped = text.replace("\\", r"\\").replace('"', r"\"")
    return f'"{escaped}"'


WRITE: dict[type, Callable[[Any], str]] = {
    **dict.fromkeys((int, float, Decimal, date, datetime, time, UUID), str),
    bool: {True: "true", False: "false"}.__getitem__,
    bytes: lambda value: rf'"\\x{value.hex()}"',
    str: _quote,
    **dict.fromkeys((dict, list), lambda value: _quote(json.dumps(value, allow_nan=False))),
    type(None): lambda _: "NULL",
}
"""How values are written, by their type."""


def to_arrays(rows: Sequence[Row]) -> list[tuple[str, str]]:
    r"""The columns of the rows as arrays, each with the type that they have to be read as.

    It is empty where the column's own type reads them as an INSERT of the values would.

    >>> to_arrays([(1, 'a"b', None), (2, "", True)])
    [('{1,2}', ''), ('{"a\\"b",""}', ''), ('{NULL,true}', '')]

    Raises:
        TypeError: a value of a type that has no form here.
        ValueError: rows of different lengths, or a text that PostgreSQL cannot hold.

    """
    return [_to_array(column) for column in zip(*rows, strict=True)]


def _to_array(column: Sequence[Any]) -> tuple[str, str]:
    kinds = set(map(type, column))
    if not kinds <= WRITE.keys():
        column = list(map(to_python, column))
        kinds = set(map(type, column))
    if unknown := kinds - WRITE.keys():
        known = ", ".join(sorted(kind.__name__ for kind in WRITE))
        raise TypeError(f"{unknown.pop().__name__} cannot be stored in bulk. What can: {known}.")
    read_as = _read_as(column, kinds)
    if len(kinds) == 1:  # nearly always, and twice as fast
        array = ",".join(map(WRITE[kinds.pop()], column))
    else:
        array = ",".join([WRITE[type(value)](value) for value in column])
    if "\0" in array:
        raise ValueError("PostgreSQL cannot hold a text with a NUL (0x00) character.")
    return f"{{{array}}}", read_as


def _read_as(column: Sequence[Any], kinds: set[type]) -> str:
    """The type of values that would lose their zone, or become a text, in a column of another."""
    if datetime in kinds:
        zoned = any(isinstance(value, datetime) and value.tzinfo is not None for value in column)
        return "timestamptz" if zoned else "timestamp"
    return "bytea" if bytes in kinds else ""
