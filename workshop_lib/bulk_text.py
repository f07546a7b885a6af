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


FRACTIONS = {float, Decimal}
NUMBERS = {int, type(None), *FRACTIONS}
VIA_NUMERIC = ("smallint", "integer", "bigint", "text", "character varying", "bpchar")
"""Columns in which an INSERT of 1.0 or 1e16 stores what a numeric becomes in them."""


def to_arrays(rows: Sequence[Row], types: Sequence[str]) -> list[tuple[str, str]]:
    r"""The columns of the rows as arrays, each with the type that it has to be read as.

    That is the type of the table's column, unless an INSERT of the values would store others. (It
    takes more than an INSERT, such as 1 in a column of truth values.)

    Args:
        rows: one tuple a row.
        types: the types of the table's columns, as PostgreSQL's format_type names them.

    >>> to_arrays([(1, 'a"b', None), (2, "", 1.0)], ["bigint", "text", "bigint"])
    [('{1,2}', 'bigint'), ('{"a\\"b",""}', 'text'), ('{NULL,1.0}', 'numeric')]

    Raises:
        TypeError: a value of a type that has no form here.
        ValueError: rows of different lengths, or a text that PostgreSQL cannot hold.

    """
    columns = zip(*rows, strict=True)
    return [_to_array(column, kind) for column, kind in zip(columns, types, strict=True)]


def _to_array(column: Sequence[Any], type_: str) -> tuple[str, str]:
    kinds = set(map(type, column))
    if not kinds <= WRITE.keys():
        column = list(map(to_python, column))
        kinds = set(map(type, column))
    if unknown := kinds - WRITE.keys():
        known = ", ".join(sorted(kind.__name__ for kind in WRITE))
        raise TypeError(f"{unknown.pop().__name__} cannot be stored in bulk. What can: {known}.")
    read_as = _read_as(column, kinds, type_)
    if len(kinds) == 1:  # nearly always, and twice as fast
        array = ",".join(map(WRITE[kinds.pop()], column))
    else:
        array = ",".join([WRITE[type(value)](value) for value in column])
    if "\0" in array:
        raise ValueError("PostgreSQL cannot hold a text with a NUL (0x00) character.")
    return f"{{{array}}}", read_as


def _read_as(column: Sequence[Any], kinds: set[type], type_: str) -> str:
    """The column's type, or that of values that would be refused or become others in it."""
    if datetime in kinds or time in kinds:
        zoned = any(getattr(value, "tzinfo", None) is not None for value in column)
        if datetime in kinds:
            return "timestamptz" if zoned else "timestamp"
        return "timetz" if zoned else type_
    if bytes in kinds:
        return "bytea"
    return "numeric" if kinds <= NUMBERS and kinds & FRACTIONS and type_ in VIA_NUMERIC else type_
