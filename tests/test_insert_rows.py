"""Many rows in steps: the same rows come back, whatever is in them."""

import secrets
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal

import numpy as np
import pandas as pd
import psycopg2
import pytest
from hypothesis import given, settings, strategies as st

from workshop_lib import database as module
from workshop_lib.database import Database

COLUMNS = ("id", "words", "amount", "share", "day", "at", "clock", "yes", "raw", "uid", "doc")
DDL = """
CREATE TABLE {} (id BIGINT PRIMARY KEY, words TEXT, amount NUMERIC(30, 6), share DOUBLE PRECISION,
  day DATE, at TIMESTAMPTZ, clock TIME, yes BOOLEAN, raw BYTEA, uid UUID, doc JSONB,
  short VARCHAR(3))
"""


@pytest.fixture(scope="module")
def table(shared):
    """A table with a column of each type."""
    name = f"copied_{secrets.token_hex(4)}"
    shared.database.query(DDL.format(name))
    yield name
    shared.database.query(f"DROP TABLE {name}")


@pytest.fixture
def empty(shared, table):
    """Empties it."""
    step = f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} LIMIT 3000) RETURNING id"
    while shared.database.query(step):
        pass
    return table


text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
awkward = st.sampled_from(["", "\\N", "\\.", "a\tb", "a\nb", "a\rb", "\\", "\\\\n", " ", "NULL"])
moments = st.datetimes(datetime(1000, 1, 1), datetime(9000, 1, 1))  # noqa: DTZ001 -- zones follow
zones = st.sampled_from([UTC, timezone(timedelta(hours=5.5)), timezone(-timedelta(hours=9))])
documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
kinds = (
    text | awkward,
    st.decimals(Decimal(-(10**20)), Decimal(10**20), places=6),
    st.floats(),
    st.dates(date(1, 1, 1), date(9999, 12, 31)),
    st.builds(lambda at, zone: at.replace(tzinfo=zone), moments, zones),
    st.times(),
    st.booleans(),
    st.binary(max_size=20),
    st.uuids(),
    st.lists(documents, max_size=3) | st.dictionaries(text, documents, max_size=3),
)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(*(st.none() | kind for kind in kinds)), min_size=1, max_size=8))
def test_every_value_comes_back_equal_and_of_its_type(shared, table, rows):
    shared.database.query(f"DELETE FROM {table}")
    numbered = [(number, *values) for number, values in enumerate(rows)]
    assert shared.database.insert_rows(table, COLUMNS, numbered) == len(rows)
    found = shared.database.query(f"SELECT {', '.join(COLUMNS)} FROM {table} ORDER BY id")
    for went, came in zip(numbered, found, strict=True):
        for before, after in zip(went, came, strict=True):
            not_a_number = before != before and after != after  # noqa: PLR0124
            assert before == after or not_a_number, (before, after)
            assert type(before) is type(after)


def test_rows_go_in_once_by_transactions_of_at_most_3000_and_none_for_no_rows(shared, empty):
    database, steps = shared.database, []
    before = database.stats().transactions
    rows = ((n, f"row {n}") for n in range(7_000))
    assert database.insert_rows(empty, ("id", "words"), rows, progress=steps.append) == 7_000
    assert steps == [3_000, 3_000, 1_000]
    assert database.insert_rows(empty, ("id",), []) == 0
    assert database.stats().transactions - before == 3
    sizes = database.query(f"SELECT count(*) FROM {empty} GROUP BY xmin::text ORDER BY 1").rows
    assert sizes == [(1_000,), (3_000,), (3_000,)]
    assert database.insert_rows(empty, ("id", "words"), [(5, "other"), (7_001, "new")]) == 1
    assert database.query(f"SELECT words FROM {empty} WHERE id = 5").rows == [("row 5",)]


def test_input_is_taken_as_it_comes_and_what_was_committed_before_an_error_stays(
    shared, empty, monkeypatch
):
    monkeypatch.setattr(module, "MAX_ROWS_PER_TRANSACTION", 5)
    taken, most = [], []
    rows = ((n if n < 17 else "x",) for n in range(20) if taken.append(n) is None)
    with pytest.raises(psycopg2.errors.InvalidTextRepresentation):
        shared.database.insert_rows(
            empty, ("id",), rows, progress=lambda _: most.append(len(taken))
        )
    assert most == [5, 10, 15]
    found = shared.database.query(f"SELECT id FROM {empty} ORDER BY id")
    assert [id_ for (id_,) in found] == [*range(15)]


def test_values_of_numpy_and_pandas_go_in_as_those_of_python(shared, empty):
    rows = [
        (np.int64(1), np.str_("a\tb"), np.float64(1.5), pd.Timestamp(0, tz="UTC")),
        (np.int64(2), pd.NA, None, pd.NaT),
    ]
    assert shared.database.insert_rows(empty, ("id", "words", "share", "at"), rows) == 2
    found = shared.database.query(f"SELECT id, words, share, at FROM {empty} ORDER BY id").rows
    assert found == [(1, "a\tb", 1.5, datetime(1970, 1, 1, tzinfo=UTC)), (2, None, None, None)]


@pytest.mark.parametrize(
    ("columns", "rows", "error", "says"),
    [
        ("id words", [(1, object())], TypeError, "object cannot be stored in bulk. What can: D"),
        ("id words", [(1, "a\0b")], ValueError, "NUL"),
        ("id words", [(1, "a"), (2,)], ValueError, "shorter"),
        ("id doc", [(1, {"a": float("nan")})], ValueError, "JSON"),
        ("id short", [(1, "four")], psycopg2.errors.StringDataRightTruncation, "too long"),
        ("id none", [(1, 1)], psycopg2.errors.UndefinedColumn, "none"),
    ],
)
def test_what_cannot_be_stored_is_said_and_nothing_is_written(
    shared, empty, columns, rows, error, says
):
    with pytest.raises(error, match=says):
        shared.database.insert_rows(empty, columns.split(), rows)
    assert shared.database.query(f"SELECT 1 FROM {empty}").rows == []


EAST = timezone(timedelta(hours=2))
GIVEN = [
    ("timestamp", datetime(2026, 6, 30, 0, 30, 0, 500_000, EAST)),
    ("date", datetime(2026, 6, 30, 0, 30, tzinfo=EAST)),
    ("time", datetime(2026, 6, 30, 0, 30, tzinfo=EAST)),
    ("text", datetime(2026, 6, 30, 0, 30, 0, 500_000, EAST)),
    ("timestamptz", datetime(2026, 6, 30, 0, 30)),  # noqa: DTZ001 -- without a zone
    ("text", datetime(2026, 6, 30, 0, 30, 0, 500_000)),  # noqa: DTZ001
    ("date", datetime(2026, 6, 30, 23, 30)),  # noqa: DTZ001
    ("time", time(0, 30, tzinfo=EAST)),
    ("text", True),
    ("text", b"abc"),
    ("text", time(0, 30, tzinfo=EAST)),
    *((kind, 2.5) for kind in ("smallint", "integer", "bigint", "numeric", "text")),
    ("integer", 1.0),
    ("integer", 1e300),
    ("integer", Decimal("0.5")),
    ("bigint", Decimal("1E+3")),
    ("text", 1e16),
    ("varchar(9)", float("nan")),
    ("char(9)", float("inf")),
]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
@pytest.mark.parametrize(("kind", "value"), GIVEN)
def test_a_value_in_a_column_of_another_type_is_what_an_insert_makes_of_it(
    shared, zone, kind, value
):
    arguments = {**shared.endpoints.database.arguments, "options": f"-c TimeZone={zone}"}
    database = Database(replace(shared.endpoints.database, arguments=arguments), shared.namespace)
    name, found = f"copied_{secrets.token_hex(4)}", []
    database.query(f"CREATE TABLE {name} (id INT PRIMARY KEY, v {kind})")
    for number, way in enumerate((
        lambda: database.query(f"INSERT INTO {name} VALUES (0, %s)", (value,)),
        lambda: database.insert_rows(name, ("id", "v"), [(1, value), (2, None)]),
    )):  # fmt: skip
        try:
            way()
            ask = f"SELECT v::text FROM {name} WHERE id = %s"
            found.append(database.query(ask, (number,)).rows)
        except psycopg2.Error as error:
            found.append(error.pgcode)
    database.query(f"DROP TABLE {name}")
    database.close()
    assert found[0] == found[1]
