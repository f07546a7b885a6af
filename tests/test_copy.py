"""COPY in steps: the same rows as by INSERT, whatever is in them."""

import secrets
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import psycopg2
import pytest
from hypothesis import given, settings, strategies as st

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
@given(st.lists(st.tuples(*(st.none() | kind for kind in kinds)), min_size=1, max_size=8))
def test_every_value_comes_back_equal_and_of_its_type(shared, table, rows):
    shared.database.query(f"DELETE FROM {table}")
    numbered = [(number, *values) for number, values in enumerate(rows)]
    assert shared.database.copy_rows(table, COLUMNS, numbered) == len(rows)
    found = shared.database.query(f"SELECT {', '.join(COLUMNS)} FROM {table} ORDER BY id")
    for went, came in zip(numbered, found, strict=True):
        for before, after in zip(went, came, strict=True):
            not_a_number = before != before and after != after  # noqa: PLR0124
            assert before == after or not_a_number, (before, after)
            assert type(before) is type(after)


def test_rows_go_in_by_transactions_of_at_most_3000_and_none_for_no_rows(shared, empty):
    before, steps = shared.database.stats().transactions, []
    rows = ((n, f"row {n}") for n in range(7_000))
    assert shared.database.copy_rows(empty, ("id", "words"), rows, progress=steps.append) == 7_000
    assert steps == [3_000, 3_000, 1_000]
    assert shared.database.copy_rows(empty, ("id",), []) == 0
    assert shared.database.stats().transactions - before == 3
    with pytest.raises(ValueError, match="rows_per_transaction is 0"):
        shared.database.copy_rows(empty, ("id",), [(1,)], rows_per_transaction=0)


def test_input_is_taken_as_it_comes_and_what_was_committed_before_an_error_stays(shared, empty):
    shared.database.copy_rows(empty, ("id",), [(17,)])
    taken, most = [], []
    rows = ((n,) for n in range(20) if taken.append(n) is None)
    with pytest.raises(psycopg2.errors.UniqueViolation):
        shared.database.copy_rows(
            empty, ("id",), rows, rows_per_transaction=5, progress=lambda _: most.append(len(taken))
        )
    assert most == [5, 10, 15]
    found = shared.database.query(f"SELECT id FROM {empty} ORDER BY id")
    assert [id_ for (id_,) in found] == [*range(15), 17]


@pytest.mark.parametrize(
    ("rows", "error", "says"),
    [
        ([(1, object())], TypeError, "object cannot be stored in bulk. What can: int,"),
        ([(1, "a\0b")], ValueError, "NUL"),
        ([(1, "a"), (2,)], ValueError, "shorter"),
        ([(1, {"a": float("nan")})], ValueError, "JSON"),
    ],
)
def test_what_cannot_be_copied_is_said_and_nothing_is_written(shared, empty, rows, error, says):
    with pytest.raises(error, match=says):
        shared.database.copy_rows(empty, ("id", "words"), rows)
    assert shared.database.query(f"SELECT 1 FROM {empty}").rows == []
