"""The database as a notebook uses it: a pool of connections, queries, transactions that retry."""

from __future__ import annotations

import contextlib
import copy
import platform
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg2
from psycopg2 import errors, sql
from psycopg2.extensions import TRANSACTION_STATUS_INTRANS
from psycopg2.extras import register_uuid

from workshop_lib import dsql, forks
from workshop_lib.bulk_text import to_arrays
from workshop_lib.connections import Connection, Cursor, Lease, Pool
from workshop_lib.dsql import MAX_ROWS_PER_TRANSACTION, comes_from_conflict
from workshop_lib.errors import ServiceUnreachableError, SettingsError, TransactionError
from workshop_lib.rows import Params, Row, Rows
from workshop_lib.services import DatabaseEndpoint

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
Query = str | sql.Composable

PLACEHOLDER = re.compile(r"%(?:%|s|\(\w+\)s)")
MAX_STATEMENTS = 1_000
MAX_STATEMENT_LENGTH = 10_000
"""How many different statements are counted one by one, and how long they may be, characters."""
CONFLICT_ATTEMPTS = 30
CONFLICT_S = 60.0
"""How long a transaction is tried at least, seconds. Where 16 write one row without a pause, on
a busy machine five attempts of six fail, and one transaction in fifty for more than ten seconds."""
CONFLICT_WAIT_S = 0.005
CONFLICT_WAIT_MAX_S = 1.0
COMING_UP_S = 30.0
"""How long a server that says that it is starting may take until it lets us in, seconds. Aurora
DSQL says so of a cluster that has been idle for a while."""
COMING_UP = re.compile(
    "starting up|in recovery mode|not yet accepting connections|waking up cluster"
)
AWAY_S = 2.0
"""How long a restart of the local engine may take, seconds. Elsewhere silence is final."""
KNOCK_S = 0.05
RECYCLE_S = dsql.CONNECTION_LIFE_S * 5 / 6
RECYCLE_JITTER = 0.2
"""A connection is replaced at this age, or up to this share earlier: not all at the same moment."""
LOCK_WAIT_S = 10
"""How long a statement waits for another's transaction, where rules are kept, seconds. On DSQL
nothing waits; on PostgreSQL a transaction that was forgotten in another cell would hold up this one
for ever."""
RULES = """
SELECT to_regnamespace('dsql_rules') IS NOT NULL, set_config('workshop.dsql_rules', %s, false),
       set_config('lock_timeout', %s || 's', false)
"""
COLUMN_TYPES = """
SELECT attname, format_type(atttypid, -1)
  FROM pg_attribute WHERE attrelid = quote_ident(%s)::regclass AND attnum > 0
"""


@dataclass(frozen=True, slots=True)
class DatabaseStats:
    """Counters since the database object was made.

    Attributes:
        queries: statements that `query` ran with success.
        transactions: committed by `run_transaction`.
        conflicts: attempts that a concurrent transaction made void.
        connections: opened.

    """

    queries: int = 0
    transactions: int = 0
    conflicts: int = 0
    connections: int = 0


class Database:
    """A pooled PostgreSQL or Aurora DSQL database, seen through one schema.

    A process that is forked begins with a pool of its own; a connection that was opened before the
    fork refuses to work in it.

    Args:
        endpoint: where it is.
        schema: the schema that unqualified table names refer to.
        pool_min: connections kept open when idle.
        pool_max: connections open at most.
        pool_timeout_s: longest wait for a free connection, seconds.

    """

    def __init__(
        self,
        endpoint: DatabaseEndpoint,
        schema: str = "workshop",
        *,
        pool_min: int = 5,
        pool_max: int = 30,
        pool_timeout_s: float = 30.0,
    ) -> None:
        self.endpoint = endpoint
        self.schema = schema
        self._limits = (pool_min, pool_max, pool_timeout_s)
        self._counts = Counter[str]()
        self._calls: dict[str, tuple[int, float, int]] = {}
        self._opened = time.monotonic()
        self._begin()
        forks.tell_child(self)

    def _begin(self) -> None:
        """Begin with no connections, and with locks that no thread holds."""
        self._counts_lock = threading.Lock()
        self._pool = Pool(self.connect, *self._limits)

    def _after_fork(self) -> None:
        self._begin()
        self.endpoint = replace(self.endpoint, token=copy.copy(self.endpoint.token))

    @cached_property
    def identity(self) -> str:
        """Which database and schema this is, and who asks; stable over restarts and new ports.

        Raises:
            ServiceUnreachableError: a server of your own, asked once for its identifier, did not
                answer: its address alone may be another database on another machine.

        """
        known = f"{self.endpoint.identity}/{self.schema}"
        if self.endpoint.engine or self.endpoint.aws:
            return known
        try:
            with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT system_identifier FROM pg_control_system()")
                ((found,),) = cursor.fetchall()
        except psycopg2.OperationalError as error:
            raise _unreachable(self.endpoint, error) from None
        except psycopg2.Error:  # a server that does not say: known by who talks to it
            found = platform.node()
        return f"{known}@{found}"

    def query(self, statement: Query, params: Params = None, *, read_only: bool = False) -> Rows:
        """Run one statement in a transaction of its own.

        Args:
            statement: SQL with %s or %(name)s placeholders.
            params: the values for them.
            read_only: have the database refuse whatever writes, wherever in the statement.

        Returns:
            The rows; none for a statement that returns nothing.

        Raises:
            psycopg2.errors.ReadOnlySqlTransaction: it writes, and `read_only` is set.
            psycopg2.Error: the database refused the statement.
            PoolTimeoutError, ServiceUnreachableError: there was no connection to run it on.
            ValueError: `read_only` is set, and the string holds several statements, or a DO or
                CALL, which could end the read-only transaction, and it was not sent; or the
                statement asks for nothing, such as SET, and has no effect beyond it.

        """
        started = time.perf_counter()
        with self.connection(read_only=read_only) as connection, connection.cursor() as cursor:
            try:
                if read_only:  # what is checked is what is sent
                    sent = cursor.mogrify(statement, params)
                    _check_read_only(sent, connection)
                    cursor.execute(sent)
                else:
                    cursor.execute(statement, params)
                described = cursor.description
                rows = cursor.fetchall() if described is not None else []
                if isinstance(statement, sql.Composable):
                    statement = statement.as_string(cursor)
            except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
                if connection.closed:  # in the middle of the question: the server went away
                    raise _unreachable(self.endpoint, error) from None
                raise
        if read_only and described is None:
            raise ValueError(
                "This statement asks for nothing: its answer has no columns and no rows. A cache, "
                "and read_only=True, are for questions. Send it with database.query without "
                "read_only."
            )
        columns = tuple([column.name for column in described or ()])
        seconds = time.perf_counter() - started
        self._note(str(statement), seconds, len(rows))
        return Rows(columns, rows, seconds)

    def run_transaction(self, work: Callable[[Cursor], T]) -> T:
        """Run `work` in one transaction and commit it; run it again after a conflict.

        Aurora DSQL finds conflicts when a transaction commits, so everything in it may have to
        happen again: `work` must do nothing but talk to the database, through the cursor it gets.
        It is given up after 30 attempts and 60 seconds (a hot row needs both), with random waits
        that grow from 5 ms to 1 s.

        An error of the database makes the transaction void, also where `work` catches it: it is
        raised here, or tried again if it is a conflict, also where `work` fails in another way
        afterwards. An error that `work` raises because of it is raised as it is, or tried again if
        it was a conflict; `raise … from None` ends the attempts.

        Returns:
            What `work` returned in the attempt that was committed.

        Raises:
            psycopg2.Error: any other database error, or the conflict of the last attempt.
            TransactionError: `work` would end the transaction itself, or might: where a text cannot
                be parsed, a word such as COMMIT at the start of what may be a statement is enough;
                or the connection broke during COMMIT, and whether it was committed is not known.
                (Nor is it after an Interrupt that came at that moment.)
            TypeError: `work` returned a cursor, a generator or a coroutine, which would read on
                after COMMIT. Nothing was committed.

        """
        end, outside, number = time.monotonic() + CONFLICT_S, sys.exception(), 0
        while True:
            number += 1
            try:
                answer = self._attempt(work)
            except Exception as error:
                if not comes_from_conflict(error, outside):
                    raise
                self._count("conflicts")
                if number >= CONFLICT_ATTEMPTS and time.monotonic() >= end:
                    raise
            else:
                self._count("transactions")
                return answer
            # Full jitter ("Exponential Backoff And Jitter", AWS Architecture Blog).
            longest = min(CONFLICT_WAIT_MAX_S, CONFLICT_WAIT_S * 2 ** min(number, 20))
            time.sleep(random.random() * longest)

    def _attempt(self, work: Callable[[Cursor], T]) -> T:
        with self.connection() as connection, connection.cursor() as cursor:
            # As a statement: what psycopg2 begins, it also ends, by a change of its settings.
            cursor.execute("BEGIN")
            connection.working = True
            try:
                answer = work(cursor)
            except Exception as error:
                failed = connection.failed
                if failed and isinstance(error, errors.InFailedSqlTransaction):
                    raise failed from None  # the first says all that the second does
                if failed and not _tells_of(error, failed):
                    raise failed from error
                raise
            finally:
                connection.working = False
            if isinstance(answer, Iterator | AsyncIterator | Awaitable):
                raise TypeError(
                    f"`work` returned an object of type {type(answer).__name__}, which would go on "
                    "after COMMIT. Nothing was committed. Return what it gives, such as "
                    "cursor.fetchall()."
                )
            _commit(connection)
            return answer

    def insert_rows(
        self,
        table: str,
        columns: Sequence[str],
        rows: Iterable[Row],
        *,
        progress: Callable[[int], object] = lambda _: None,
        first: Callable[[Cursor], object] | None = None,
    ) -> int:
        """Insert many rows in transactions that DSQL accepts; rows that exist already stay.

        Each statement hands over an array a column, which the server reads several times as fast
        as a list of VALUES. (Aurora DSQL has arrays in expressions, though not as columns: User
        Guide, "Supported data types".)

        Args:
            table: its name, unqualified.
            columns: the names of the columns that `rows` holds.
            rows: one tuple a row.
            progress: called with the number of rows dealt with after each transaction.
            first: done first in each transaction, with its cursor; it may change one row itself.

        Returns:
            How many rows are new.

        Raises:
            TypeError: a value of a type that cannot be stored in bulk; text, numbers, dates and
                times, truth values, bytes, UUID, dict and list (as JSON) and None can.

        """
        found = {name: kind for name, kind in self.query(COLUMN_TYPES, (table,))}  # noqa: C416
        types = [str(found.get(name, "text")) for name in columns]
        names = sql.SQL(", ").join(map(sql.Identifier, columns))

        def insert(batch: list[Row], cursor: Cursor) -> int:
            if first is not None:
                first(cursor)
            arrays = to_arrays(batch, types)
            casts = [sql.SQL(f"%s::{read_as}[]") for _, read_as in arrays]
            statement = sql.SQL(
                "INSERT INTO {} ({}) SELECT * FROM unnest({}) ON CONFLICT DO NOTHING"
            ).format(sql.Identifier(table), names, sql.SQL(", ").join(casts))
            cursor.execute(statement, [array for array, _ in arrays])
            return cursor.rowcount

        new, stream = 0, iter(rows)
        most = MAX_ROWS_PER_TRANSACTION - (first is not None)
        while batch := list(islice(stream, most)):
            new += self.run_transaction(partial(insert, batch))
            progress(len(batch))
        return new

    def create(self, statement: Query) -> None:
        """Run a CREATE … IF NOT EXISTS; of two at once, both may find nothing, and one fails."""
        with contextlib.suppress(
            errors.UniqueViolation, errors.DuplicateTable, errors.DuplicateSchema
        ):
            self.query(statement)

    def create_schema(self) -> None:
        """Create the schema, if it is not there yet."""
        # Asked first: DDL ends the open transactions of others on Aurora DSQL, and a notice that
        # it is there already may lose an Interrupt (interrupts.py).
        if not self.query("SELECT 1 FROM pg_namespace WHERE nspname = %s", (self.schema,)).rows:
            name = sql.Identifier(self.schema)
            self.create(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(name))

    @contextlib.contextmanager
    def connection(self, *, read_only: bool = False) -> Iterator[Connection]:
        """Borrow a pooled connection, in autocommit mode; a transaction left open is rolled back.

        What you change in its session (SET, LISTEN, temporary tables, …) or in psycopg2's object
        is for you alone: the next borrower gets another connection. So is a connection that you
        close, or whose block an Interrupt ends. Three things escape notice: a setting such as
        `search_path` that a function, procedure or view of yours changes in its body; whatever is
        done by a cursor that was made without `connection.cursor()`, such as
        `psycopg2.extensions.cursor(connection)`; and the number that `lastval()` or `currval()`
        gives, which is another borrower's where you drew none. Close the connection after either of
        the first two. Keep it no longer than the block: its cursors refuse to work afterwards, but
        the connection itself works again while the next borrower has it.

        Args:
            read_only: begin transactions as read-only ones: a statement that writes fails, unless
                you have it write by BEGIN READ WRITE or a change of the session. (`query` lets
                through nothing that writes.)

        Raises:
            PoolTimeoutError: all connections were in use for the whole wait.
            ServiceUnreachableError: the database gave no connection.

        """
        pool, lease, fit = self._pool, Lease(), False
        try:  # an Interrupt may come at any line of this
            connection = pool.take(lease)
            connection.set_read_only(wanted=read_only)
            yield connection
            fit = True
        except Exception:
            fit = True
            raise
        finally:
            if not getattr(lease.connection, "inherited", False):  # else all of it is the parent's
                pool.give(lease, fit=fit)

    def connect(self) -> Connection:
        """A new psycopg2 connection of the caller's own, in autocommit mode, outside the pool.

        On Aurora DSQL each connection signs in with a token made for it.

        Raises:
            ServiceUnreachableError: the database did not answer or refused the sign-in.

        """
        started = time.monotonic()
        while True:
            try:
                opened = self._open()
                self._count("connections")
                return opened
            except psycopg2.OperationalError as error:
                away_s = AWAY_S if self.endpoint.embedded else 0.0
                patience_s = COMING_UP_S if COMING_UP.search(str(error)) else away_s
                if time.monotonic() - started >= patience_s:
                    raise _unreachable(self.endpoint, error) from None
            time.sleep(KNOCK_S)

    def _open(self) -> Connection:
        arguments: dict[str, Any] = dict(self.endpoint.arguments)
        if self.endpoint.token:
            arguments["password"] = self.endpoint.token()
        opened: Connection = psycopg2.connect(
            **arguments, connection_factory=Connection, cursor_factory=Cursor
        )
        forks.tell_child(opened)
        opened.arguments = arguments
        opened.ends = time.monotonic() + RECYCLE_S * (1 - RECYCLE_JITTER * random.random())
        try:
            self._set_up(opened)
        except BaseException:
            opened.close()
            raise
        opened.note_state()
        return opened

    def _set_up(self, opened: Connection) -> None:
        opened.autocommit = True
        # psycopg2 gives memoryview and str for these two; rows should hold bytes and UUID.
        psycopg2.extensions.register_type(BYTES, opened)
        psycopg2.extensions.register_type(BYTES_ARRAY, opened)
        register_uuid(conn_or_curs=opened)
        with opened.cursor() as cursor:
            cursor.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(self.schema)))
            if self.endpoint.token is None:  # not DSQL itself
                rules = self.endpoint.dsql_rules
                cursor.execute(RULES, ("on" if rules else "off", LOCK_WAIT_S if rules else 0))
                if rules and not cursor.fetchall()[0][0]:
                    raise SettingsError(
                        "DSQL_RULES is on, but this PostgreSQL does not have the rules. Set "
                        "DSQL_RULES=off, or run `workshop rules install` as its superuser."
                    )

    def reroute(self, host: str, port: int) -> None:
        """From now on connect to the same database by this address; the pool connects anew."""
        arguments = {**self.endpoint.arguments, "host": host, "port": port}
        self.endpoint = replace(self.endpoint, arguments=arguments)
        self.close()

    @staticmethod
    def lint(statements: str) -> dsql.Findings:
        """What Aurora DSQL would refuse in these statements, asked of AWS's linter; runs nothing.

        Raises:
            WorkshopError: the linter could not be run.

        """
        return dsql.lint(statements)

    def stats(self) -> DatabaseStats:
        """The counters so far."""
        with self._counts_lock:
            return DatabaseStats(**self._counts)

    def statements(self) -> pd.DataFrame:
        """What `query` has run so far, as `workshop advise` reads it from a CSV file.

        Returns:
            A row for each of the first 1,000 different statements of up to 10,000 characters:
            `query` (its text, with $1 for its first parameter), `calls`, `total_exec_time` (ms, as
            measured here: the way to the server and the wait for a connection included), `rows` (of
            all calls) and `days` (since the database was opened).

        """
        import pandas as pd  # noqa: PLC0415 -- it takes a third of a second

        days = (time.monotonic() - self._opened) / 86_400
        with self._counts_lock:
            found = [
                (_numbered(text), calls, 1e3 * seconds, rows, days)
                for text, (calls, seconds, rows) in self._calls.items()
            ]
        return pd.DataFrame(found, columns=["query", "calls", "total_exec_time", "rows", "days"])

    def close(self) -> None:
        """Close the pool's idle connections; borrowed ones close on their return."""
        old, self._pool = self._pool, Pool(self.connect, *self._limits)
        old.close()

    def _note(self, text: str, seconds: float, rows: int) -> None:
        with self._counts_lock:
            self._counts["queries"] += 1
            is_new = len(self._calls) < MAX_STATEMENTS and len(text) <= MAX_STATEMENT_LENGTH
            if is_new or text in self._calls:
                calls, total, found = self._calls.get(text, (0, 0.0, 0))
                self._calls[text] = calls + 1, total + seconds, found + rows

    def _count(self, what: str) -> None:
        with self._counts_lock:
            self._counts[what] += 1


def _tells_of(error: BaseException, failed: BaseException) -> bool:
    """Whether an error is another one, or was raised because of it or where it was handled."""
    waiting: list[BaseException | None] = [error]
    seen: list[BaseException] = []
    while waiting:
        one = waiting.pop()
        if one is not None and one not in seen:
            seen.append(one)
            waiting += one.__cause__, one.__context__
    return failed in seen


def _commit(connection: Connection) -> None:
    """Commit what `work` did, and make sure that this is what happened.

    Raises:
        psycopg2.Error: the swallowed error that made the transaction void; or a conflict.
        TransactionError: it is void for another reason, `work` ended it, or its outcome is unknown.

    """
    tag = ""
    if connection.failed:
        raise connection.failed
    if connection.get_transaction_status() == TRANSACTION_STATUS_INTRANS:
        with connection.cursor() as cursor:
            try:
                cursor.execute("COMMIT")
            except psycopg2.Error as error:
                if connection.closed:
                    raise TransactionError(
                        "The connection to the database broke during COMMIT: whether the "
                        "transaction was committed is not known. Look for what it wrote before "
                        "you run it again."
                    ) from error
                raise
            tag = cursor.statusmessage
    if tag != "COMMIT":
        raise TransactionError(
            "The transaction was not committed: `work` did not pass on the error of a statement, "
            "or ended the transaction itself. Let errors out of `work`, or use a savepoint where "
            "there are some; run_transaction commits when `work` returns."
        )


def _check_read_only(sent: bytes, connection: Connection) -> None:
    """Refuse what could leave a read-only transaction; what writes in it the database refuses."""
    commands = connection.commands(sent)
    if commands is None:  # not known: each semicolon may end one, and each word begin one
        text = sent.decode("utf-8", "replace")
        commands = [part for part in text.split(";") if part.strip()]
        commands += re.findall(r"\b(?:DO|CALL)\b", text.upper())
    if len(commands) > 1 or {"DoStmt", "CallStmt"}.intersection(commands):
        raise ValueError(
            "In a cache, and with read_only=True, there must be one statement in the string, and "
            "not DO or CALL: a second one, or the code they run, could end the read-only "
            "transaction and write in another one. Use database.query without read_only for those."
        )


def _to_bytes(value: str | bytes | None, cursor: Any) -> bytes | None:
    return None if value is None else bytes(psycopg2.BINARY(value, cursor))


def _numbered(text: str) -> str:
    """A statement with the server's placeholders, $1 and so on, in place of psycopg2's."""
    numbers = count(1)
    return PLACEHOLDER.sub(lambda one: "%" if one[0] == "%%" else f"${next(numbers)}", text)


def _unreachable(endpoint: DatabaseEndpoint, error: Exception) -> ServiceUnreachableError:
    from workshop_lib.services.error_help import error_help  # noqa: PLC0415 -- for errors only

    return ServiceUnreachableError(
        f"No connection to the database at {endpoint.address} ({endpoint.label}): "
        f"{error_help(error, endpoint)}"
    )


BYTES = psycopg2.extensions.new_type((17,), "WORKSHOP_BYTES", _to_bytes)
BYTES_ARRAY = psycopg2.extensions.new_array_type((1001,), "WORKSHOP_BYTES[]", BYTES)
