"""Queries, transactions that run again, and a pool that survives what happens to connections."""

import contextlib
import os
import random
import re
import secrets
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from types import SimpleNamespace
from uuid import UUID

import numpy as np
import pandas as pd
import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, register_type
from psycopg2.extras import DictCursor, NamedTupleCursor, RealDictCursor

from workshop_lib import database as room
from workshop_lib.database import Database, DatabaseStats
from workshop_lib.errors import PoolTimeoutError, ServiceUnreachableError, TransactionError


@pytest.fixture
def table(ws) -> Iterator[str]:
    """A table with one row, (1, 0)."""
    name = f"t_{secrets.token_hex(4)}"
    ws.database.query(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)")
    ws.database.query(f"INSERT INTO {name} VALUES (1, 0)")
    yield name
    own = ws.connect()
    with own.cursor() as cursor:
        # A transaction that a test left open would hold this up for ever.
        cursor.execute("SET lock_timeout = '5s'")
        cursor.execute(f"DROP TABLE {name}")
    own.close()


@pytest.fixture
def pool(ws) -> Iterator[Database]:
    """A pool of one connection, for what its next borrower finds."""
    database = Database(
        ws.endpoints.database, ws.namespace, pool_min=1, pool_max=1, pool_timeout_s=0.05
    )
    yield database
    database.close()


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setattr(room, "CONFLICT_S", 0)
    monkeypatch.setattr(room, "CONFLICT_WAIT_S", 0)
    monkeypatch.setattr(room, "CONFLICT_WAIT_MAX_S", 0)


def increment(table):
    """Read and write in two statements, as an application does."""

    def work(cursor):
        cursor.execute(f"SELECT n FROM {table} WHERE id = 1")
        (n,) = cursor.fetchone()
        cursor.execute(f"UPDATE {table} SET n = %s WHERE id = 1", (n + 1,))
        return n + 1

    return work


def value(database, table) -> object:
    return database.query(f"SELECT n FROM {table} WHERE id = 1")[0][0]


# --- queries ---


def test_a_query_returns_columns_and_rows_in_order(ws):
    found = ws.database.query("SELECT n AS a, -n AS b FROM generate_series(1, 3) AS n ORDER BY n")
    assert found.columns == ("a", "b")
    assert found.rows == [(1, -1), (2, -2), (3, -3)]
    assert found.seconds > 0


@pytest.mark.parametrize(
    ("statement", "params", "answer"),
    [
        ("SELECT %s + %s", [1, 2], 3),
        ("SELECT %(a)s - %(b)s", {"b": 1, "a": 5}, 4),
        ("SELECT %s::int", (None,), None),
        ("SELECT '100%'", None, "100%"),
        ("SELECT %s", ("'; DROP TABLE x; --",), "'; DROP TABLE x; --"),
        ("SELECT %s::bytea", (b"\x00\xff",), b"\x00\xff"),
        ("SELECT %s::uuid", (UUID(int=7),), UUID(int=7)),
    ],
)
def test_parameters_go_by_position_or_by_name(ws, statement, params, answer):
    assert ws.database.query(statement, params).rows == [(answer,)]


def test_an_answer_has_columns_without_rows_and_a_change_has_neither(ws, table):
    found = ws.database.query("SELECT 1 AS a WHERE false")
    assert (found.columns, found.rows, len(found)) == (("a",), [], 0)
    found = ws.database.query(f"UPDATE {table} SET n = 7")
    assert (found.columns, found.rows) == ((), [])
    assert found._repr_html_() == "<p>Done. This statement returns no rows.</p>"
    assert value(ws.database, table) == 7


def test_values_have_their_python_types(ws):
    literals = {
        "'\\x00ff'::bytea": b"\x00\xff",
        "NULL::bytea": None,
        "'5f0c6b1e-8b0a-4a0e-9a4e-0d4b3b1c2d3e'::uuid": UUID("5f0c6b1e8b0a4a0e9a4e0d4b3b1c2d3e"),
        "12.50::numeric": Decimal("12.50"),
        "date '2026-06-30'": date(2026, 6, 30),
        "timestamptz '2026-06-30 14:00+02'": datetime(2026, 6, 30, 12, tzinfo=UTC),
        "true": True,
    }
    (found,) = ws.database.query(f"SELECT {', '.join(literals)}").rows
    assert [(type(v), str(v)) for v in found] == [(type(v), str(v)) for v in literals.values()]


def test_unqualified_names_mean_the_workshop_s_own_schema(ws, table):
    assert ws.database.query("SELECT current_schema()").rows == [(ws.namespace,)]
    assert value(ws.database, f"{ws.namespace}.{table}") == 0


def test_a_refused_statement_is_the_database_s_own_error_and_costs_no_connection(pool):
    for _ in range(3):
        with pytest.raises(psycopg2.errors.UndefinedTable, match="no_such_table"):
            pool.query("SELECT * FROM no_such_table")
    assert pool.query("SELECT 1").rows == [(1,)]
    assert pool.stats().connections == 1


# --- values of numpy and pandas ---


NOON = datetime(2026, 6, 30, 12, 0, 0, 1)  # noqa: DTZ001 -- a timestamp without a time zone
VALUES = [
    (np.float64(1.5), 1.5),
    (np.float32(0.25), 0.25),
    (np.float64("nan"), float("nan")),
    (np.int64(-7), -7),
    (np.uint8(200), 200),
    (np.bool_(True), True),
    (np.str_("it's"), "it's"),
    (np.bytes_(b"\x00'"), b"\x00'"),
    (np.datetime64("2026-06-30"), date(2026, 6, 30)),
    (np.datetime64("2026-06-30T12:00:00.000001", "ns"), NOON),
    (np.datetime64("NaT"), None),
    (np.timedelta64(90, "s"), timedelta(seconds=90)),
    (np.timedelta64(90_000, "ns"), timedelta(microseconds=90)),
    (pd.Timestamp("2026-06-30 12:00:00.000001"), NOON),
    (pd.Timestamp("2026-06-30 12:00", tz="UTC"), datetime(2026, 6, 30, 12, tzinfo=UTC)),
    (pd.Timedelta(hours=25), timedelta(hours=25)),
    (pd.NaT, None),
    (pd.NA, None),
    (pd.Series([1, 2, 4]).mean(), 7 / 3),
    (np.array([1, 2]), [1, 2]),
    (np.array([0.5, 1.5]), [0.5, 1.5]),
]
TYPES = {
    float: "float8",
    int: "int8",
    bool: "bool",
    str: "text",
    bytes: "bytea",
    date: "date",
    datetime: "timestamp",
    timedelta: "interval",
    type(None): "timestamp",
    list: "float8[]",
}


def alike(found, expected) -> bool:
    return found == expected or str(found) == str(expected) == "nan"


def test_a_value_of_numpy_or_pandas_is_what_it_is_in_python(ws):
    for given, python in VALUES:
        kind = TYPES[type(python)]
        kind = "timestamptz" if getattr(python, "tzinfo", None) else kind
        ask = f"SELECT %s::{kind}, %s::{kind} IS NOT DISTINCT FROM %s::{kind}"
        for way in (ws.database.query, partial(ask_by_transaction, ws.database)):
            ((found, same),) = way(ask, (given, given, python)).rows
            assert same, type(given)
            assert alike(found, python), type(given)
        by_name = ws.database.query(f"SELECT %(a)s::{kind}", {"a": given})
        assert alike(by_name[0][0], python), type(given)


def ask_by_transaction(database, statement, params):
    def work(cursor):
        cursor.execute(statement, params)
        return SimpleNamespace(rows=cursor.fetchall())

    return database.run_transaction(work)


def test_lists_and_rows_may_hold_values_of_numpy_and_pandas(ws):
    assert ws.database.query("SELECT 2 = ANY(%s)", ([np.int64(1), np.int64(2)],)).rows == [(True,)]
    name = f"t_{secrets.token_hex(4)}"
    ws.database.query(f"CREATE TABLE {name} (id int PRIMARY KEY, f float8, t timestamp, s text)")
    moment = pd.Timestamp("2026-06-30 12:00:00.000001")
    rows = [
        (np.int64(1), np.float64(1.5), moment, np.str_("a\tb")),
        (np.int64(2), pd.NA, pd.NaT, None),
        (np.int64(3), np.float64("nan"), np.datetime64("2026-06-30T12:00:00.000001", "ns"), "c"),
    ]
    columns = ("id", "f", "t", "s")
    assert ws.database.copy_rows(name, columns, rows) == 3
    assert ws.database.insert_rows(name, columns, [(np.int64(4), *rows[0][1:])]) == 1
    found = ws.database.query(f"SELECT id, f::text, t, s FROM {name} ORDER BY id").rows
    assert found == [
        (1, "1.5", moment.to_pydatetime(), "a\tb"),
        (2, None, None, None),
        (3, "NaN", NOON, "c"),
        (4, "1.5", moment.to_pydatetime(), "a\tb"),
    ]
    ws.database.query(f"DROP TABLE {name}")


def test_a_value_that_python_has_no_counterpart_for_is_refused_with_what_to_do(ws):
    with pytest.raises(TypeError, match=r"complex128 .* float\(x\)"):
        ws.database.query("SELECT %s", (np.complex128(1),))


# --- queries that only read ---


@pytest.fixture(params=["rules", "a plain server", "DSQL's sign-in"])
def reader(ws, request) -> Iterator[Database]:
    """A pool of one connection, to each of the kinds of server that differ in what is sent."""
    endpoint = ws.endpoints.database
    if request.param == "a plain server":
        endpoint = replace(endpoint, dsql_rules=False)
    elif request.param == "DSQL's sign-in":
        password = endpoint.arguments["password"]
        endpoint = replace(endpoint, dsql_rules=False, token=lambda: password)
    database = Database(endpoint, ws.namespace, pool_min=1, pool_max=1, pool_timeout_s=0.5)
    yield database
    database.close()


@pytest.fixture
def writers(ws, table) -> Iterator[str]:
    """Functions that write, and a sequence, in a schema of their own."""
    owner = Database(replace(ws.endpoints.database, dsql_rules=False), ws.namespace, pool_min=1)
    schema = f"writers_{secrets.token_hex(4)}"
    owner.query(f"CREATE SCHEMA {schema}")
    owner.query(f"CREATE SEQUENCE {schema}.numbers")
    owner.query(
        f"CREATE FUNCTION {schema}.add() RETURNS int LANGUAGE sql "
        f"AS 'UPDATE {table} SET n = n + 1 RETURNING n'"
    )
    owner.query(
        f"CREATE FUNCTION {schema}.leave() RETURNS int LANGUAGE plpgsql AS $$ BEGIN "
        f"PERFORM set_config('transaction_read_only', 'off', true); UPDATE {table} SET n = n + 1; "
        "RETURN 1; END $$"
    )
    owner.query(
        f"CREATE FUNCTION {schema}.leave_later() RETURNS text LANGUAGE sql "
        "AS $$ SELECT set_config('default_transaction_read_only', 'off', false) $$"
    )
    yield schema
    owner.query(f"DROP SCHEMA {schema} CASCADE")
    owner.close()


WRITING = [
    "INSERT INTO {t} VALUES (2, 20)",
    "UPDATE {t} SET n = 7 RETURNING n",
    "DELETE FROM {t}",
    "WITH u AS (UPDATE {t} SET n = n + 1 RETURNING n) SELECT * FROM u",
    "WITH d AS (DELETE FROM {t} RETURNING *) SELECT count(*) FROM d",
    "SELECT {w}.add()",
    "SELECT * FROM {w}.add() WHERE '%%' <> ''",
    "SELECT nextval('{w}.numbers')",
    "SELECT setval('{w}.numbers', 7)",
    "EXPLAIN ANALYZE DELETE FROM {t}",
    "SELECT * FROM {t} FOR UPDATE",
    "SELECT * INTO copied FROM {t}",
    "CREATE TABLE copied AS SELECT * FROM {t}",
    "DROP TABLE {t}",
    "COMMENT ON TABLE {t} IS 'x'",
    "/* a read? */ -- ; no\nDELETE FROM {t};",
]


def test_what_writes_is_refused_by_the_database_in_a_query_that_only_reads(reader, table, writers):
    found = {}
    for statement in WRITING:
        with pytest.raises(psycopg2.Error) as refused:
            reader.query(statement.format(t=table, w=writers), (), read_only=True)
        found[statement] = refused.value.pgcode
    assert found == dict.fromkeys(WRITING, "25006")
    assert reader.query(f"SELECT * FROM {table}").rows == [(1, 0)]


LEAVING = [
    "SELECT 1; DELETE FROM {t}",
    "SELECT 1; COMMIT; BEGIN READ WRITE; DELETE FROM {t}; COMMIT",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE; DELETE FROM {t}",
    "SET transaction_read_only = off; DELETE FROM {t}",
    "BEGIN READ WRITE; DELETE FROM {t}; COMMIT",
    "SELECT '\\'; DELETE FROM {t}; --'",
    "SELECT 1 AS a$$; DELETE FROM {t}; --$$",
    "DO $$ BEGIN COMMIT; SET TRANSACTION READ WRITE; DELETE FROM {t}; END $$",
    "/* x */ do $$ BEGIN COMMIT; SET TRANSACTION READ WRITE; DELETE FROM {t}; END $$",
    "CALL anything()",
]


def test_what_could_leave_the_read_only_transaction_is_refused_before_it_is_sent(reader, table):
    for statement in LEAVING:
        with pytest.raises(ValueError, match="read-only"):
            reader.query(statement.format(t=table), read_only=True)
    assert reader.stats().queries == 0
    assert value(reader, table) == 0


OPENING = [
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
    "SET default_transaction_read_only = off",
    "BEGIN READ WRITE",
    "START TRANSACTION READ WRITE",
    "COMMIT",
    "COMMIT AND CHAIN",
    "RESET ALL",
    "DISCARD ALL",
    "SELECT set_config('transaction_read_only', 'off', true)",
    "SELECT set_config('default_transaction_read_only', 'off', false)",
    "SELECT {w}.leave_later()",
    "SELECT {w}.leave()",
    "PREPARE delete_it AS DELETE FROM {t}",
    "EXECUTE delete_it",
]


def test_no_statement_opens_the_way_for_one_that_writes(reader, table, writers):
    for n, statement in enumerate(OPENING, start=1):
        with contextlib.suppress(psycopg2.Error, ValueError):
            reader.query(statement.format(t=table, w=writers), read_only=True)
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            reader.query(f"DELETE FROM {table}", read_only=True)
        assert value(reader, table) == n - 1, statement
        reader.query(f"UPDATE {table} SET n = {n}")
        assert value(reader, table) == n, statement


def test_reading_and_writing_take_turns_on_one_connection(reader, table):
    for n in range(1, 4):
        reader.query(f"UPDATE {table} SET n = n + 1")
        found = reader.query(f"SELECT n FROM {table} WHERE id = %s", (1,), read_only=True)
        assert found.rows == [(n,)]
    reader.run_transaction(increment(table))
    reader.query("SELECT 1", read_only=True)
    with reader.connection() as connection, connection.cursor() as cursor:
        cursor.execute(f"UPDATE {table} SET n = n + 1")
    reader.query("SELECT 1", read_only=True)
    assert reader.insert_rows(table, ("id", "n"), [(2, 2)]) == 1
    reader.query("SELECT 1", read_only=True)
    assert reader.copy_rows(table, ("id", "n"), [(3, 3)]) == 1
    assert reader.query(f"SELECT * FROM {table} ORDER BY id", read_only=True).rows == [
        (1, 5),
        (2, 2),
        (3, 3),
    ]


def test_values_and_texts_may_hold_whatever_they_like_in_a_query_that_only_reads(reader):
    text = "SELECT ';', '%%', %s, %(a)s".replace("%s", "E'\\';'")
    given = "'; DELETE FROM t; --\\"
    found = reader.query(text, {"a": given}, read_only=True)
    assert found.rows == [(";", "%", "';", given)]
    assert reader.query("SELECT '100%; %s'", read_only=True).rows == [("100%; %s",)]


def test_what_asks_for_nothing_is_no_question(reader, table):
    for statement in (
        "SET TIME ZONE 'Asia/Tokyo'",
        "BEGIN",
        "COMMIT",
        "ANALYZE {t}",
        "DISCARD ALL",
    ):
        for _ in range(2):
            with pytest.raises(ValueError, match="asks for nothing"):
                reader.query(statement.format(t=table), read_only=True)
    assert reader.query(f"SELECT FROM {table}", read_only=True).rows == [()]
    assert reader.query("SHOW TimeZone", read_only=True).rows == [("UTC",)]


# --- transactions ---


def test_a_transaction_commits_all_it_did_and_returns_what_its_work_returned(ws, table):
    def work(cursor):
        cursor.execute(f"INSERT INTO {table} VALUES (2, 20)")
        cursor.execute(f"INSERT INTO {table} VALUES (3, 30)")
        return "done"

    assert ws.database.run_transaction(work) == "done"
    found = ws.database.query(f"SELECT * FROM {table} ORDER BY id")
    assert found.rows == [(1, 0), (2, 20), (3, 30)]


@pytest.mark.parametrize("error", [ValueError, psycopg2.errors.UniqueViolation])
def test_an_error_in_a_transaction_undoes_all_of_it_and_is_not_tried_again(pool, table, error):
    attempts = []

    def work(cursor):
        attempts.append(1)
        cursor.execute(f"INSERT INTO {table} VALUES (2, 20)")
        cursor.execute(f"INSERT INTO {table} VALUES ({1 if error is not ValueError else 3}, 1)")
        raise ValueError("changed my mind")

    with pytest.raises(error):
        pool.run_transaction(work)
    assert len(attempts) == 1
    assert pool.query(f"SELECT * FROM {table}").rows == [(1, 0)]
    assert (pool.stats().conflicts, pool.stats().transactions) == (0, 0)


def test_a_conflict_runs_the_work_again_on_what_the_other_transaction_wrote(ws, table, no_waits):
    before, attempts, other = ws.database.stats(), [], ws.connect()

    def work(cursor):
        attempts.append(1)
        cursor.execute(f"SELECT n FROM {table} WHERE id = 1")
        (n,) = cursor.fetchone()
        if len(attempts) == 1:
            with other.cursor() as elsewhere:
                elsewhere.execute(f"UPDATE {table} SET n = 100 WHERE id = 1")
        cursor.execute(f"UPDATE {table} SET n = %s WHERE id = 1", (n + 1,))

    ws.database.run_transaction(work)
    other.close()
    after = ws.database.stats()
    assert len(attempts) == 2
    assert after.conflicts - before.conflicts == 1
    assert after.transactions - before.transactions == 1
    assert value(ws.database, table) == 101


def test_thirty_conflicts_in_a_row_are_reported_and_leave_nothing_behind(ws, table, no_waits):
    before, attempts, other = ws.database.stats(), [], ws.connect()

    def work(cursor):
        attempts.append(1)
        cursor.execute(f"SELECT n FROM {table} WHERE id = 1")
        with other.cursor() as elsewhere:
            elsewhere.execute(f"UPDATE {table} SET n = n + 100 WHERE id = 1")
        cursor.execute(f"UPDATE {table} SET n = -1 WHERE id = 1")

    with pytest.raises(psycopg2.errors.SerializationFailure):
        ws.database.run_transaction(work)
    other.close()
    after = ws.database.stats()
    assert len(attempts) == 30
    assert after.conflicts - before.conflicts == 30
    assert after.transactions == before.transactions
    assert value(ws.database, table) == 3000


# --- transactions are committed, or that is said ---


def swallow(*statements):
    """Work that catches whatever the database says to its statements."""

    def work(cursor):
        for statement in statements:
            with contextlib.suppress(psycopg2.Error):
                cursor.execute(statement)
        return "saved"

    return work


def test_an_error_that_the_work_swallowed_is_raised_and_nothing_is_stored(reader, table):
    for statements, error in (
        (["INSERT INTO {t} VALUES (1, 1)"], psycopg2.errors.UniqueViolation),
        (["SELECT 1 / 0", "INSERT INTO {t} VALUES (2, 2)"], psycopg2.errors.DivisionByZero),
        (["SELECT * FROM no_such_table", "COPY {t} FROM STDIN"], psycopg2.errors.UndefinedTable),
    ):
        with pytest.raises(error):
            reader.run_transaction(swallow(*(one.format(t=table) for one in statements)))
    with pytest.raises(TransactionError, match="not committed"):
        reader.run_transaction(by_a_plain_cursor)
    assert reader.stats().transactions == 0
    assert reader.query(f"SELECT * FROM {table}").rows == [(1, 0)]


def by_a_plain_cursor(cursor):
    with psycopg2.extensions.cursor(cursor.connection) as plain:
        return swallow("SELECT 1 / 0")(plain)


def test_an_error_undone_by_a_savepoint_is_none(plain, table):
    again = swallow("SAVEPOINT a", "SELECT 1 / 0", "ROLLBACK TO a", f"UPDATE {table} SET n = 3")
    assert plain.run_transaction(again) == "saved"
    assert value(plain, table) == 3


def conflicting(table, handle):
    """Work whose first attempt meets a conflict, with which `handle` deals."""
    attempts = []

    def work(cursor):
        attempts.append(1)
        try:
            if len(attempts) == 1:
                cursor.execute("DO $$ BEGIN RAISE 'lost' USING ERRCODE = '40001'; END $$")
            cursor.execute(f"UPDATE {table} SET n = n + 1")
        except psycopg2.Error as error:
            handle(error)
        return len(attempts)

    return work


def wrap(error):
    raise LookupError("not found") from error


def wrap_twice(error):
    try:
        raise LookupError("not found")
    except LookupError:
        raise RuntimeError("so it goes")  # noqa: B904 -- as it is often written


def give_up(error):
    raise LookupError("not found") from None


def test_a_conflict_that_was_swallowed_or_wrapped_is_tried_again(reader, table, no_waits):
    for n, handle in enumerate((lambda _: None, wrap, wrap_twice), start=1):
        assert reader.run_transaction(conflicting(table, handle)) == 2
        assert value(reader, table) == n
        assert (reader.stats().conflicts, reader.stats().transactions) == (n, n)


def test_raising_from_none_ends_the_attempts(pool, table, no_waits):
    with pytest.raises(LookupError):
        pool.run_transaction(conflicting(table, give_up))
    assert (pool.stats().conflicts, value(pool, table)) == (0, 0)


ENDS = {
    "COMMIT": lambda c: c.execute("COMMIT"),
    "ROLLBACK": lambda c: c.execute("/* x */ rollback"),
    "END": lambda c: c.execute("END;"),
    "ABORT": lambda c: c.execute("ABORT"),
    "COMMIT AND CHAIN": lambda c: c.execute("COMMIT AND CHAIN"),
    "several": lambda c: c.execute("SELECT ';'; COMMIT; BEGIN"),
    "a Composable": lambda c: c.execute(sql.SQL("COMMIT")),
    "bytes": lambda c: c.execute(b"COMMIT"),
    "commit()": lambda c: c.connection.commit(),
    "rollback()": lambda c: c.connection.rollback(),
    "close()": lambda c: c.connection.close(),
    "autocommit": lambda c: setattr(c.connection, "autocommit", True),
    "set_session": lambda c: c.connection.set_session(autocommit=True),
    "set_isolation_level": lambda c: c.connection.set_isolation_level(0),
    "reset()": lambda c: c.connection.reset(),
    "with": lambda c: c.connection.__exit__(None, None, None),
    "a plain cursor": lambda c: c.connection.cursor(
        cursor_factory=psycopg2.extensions.cursor
    ).execute("ROLLBACK"),
    "a dict cursor": lambda c: c.connection.cursor(cursor_factory=RealDictCursor).execute(
        "ROLLBACK AND CHAIN"
    ),
    "a chain, with TO elsewhere": lambda c: c.execute("ROLLBACK AND CHAIN /* to */"),
    "a chain, before a TO": lambda c: c.execute("ROLLBACK AND CHAIN; SELECT 1 AS to"),
}


@pytest.mark.parametrize("first", [True, False])
def test_work_that_ends_its_own_transaction_is_refused_and_stores_nothing(reader, table, first):
    def work(end, cursor):
        steps = [end, lambda c: c.execute(f"INSERT INTO {table} VALUES (2, 2)")]
        for step in steps if first else steps[::-1]:
            step(cursor)

    for name, end in ENDS.items():
        with pytest.raises(TransactionError, match="end the transaction"):
            reader.run_transaction(partial(work, end))
        assert reader.query(f"SELECT id FROM {table}").rows == [(1,)], name
        assert reader.stats().transactions == 0
        assert state_of(reader) == (True, TRANSACTION_STATUS_IDLE), name


def test_work_may_close_its_cursor_or_begin_once_more(pool, table):
    def work(cursor):
        cursor.execute("BEGIN")
        cursor.execute(f"UPDATE {table} SET n = 4")
        cursor.close()

    pool.run_transaction(work)
    assert value(pool, table) == 4


def as_generator(cursor):
    cursor.execute("UPDATE {t} SET n = 1")
    yield 1


async def as_coroutine(cursor):
    cursor.execute("UPDATE {t} SET n = 1")


@pytest.mark.parametrize(
    "work", [as_generator, as_coroutine, lambda cursor: cursor, lambda c: map(c.execute, ["x"])]
)
def test_work_that_would_go_on_after_its_commit_is_refused(pool, work):
    with pytest.raises(TypeError, match="after COMMIT"):
        pool.run_transaction(work)
    assert pool.stats().transactions == 0


def test_a_connection_that_breaks_during_commit_is_neither_success_nor_tried_again(
    ws, plain, table
):
    """A deferred constraint waits in COMMIT for a lock that another session holds."""
    plain.query(
        f"CREATE FUNCTION {table}_slow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$"
    )
    plain.query(
        f"CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED "
        f"FOR EACH ROW EXECUTE FUNCTION {table}_slow()"
    )
    attempts = []

    def work(cursor):
        attempts.append(cursor.connection.info.backend_pid)
        cursor.execute(f"UPDATE {table} SET n = 1")

    with ThreadPoolExecutor(1) as thread:
        outcome = thread.submit(plain.run_transaction, work)
        sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND pid = %s"
        while not attempts or ws.database.query(sleeps, (attempts[0],)).rows != [(1,)]:
            time.sleep(0.02)
        ws.database.query("SELECT pg_terminate_backend(%s)", (attempts[0],))
        with pytest.raises(TransactionError, match="not known"):
            outcome.result(30)
    assert len(attempts) == 1
    assert plain.stats().transactions == 0
    plain.query(f"DROP TRIGGER slow ON {table}")
    plain.query(f"DROP FUNCTION {table}_slow()")


def test_a_batch_that_was_tried_again_is_counted_once(ws, table, no_waits):
    database, other = Database(ws.endpoints.database, ws.namespace, pool_min=1), ws.connect()
    other.autocommit = False
    with other.cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} VALUES (5, 5)")
    with ThreadPoolExecutor(1) as thread:
        rows = [(n, 0) for n in range(2, 12)]
        found = thread.submit(database.insert_rows, table, ("id", "n"), rows)
        while not database.stats().conflicts:
            time.sleep(0.01)
        other.rollback()
        assert found.result(30) == 10
    assert database.stats().transactions == 1
    assert database.query(f"SELECT count(*) FROM {table}").rows == [(11,)]
    database.close()
    other.close()


# --- what a borrowed connection is like, and how it comes back ---


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (RealDictCursor, {"a": 1}),
        (NamedTupleCursor, (1,)),
        (DictCursor, [1]),
        (psycopg2.extensions.cursor, (1,)),
    ],
)
def test_other_kinds_of_cursors_in_a_transaction_are_watched_and_give_their_rows(
    ws, table, kind, row
):
    attempts = []

    def work(cursor):
        attempts.append(1)
        with cursor.connection.cursor(cursor_factory=kind) as other:
            other.execute(f"SELECT n AS a FROM {table} WHERE id = 1")
            found = other.fetchone()
            if len(attempts) == 1:
                ws.database.query(f"UPDATE {table} SET n = 1")
            with contextlib.suppress(psycopg2.Error):
                other.execute(f"UPDATE {table} SET n = n + 1")
        with cursor.connection.cursor("named", cursor_factory=kind) as named:
            named.execute("SELECT 1 AS a")
            assert named.fetchall() == [row]
        return found

    assert ws.database.run_transaction(work) == row
    assert len(attempts) == 2
    assert value(ws.database, table) == 2


STATE = """
SELECT current_setting('statement_timeout'), current_setting('enable_seqscan'),
    current_setting('search_path'), current_setting('TimeZone'), current_user::text,
    current_setting('default_transaction_read_only'),
    current_setting('default_transaction_isolation'), current_setting('client_encoding'),
    current_setting('my.own', true) IS NOT DISTINCT FROM 'x',
    (SELECT count(*) FROM pg_prepared_statements WHERE from_sql),
    (SELECT count(*) FROM pg_cursors WHERE is_holdable),
    (SELECT count(*) FROM pg_listening_channels()),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema())
"""
CHANGES = [
    "SET statement_timeout = '5ms'",
    "/* quick */ set enable_seqscan = off",
    "SET search_path = pg_catalog",
    "SET TIME ZONE 'Asia/Tokyo'",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET default_transaction_read_only = on",
    "SET client_encoding = 'LATIN1'",
    "SET my.own = 'x'",
    "SELECT set_config('statement_timeout', '7ms', false)",
    "SELECT * FROM moved_to_tokyo",
    "EXPLAIN ANALYZE TABLE moved_to_tokyo",
    "UPDATE pg_settings SET setting = '9ms' WHERE name = 'statement_timeout'",
    "SELECT 1; SET statement_timeout = '8ms'; SELECT ';'",
    "PREPARE p AS SELECT 1",
    "SELECT pg_advisory_lock(7)",
    "SELECT pg_try_advisory_lock_shared(8)",
    "CREATE TEMP TABLE t (a int)",
    "CREATE TEMPORARY TABLE t AS SELECT 1 AS a",
    "SELECT 1 AS a INTO TEMP t",
    "CREATE TABLE pg_temp.t (a int)",
    "CREATE TEMP VIEW v AS SELECT 1",
    "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT",
    "LISTEN news",
    "RESET ALL",
    "DISCARD ALL",
]


@pytest.fixture
def plain(ws) -> Iterator[Database]:
    """A pool of one connection without the rules, which would refuse half of what is changed."""
    endpoint = replace(ws.endpoints.database, dsql_rules=False)
    database = Database(endpoint, ws.namespace, pool_min=1, pool_max=1, pool_timeout_s=0.5)
    yield database
    database.close()


def by_connection(database, statement):
    with database.connection() as connection, connection.cursor() as cursor:
        cursor.execute(statement)


def by_transaction(database, statement):
    database.run_transaction(lambda cursor: cursor.execute(statement))


@pytest.mark.parametrize("way", [Database.query, by_connection, by_transaction])
def test_what_one_user_changes_in_the_session_the_next_one_does_not_find(plain, way):
    def state():
        with plain.connection() as connection, connection.cursor() as cursor:
            cursor.execute(STATE)
            return cursor.fetchall()

    plain.query(
        "CREATE OR REPLACE VIEW moved_to_tokyo AS "
        "SELECT set_config('TimeZone', 'Asia/Tokyo', false) AS x"
    )
    before = state()
    for statement in CHANGES:
        # Some cannot be run in a transaction, or end it: they are refused.
        with contextlib.suppress(psycopg2.Error, TransactionError):
            way(plain, statement)
        assert state() == before, statement


ON_THE_OBJECT = [
    lambda c: setattr(c, "cursor_factory", RealDictCursor),
    lambda c: setattr(c, "readonly", True),
    lambda c: setattr(c, "deferrable", True),
    lambda c: setattr(c, "isolation_level", "SERIALIZABLE"),
    lambda c: setattr(c, "notices", None),
    lambda c: c.set_session(isolation_level="SERIALIZABLE", readonly=True),
    lambda c: c.set_client_encoding("LATIN1"),
    lambda c: register_type(psycopg2.extensions.new_type((23,), "NONE", lambda *_: 0), c),
    lambda c: c.reset(),
    lambda c: setattr(c, "autocommit", False),
    lambda c: c.close(),
]


def test_what_one_user_changes_in_psycopg2_s_object_the_next_one_does_not_find(plain):
    def state():
        with plain.connection() as connection, connection.cursor() as cursor:
            cursor.execute("DO $$ BEGIN RAISE NOTICE 'one'; END $$")
            cursor.execute("SELECT 23, current_schema(), '\\x01'::bytea")
            return (
                *(cursor.fetchall(), len(connection.notices), connection.encoding),
                *(connection.autocommit, connection.isolation_level, connection.readonly),
                connection.deferrable,
            )

    before = state()
    for n, change in enumerate(ON_THE_OBJECT):
        with plain.connection() as connection:
            change(connection)
        assert state() == before, n


def test_reading_and_writing_keeps_the_connection(plain, table):
    for way in (Database.query, by_connection, by_transaction):
        for statement in (
            f"SELECT n AS temp FROM {table}",
            f"INSERT INTO {table} VALUES (7, 7) ON CONFLICT DO NOTHING; -- that; is all",
            f"UPDATE {table} SET n = n WHERE 'a; b; set_' <> 'temp'",
            f"WITH a AS (SELECT * FROM {table}) SELECT * FROM a",
            f"(SELECT 1); -- for {table}",
            "SHOW search_path",
            f"EXPLAIN SELECT * FROM {table}",
        ):
            way(plain, statement)
    plain.insert_rows(table, ("id", "n"), [(n, 0) for n in range(50)])
    plain.copy_rows(table, ("id", "n"), [(n, 0) for n in range(50, 60)])
    assert plain.stats().connections == 1


def state_of(database: Database) -> tuple[bool, int]:
    with database.connection() as connection:
        return connection.autocommit, connection.get_transaction_status()


def test_a_transaction_begun_by_hand_does_not_swallow_the_next_statement(pool, table):
    pool.query("BEGIN")
    pool.query(f"INSERT INTO {table} VALUES (2, 20)")
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(f"INSERT INTO {table} VALUES (3, 30)")
    assert state_of(pool) == (True, TRANSACTION_STATUS_IDLE)
    assert pool.query(f"SELECT id FROM {table} ORDER BY id").rows == [(1,), (2,)]


def test_a_pool_with_all_connections_in_use_says_so_and_works_again_afterwards(pool):
    with (
        pool.connection(),
        pytest.raises(PoolTimeoutError, match=r"The only connection .* 0\.05 s.*DSQL_POOL_MAX"),
    ):
        pool.query("SELECT 1")
    assert pool.query("SELECT 1").rows == [(1,)]


def test_reading_only_and_writing_in_turn_stay_on_one_connection(pool, table):
    for number in range(3):
        pool.query("SELECT 1", read_only=True)
        pool.query(f"INSERT INTO {table} (id, n) VALUES (%s, 0)", (100 + number,))
        pool.run_transaction(lambda cursor: cursor.execute(f"UPDATE {table} SET n = n + 1"))
    assert pool.stats() == DatabaseStats(queries=6, transactions=3, connections=1)


def test_a_session_that_its_user_made_read_only_goes_to_no_one_else(pool, table):
    pool.query("SELECT 1", read_only=True)
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    pool.query(f"INSERT INTO {table} (id, n) VALUES (100, 0)")
    assert pool.stats().connections == 2


def test_a_connection_whose_server_process_was_ended_is_replaced_unnoticed(ws, pool):
    (pid,) = pool.query("SELECT pg_backend_pid()")[0]
    ended = ws.database.query("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    assert ended.rows == [(True,)]
    assert pool.query("SELECT pg_backend_pid() <> %s", (pid,)).rows == [(True,)]
    assert pool.stats() == DatabaseStats(queries=2, connections=2)


def test_all_server_processes_ended_at_once_are_survived_by_the_next_query_of_each_thread(ws):
    database = Database(ws.endpoints.database, ws.namespace, pool_min=8)
    with ExitStack() as stack:
        held = [stack.enter_context(database.connection()) for _ in range(8)]
        pids = [connection.info.backend_pid for connection in held]
    ended = ws.database.query(
        "SELECT count(*) FROM unnest(%s) AS p (id) WHERE pg_terminate_backend(p.id, 5000)", (pids,)
    )
    assert ended.rows == [(8,)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: database.query("SELECT %s", (n,))[0][0], range(40)))
    assert answers == list(range(40))
    database.close()


def test_each_new_connection_signs_in_with_a_new_token_and_queries_need_none(ws):
    password, made = ws.endpoints.database.arguments["password"], []

    def token():
        made.append(len(made))
        return password if len(made) != 2 else "a token that ended"

    endpoint = replace(ws.endpoints.database, token=token)
    database = Database(endpoint, ws.namespace, pool_min=1)
    pids = [database.query("SELECT pg_backend_pid()")[0][0] for _ in range(5)]
    assert len(made) == len(set(pids)) == 1
    ws.database.query("SELECT pg_terminate_backend(%s, 5000)", (pids[0],))
    with pytest.raises(ServiceUnreachableError, match="The sign-in was refused"):
        database.query("SELECT 1")
    assert database.query("SELECT 1").rows == [(1,)]  # the next token is a good one
    assert len(made) == 3
    database.close()


def test_a_transaction_whose_server_process_is_ended_fails_and_the_next_one_works(ws, pool):
    def end_ourselves(cursor):
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(psycopg2.OperationalError):
        pool.run_transaction(end_ourselves)
    pool.run_transaction(lambda cursor: cursor.execute("SELECT 1"))
    assert pool.stats() == DatabaseStats(transactions=1, connections=2)


def test_closing_closes_idle_connections_at_once_and_borrowed_ones_on_their_return(ws):
    database = Database(ws.endpoints.database, ws.namespace, pool_min=2, pool_max=2)
    with database.connection() as borrowed:
        with database.connection() as idle:
            pass
        database.close()
        assert (borrowed.closed, idle.closed) == (0, 1)
    assert borrowed.closed == 1
    database.close()


def test_a_connection_of_one_s_own_follows_the_same_rules_outside_the_pool(pool):
    with pool.connection():
        own = pool.connect()
    with own.cursor() as cursor:
        cursor.execute("SELECT current_schema(), '\\x01'::bytea")
        assert cursor.fetchone() == (pool.schema, b"\x01")
    assert own.autocommit
    own.close()


def test_identity_names_database_and_schema_but_no_port(ws):
    place, name, schema = ws.database.identity.split("/")
    assert re.fullmatch("admin@local-[0-9a-f]{12}", place)
    assert (name, schema) == ("postgres", ws.namespace)


def test_a_server_of_one_s_own_is_known_by_its_identifier_too(ws):
    # The address alone, such as 127.0.0.1, is another server on another machine.
    ((identifier,),) = ws.database.query("SELECT system_identifier::text FROM pg_control_system()")
    own = Database(replace(ws.endpoints.database, engine="", embedded=False))
    assert own.identity.endswith(f"@{identifier}")
    assert own.identity.startswith(f"admin@{own.endpoint.address}/postgres/")
    assert own.stats().queries == 0
    own.close()


# --- Interrupt ---


@pytest.fixture
def interrupt(ws) -> Iterator[Callable[[str], None]]:
    """Sends this process a SIGINT, as Jupyter does, once a statement with this mark runs."""
    watchers = []

    def send(mark):
        running = (
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s "
            "AND pid <> pg_backend_pid()"
        )

        def wait_and_send():
            while ws.database.query(running, (f"%{mark}%",)).rows == [(0,)]:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

        watchers.append(threading.Thread(target=wait_and_send))
        watchers[-1].start()

    yield send
    for watcher in watchers:
        watcher.join()


def is_running(database, mark) -> bool:
    end = time.monotonic() + 5
    found = True
    while found and time.monotonic() < end:
        seen = database.query(
            "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND query LIKE %s "
            "AND pid <> pg_backend_pid()",
            (f"%{mark}%",),
        )
        found = seen.rows != [(0,)]
    return found


@pytest.mark.parametrize("way", [Database.query, by_transaction, by_connection])
@pytest.mark.parametrize("statement", ["SELECT pg_sleep(60)", "LOCK TABLE {t}"])
def test_an_interrupt_ends_what_the_main_thread_waits_for_here_and_there(
    ws, plain, table, interrupt, way, statement
):
    mark = f"mark_{secrets.token_hex(4)}"
    other = ws.connect()
    other.autocommit = False
    with other.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table}")
    if "LOCK" in statement and way is not by_transaction:
        statement = f"UPDATE {table} SET n = 1"
    with ThreadPoolExecutor(1) as thread:
        beside = thread.submit(ws.database.query, "SELECT pg_sleep(0.5)")
        interrupt(mark)
        with pytest.raises(KeyboardInterrupt):
            way(plain, f"/* {mark} */ {statement.format(t=table)}")
        assert not is_running(ws.database, mark)
        assert plain.query("SELECT 1").rows == [(1,)]
        assert len(beside.result(30).rows) == 1
    other.rollback()
    other.close()
    assert value(ws.database, table) == 0


def test_interrupts_at_any_moment_leave_right_answers_and_later_interrupts_their_effect(
    plain, interrupt
):
    before = signal.set_wakeup_fd(-1)
    hit = 0
    for n in range(20):
        # While connecting, in a question, between two.
        timer = threading.Timer(
            random.random() * 0.02, signal.pthread_kill, (threading.get_ident(), signal.SIGINT)
        )
        try:
            timer.start()
            for at in range(100_000):
                assert plain.query("SELECT %s::int", (n + at,)).rows == [(n + at,)]
        except KeyboardInterrupt:
            hit += 1
        timer.join()
        assert plain.query("SELECT %s::int", (-n,)).rows == [(-n,)]
        assert signal.set_wakeup_fd(before) == before
    assert hit == 20
    mark = f"mark_{secrets.token_hex(4)}"
    interrupt(mark)
    with pytest.raises(KeyboardInterrupt):
        plain.query(f"/* {mark} */ SELECT pg_sleep(60)")


# --- inserting many rows ---


def test_rows_go_in_by_transactions_of_at_most_3000(ws, table):
    before, steps = ws.database.stats(), []
    rows = ((n, n * n % 1_000) for n in range(2, 7_002))
    new = ws.database.insert_rows(table, ("id", "n"), rows, progress=steps.append)
    assert new == 7_000
    assert steps == [3_000, 3_000, 1_000]
    assert ws.database.stats().transactions - before.transactions == 3
    by_transaction = ws.database.query(f"SELECT xmin::text FROM {table} WHERE id > 1")
    assert sorted(Counter(by_transaction.rows).values()) == [1_000, 3_000, 3_000]
    checksum = ws.database.query(f"SELECT count(*), sum(n) FROM {table}")
    assert checksum.rows == [(7_001, sum(n * n % 1_000 for n in range(2, 7_002)))]


def test_inserting_again_adds_nothing_and_changes_nothing(ws, table):
    rows = [(n, 5) for n in range(1, 11)]
    assert ws.database.insert_rows(table, ("id", "n"), rows) == 9
    assert ws.database.insert_rows(table, ("id", "n"), rows) == 0
    assert value(ws.database, table) == 0


def test_a_smaller_number_of_rows_a_transaction_can_be_chosen_but_no_larger_one(ws, table):
    for chosen, expected in ((4, [4, 4, 2]), (10_000, [3_000, 2])):
        steps: list[int] = []
        rows = [(n, 0) for n in range(sum(expected))]
        ws.database.insert_rows(
            table, ("id", "n"), rows, rows_per_transaction=chosen, progress=steps.append
        )
        assert steps == expected


# --- a database that cannot be reached ---


def unreachable(endpoint, **arguments) -> str:
    """What is said when this database is asked for something."""
    changed = replace(
        endpoint,
        embedded=False,
        arguments={**endpoint.arguments, **arguments},
        host="there",
        port=1,
    )
    database = Database(changed, pool_min=1, pool_max=1)
    with pytest.raises(ServiceUnreachableError) as refused:
        database.query("SELECT 1")
    assert database.stats() == DatabaseStats()
    return str(refused.value)


def test_a_wrong_password_is_called_that_and_is_not_repeated(ws):
    said = unreachable(ws.endpoints.database, password="hush-hush")
    assert "No connection to the database at there:1 (local PostgreSQL 16)" in said
    assert "check the user and password" in said
    assert "hush-hush" not in said


def test_a_local_engine_that_stays_away_points_to_workshop_status(ws, monkeypatch):
    monkeypatch.setattr(room, "AWAY_S", 0.1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        arguments = {**ws.endpoints.database.arguments, "port": port}
        database = Database(replace(ws.endpoints.database, arguments=arguments))
        with pytest.raises(ServiceUnreachableError, match="`workshop status`"):
            database.query("SELECT 1")


def test_a_database_that_goes_away_in_mid_query_is_a_connection_error(ws):
    with pytest.raises(ServiceUnreachableError, match="server closed the connection"):
        ws.database.query("SELECT pg_terminate_backend(pg_backend_pid())")
    assert ws.database.query("SELECT 1").rows == [(1,)]


def test_a_pool_that_is_used_up_says_who_holds_its_connections(ws):
    small = Database(
        ws.endpoints.database, ws.namespace, pool_min=1, pool_max=1, pool_timeout_s=0.1
    )
    taken, enough = threading.Event(), threading.Event()

    def hold():
        with small.connection():
            taken.set()
            enough.wait(10)

    holder = threading.Thread(target=hold, name="the slow report")
    holder.start()
    taken.wait(10)
    try:
        with pytest.raises(PoolTimeoutError, match=r"Held by the slow report for \d+\.\d+ ms"):
            small.query("SELECT 1")
    finally:
        enough.set()
        holder.join()
    assert small.query("SELECT 1").rows == [(1,)]
    small.close()


def test_a_connection_that_has_reached_its_age_is_replaced(ws, monkeypatch):
    monkeypatch.setattr(room, "RECYCLE_S", 0.05)
    short = Database(ws.endpoints.database, ws.namespace, pool_min=1, pool_max=1)
    (first,) = short.query("SELECT pg_backend_pid()").rows[0]
    time.sleep(0.06)
    monkeypatch.setattr(room, "RECYCLE_S", 3600)
    (second,) = short.query("SELECT pg_backend_pid()").rows[0]
    (third,) = short.query("SELECT pg_backend_pid()").rows[0]
    assert first != second == third
    short.close()
