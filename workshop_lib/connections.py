"""Connections that know whether they may be used again, and the pool that lends them."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import psycopg2
from psycopg2.extensions import (
    TRANSACTION_STATUS_IDLE,
    AsIs,
    adapt,
    connection as PlainConnection,
    cursor as PlainCursor,
    encodings,
    register_adapter,
)

from workshop_lib.errors import PoolTimeoutError, ServiceUnreachableError, TransactionError
from workshop_lib.interrupts import interruptible
from workshop_lib.measure import readable
from workshop_lib.rows import to_python

T = TypeVar("T")
C = TypeVar("C", bound=Any)

ABORTED = "25P02"
"""in_failed_sql_transaction: of what follows an error, not the error itself."""
QUIET_TAGS = frozenset(
    (
        *("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "COPY", "FETCH", "SHOW", "EXPLAIN"),
        *("CREATE", "ALTER", "DROP", "COMMENT", "GRANT", "REVOKE", "TRUNCATE", "ANALYZE", "VACUUM"),
        *("REINDEX", "REFRESH", "LOCK", "BEGIN", "START", "COMMIT", "ROLLBACK", "SAVEPOINT"),
        "RELEASE",
    )
)
"""Command tags, as the server answers, of what leaves nothing in the session."""
TRACES = (
    *(b"set_config", b"pg_advisory", b"pg_try_advisory", b"setseed", b"pg_temp", b"pg_settings"),
    b'u&"',
)
"""Parts of the names of functions and tables that do, wherever they stand; and escaped names."""
REPORTED = (
    *("DateStyle", "IntervalStyle", "TimeZone", "client_encoding", "standard_conforming_strings"),
    *("session_authorization", "is_superuser", "application_name"),
)
MAX_PARSED = 65_536
"""Longest text, in bytes, that is parsed: the parser goes as deep as the text is nested."""
ENDS = frozenset({"COMMIT", "ROLLBACK", "PREPARE", "END", "ABORT"})
ENDING = (b"commit", b"rollback", b"prepare", b"end", b"abort")
SPACE = b" \t\n\r\f\v;"
ENDED = (
    "{} would end the transaction of run_transaction, or has ended it. It commits by itself when "
    "`work` returns, and undoes everything when `work` raises an error."
)
SURPLUS_S = 60.0
"""How long more connections than `keep` stay after a surge, seconds: the next surge needs them
again, and a server takes only so many new ones."""
MAX_HOLDERS = 5
"""How many of the threads that hold connections a time-out names."""


class Connection(PlainConnection):
    """A connection, in autocommit mode at first, that knows whether its session has changed.

    Attributes:
        changed: something may be left in the session that was not there.
        failed: the error that made the present transaction void, if one did.
        working: it runs the `work` of run_transaction, which must not end the transaction.
        inherited: it was opened before this process was forked: it is the parent's.
        ends: when it is to be replaced, by `time.monotonic`, well before DSQL ends it.
        reads_only: we made its session read-only.
        arguments: how to connect once more.

    """

    changed = False
    failed: psycopg2.Error | None = None
    working = False
    inherited = False
    ends = 0.0
    reads_only = False
    arguments: dict[str, Any]
    _as_new: tuple[object, ...]

    def be_known(self) -> None:
        """Remember the state that a new connection has, once it is set up."""
        self._as_new = self._state()
        self.changed = False

    def cursor(
        self, name: Any = None, cursor_factory: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As psycopg2's; of a kind of its own, such as RealDictCursor, a watched one.

        Raises:
            ServiceUnreachableError: this process was forked since it was opened.

        """
        self.check()
        _register_adapters()
        if name and self.working:
            self.autocommit = False  # psycopg2 has named cursors only in what it calls transactions
        factory: Any = cursor_factory or self.cursor_factory
        if isinstance(factory, type) and not issubclass(factory, Cursor):
            factory = _watched(factory)  # type: ignore[arg-type]  # a class can be hashed
        made = super().cursor(name, factory, *args, **kwargs)
        self.changed |= not isinstance(made, Cursor)  # what it does is not seen here
        return made

    def commit(self) -> None:
        """As psycopg2's."""
        self._end(super().commit)

    def rollback(self) -> None:
        """As psycopg2's."""
        self._end(super().rollback)

    def reset(self) -> None:
        """As psycopg2's."""
        self.changed = True
        self._end(super().reset)

    def close(self) -> None:
        """As psycopg2's."""
        if self.working:
            raise TransactionError(ENDED.format("`close`"))
        super().close()

    def _end(self, how: Callable[[], None]) -> None:
        self.check()
        if self.working:
            raise TransactionError(ENDED.format(f"`{how.__name__}`"))
        interruptible(self, how)

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
        """Refuse to work in a process that did not open it.

        Raises:
            ServiceUnreachableError: this process was forked since then.

        """
        if self.inherited:
            raise ServiceUnreachableError(
                "This connection to the database was opened before this process was forked, and "
                "is the parent's. Open another one here; ws.database.query does."
            )

    def is_usable(self) -> bool:
        """Whether it is young enough, and its server still there.

        At no round trip for a healthy one: an idle connection has nothing to say. If its socket is
        readable, the server has closed it or left a message, and only then is it worth a question.
        """
        if self.closed or time.monotonic() > self.ends:
            return False
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        if not poll.poll(0):
            return True
        with suppress(psycopg2.Error), self.cursor() as cursor:
            cursor.execute("SELECT 1")
            return True
        return False

    def tidy_up(self) -> bool:
        """End any transaction and go back to autocommit, at no round trip where it is so already.

        Returns:
            Whether the next user finds it as a new one: by what was done through its cursors, by
            psycopg2's settings, and by what the server reports of the session without being asked.

        """
        try:
            if not self.autocommit:
                self.rollback()
                self.autocommit = True
            if self.get_transaction_status() != TRANSACTION_STATUS_IDLE:
                # A BEGIN sent as a statement: rollback() knows nothing of it.
                with self.cursor() as cursor:
                    cursor.execute("ROLLBACK")
        except psycopg2.Error:
            return False
        if self.changed or self.closed or self._state() != self._as_new:
            return False
        del self.notices[:]
        return True

    def _state(self) -> tuple[object, ...]:
        return (
            *(self.isolation_level, self.readonly, self.deferrable, self.status),
            *(self.cursor_factory, type(self.notices)),
            *(dict(self.string_types), dict(self.binary_types)),
            *map(self.get_parameter_status, REPORTED),
        )

    def have_read_only(self, *, wanted: bool) -> None:
        """Have the transactions to come be read-only or not. No round trip if they are so already.

        The session stays as it is for the next user, who asks for this as well: a cache that only
        reads never switches. Of the statements that do this, Aurora DSQL takes this one.
        """
        if wanted:
            # The server reports it, as PostgreSQL does since 14, or it says nothing of it.
            reported = self.get_parameter_status("default_transaction_read_only")
            switch = reported == "off" or not (reported or self.reads_only)
        else:
            switch = self.reads_only
        if switch:
            changed = self.changed
            with self.cursor() as cursor:
                mode = "ONLY" if wanted else "WRITE"
                cursor.execute(f"SET SESSION CHARACTERISTICS AS TRANSACTION READ {mode}")
            self.changed, self.reads_only = changed, wanted

    def commands(self, sent: bytes) -> list[str] | None:
        """What the statements in a string are, such as SELECT and COMMIT, by PostgreSQL's parser.

        None if that is not known: the parser is not installed (there is none for Macs with Intel's
        processors), does not take the text, or would read its quotation marks in another way.
        """
        if len(sent) > MAX_PARSED:
            return None
        if self.get_parameter_status("standard_conforming_strings") == "off":
            return None
        try:
            import pgparse  # noqa: PLC0415 -- few statements need it, and not every machine has it

            found = pgparse.parse(sent.decode(encodings[self.encoding]))
        except Exception:  # noqa: BLE001 -- the server is the one to complain of the text
            return None
        return [_command(one["stmt"]) for one in found]


def _command(parsed: dict[str, dict[str, Any]]) -> str:
    ((kind, node),) = parsed.items()
    if kind == "TransactionStmt":
        return str(node["kind"]).removeprefix("TRANS_STMT_")
    return kind.removesuffix("Stmt").upper()


class Cursor(PlainCursor):
    """A cursor that tells its connection what it does."""

    connection: Connection

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 -- psycopg2's name
        """As psycopg2's.

        Raises:
            TransactionError: `work` of run_transaction would end its transaction.
            psycopg2.Error: as psycopg2's.

        """
        _register_adapters()
        if self.connection.working:
            query, vars = self.mogrify(query, vars), None  # noqa: A001
            self._refuse_to_end(query)
        self._do(super().execute, query, vars)

    def executemany(self, query: Any, vars_list: Iterable[Any]) -> None:
        """As psycopg2's."""
        if self.connection.working:
            self._refuse_to_end(self.mogrify(query))
        self._do(super().executemany, query, vars_list)

    def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
        """As psycopg2's."""
        self._do(super().copy_expert, sql, file, size)

    def callproc(self, *args: Any) -> Any:
        """As psycopg2's."""
        self.connection.changed = True  # who knows what it does
        return self._do(super().callproc, *args)

    def _do(self, call: Callable[..., T], *args: Any) -> T:
        """Call what sends something to the server, and note what came of it."""
        connection = self.connection
        connection.check()
        tag = ""
        try:
            answer = interruptible(connection, call, *args)
            tag = self.statusmessage or "COPY"  # of which psycopg2 keeps no tag
            return answer
        except psycopg2.Error as error:
            if error.pgcode != ABORTED:
                connection.failed = error
            raise
        finally:
            connection.changed |= self._may_leave_a_trace(tag.partition(" ")[0])

    def _may_leave_a_trace(self, tag: str) -> bool:
        """Whether something of what was sent may be left in the session; if in doubt, yes."""
        sent: bytes = self.query or b""
        lower = sent.lower()
        if tag:
            makes = tag in {"CREATE", "SELECT"} and self.description is None
            trace = tag not in QUIET_TAGS or (makes and b"temp" in lower)
        else:  # an error undoes it all, but for what a block of code has committed
            trace = b"commit" in lower and (b"$" in lower or b"'" in lower)
        if trace or any(name in lower for name in TRACES):
            return True
        # The tag is that of the last of several statements.
        if b";" in lower.rstrip(SPACE):
            return len(self.connection.commands(sent) or ()) != 1
        return False

    def _refuse_to_end(self, sent: bytes) -> None:
        lower = sent.lower()
        if any(word in lower for word in ENDING):
            # Where the parser cannot tell, the end is noticed when `work` is over.
            found = self.connection.commands(sent) or [sent.split()[0].decode().upper()]
            if ends := ENDS.intersection(found):
                raise TransactionError(ENDED.format(min(ends)))


@cache
def _watched(factory: Any) -> Any:
    """The same kind of cursor, of which its connection hears what it does."""
    return type(factory.__name__, (Cursor, factory), {})


# --- values of numpy and pandas ---

_registered: set[str] = set()


def _register_adapters() -> None:
    """Have psycopg2 adapt the values of numpy and pandas, once each has been imported.

    Not before: importing them takes longer than all the rest. psycopg2 keeps adapters for the
    whole process; without these it writes such values as Python shows them: np.float64(1.5).
    """
    if "numpy" in sys.modules and "numpy" not in _registered:
        numpy = sys.modules["numpy"]
        for kind in (numpy.generic, numpy.ndarray):
            register_adapter(kind, _adapt)
        _registered.add("numpy")
    pandas: Any = sys.modules.get("pandas")
    if hasattr(pandas, "NA") and "pandas" not in _registered:  # else half imported
        for absent in (pandas.NaT, pandas.NA):
            register_adapter(type(absent), lambda _: AsIs("NULL"))
        _registered.add("pandas")


def _adapt(value: Any) -> Any:
    python = to_python(value)
    if type(python) is type(value) or isinstance(python, complex):
        raise TypeError(
            f"A value of type {type(value).__name__} cannot be the parameter of a statement. "
            "Convert it, for example by float(x), int(x) or str(x)."
        )
    return adapt(python)


# --- the pool ---


@dataclass(slots=True, weakref_slot=True, eq=False)
class Lease:
    """One use of a connection. It counts while it exists, however its user ends."""

    connection: Any = None
    thread: threading.Thread = field(default_factory=threading.current_thread)
    since: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class Pool(Generic[C]):
    """Connections for many threads; the one that was used last is lent first.

    Attributes:
        connect: opens a connection.
        keep: how many stay open when nobody uses them.
        limit: how many are open at most.
        timeout_s: the longest wait for one of them, seconds.

    """

    connect: Callable[[], C]
    keep: int
    limit: int
    timeout_s: float

    def __post_init__(self) -> None:
        self._idle: deque[tuple[C, float]] = deque()
        self._leases = WeakSet[Lease]()
        self._closed = False
        self._lock = threading.Lock()
        self._returned = threading.Condition(self._lock)

    def take(self) -> Lease:
        """Borrow a connection.

        Raises:
            PoolTimeoutError: all were in use for the whole wait.
            Exception: as `connect`.

        """
        lease = Lease()
        # The lock itself: an Interrupt may come between a Condition's own lines.
        with self._lock:
            while not self._idle and len(self._leases) >= self.limit:
                left = lease.since + self.timeout_s - time.monotonic()
                if left <= 0:
                    raise PoolTimeoutError(self._used_up())
                self._returned.wait(left)
            self._leases.add(lease)
            if self._idle:
                lease.connection = self._idle.pop()[0]
        try:
            while lease.connection is not None and not lease.connection.is_usable():
                lease.connection.close()
                with self._lock:
                    lease.connection = self._idle.pop()[0] if self._idle else None
            if lease.connection is None:
                lease.connection = self.connect()
        except BaseException:
            self._end(lease)
            raise
        return lease

    def give(self, lease: Lease, *, fit: bool) -> None:
        """Return a connection; it is closed unless it is fit for its next user."""
        now = time.monotonic()
        surplus = [] if fit and not self._closed else [lease.connection]
        with self._lock:
            if not surplus:
                self._idle.append((lease.connection, now))
            while len(self._idle) > self.keep and now - self._idle[0][1] > SURPLUS_S:
                surplus.append(self._idle.popleft()[0])
        self._end(lease)
        for connection in surplus:
            connection.close()

    def close(self) -> None:
        """Close the idle connections now, and the borrowed ones on their return."""
        self._closed = True
        with self._lock:
            idle = list(self._idle)
            self._idle.clear()
        for connection, _ in idle:
            connection.close()

    def _end(self, lease: Lease) -> None:
        with self._lock:
            self._leases.discard(lease)
            self._returned.notify()

    def _used_up(self) -> str:
        """What happened, who has the connections and since when, and what to do."""
        now = time.monotonic()
        leases = sorted(self._leases, key=lambda lease: lease.since)
        holders = [
            f"{one.thread.name if one.thread.is_alive() else 'a thread that ended'} for "
            f"{readable(now - one.since)}"
            for one in leases[:MAX_HOLDERS]
        ]
        if len(leases) > MAX_HOLDERS:
            holders.append(f"and {len(leases) - MAX_HOLDERS} more")
        which = "The only connection" if self.limit == 1 else f"All {self.limit} connections"
        return (
            f"{which} of the pool stayed in use for {self.timeout_s:g} s. Return connections "
            "sooner (keep transactions short), or raise DSQL_POOL_MAX or DSQL_POOL_TIMEOUT. "
            f"Held by {'; '.join(holders)}."
        )
