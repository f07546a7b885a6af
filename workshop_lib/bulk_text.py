"""Columns of rows as arrays in PostgreSQL's text form (pure).

The values of a column are of one type nearly always: one pass in C then does for all of them what a
choice for each value would take several times as long for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from workshop_lib.rows import Row, to_python

PLAIN = frozenset({int, float, bool, Decimal, date, datetime, time, UUID})
KNOWN: frozenset[type] = PLAIN | {str, bytes, dict, list, type(None)}
SPECIAL = str.maketrans({"\\": r"\\", '"': r"\""})


def to_arrays(rows: Sequence[Row]) -> list[str]:
    r"""The columns of the rows as arrays.

    >>> to_arrays([(1, 'a"b', None), (2, "", True)])
    ['{1,2}', '{"a\\"b",""}', '{NULL,True}']

    Raises:
        TypeError: a value of a type that has no form here.
        ValueError: rows of different lengths, or a text that PostgreSQL cannot hold.

    """
    return [f"{{{','.join(_write(column))}}}" for column in zip(*rows, strict=True)]


def _write(column: Sequence[object]) -> Iterable[str]:
    kinds = set(map(type, column))
    if not kinds <= KNOWN:
        column = list(map(to_python, column))
        kinds = set(map(type, column))
    if unknown := kinds - KNOWN:
        known = ", ".join(sorted(kind.__name__ for kind in KNOWN))
        raise TypeError(f"{unknown.pop().__name__} cannot be stored in bulk. What can: {known}.")
    if kinds <= PLAIN:
        return map(str, column)
    if kinds == {str}:
        return _quote(cast("Sequence[str]", column))
    return map(_write_one, column)


def _write_one(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        value = rf"\x{value.hex()}"
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
