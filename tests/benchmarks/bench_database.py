"""What the pool adds to a query, and how our COPY and INSERT of many rows compare with plain COPY.

Its time includes making the CSV text. The INSERT path is the one that leaves rows alone that are
there already.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from workshop_lib.database import Database

BY_KEY = "SELECT * FROM users WHERE user_id = 7"
COLUMNS = ("id", "name", "email", "age", "team", "salary", "hired", "seen", "active", "score")
BULK = """
CREATE TABLE bulk (
    id     INTEGER PRIMARY KEY,
    name   VARCHAR(100) NOT NULL,
    email  VARCHAR(150) NOT NULL,
    age    INTEGER,
    team   VARCHAR(50),
    salary DECIMAL(10,2),
    hired  DATE,
    seen   TIMESTAMPTZ,
    active BOOLEAN NOT NULL,
    score  DOUBLE PRECISION
)
"""


@pytest.fixture
def pooled(ws) -> Iterator[Database]:
    """A pool of one connection."""
    database = Database(ws.endpoints.database, ws.namespace, pool_min=1, pool_max=1)
    yield database
    database.close()


@pytest.mark.parametrize(
    ("what", "statement", "goal", "bound"),
    [
        ("pooled 500-row query", None, 1.1, None),
        # No goal is set for a query as short as this: what the pool adds is 25 to 35 µs.
        ("pooled one-row query", BY_KEY, None, 1.6),
    ],
)
def test_a_pooled_query(question, pooled, race, monkeypatch, what, statement, goal, bound):
    statement = statement or question.text
    # The pool's own connection, though it was returned: two server processes would differ by more
    # than what is measured.
    with pooled.connection() as connection:
        monkeypatch.setattr(connection, "check", lambda: None)

    def on_an_open_connection():
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return tuple([column.name for column in cursor.description]), cursor.fetchall()

    subjects = {
        "ours": lambda: pooled.query(statement),
        "open connection": on_an_open_connection,
    }
    race(what, subjects, goal=goal, bound=bound)


@pytest.fixture
def unruled(ws):
    """The same database without DSQL's rules: COPY at once would break them."""
    database = Database(replace(ws.endpoints.database, dsql_rules=False), ws.namespace)
    yield database
    database.close()


@pytest.fixture
def emptied(unruled):
    """Empties the table of 10 columns, which is there as long as the test."""
    unruled.query(BULK)
    yield lambda: unruled.query("TRUNCATE bulk")
    unruled.query("DROP TABLE bulk")


def test_10_000_rows_of_10_columns(unruled, emptied, race):
    rows = list(people(10_000))

    def copy():
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        text.seek(0)
        columns = ", ".join(COLUMNS)
        with unruled.connection() as connection, connection.cursor() as cursor:
            cursor.copy_expert(f"COPY bulk ({columns}) FROM STDIN WITH (FORMAT csv)", text)

    race(
        "insert 10,000 × 10",
        {
            "ours": lambda: unruled.insert_rows("bulk", COLUMNS, rows),
            "COPY at once": copy,
        },
        goal=1.6,
        before=emptied,
        rounds=7,
        block=1,
    )


def people(count: int) -> Iterator[tuple[object, ...]]:
    rng = random.Random(0)
    day, moment = date(2026, 6, 30), datetime(2026, 6, 30, tzinfo=UTC)
    for number in range(count):
        yield (
            number,
            f"Ada Berg {number}",
            f"user{number}@example.com",
            rng.randrange(18, 90),
            "Engineering",
            Decimal(rng.randrange(10**6)).scaleb(-2),
            day - timedelta(days=rng.randrange(5_000)),
            moment - timedelta(minutes=rng.randrange(100_000)),
            rng.random() < 0.5,
            None if number % 20 == 0 else rng.random(),
        )
