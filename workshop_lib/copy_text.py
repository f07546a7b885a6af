"""Rows in the text format of PostgreSQL's COPY: a line a row, tabs between values (pure).

Column by column, because the values of a column are of one type nearly always, and then one pass
in C does for all of them what a choice for each value would take several times as long for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import cast
from uuid import UUID

from workshop_lib.adapters import to_python
from workshop_lib.rows import Row

NULL = r"\N"
_SPECIAL = re.compile(r"[\\\t\n\r\0]")
_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def _escape(text: str) -> str:
    if "\0" in text:
        raise ValueError("PostgreSQL cannot hold a text with a NUL (0x00) character.")
    return text.translate(_ESCAPES)


def _bytes(value: bytes) -> str:
    return rf"\\x{value.hex()}"


def _json(value: object) -> str:
    return _escape(json.dumps(value, allow_nan=False))


_WRITERS: dict[type, Callable[..., str]] = {
    **dict.fromkeys((int, float, bool, Decimal, date, datetime, time, UUID), str),
    type(None): lambda _: NULL,
    str: _escape,
    bytes: _bytes,
    dict: _json,
    list: _json,
}


def to_copy_text(rows: Sequence[Row]) -> str:
    r"""The rows as COPY … FROM STDIN reads them.

    >>> to_copy_text([(1, "a\tb", None), (2, "", True)])
    '1\ta\\tb\t\\N\n2\t\tTrue\n'

    Raises:
        TypeError: a value of a type that has no form here.
        ValueError: rows of different lengths, or a text that PostgreSQL cannot hold.

    """
    if not rows:
        return ""
    columns = [_write(column) for column in zip(*rows, strict=True)]
    return "\n".join(map("\t".join, zip(*columns, strict=True))) + "\n"


def _write(column: Sequence[object]) -> Iterable[str]:
    kinds = set(map(type, column))
    if not kinds <= _WRITERS.keys():
        column = list(map(to_python, column))
        kinds = set(map(type, column))
    if unknown := kinds - _WRITERS.keys():
        known = ", ".join(kind.__name__ for kind in _WRITERS)
        raise TypeError(f"COPY takes no {unknown.pop().__name__} here. It takes: {known}.")
    if kinds == {str} and not _SPECIAL.search("".join(cast("Sequence[str]", column))):
        return cast("Sequence[str]", column)
    if len(kinds) == 1:
        return map(_WRITERS[kinds.pop()], column)
    return [_WRITERS[type(value)](value) for value in column]
