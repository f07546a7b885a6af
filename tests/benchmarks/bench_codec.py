"""What it costs to turn 500 rows into bytes, and how many bytes there are.

The rows are as psycopg2 gives them: tuples with Decimal, date and datetime. orjson writes no
Decimal, so it is given `default=str`; and as a list of lists would lose the columns' names, the
baseline makes a dict of each row first, as applications do. Its time includes that.
"""

from __future__ import annotations

import pickle

import orjson

from workshop_lib.cache import codec
from workshop_lib.cache.codec import Entry


def test_encoding_500_rows(question, race, judge, line):
    columns, rows = question.answer.columns, question.answer.rows
    entry = Entry(columns, rows, 0.004, 0.0)

    def as_dicts():
        dicts = [dict(zip(columns, row, strict=True)) for row in rows]
        return orjson.dumps(dicts, default=str)

    others = {
        "orjson of dicts": as_dicts,
        "orjson of tuples": lambda: orjson.dumps((columns, rows), default=str),
        "pickle of tuples": lambda: pickle.dumps((columns, rows), pickle.HIGHEST_PROTOCOL),
    }
    race("encode 500 rows", {"ours": lambda: codec.encode(entry), **others}, goal=0.75)
    sizes = {name: len(call()) for name, call in others.items()}
    ours, baseline = len(codec.encode(entry)), sizes.pop("orjson of dicts")
    peers = "\n".join(f"{name}: {size / baseline:.3g}" for name, size in sizes.items())
    ratio = ours / baseline
    shown = (f"{ours:,} bytes", f"orjson of dicts: {baseline:,} bytes", peers)
    judge(line("encoded 500 rows, bytes", *shown, ratio, (ratio, ratio), goal=0.55))
