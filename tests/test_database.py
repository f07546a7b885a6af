"""Queries, transactions that run again, and connections that come back as they were."""

import contextlib
import io
import os
import random
import re
import secrets
import signal
import socket
import sys
import threading
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
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, AsIs, register_type
from psycopg2.extras import RealDictCursor

from workshop_lib import connections, database as module
from workshop_lib.advise.statistics_file import parse
from workshop_lib.database import Database, DatabaseStats
from workshop_lib.errors import PoolTimeoutError, ServiceUnreachableError, TransactionError
from workshop_lib.services.processes import wait_until

SOON_S = 60.0
END = "SELECT pg_terminate_backend(%s, 5000)"


@pytest.fixture
def table(ws) -> Iterator[str]:
    """A table with one row, (1, 0)."""
    name = f"t_{secrets.token_hex(4)}"
    ws.database.query(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)")
    ws.database.query(f"INSERT INTO {name} VALUES (1, 0)")
    yield name
    with contextlib.closing(ws.database.connect()) as own, own.cursor() as cursor:
        # A transaction that a test left open would hold this up for ever.
        cursor.execute("SET lock_timeout = '5s'")
        cursor.execute(f"DROP TABLE {name}")


@pytest.fixture
def make(ws) -> Iterator[Callable[..., Database]]:
    """Makes a pool of one connection, unless it is told otherwise, for what the next one finds."""
    with ExitStack() as stack:

        def make(*, size: int = 1, timeout_s: float = 0.5, **endpoint) -> Database:
            limits = {"pool_min": size, "pool_max": size, "pool_timeout_s": timeout_s}
            made = Database(replace(ws.endpoints.database, **endpoint), ws.namespace, **limits)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def pool(make) -> Database:
    return make()


@pytest.fixture
def plain(make) -> Database:
    """Without the rules, which would refuse half of what is changed."""
    return make(dsql_rules=False)


@pytest.fixture(params=["rules", "a plain server", "DSQL's sign-in"])
def reader(ws, make, request) -> Database:
    """To each of the kinds of server that differ in what is sent."""
    password = ws.endpoints.database.arguments["password"]
    token = {"token": lambda: password} if request.param == "DSQL's sign-in" else {}
    return make(dsql_rules=request.param == "rules", **token)


@pytest.fixture
def no_waits(monkeypatch):
    for name in ("CONFLICT_S", "CONFLICT_WAIT_S", "CONFLICT_WAIT_MAX_S"):
        monkeypatch.setattr(module, name, 0)


def value(database, table) -> object:
    return database.query(f"SELECT n FROM {table} WHERE id = 1")[0][0]


def by_connection(database, statement):
    with database.connection() as connection, connection.cursor() as cursor:
        cursor.execute(statement)


def by_transaction(database, statement):
    database.run_transaction(lambda cursor: cursor.execute(statement))


every_way = pytest.mark.parametrize("way", [Database.query, by_connection, by_transaction])


# --- queries ---


def test_a_query_gives_its_columns_and_rows_in_order_with_python_types(ws, table):
    for statement, params, row in (
        ("SELECT %s + %s", [1, 2], (3,)),
        ("SELECT %(a)s - %(b)s", {"b": 1, "a": 5}, (4,)),
        ("SELECT '100%'", None, ("100%",)),
        ("SELECT %s, %s::int", ("'; DROP TABLE x; --", None), ("'; DROP TABLE x; --", None)),
        ("SELECT %s::bytea, NULL::bytea", (b"\x00\xff",), (b"\x00\xff", None)),
        ("SELECT %s::uuid, true", (UUID(int=7),), (UUID(int=7), True)),
        ("SELECT 12.50, date '2026-06-30'", None, (Decimal("12.50"), date(2026, 6, 30))),
        ("SELECT current_schema()", None, (ws.namespace,)),
    ):
        found = ws.database.query(statement, params)
        assert found.rows == [row]
        assert [type(one) for one in found[0]] == [type(one) for one in row]
    found = ws.database.query("SELECT n AS a, -n AS b FROM generate_series(1, 3) AS n ORDER BY n")
    assert (found.columns, found.rows) == (("a", "b"), [(1, -1), (2, -2), (3, -3)])
    found = ws.database.query("SELECT 1 AS a WHERE false")
    assert (found.columns, found.rows, len(found)) == (("a",), [], 0)
    found = ws.database.query(f"UPDATE {ws.namespace}.{table} SET n = 7")
    assert (found.columns, found.rows) == ((), [])
    assert found._repr_html_() == "<p>Done. This statement returns no rows.</p>"
    assert value(ws.database, table) == 7


def test_what_it_was_asked_is_a_file_that_advise_reads(pool, monkeypatch):
    monkeypatch.setattr(module, "MAX_STATEMENTS", 2)
    pool.query(f"SELECT 1 -- {'too long' * 2_000}")
    for number in (2, 4):
        pool.query(
            "SELECT generate_series(1, %(n)s) AS found WHERE 3 > %(least)s",
            {"n": number, "least": 1},
        )
    for text in ("x", "x", "one too many"):
        pool.query(sql.SQL("SELECT {} AS one").format(sql.Literal(text)))
    found, hidden = parse(pool.statements().to_csv(index=False))
    series, one = found
    assert (series.query, series.calls, series.rows, hidden) == (
        "SELECT generate_series(1, $1) AS found WHERE 3 > $2", 2, 3, 0,
    )  # fmt: skip
    assert (one.query, one.calls) == ("SELECT 'x' AS one", 2)
    assert 0 < series.mean_ms < 60_000
    assert 0 < series.days < 1
    assert pool.stats().queries == 6


def test_a_refused_statement_is_the_database_s_own_error_and_costs_no_connection(pool):
    for _ in range(3):
        with pytest.raises(psycopg2.errors.UndefinedTable, match="no_such_table"):
            pool.query("SELECT * FROM no_such_table")
    assert pool.query("SELECT 1").rows == [(1,)]
    assert pool.stats().connections == 1


NOON = datetime(2026, 6, 30, 12, 0, 0, 1)  # noqa: DTZ001 -- a timestamp without a time zone
UTC_NOON = datetime(2026, 6, 30, 12, tzinfo=UTC)
VALUES = [
    ("float8", np.float64("nan"), float("nan")),
    ("float8", pd.Series([1, 2, 4]).mean(), 7 / 3),
    ("int8", np.uint8(200), 200),
    ("bool", np.bool_(True), True),
    ("text", np.str_("it's"), "it's"),
    ("timestamp", np.datetime64("2026-06-30T12:00:00.000001", "ns"), NOON),
    ("interval", np.timedelta64(90_000, "ns"), timedelta(microseconds=90)),
    ("timestamptz", pd.Timestamp("2026-06-30 12:00", tz="UTC"), UTC_NOON),
    *(("timestamp", absent, None) for absent in (np.datetime64("NaT", "ns"), pd.NaT, pd.NA)),
    ("float8[]", np.array([0.5, 1.5]), [0.5, 1.5]),
    ("int8[]", [np.int64(1), 2], [1, 2]),
]


def test_a_value_of_numpy_or_pandas_is_what_it_is_in_python(ws):
    for kind, given, python in VALUES:
        ask = f"SELECT %(a)s::{kind}, %(a)s::{kind} IS NOT DISTINCT FROM %(b)s::{kind}"
        ((found, same),) = ws.database.query(ask, {"a": given, "b": python}).rows
        assert same, type(given)
        assert found == python or str(found) == str(python) == "nan", type(given)
    with pytest.raises(psycopg2.ProgrammingError, match="complex"):
        ws.database.query("SELECT %s", (np.complex128(1),))


def test_a_value_of_a_package_that_was_imported_since_is_adapted_as_well(pool, monkeypatch):
    class Kind:
        dtype = SimpleNamespace(kind="i")

        def tolist(self) -> int:
            return 3

    monkeypatch.setattr(connections, "_foreign", {("imported_late", "Kind")})
    assert pool.query("SELECT 1", read_only=True).rows == [(1,)]
    monkeypatch.setitem(sys.modules, "imported_late", SimpleNamespace(Kind=Kind))
    assert pool.query("SELECT %s", (Kind(),), read_only=True).rows == [(3,)]


# --- queries that only read ---


@pytest.fixture
def writers(make, table) -> Iterator[str]:
    """Functions that write, and a sequence, in a schema of their own."""
    owner, schema = make(dsql_rules=False), f"writers_{secrets.token_hex(4)}"
    for statement in (
        f"CREATE SCHEMA {schema}",
        f"CREATE SEQUENCE {schema}.numbers",
        (
            f"CREATE FUNCTION {schema}.add() RETURNS int LANGUAGE sql "
            f"AS 'UPDATE {table} SET n = n + 1 RETURNING n'"
        ),
        (
            f"CREATE FUNCTION {schema}.leave_later() RETURNS text LANGUAGE sql "
            "AS $$ SELECT set_config('default_transaction_read_only', 'off', false) $$"
        ),
    ):
        owner.query(statement)
    yield schema
    owner.query(f"DROP SCHEMA {schema} CASCADE")


WRITING = [
    "UPDATE {t} SET n = 7 RETURNING n",
    "WITH u AS (UPDATE {t} SET n = n + 1 RETURNING n) SELECT * FROM u",
    "SELECT * FROM {w}.add() WHERE '%%' <> ''",
    "SELECT nextval('{w}.numbers')",
    "SELECT * FROM {t} FOR UPDATE",
    "SELECT * INTO copied FROM {t}",
    "DROP TABLE {t}",
    "/* a read? */ -- ; no\nDELETE FROM {t};",
]
LEAVING = [
    "SELECT 1; DELETE FROM {t}",
    "SET transaction_read_only = off; DELETE FROM {t}",
    "/* x */ do $$ BEGIN COMMIT; SET TRANSACTION READ WRITE; DELETE FROM {t}; END $$",
    "CALL anything()",
]


def test_what_writes_is_refused_in_a_query_that_only_reads(reader, table, writers):
    # What could leave the read-only transaction is not even sent.
    for statement in LEAVING:
        with pytest.raises(ValueError, match="read-only"):
            reader.query(statement.format(t=table), read_only=True)
    assert reader.stats().queries == 0
    found = {}
    for statement in WRITING:
        with pytest.raises(psycopg2.Error) as refused:
            reader.query(statement.format(t=table, w=writers), (), read_only=True)
        found[statement] = refused.value.pgcode
    assert found == dict.fromkeys(WRITING, "25006")
    assert reader.query(f"SELECT * FROM {table}").rows == [(1, 0)]


OPENING = [
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
    "SET default_transaction_read_only = off",
    "BEGIN READ WRITE",
    "DISCARD ALL",
    "SELECT set_config('transaction_read_only', 'off', true)",
    "SELECT set_config('default_transaction_read_only', 'off', false)",
    "SELECT {w}.leave_later()",
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
    def read():
        return reader.query("SELECT 1", read_only=True).rows

    for write in (
        lambda: reader.query(f"UPDATE {table} SET n = n + 1"),
        lambda: by_transaction(reader, f"UPDATE {table} SET n = n + 1"),
        lambda: by_connection(reader, f"UPDATE {table} SET n = n + 1"),
        lambda: reader.insert_rows(table, ("id", "n"), [(2, 2)]),
    ):
        assert read() == [(1,)]
        write()
    found = reader.query(f"SELECT * FROM {table} WHERE id < %s ORDER BY id", (9,), read_only=True)
    assert found.rows == [(1, 3), (2, 2)]
    assert reader.stats().connections == 1


def test_a_query_that_only_reads_may_hold_any_text_and_must_ask_for_something(reader, table):
    given = "'; DELETE FROM t; --\\"
    found = reader.query("SELECT ';', '%%', E'\\';', %(a)s", {"a": given}, read_only=True)
    assert found.rows == [(";", "%", "';", given)]
    assert reader.query("SELECT '100%; %s'", read_only=True).rows == [("100%; %s",)]
    for statement in ("SET TIME ZONE 'Asia/Tokyo'", "BEGIN", "ANALYZE {t}", "DISCARD ALL"):
        for _ in range(2):
            with pytest.raises(ValueError, match="asks for nothing"):
                reader.query(statement.format(t=table), read_only=True)
    assert reader.query(f"SELECT FROM {table}", read_only=True).rows == [()]
    assert reader.query("SHOW TimeZone", read_only=True).rows == [("UTC",)]


# --- transactions ---


def test_a_transaction_commits_all_it_did_and_returns_what_its_work_returned(pool, table):
    def work(cursor):
        cursor.execute("BEGIN")  # once more is harmless, and so is closing the cursor
        cursor.execute(f"INSERT INTO {table} VALUES (2, 20)")
        cursor.execute(f"INSERT INTO {table} VALUES (3, 30)")
        cursor.close()
        return "done"

    assert pool.run_transaction(work) == "done"
    assert pool.query(f"SELECT * FROM {table} ORDER BY id").rows == [(1, 0), (2, 20), (3, 30)]


def test_an_error_in_a_transaction_undoes_all_of_it_and_is_not_tried_again(pool, table):
    attempts = []

    def work(cursor):
        attempts.append(1)
        cursor.execute(f"INSERT INTO {table} VALUES (2, 20)")
        raise ValueError("changed my mind")

    with pytest.raises(ValueError, match="changed"):
        pool.run_transaction(work)
    assert len(attempts) == 1
    assert pool.query(f"SELECT * FROM {table}").rows == [(1, 0)]
    assert (pool.stats().conflicts, pool.stats().transactions) == (0, 0)


@pytest.mark.parametrize(("conflicts", "attempts", "n"), [(1, 2, 101), (99, 30, 3000)])
def test_a_conflict_runs_the_work_again_on_what_the_other_wrote_up_to_thirty_times(
    ws, pool, table, no_waits, conflicts, attempts, n
):
    made = []

    def work(cursor):
        made.append(1)
        cursor.execute(f"SELECT n FROM {table} WHERE id = 1")
        (found,) = cursor.fetchone()
        if len(made) <= conflicts:
            ws.database.query(f"UPDATE {table} SET n = n + 100 WHERE id = 1")
        cursor.execute(f"UPDATE {table} SET n = %s WHERE id = 1", (found + 1,))

    fails = pytest.raises(psycopg2.errors.SerializationFailure)
    with contextlib.nullcontext() if attempts < 30 else fails:
        pool.run_transaction(work)
    conflicts = min(conflicts, 30)
    assert (len(made), value(pool, table)) == (attempts, n)
    assert pool.stats().conflicts == conflicts
    assert pool.stats().transactions == attempts - conflicts


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
    with pytest.raises(TransactionError, match="not committed"):  # by a cursor that is not watched
        reader.run_transaction(
            lambda c: swallow("SELECT 1 / 0")(psycopg2.extensions.cursor(c.connection))
        )
    assert reader.stats().transactions == 0
    assert reader.query(f"SELECT * FROM {table}").rows == [(1, 0)]


@pytest.mark.parametrize("parser", [True, False])
def test_an_error_undone_by_a_savepoint_is_none(plain, table, monkeypatch, parser):
    if not parser:
        monkeypatch.setitem(sys.modules, "pgparse", None)
    again = swallow("SAVEPOINT a", "SELECT 1 / 0", "ROLLBACK TO a", f"UPDATE {table} SET n = 3")
    assert plain.run_transaction(again) == "saved"
    assert value(plain, table) == 3

    def undone_before_another_error(cursor):
        again(cursor)
        raise LookupError

    with pytest.raises(LookupError):
        plain.run_transaction(undone_before_another_error)


def never_found(cursor):
    cursor.fetchone()[0]  # there is no row, as the statement before failed


def missing_column(cursor):
    cursor.execute("SELECT %s", (object(),))  # psycopg2's own error, not the server's


def test_an_error_of_work_after_one_that_it_swallowed_does_not_hide_that(reader, table):
    for stumble in (never_found, missing_column):

        def work(cursor, stumble=stumble):
            swallow(f"INSERT INTO {table} VALUES (1, 1) RETURNING n")(cursor)
            stumble(cursor)

        with pytest.raises(psycopg2.errors.UniqueViolation) as raised:
            reader.run_transaction(work)
        assert isinstance(raised.value.__cause__, TypeError | psycopg2.ProgrammingError)
    assert reader.stats().transactions == 0

    def by_copy(cursor):
        with contextlib.suppress(psycopg2.Error):
            cursor.execute(f"COPY {table} FROM STDIN")  # an error of psycopg2, and of the server
        never_found(cursor)

    with pytest.raises(psycopg2.ProgrammingError, match="COPY"):
        reader.run_transaction(by_copy)


def test_an_error_that_work_makes_of_the_database_s_is_raised_as_it_is(reader, table):
    def work(cursor):
        try:
            cursor.execute(f"INSERT INTO {table} VALUES (1, 1)")
        except psycopg2.errors.UniqueViolation as error:
            raise LookupError("taken") from error

    with pytest.raises(LookupError, match="taken"):
        reader.run_transaction(work)


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
    def stumbling(cursor):
        attempt = conflicting_once(cursor)
        if attempt == 1:
            never_found(cursor)
        return attempt

    conflicting_once = conflicting(table, lambda _: None)
    ways = [conflicting(table, handle) for handle in (lambda _: None, wrap, wrap_twice)]
    for n, work in enumerate((*ways, stumbling), start=1):
        assert reader.run_transaction(work) == 2
        assert value(reader, table) == n
        assert (reader.stats().conflicts, reader.stats().transactions) == (n, n)
    with pytest.raises(LookupError):  # `from None` ends the attempts
        reader.run_transaction(conflicting(table, give_up))
    assert (reader.stats().conflicts, value(reader, table)) == (4, 4)


def test_an_error_is_no_conflict_because_the_caller_handles_one(reader, no_waits):
    try:
        reader.query("DO $$ BEGIN RAISE 'lost' USING ERRCODE = '40001'; END $$")
    except psycopg2.errors.SerializationFailure:
        with pytest.raises(psycopg2.errors.DivisionByZero):
            reader.run_transaction(lambda cursor: cursor.execute("SELECT 1 / 0"))
    assert reader.stats().conflicts == 0


ENDS = [
    lambda c: c.execute("COMMIT"),
    lambda c: c.execute("/* x */ rollback"),
    lambda c: c.execute("SELECT ';'; COMMIT; BEGIN"),
    lambda c: c.execute(sql.SQL("END")),
    lambda c: c.execute("ROLLBACK AND CHAIN; SELECT 1 AS to"),
    lambda c: another(c, RealDictCursor).execute(b"ABORT"),
    lambda c: another(c, psycopg2.extensions.cursor).execute("ROLLBACK"),
    lambda c: c.connection.commit(),
    lambda c: c.connection.rollback(),
    lambda c: c.connection.__exit__(None, None, None),
    lambda c: c.connection.tpc_begin("a"),
    lambda c: c.executemany("SELECT %s; ROLLBACK; BEGIN", [(1,), (2,)]),
    lambda c: c.executemany("SELECT %(n)s; COMMIT", iter([{"n": 1}, {"n": 2}])),
    lambda c: c.copy_expert("COPY (SELECT 1) TO STDOUT; ROLLBACK; BEGIN", io.StringIO()),
    lambda c: c.copy_expert(sql.SQL("COMMIT; BEGIN; COPY (SELECT 1) TO STDOUT"), io.StringIO()),
    lambda c: c.callproc("version(); ROLLBACK; BEGIN; SELECT version"),
    lambda c: c.execute("SELECT %s", (AsIs("1; COMMIT; BEGIN"),)),
    lambda c: c.execute(f"ROLLBACK AND CHAIN /*{'x' * 70_000}*/"),
    lambda c: c.execute(f"SELECT %s; COMMIT AND CHAIN; SELECT 1 /*{'x' * 70_000}*/", (1,)),
    lambda c: by_old_quotation_marks(c, "ROLLBACK AND CHAIN"),
    lambda c: by_old_quotation_marks(c, "SELECT '\\''; COMMIT; BEGIN; --'"),
    lambda c: by_psycopg2(c, lambda connection: connection.set_isolation_level(1)),
    lambda c: by_psycopg2(c, lambda connection: connection.set_client_encoding("LATIN1")),
]


def by_old_quotation_marks(cursor, statement):
    cursor.execute("SET standard_conforming_strings = off")
    cursor.execute(statement)


def by_psycopg2(cursor, end):
    cursor.connection.autocommit = False
    cursor.execute("SELECT 1")
    end(cursor.connection)
    cursor.execute("BEGIN")


def another(cursor, kind):
    return cursor.connection.cursor(cursor_factory=kind)


@pytest.mark.parametrize("first", [True, False])
def test_work_that_ends_its_own_transaction_is_refused_and_stores_nothing(plain, table, first):
    def insert(cursor):
        cursor.execute(f"INSERT INTO {table} VALUES (2, 2)")

    def work(end, cursor):
        for step in (end, insert) if first else (insert, end):
            step(cursor)

    for number, end in enumerate(ENDS):
        with pytest.raises(TransactionError, match=r"end the transaction"):
            plain.run_transaction(partial(work, end))
        assert plain.query(f"SELECT id FROM {table}").rows == [(1,)], number
        assert plain.stats().transactions == 0
        assert state_of(plain) == (True, TRANSACTION_STATUS_IDLE)


def test_without_the_parser_work_that_might_end_its_transaction_is_refused(
    plain, table, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pgparse", None)  # as on a Mac with Intel's processor
    insert = f"INSERT INTO {table} VALUES (2, 2); "
    for end in (
        "COMMIT",
        "rollback and chain",
        f"{insert};Abort;BEGIN",
        f"{insert}END; BEGIN",
        f"{insert}-- so;\n  -- or so\r ROLLBACK WORK; BEGIN",
        f"{insert}/* /* */ */COMMIT AND CHAIN",
        f"{insert}PREPARE /* it */ TRANSACTION 'a'",
        f"{insert}ROLLBACK; SAVEPOINT to; ROLLBACK TO to",
    ):
        for send in (
            lambda c, end=end: c.execute(end),
            lambda c, end=end: c.executemany(f"{end} -- %s", [(1,)]),
            lambda c, end=end: c.copy_expert(end, io.StringIO()),
        ):
            with pytest.raises(TransactionError, match=r"may end the transaction .* not sent"):
                plain.run_transaction(send)
    with pytest.raises(TransactionError, match="ended the transaction"):  # noticed afterwards
        plain.run_transaction(lambda c: c.execute("SELECT %s", (AsIs("1; COMMIT"),)))
    assert plain.stats().transactions == 0
    assert plain.query(f"SELECT id FROM {table}").rows == [(1,)]


FREE_OF_ENDS = [
    ("INSERT INTO {t} SELECT 2, CASE WHEN true THEN 2\n END AS end_of_it -- commit\n", None),
    ("SELECT 1 AS gender; INSERT INTO {t} VALUES (2, 2) /* ; no rollback */", None),
    ("INSERT INTO {t} SELECT 2, 2 WHERE %s <> ''", ("; end of story",)),
    ("INSERT INTO {t} SELECT 2, 2 WHERE %(a)s <> ''", {"a": f"*/ commit{'; end' * 50_000}"}),
]


@pytest.mark.parametrize("parser", [True, False])
def test_words_and_values_that_end_nothing_are_no_end(plain, table, monkeypatch, parser):
    if not parser:
        monkeypatch.setitem(sys.modules, "pgparse", None)
    for statement, values in FREE_OF_ENDS:
        plain.run_transaction(lambda c, s=statement, v=values: c.execute(s.format(t=table), v))
        assert plain.query(f"DELETE FROM {table} WHERE id = 2 RETURNING n").rows == [(2,)]
    rows = [(2, 2), (3, 3)]
    plain.run_transaction(lambda c: c.executemany(f"INSERT INTO {table} VALUES (%s, %s)", rows))
    assert plain.query(f"SELECT * FROM {table} ORDER BY id OFFSET 1").rows == rows


def test_psycopg2_s_autocommit_ends_no_transaction_of_ours(reader, table):
    def work(cursor):
        cursor.connection.autocommit = True
        cursor.execute(f"INSERT INTO {table} VALUES (2, 2)")
        raise LookupError

    with pytest.raises(LookupError):
        reader.run_transaction(work)
    assert reader.query(f"SELECT id FROM {table}").rows == [(1,)]


def as_generator(cursor):
    cursor.execute("UPDATE {t} SET n = 1")
    yield 1


@pytest.mark.parametrize("work", [as_generator, lambda cursor: cursor])
def test_work_that_would_go_on_after_its_commit_is_refused(pool, work):
    with pytest.raises(TypeError, match="after COMMIT"):
        pool.run_transaction(work)
    assert pool.stats().transactions == 0


def test_a_connection_that_breaks_during_commit_is_neither_success_nor_tried_again(plain, table):
    attempts = []
    plain.query(
        f"CREATE FUNCTION {table}_end() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(60); RETURN NULL; END $$"
    )
    plain.query(
        f"CREATE CONSTRAINT TRIGGER ends AFTER UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED "
        f"FOR EACH ROW EXECUTE FUNCTION {table}_end()"
    )

    def work(cursor):
        attempts.append(1)
        cursor.execute(f"UPDATE {table} SET n = 1")

    with pytest.raises(TransactionError, match="not known"):
        plain.run_transaction(work)
    assert (len(attempts), plain.stats().transactions) == (1, 0)
    plain.query(f"DROP FUNCTION {table}_end() CASCADE")


# --- what a borrowed connection is like, and how it comes back ---


@pytest.mark.parametrize("kind", [RealDictCursor, psycopg2.extensions.cursor])
def test_other_kinds_of_cursors_in_a_transaction_are_watched_too(ws, table, kind):
    attempts = []

    def work(cursor):
        attempts.append(1)
        with another(cursor, kind) as other:
            other.execute(f"SELECT n FROM {table}")
            if len(attempts) == 1:
                ws.database.query(f"UPDATE {table} SET n = 1")
            swallow(f"UPDATE {table} SET n = n + 1")(other)
            return isinstance(other, kind)

    assert ws.database.run_transaction(work)
    assert (len(attempts), value(ws.database, table)) == (2, 2)


STATE = """
SELECT current_setting('statement_timeout'), current_setting('enable_seqscan'),
    current_setting('work_mem'),
    current_setting('search_path'), current_setting('TimeZone'), current_user::text,
    current_setting('default_transaction_read_only'),
    current_setting('default_transaction_isolation'), current_setting('client_encoding'),
    (SELECT count(*) FROM pg_prepared_statements WHERE from_sql),
    (SELECT count(*) FROM pg_cursors WHERE is_holdable),
    (SELECT count(*) FROM pg_listening_channels()),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema())
"""
CHANGES = [
    "SET statement_timeout = '5ms'",
    "SET search_path = pg_catalog",
    "SET TIME ZONE 'Asia/Tokyo'",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SELECT set_config('statement_timeout', '7ms', false)",
    "SELECT * FROM moved_to_tokyo",
    "SELECT U&\"set\\005fconfig\"('work_mem', '3MB', false)",
    "UPDATE pg_settings SET setting = '9ms' WHERE name = 'statement_timeout'",
    "SELECT 1; SET statement_timeout = '8ms'; SELECT ';'",
    "PREPARE p AS SELECT 1",
    "SELECT pg_advisory_lock(7)",
    "CREATE TEMP TABLE t (a int)",
    "SELECT 1 AS a INTO TEMP t",
    "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1",
    "CREATE TABLE pg_temp.t (a int)",
    "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT",
    "LISTEN news",
    "RESET ALL",
]


@every_way
def test_what_one_user_changes_in_the_session_the_next_one_does_not_find(plain, way):
    plain.query(
        "CREATE OR REPLACE VIEW moved_to_tokyo AS "
        "SELECT set_config('TimeZone', 'Asia/Tokyo', false) AS x"
    )
    before = plain.query(STATE).rows
    for statement in CHANGES:
        # Some cannot be run in a transaction, or end it: they are refused.
        with contextlib.suppress(psycopg2.Error, TransactionError):
            way(plain, statement)
        assert plain.query(STATE).rows == before, statement


ON_THE_OBJECT = [
    lambda c: setattr(c, "cursor_factory", RealDictCursor),
    lambda c: setattr(c, "readonly", True),
    lambda c: setattr(c, "isolation_level", "SERIALIZABLE"),
    lambda c: setattr(c, "notices", None),
    lambda c: c.set_client_encoding("LATIN1"),
    lambda c: register_type(psycopg2.extensions.new_type((23,), "NONE", lambda *_: 0), c),
    lambda c: c.reset(),
    lambda c: c.cursor().callproc("set_config", ["statement_timeout", "5ms", False]),
    lambda c: setattr(c, "autocommit", False),
    lambda c: c.close(),
]


def test_after_a_change_by_psycopg2_s_methods_the_next_user_gets_a_new_connection(plain):
    for number, change in enumerate(ON_THE_OBJECT, start=2):
        with plain.connection() as connection:
            change(connection)
        assert plain.query("SELECT 23, '\\x01'::bytea").rows == [(23, b"\x01")]
        assert plain.stats().connections == number


def test_what_is_kept_of_a_connection_that_was_returned_does_not_work(pool):
    kept = []
    pool.run_transaction(kept.append)
    with pool.connection() as connection, connection.cursor() as cursor:
        kept += [cursor, connection.cursor()]
        connection.cursor().execute("SELECT 1")
    with pytest.raises(psycopg2.InterfaceError, match="went back to the pool"):
        connection.cursor()
    for again in (contextlib.nullcontext(), pool.connection()):
        with again:
            for cursor in kept:
                with pytest.raises(psycopg2.InterfaceError):
                    cursor.execute("SET statement_timeout = '5ms'")
    assert pool.query("SHOW statement_timeout").rows == [("0",)]
    assert pool.stats().connections == 1


@every_way
def test_reading_and_writing_keeps_the_connection(plain, table, way):
    for statement in (
        f"SELECT n AS temp FROM {table}",
        f"INSERT INTO {table} VALUES (7, 7) ON CONFLICT DO NOTHING; -- that; is all",
        f"UPDATE {table} SET n = n WHERE 'a; b; set_' <> 'temp'",
        f"WITH a AS (SELECT * FROM {table}) SELECT * FROM a",
        f"(SELECT 1); -- for {table}",
        "SHOW search_path",
    ):
        way(plain, statement)
    plain.insert_rows(table, ("id", "n"), [(n, 0) for n in range(50)])
    assert plain.stats().connections == 1


def state_of(database: Database) -> tuple[bool, int]:
    with database.connection() as connection:
        return connection.autocommit, connection.get_transaction_status()


def test_what_is_left_open_or_read_only_by_hand_does_not_swallow_the_next_statement(pool, table):
    pool.query("SELECT 1", read_only=True)
    by_connection(pool, "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    pool.query("BEGIN")
    pool.query(f"INSERT INTO {table} VALUES (2, 20)")
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(f"INSERT INTO {table} VALUES (3, 30)")
    assert state_of(pool) == (True, TRANSACTION_STATUS_IDLE)
    assert pool.query(f"SELECT id FROM {table} ORDER BY id").rows == [(1,), (2,)]
    assert pool.stats().connections == 2


# --- the pool ---


def test_a_connection_of_its_own_is_like_a_pooled_one_and_outside_the_pool(make):
    pool = make(timeout_s=0.05)
    with pool.connection():
        with pytest.raises(PoolTimeoutError, match=r"The only connection .*Held by: MainThread"):
            pool.query("SELECT 1")
        own = pool.connect()
    with contextlib.closing(own), own.cursor() as cursor:
        cursor.execute("SELECT current_schema(), '\\x01'::bytea")
        assert cursor.fetchone() == (pool.schema, b"\x01")
        assert own.autocommit


def test_many_threads_wait_for_few_connections(make):
    pool = make(size=2, timeout_s=SOON_S)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: pool.query("SELECT %s + 1", (n,))[0][0], range(80)))
    assert found == list(range(1, 81))
    assert pool.stats().connections <= 2


def test_a_surge_opens_each_connection_once_and_few_stay_when_it_is_over(ws, monkeypatch):
    pool = Database(ws.endpoints.database, ws.namespace, pool_min=2, pool_max=10)
    for _ in range(2):
        with ExitStack() as stack:
            borrowed = [stack.enter_context(pool.connection()) for _ in range(10)]
    assert pool.stats().connections == 10
    assert not any(one.closed for one in borrowed)
    monkeypatch.setattr(connections, "SURPLUS_S", -1)
    assert pool.query("SELECT 1").rows == [(1,)]
    assert sum(not one.closed for one in borrowed) == 2
    with pool.connection() as lent:
        pool.close()
        assert [one.closed for one in borrowed].count(False) == 1
        assert not lent.closed
    assert lent.closed


# --- connections that end ---


def test_a_connection_whose_server_process_was_ended_is_replaced_unnoticed(ws, pool):
    (pid,) = pool.query("SELECT pg_backend_pid()")[0]
    assert ws.database.query(END, (pid,)).rows == [(True,)]
    assert pool.query("SELECT pg_backend_pid() <> %s", (pid,)).rows == [(True,)]
    assert pool.stats() == DatabaseStats(queries=2, connections=2)


def test_one_that_is_ended_in_use_fails_and_the_next_one_works(pool):
    for ask in (pool.query, lambda s: pool.run_transaction(lambda c: c.execute(s))):
        with pytest.raises(
            (ServiceUnreachableError, psycopg2.OperationalError), match="closed the"
        ):
            ask("SELECT pg_terminate_backend(pg_backend_pid())")
        assert pool.query("SELECT 1").rows == [(1,)]
    assert pool.stats() == DatabaseStats(queries=2, connections=3)


def test_each_new_connection_signs_in_with_a_new_token_and_queries_need_none(ws, make):
    password, made = ws.endpoints.database.arguments["password"], []

    def token():
        made.append(len(made))
        return password if len(made) != 2 else "a token that ended"

    database = make(token=token, embedded=False)
    pids = [database.query("SELECT pg_backend_pid()")[0][0] for _ in range(5)]
    assert len(made) == len(set(pids)) == 1
    ws.database.query(END, (pids[0],))
    with pytest.raises(ServiceUnreachableError, match="The sign-in was refused"):
        database.query("SELECT 1")
    assert database.query("SELECT 1").rows == [(1,)]  # the next token is a good one
    assert len(made) == 3


def test_one_that_has_reached_its_age_is_replaced(pool, monkeypatch):
    monkeypatch.setattr(module, "RECYCLE_S", 0)
    pids = [pool.query("SELECT pg_backend_pid()")[0] for _ in range(2)]
    monkeypatch.setattr(module, "RECYCLE_S", 3600)
    pids += [pool.query("SELECT pg_backend_pid()")[0] for _ in range(2)]
    assert pids[0] != pids[1] != pids[2] == pids[3]


def test_identity_names_database_and_schema_but_no_port(ws, make):
    place, name, schema = ws.database.identity.split("/")
    assert re.fullmatch("admin@local-[0-9a-f]{12}", place)
    assert (name, schema) == ("postgres", ws.namespace)
    # The address alone, such as 127.0.0.1, is another server on another machine.
    own = make(engine="", embedded=False)
    ((identifier,),) = ws.database.query("SELECT system_identifier::text FROM pg_control_system()")
    assert own.identity == f"admin@{own.endpoint.address}/postgres/{ws.namespace}@{identifier}"
    assert own.stats().queries == 0


# --- a database that cannot be reached ---


def test_a_wrong_password_is_called_that_and_is_not_repeated(ws, make):
    arguments = {**ws.endpoints.database.arguments, "password": "hush-hush"}
    database = make(embedded=False, host="there", port=1, arguments=arguments)
    with pytest.raises(ServiceUnreachableError) as refused:
        database.query("SELECT 1")
    said = str(refused.value)
    assert "No connection to the database at there:1 (local PostgreSQL 16)" in said
    assert "check the user and password" in said
    assert "hush-hush" not in said
    with pytest.raises(ServiceUnreachableError):  # what cannot be opened takes no place in the pool
        database.query("SELECT 1")
    assert database.stats() == DatabaseStats()


def test_a_local_engine_that_stays_away_points_to_workshop_status(ws, make, monkeypatch):
    monkeypatch.setattr(module, "AWAY_S", 0.1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        arguments = {**ws.endpoints.database.arguments, "port": taken.getsockname()[1]}
        with pytest.raises(ServiceUnreachableError, match="`workshop status`"):
            make(arguments=arguments).query("SELECT 1")


@pytest.mark.parametrize("said", ["waking up cluster", "the database system is starting up"])
def test_a_server_that_says_that_it_is_coming_up_is_asked_again(make, monkeypatch, said):
    refusals, connect = [f"FATAL:  {said}"] * 3, psycopg2.connect

    def refuse_at_first(**arguments):
        if refusals:
            raise psycopg2.OperationalError(refusals.pop())
        return connect(**arguments)

    monkeypatch.setattr(psycopg2, "connect", refuse_at_first)
    assert make(embedded=False).query("SELECT 1").rows == [(1,)]
    refusals.append(f"FATAL:  {said}")
    monkeypatch.setattr(module, "COMING_UP_S", 0)
    with pytest.raises(ServiceUnreachableError, match="up"):
        make(embedded=False).query("SELECT 1")


# --- Interrupt ---

RUNNING = (
    "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND query LIKE %s "
    "AND pid <> pg_backend_pid()"
)


@pytest.fixture
def interrupt(ws) -> Iterator[Callable[[str], None]]:
    """Sends this process a SIGINT, as Jupyter does, once a statement with this mark runs."""

    def send(mark):
        wait_until(lambda: ws.database.query(RUNNING, (f"%{mark}%",)).rows != [(0,)], SOON_S)
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as thread:
        yield partial(thread.submit, send)


@every_way
def test_an_interrupt_ends_what_the_main_thread_waits_for_here_and_there(
    ws, plain, table, interrupt, way
):
    mark = f"mark_{secrets.token_hex(4)}"
    with contextlib.closing(ws.database.connect()) as other, ThreadPoolExecutor(1) as thread:
        other.autocommit = False
        with other.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {table}")
        beside = thread.submit(ws.database.query, "SELECT pg_sleep(0.5)")
        interrupt(mark)
        with pytest.raises(KeyboardInterrupt):
            way(plain, f"/* {mark} */ UPDATE {table} SET n = 1")
        assert wait_until(lambda: ws.database.query(RUNNING, (f"%{mark}%",)).rows == [(0,)], SOON_S)
        assert plain.query("SELECT 1").rows == [(1,)]
        assert len(beside.result(SOON_S).rows) == 1
        other.rollback()
    assert value(ws.database, table) == 0


def test_interrupts_at_any_moment_leave_right_answers_and_later_interrupts_their_effect(plain):
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


@pytest.mark.parametrize("where", ["is_usable", "set_read_only", "is_clean"])
def test_an_interrupt_before_or_after_a_query_costs_no_place_in_the_pool(pool, monkeypatch, where):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    pool.query("SELECT 1")
    with monkeypatch.context() as patched:
        patched.setattr(connections.Connection, where, interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:
            pool.query("SELECT 1", read_only=True)
    assert pool.query("SELECT 1").rows == [(1,)]
    assert kept  # as Jupyter keeps the last error: its traceback holds what the query held
