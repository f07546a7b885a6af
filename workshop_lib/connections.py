"""Connections that know whether they may be used again, and the pool that lends them."""

from __future__ import annotations

import os
import re
import select
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from itertools import count
from typing import Any, TypeVar
from weakref import WeakSet

import psycopg2
from psycopg2.extensions import (
    TRANSACTION_STATUS_IDLE,
    TRANSACTION_STATUS_INTRANS,
    adapt,
    connection as PlainConnection,
    cursor as PlainCursor,
    encodings,
    register_adapter,
)

from workshop_lib.dsql.parse_tree import MAX_PARSED
from workshop_lib.errors import PoolTimeoutError, ServiceUnreachableError, TransactionError
from workshop_lib.interrupts import interruptible
from workshop_lib.rows import to_python

T = TypeVar("T")

QUIET_TAGS = frozenset(
    (
        *("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "COPY", "SHOW", "LOCK"),
        *("BEGIN", "START", "SAVEPOINT", "RELEASE", "COMMIT", "ROLLBACK"),
        "",  # an error, which undoes what it belongs to
    )
)
"""Command tags, as the server answers, of statements that leave nothing in the session."""
TRACES = (b"set_config", b"pg_advisory", b"pg_try_advisory", b"setseed", b"pg_settings", b'u&"')
"""Parts of names of functions and tables that do; U&"…", in codes of letters, may be any name."""
REPORTED = (
    *("DateStyle", "IntervalStyle", "TimeZone", "client_encoding", "standard_conforming_strings"),
    *("session_authorization", "is_superuser", "application_name", "default_transaction_read_only"),
)
"""Settings of which the server reports each change."""
ENDING_WORDS = (b"commit", b"rollback", b"prepare", b"end", b"abort")
ENDING = {"TRANS_STMT_COMMIT", "TRANS_STMT_ROLLBACK", "TRANS_STMT_PREPARE"}
MAY_END = re.compile(
    rb"(?:\A|;|\*/|(?<!-)--[^\r\n]*[\r\n])\s*(?:commit|end|abort|prepare(?=.*transaction)"
    rb"|rollback(?!\s+(?:(?:work|transaction)\s+)?to\b))\b",
    re.IGNORECASE | re.DOTALL,
)
"""A word that ends a transaction where a statement may begin: first, or after ; or a comment."""
BY_ITSELF = (
    "run_transaction commits by itself when `work` returns, and undoes everything when `work` "
    "raises an error."
)
WOULD_END = f"{{}} would end the transaction of run_transaction. {BY_ITSELF}"
UNCLEAR = (
    "This may end the transaction of run_transaction: a word such as COMMIT or END stands where a "
    "statement can begin, and the text could not be parsed (it is very long, backslashes count in "
    "its texts, or there is no parser for this machine). It was not sent. Send one statement at a "
    "time, with values as parameters and without comments; a function is created by database.query."
)
RETURNED = (
    "This connection went back to the pool when the block of `database.connection()` or the `work` "
    "of run_transaction ended. Borrow one again, and make a new cursor."
)
SURPLUS_S = 60.0
"""How long more connections than `keep` stay after a surge, seconds: the next surge needs them
again, and a server takes only so many new ones."""
MAX_HOLDERS = 5
"""How many of the threads that hold connections a time-out names."""
_foreign = {("numpy", "generic"), ("numpy", "ndarray"), ("pandas", "NaT"), ("pandas", "NA")}
"""Values and kinds of them, by module, that psycopg2 would write as Python shows them, such as
np.float64(1.5), until they are adapted."""


class Connection(PlainConnection):
    """A connection, in autocommit mode at first, that knows whether its session has changed.

    Attributes:
        changed: something may be left in the session that was not there.
        failed: the error that made the present transaction void, if one did.
        working: it runs the `work` of run_transaction, which must not end the transaction.
        loan: which loan of the pool this is; None while it lies there.
        inherited: it was opened before this process was forked: it is the parent's.
        ends: when it is to be replaced, by `time.monotonic`, well before DSQL ends it.
        reads_only: its transactions are read-only.
        arguments: how to open another connection to the same database.

    """

    changed = False
    failed: psycopg2.Error | None = None
    working = False
    loan: int | None = 0
    inherited = False
    ends = 0.0
    reads_only = False
    arguments: dict[str, Any]
    _as_new: tuple[object, ...]

    def note_state(self) -> None:
        """Remember the state that a connection has when it is lent."""
        self._as_new, self.changed = self._state(), False

    def cursor(
        self, name: Any = None, cursor_factory: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As psycopg2's; also one of another kind, such as RealDictCursor, tells what it does."""
        self.check()
        kind = _watched(cursor_factory or self.cursor_factory)
        made = super().cursor(name, kind, *args, **kwargs)
        made.loan = self.loan
        return made

    def commit(self) -> None:
        """As psycopg2's."""
        self._end(super().commit)

    def rollback(self) -> None:
        """As psycopg2's."""
        self._end(super().rollback)

    def tpc_begin(self, xid: Any) -> None:
        """As psycopg2's."""
        self._end(super().tpc_begin, xid)

    def _end(self, how: Callable[..., None], *args: Any) -> None:
        self.check()
        if self.working:
            raise TransactionError(WOULD_END.format(f"`{how.__name__}`"))
        interruptible(self, how, *args)

    def _after_fork(self) -> None:
        """Leave the server, at the other end of the parent's socket, alone.

        psycopg2 and libpq would tell it that the connection ends. They get a socket to nowhere.
        """
        self.inherited = True
        with suppress(psycopg2.Error, OSError):
            if not self.closed and self.fileno() >= 0:
                here, there = socket.socketpair()
                with here, there:
                    os.dup2(here.fileno(), self.fileno(), inheritable=False)

    def check(self) -> None:
        """Refuse to work in a process that did not open it, and for one who returned it.

        Raises:
            ServiceUnreachableError: this process was forked since then.
            psycopg2.InterfaceError: it lies in the pool.

        """
        if self.inherited:
            raise ServiceUnreachableError(
                "This connection to the database was opened before this process was forked, and "
                "is the parent's. Open another one here; ws.database.query does."
            )
        if self.loan is None:
            raise psycopg2.InterfaceError(RETURNED)

    def is_usable(self) -> bool:
        """Whether it is young enough, and its server still there; at no round trip.

        An idle connection has nothing to say: if its socket is readable, the server has closed it.
        """
        if self.closed or time.monotonic() > self.ends:
            return False
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return not poll.poll(0)

    def is_clean(self) -> bool:
        """Whether the next user finds it as a new one, once a transaction left open is undone.

        By what was done through its cursors, by psycopg2's settings, and by what the server
        reports of the session without being asked.
        """
        if self.get_transaction_status() != TRANSACTION_STATUS_IDLE:
            with suppress(psycopg2.Error), self.cursor(cursor_factory=Cursor) as cursor:
                cursor.execute("ROLLBACK")  # rollback() knows of no BEGIN that was a statement
        if self.closed or self.changed or self._state() != self._as_new:
            return False
        del self.notices[:]
        return True

    def _state(self) -> tuple[object, ...]:
        return (
            *(self.autocommit, self.isolation_level, self.readonly, self.deferrable, self.status),
            *(self.cursor_factory, type(self.notices), self.get_transaction_status()),
            *(dict(self.string_types), dict(self.binary_types)),
            *map(self.get_parameter_status, REPORTED),
        )

    def set_read_only(self, *, wanted: bool) -> None:
        """Have the transactions to come be read-only or not. No round trip if they are so already.

        The session stays as it is for the next user, who asks for this as well: a cache that only
        reads never switches. Of the statements that do this, Aurora DSQL takes this one.
        """
        if self.reads_only != wanted:
            with self.cursor() as cursor:
                mode = "ONLY" if wanted else "WRITE"
                cursor.execute(f"SET SESSION CHARACTERISTICS AS TRANSACTION READ {mode}")
            self.reads_only = wanted
            self.note_state()

    def commands(self, sent: bytes) -> list[str] | None:
        """What the statements in a string are, such as SelectStmt or TRANS_STMT_COMMIT, as parsed.

        None if that is not known: the parser is not installed (there is none for Macs with Intel's
        processors), does not take the text, or would read its quotation marks in another way.
        """
        if len(sent) > MAX_PARSED or (
            self.get_parameter_status("standard_conforming_strings") == "off"
        ):
            return None
        try:
            import pgparse  # noqa: PLC0415 -- few statements need it, and not every machine has it

            found = pgparse.parse(sent.decode(encodings[self.encoding]))
        except Exception:  # noqa: BLE001 -- the server is the one to complain of the text
            return None
        parsed = (next(iter(one["stmt"].items())) for one in found)
        return [node["kind"] if kind == "TransactionStmt" else kind for kind, node in parsed]


class Cursor(PlainCursor):
    """A cursor that tells its connection what it does."""

    connection: Connection
    loan: int | None = 0

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 -- psycopg2's name
        """As psycopg2's.

        Raises:
            TransactionError: it would end the transaction of run_transaction, or has ended it.
            psycopg2.Error: as psycopg2's.

        """
        if self.connection.working:
            query, vars = self._checked(query, vars), None  # noqa: A001
        self._send(super().execute, query, vars)

    def mogrify(self, query: Any, vars: Any = None) -> bytes:  # noqa: A002
        """As psycopg2's."""
        adapt_foreign_values()
        return super().mogrify(query, vars)

    def executemany(self, query: Any, vars_list: Iterable[Any]) -> None:
        """As psycopg2's."""
        if self.connection.working:
            vars_list = self._checked_rows(query, vars_list)
        self._send(super().executemany, query, vars_list)

    def copy_expert(self, sql: Any, *args: Any, **kwargs: Any) -> None:
        """As psycopg2's."""
        if self.connection.working:
            self._checked(sql)
        self._send(super().copy_expert, sql, *args, **kwargs)

    def copy_from(self, *args: Any, **kwargs: Any) -> None:
        """As psycopg2's."""
        self._send(super().copy_from, *args, **kwargs)

    def copy_to(self, *args: Any, **kwargs: Any) -> None:
        """As psycopg2's."""
        self._send(super().copy_to, *args, **kwargs)

    def callproc(self, procname: Any, *args: Any) -> Any:
        """As psycopg2's."""
        if self.connection.working:
            self._checked(f"CALL {procname}()")
        return self._send(super().callproc, procname, *args)

    def _send(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call what sends something to the server, and note the outcome."""
        connection = self.connection
        connection.check()
        if self.loan != connection.loan:
            raise psycopg2.InterfaceError(RETURNED)
        if connection.working and not connection.autocommit:
            raise TransactionError(
                "`work` switched psycopg2's autocommit off: some of psycopg2's methods would then "
                f"end the transaction of run_transaction. Leave it on: {BY_ITSELF}"
            )
        adapt_foreign_values()
        tag = ""
        try:
            answer = interruptible(connection, call, *args, **kwargs)
            tag = (self.statusmessage or "COPY").partition(" ")[0]  # psycopg2 keeps none of COPY's
            connection.failed = None
        except psycopg2.Error as error:
            goes_on = connection.get_transaction_status() == TRANSACTION_STATUS_INTRANS
            if not goes_on and connection.failed is None:
                connection.failed = error
            raise
        finally:
            connection.changed |= self._may_leave_a_trace(tag)
        if connection.working and (
            connection.get_transaction_status() == TRANSACTION_STATUS_IDLE or tag == "COMMIT"
        ):
            raise TransactionError(
                f"{tag} ended the transaction of run_transaction: what `work` did before may be "
                f"stored. {BY_ITSELF}"
            )
        return answer

    def _checked(self, query: Any, values: Any = None) -> bytes:
        """What is sent for `work`, unless it would end the transaction: nothing of it is stored.

        What cannot be parsed is judged without its values: those are literals that end nothing.
        """
        sent = self.mogrify(query, values)
        lower = sent.lower()
        if any(word in lower for word in ENDING_WORDS):
            commands = self.connection.commands(sent)
            if commands is None and MAY_END.search(self.mogrify(query)):
                raise TransactionError(f"{UNCLEAR} {BY_ITSELF}")
            if ENDING.intersection(commands or ()):
                raise TransactionError(WOULD_END.format("This"))
        return sent

    def _checked_rows(self, query: Any, rows: Iterable[Any]) -> Iterator[Any]:
        for row in rows:
            self._checked(query, row)
            yield row

    def _may_leave_a_trace(self, tag: str) -> bool:
        """Whether something of what was sent may be left in the session; if in doubt, yes."""
        sent: bytes = (self.query or b"").lower()
        # A SELECT without columns made a table (INTO), perhaps a temporary one.
        makes = tag == "SELECT" and self.description is None
        if makes or tag not in QUIET_TAGS or any(name in sent for name in TRACES):
            return True
        # The tag is that of the last of several; and what code committed, no later error undoes.
        several = b";" in sent.rstrip(b" \t\n\r\f\v;")
        return several and (not tag or len(self.connection.commands(sent) or ()) != 1)


@cache
def _watched(kind: type[PlainCursor]) -> type[Cursor]:
    """The same kind of cursor, which tells its connection what it does."""
    return kind if issubclass(kind, Cursor) else type(kind.__name__, (Cursor, kind), {})


def adapt_foreign_values() -> None:
    """Have psycopg2 adapt the values of numpy and pandas, once each has been imported.

    Not before: importing them takes longer than all the rest. psycopg2 keeps adapters for the
    whole process.
    """
    for module, name in tuple(_foreign):
        found = getattr(sys.modules.get(module), name, None)
        if found is not None:
            kind = found if isinstance(found, type) else type(found)
            register_adapter(kind, lambda value: adapt(to_python(value)))
            _foreign.discard((module, name))


class Lease:
    """One use of a connection. It takes a place while it exists, however its user ends."""

    def __init__(self) -> None:
        self.connection: Any = None
        self.thread = threading.current_thread()


class Pool:
    """Connections for many threads; the one that was used last is lent first.

    Args:
        connect: opens a connection.
        keep: how many stay open when idle.
        limit: how many are open at most.
        timeout_s: the longest wait for one of them, seconds.

    """

    def __init__(self, connect: Callable[[], Any], keep: int, limit: int, timeout_s: float) -> None:
        self._connect, self._keep, self._limit, self._timeout_s = connect, keep, limit, timeout_s
        self._idle: deque[tuple[Any, float]] = deque()
        self._leases = WeakSet[Lease]()
        self._loans = count(1)
        self._closed = False
        self._lock = threading.Lock()
        self._returned = threading.Condition(self._lock)

    def take(self, lease: Lease) -> Any:
        """Borrow a connection. Whatever comes of it, end the lease by `give`.

        Raises:
            PoolTimeoutError: all were in use for the whole wait.
            Exception: as `connect`.

        """
        with self._lock:  # not the Condition: an Interrupt may come between its own lines
            if not self._returned.wait_for(self._has_room, self._timeout_s):
                raise PoolTimeoutError(self._used_up())
            self._leases.add(lease)
        while lease.connection is None:
            with self._lock:
                kept = self._idle.pop()[0] if self._idle else None
            if kept is None or kept.is_usable():
                lease.connection = kept or self._connect()
            else:
                kept.close()
        lease.connection.loan = next(self._loans)
        return lease.connection

    def give(self, lease: Lease, *, fit: bool) -> None:
        """End a lease; its connection is closed unless it is fit for its next user."""
        surplus, now = [lease.connection], time.monotonic()
        try:
            if lease.connection and fit and not self._closed and lease.connection.is_clean():
                surplus.clear()
                lease.connection.loan = None
                self._idle.append((lease.connection, now))
            with self._lock:
                while len(self._idle) > self._keep and now - self._idle[0][1] > SURPLUS_S:
                    surplus.append(self._idle.popleft()[0])
        finally:
            with self._lock:
                self._leases.discard(lease)
                self._returned.notify()
        for connection in filter(None, surplus):
            connection.close()

    def close(self) -> None:
        """Close the idle connections now, and the borrowed ones on their return."""
        self._closed = True
        with self._lock:
            idle, self._idle = self._idle, deque()
        for connection, _ in idle:
            connection.close()

    def _has_room(self) -> bool:
        return len(self._leases) < self._limit

    def _used_up(self) -> str:
        """What happened, who has the connections, and what to do."""
        threads = [lease.thread for lease in self._leases]
        holders = Counter(t.name if t.is_alive() else "a thread that ended" for t in threads)
        named = ", ".join(f"{name} ({number})" for name, number in holders.most_common(MAX_HOLDERS))
        which = "The only connection" if self._limit == 1 else f"All {self._limit} connections"
        return (
            f"{which} of the pool stayed in use for {self._timeout_s:g} s. Return connections "
            "sooner (keep transactions short), or raise DSQL_POOL_MAX or DSQL_POOL_TIMEOUT. "
            f"Held by: {named}."
        )
