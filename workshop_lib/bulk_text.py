"""Rows as text that PostgreSQL reads in bulk: lines for COPY, or an array a column (pure).

Column by column, because the values of a column are of one type nearly always, and then one pass
in C does for all of them what a choice for each value would take several times as long for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from workshop_lib.rows import Row, to_python

PLAIN = (int, float, bool, Decimal, date, datetime, time, UUID)
WRITERS: dict[type, Callable[[Any], str]] = {
    bytes: lambda value: rf"\x{value.hex()}",
    dict: lambda value: json.dumps(value, allow_nan=False),
    list: lambda value: json.dumps(value, allow_nan=False),
}
KNOWN = (*PLAIN, str, *WRITERS, type(None))


@dataclass(frozen=True, slots=True)
class Form:
    """How a text stands among others: what is replaced in it and put around it; and NULL."""

    null: str
    escapes: dict[int, str]
    around: str = "{}"

    def write(self, text: str) -> str:
        """A text in this form."""
        return self.around.format(text.translate(self.escapes))


COPY = Form(r"\N", str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}))
ARRAY = Form("NULL", str.maketrans({"\\": r"\\", '"': r"\""}), '"{}"')


def to_copy_text(rows: Sequence[Row]) -> str:
    r"""The rows as COPY … FROM STDIN reads them.

    >>> to_copy_text([(1, "a\tb", None), (2, "", True)])
    '1\ta\\tb\t\\N\n2\t\tTrue\n'

    Raises:
        TypeError: a value of a type that has no form here.
        ValueError: rows of different lengths, or a text that PostgreSQL cannot hold.

    """
    columns = [_write(column, COPY) for column in zip(*rows, strict=True)]
    return "".join(f"{line}\n" for line in map("\t".join, zip(*columns, strict=True)))


def to_arrays(rows: Sequence[Row]) -> list[str]:
    r"""The columns of the rows as arrays.

    >>> to_arrays([(1, 'a"b', None), (2, "", True)])
    ['{1,2}', '{"a\\"b",""}', '{NULL,True}']

    Raises:
        TypeError, ValueError: as `to_copy_text`.

    """
    columns = [_write(column, ARRAY) for column in zip(*rows, strict=True)]
    return [f"{{{','.join(column)}}}" for column in columns]


def _write(column: Sequence[object], form: Form) -> Iterable[str]:
    kinds = set(map(type, column))
    if not kinds.issubset(KNOWN):
        column = list(map(to_python, column))
        kinds = set(map(type, column))
    if unknown := kinds.difference(KNOWN):
        known = ", ".join(kind.__name__ for kind in KNOWN)
        raise TypeError(f"{unknown.pop().__name__} cannot be stored in bulk. What can: {known}.")
    if kinds.issubset(PLAIN):
        return map(str, column)
    if kinds == {str}:
        return _write_texts(cast("Sequence[str]", column), form)
    return [_write_one(value, form) for value in column]


def _write_texts(texts: Sequence[str], form: Form) -> Iterable[str]:
    together = "".join(texts)
    if "\0" in together:
        raise ValueError("PostgreSQL cannot hold a text with a NUL (0x00) character.")
    if any(chr(special) in together for special in form.escapes):
        return map(form.write, texts)
    return map(form.around.format, texts)


def _write_one(value: Any, form: Form) -> str:
    if value is None:
        return form.null
    if isinstance(value, PLAIN):
        return str(value)
    text = value if isinstance(value, str) else WRITERS[type(value)](value)
    (written,) = _write_texts([text], form)
    return written
