"""COPY in steps: the same rows as by INSERT, whatever is in them."""

import io
import secrets
from collections import Counter
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import psycopg2
import pytest
from hypothesis import given, settings, strategies as st

from workshop_lib.copy_text import to_copy_text
from workshop_lib.dsql import is_conflict

COLUMNS = ("id", "words", "amount", "share", "day", "at", "clock", "yes", "raw", "uid", "doc")
DDL = """
CREATE TABLE {} (id BIGINT PRIMARY KEY, words TEXT, amount NUMERIC(30, 6), share DOUBLE PRECISION,
  day DATE, at TIMESTAMPTZ, clock TIME, yes BOOLEAN, raw BYTEA, uid UUID, doc JSONB)
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
    while shared.database.query(
        f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} LIMIT 3000) RETURNING id"
    ):
        pass
    return table


text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
awkward = st.sampled_from(
    ["", "\\N", "\\.", "a\tb", "a\nb", "a\rb", "\\", "\\\\n", " ", "'\"", "NULL"]
)
moments = st.datetimes(datetime(1000, 1, 1), datetime(9000, 1, 1))  # noqa: DTZ001 -- zones follow
zones = st.sampled_from(
    [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=9))]
)
documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
row = st.tuples(
    st.none() | text | awkward,
    st.none() | st.decimals(Decimal(-(10**20)), Decimal(10**20), places=6),
    st.none() | st.floats(),
    st.none() | st.dates(date(1, 1, 1), date(9999, 12, 31)),
    st.none() | st.builds(lambda at, zone: at.replace(tzinfo=zone), moments, zones),
    st.none() | st.times(),
    st.none() | st.booleans(),
    st.none() | st.binary(max_size=20),
    st.none() | st.uuids(),
    st.none() | st.lists(documents, max_size=3) | st.dictionaries(text, documents, max_size=3),
)


def same(one, other):
    return one == other or (one != one and other != other)  # noqa: PLR0124 -- not a number


@settings(deadline=None, max_examples=60)
@given(st.lists(row, min_size=1, max_size=8))
def test_every_value_comes_back_equal_and_of_its_type(shared, table, rows):
    shared.database.query(f"DELETE FROM {table}")
    numbered = [(number, *values) for number, values in enumerate(rows)]
    assert shared.database.copy_rows(table, COLUMNS, numbered) == len(rows)
    found = shared.database.query(f"SELECT {', '.join(COLUMNS)} FROM {table} ORDER BY id")
    for went, came in zip(numbered, found, strict=True):
        for before, after in zip(went, came, strict=True):
            assert same(before, after), (before, after)
            assert type(before) is type(after)


def test_rows_go_in_by_transactions_of_at_most_3000(shared, empty):
    before, steps = shared.database.stats().transactions, []
    rows = ((n, f"row {n}") for n in range(7_000))
    assert shared.database.copy_rows(empty, ("id", "words"), rows, progress=steps.append) == 7_000
    assert steps == [3_000, 3_000, 1_000]
    assert shared.database.stats().transactions - before == 3
    by_transaction = shared.database.query(f"SELECT xmin::text FROM {empty}")
    assert sorted(Counter(by_transaction.rows).values()) == [1_000, 3_000, 3_000]


def test_input_is_taken_as_it_comes_and_not_all_at_once(shared, empty):
    taken, most = [], []
    rows = ((n,) for n in range(20) if taken.append(n) is None)
    shared.database.copy_rows(
        empty, ("id",), rows, rows_per_transaction=5, progress=lambda _: most.append(len(taken))
    )
    assert most == [5, 10, 15, 20]


def test_a_row_that_is_there_is_an_error_and_what_was_committed_before_stays(shared, empty):
    shared.database.copy_rows(empty, ("id",), [(7,)])
    rows = [(n,) for n in range(10)]
    with pytest.raises(psycopg2.errors.UniqueViolation):
        shared.database.copy_rows(empty, ("id",), rows, rows_per_transaction=5)
    found = shared.database.query(f"SELECT id FROM {empty} ORDER BY id")
    assert [id_ for (id_,) in found] == [0, 1, 2, 3, 4, 7]


def test_nothing_to_copy_is_no_transaction(shared, empty):
    before = shared.database.stats().transactions
    assert shared.database.copy_rows(empty, ("id",), []) == 0
    assert shared.database.stats().transactions == before
    assert to_copy_text([]) == ""


@pytest.mark.parametrize(
    ("rows", "error", "says"),
    [
        ([(1, object())], TypeError, "COPY takes no object here. It takes: int,"),
        ([(1, "a\0b")], ValueError, "NUL"),
        ([(1, "a"), (2,)], ValueError, "shorter"),
        ([(1, {"a": float("nan")})], ValueError, "JSON"),
    ],
)
def test_what_cannot_be_copied_is_said_and_nothing_is_written(shared, empty, rows, error, says):
    with pytest.raises(error, match=says):
        shared.database.copy_rows(empty, ("id", "words"), rows)
    assert shared.database.query(f"SELECT 1 FROM {empty}").rows == []


@pytest.mark.parametrize("how", ["copy_rows", "insert_rows"])
def test_a_step_of_no_rows_is_refused(shared, empty, how):
    with pytest.raises(ValueError, match="rows_per_transaction is 0"):
        getattr(shared.database, how)(empty, ("id",), [(1,)], rows_per_transaction=0)


def test_a_row_that_another_transaction_is_writing_is_a_conflict_and_tried_again(shared, empty):
    other = shared.connect()
    attempts = []

    def copy(cursor):
        attempts.append(1)
        if len(attempts) == 2:
            first.execute("ROLLBACK")
        cursor.copy_expert(f"COPY {empty} (id) FROM STDIN", open_text("1\n"))

    with other.cursor() as first:
        first.execute("BEGIN")
        first.execute(f"INSERT INTO {empty} (id) VALUES (1)")
        shared.database.run_transaction(copy)
    other.close()
    assert len(attempts) == 2
    assert shared.database.query(f"SELECT id FROM {empty}").rows == [(1,)]


def test_such_a_conflict_has_dsql_s_code_also_in_a_transaction_of_its_own(shared, empty):
    other, mine = shared.connect(), shared.connect()
    with other.cursor() as first, mine.cursor() as second:
        first.execute("BEGIN")
        first.execute(f"INSERT INTO {empty} (id) VALUES (1)")
        with pytest.raises(psycopg2.Error) as caught:
            second.copy_expert(f"COPY {empty} (id) FROM STDIN", open_text("1\n"))
        assert is_conflict(caught.value)
        second.execute("SELECT 1")
    other.close()
    mine.close()


def open_text(content):
    return io.StringIO(content)


def test_the_text_is_that_of_copy():
    uid = UUID(int=1)
    rows = [
        (1, "a\\b\tc\nd\re", None, True, b"\x00\xff", uid),
        (2, "", Decimal("1.50"), False, b"", uid),
    ]
    assert to_copy_text(rows) == (
        f"1\ta\\\\b\\tc\\nd\\re\t\\N\tTrue\t\\\\x00ff\t{uid}\n2\t\t1.50\tFalse\t\\\\x\t{uid}\n"
    )
    assert to_copy_text([(time(1, 2, 3), date(2026, 6, 30))]) == "01:02:03\t2026-06-30\n"
