"""Columns of rows as arrays in PostgreSQL's text form (pure).

The values of a column are of one type nearly always: one pass in C then does for all of them what a
choice for each value would take several times as long for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from workshop_lib.rows import Row, to_python

PLAIN = frozenset({int, float, Decimal, date, datetime, time, UUID})
KNOWN: frozenset[type] = PLAIN | {bool, str, bytes, dict, list, type(None)}
TRUTH = {True: "true", False: "false"}
SPECIAL = str.maketrans({"\\": r"\\", '"': r"\""})


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
    if not kinds <= KNOWN:
        column = list(map(to_python, column))
        kinds = set(map(type, column))
    if unknown := kinds - KNOWN:
        known = ", ".join(sorted(kind.__name__ for kind in KNOWN))
        raise TypeError(f"{unknown.pop().__name__} cannot be stored in bulk. What can: {known}.")
    return f"{{{','.join(_write(column, kinds))}}}", _read_as(column, kinds)


def _read_as(column: Sequence[Any], kinds: set[type]) -> str:
    """The type of values that would lose their zone, or become a text, in a column of another."""
    if datetime in kinds:
        zoned = any(isinstance(value, datetime) and value.tzinfo is not None for value in column)
        return "timestamptz" if zoned else "timestamp"
    return "bytea" if bytes in kinds else ""


def _write(column: Sequence[Any], kinds: set[type]) -> Iterable[str]:
    if kinds == {str}:
        return _quote(column)
    if kinds == {bool}:
        return map(TRUTH.__getitem__, column)
    return map(str if kinds <= PLAIN else _write_one, column)


def _write_one(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        value = rf"\x{value.hex()}"
    elif isinstance(value, bool):
        value = TRUTH[value]
    elif isinstance(value, dict | list):
        value = json.dumps(value, allow_nan=False)
    return _quote([str(value)])[0]


def _quote(texts: Sequence[str]) -> list[str]:
    together = "".join(texts)
    if "\0" in together:
        raise ValueError("PostgreSQL cannot hold a text with a NUL (0x00) character.")
    if "\\" in together or '"' in together:
        texts = [text.translate(SPECIAL) for text in texts]
    return [f'"{text}"' for text in texts]
