"""psycopg2 connections that know what was done with them: whether they may be used again."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import (
    STATUS_BEGIN,
    TRANSACTION_STATUS_ACTIVE,
    TRANSACTION_STATUS_IDLE,
    TRANSACTION_STATUS_INERROR,
    connection as Connection,
    cursor as Cursor,
    encodings,
)

from workshop_lib import adapters
from workshop_lib.dsql import RuledConnection, RuledCursor
from workshop_lib.errors import ServiceUnreachableError, TransactionError
from workshop_lib.interrupts import interruptible
from workshop_lib.statements import first_words

T = TypeVar("T")

ABORTED = "25P02"
"""in_failed_sql_transaction: of what follows an error, not the error itself."""
LEAVES_NO_TRACE = re.compile(
    "|select|with|values|table|insert|update|delete|merge|copy|fetch|show|explain|create|alter|drop"
    "|comment|grant|revoke|truncate|analyze|vacuum|reindex|refresh|lock|begin|start|commit|end"
    "|rollback|abort|savepoint|release"
)
"""How statements begin that change nothing in the session, but for what follows."""
LEAVES_A_TRACE = (
    *("set_config", "pg_advisory", "pg_try_advisory", "setseed", "pg_temp", "pg_settings", 'u&"'),
)
"""What a session keeps of functions, wherever they are called."""
REPORTED = (
    *("DateStyle", "IntervalStyle", "TimeZone", "client_encoding", "standard_conforming_strings"),
    *("session_authorization", "is_superuser", "application_name"),
)
MAKES_TABLES = frozenset({"create", "select", "with", "values", "table", "explain", ""})
TEMPORARY = re.compile(r"\btemp(orary)?\b", re.IGNORECASE)
ENDS = frozenset({"commit", "end", "abort", "rollback"})
TO_SAVEPOINT = re.compile(r"\s*rollback(\s+(work|transaction))?\s+to\b", re.IGNORECASE)


class WatchedConnection(Connection):
    """A connection, in autocommit mode at first, that knows whether its session has changed.

    Attributes:
        changed: something may be left in the session or in this object that was not there.
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

    def __setattr__(self, name: str, value: object) -> None:
        if name in _PSYCOPG2_S:
            if name == "autocommit":
                self._refuse_in_work(name)
            super().__setattr__("changed", self.changed or name != "autocommit")
        super().__setattr__(name, value)

    def cursor(
        self, name: Any = None, cursor_factory: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As psycopg2's; of a kind of its own, such as RealDictCursor, a watched one.

        Raises:
            ServiceUnreachableError: this process was forked since it was opened.

        """
        self.check()
        adapters.register()
        wanted = cursor_factory or self.cursor_factory
        made = super().cursor(name, _watching(wanted, self), *args, **kwargs)
        if not isinstance(made, _Watched):
            self.changed = True  # what it does is not seen here
        return made

    def commit(self) -> None:
        """As psycopg2's."""
        self.check()
        self._refuse_in_work("commit")
        interruptible(self, super().commit)

    def rollback(self) -> None:
        """As psycopg2's."""
        self.check()
        self._refuse_in_work("rollback")
        interruptible(self, super().rollback)

    def close(self) -> None:
        """As psycopg2's."""
        self._refuse_in_work("close")
        super().close()

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

    def check_committable(self) -> None:
        """Make sure that COMMIT would commit what was done since the transaction began.

        Raises:
            psycopg2.Error: the error that was swallowed and made the transaction void.
            TransactionError: it is void for another reason, or was ended.

        """
        status = self.get_transaction_status()
        if status == TRANSACTION_STATUS_INERROR and self.failed is not None:
            raise self.failed
        if self.closed or status in {TRANSACTION_STATUS_INERROR, TRANSACTION_STATUS_ACTIVE}:
            raise TransactionError(
                "The transaction was not committed: a statement in it failed, and the error was "
                "not passed on. Let it out of `work`, or use a savepoint where there are some."
            )
        if self.status == STATUS_BEGIN and status == TRANSACTION_STATUS_IDLE:
            raise TransactionError(_ENDED.format("A statement"))

    @property
    def may_be_used_again(self) -> bool:
        """Whether the next user will find it as it was when it was new.

        By how values are read, and by what the server reports of the session at no round trip: so
        the settings that would change the next user's answers are seen, whatever set them (a
        function in a view, for example).
        """
        return not (self.changed or self.closed or self.inherited or self._state() != self._as_new)

    def _state(self) -> tuple[object, ...]:
        return (
            dict(self.string_types),
            dict(self.binary_types),
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

    def look(self, text: str, cursor: Cursor) -> None:
        """Note whether a statement may have left something in the session; if in doubt, yes."""
        words, lower = first_words(text), text.lower()
        word = next(words, "")
        if (
            not LEAVES_NO_TRACE.fullmatch(word)
            or (";" in text and next(words, None) is not None)
            or any(name in lower for name in LEAVES_A_TRACE)
            or (word in MAKES_TABLES and cursor.description is None and TEMPORARY.search(text))
        ):
            self.changed = True

    def note(self, error: psycopg2.Error) -> None:
        """Remember why the present transaction is void."""
        if error.pgcode != ABORTED:
            self.failed = error

    def _refuse_in_work(self, name: str) -> None:
        if self.working:
            raise TransactionError(_ENDED.format(f"`{name}`"))


_ENDED = (
    "{} would end the transaction of run_transaction, or has ended it. It commits by itself when "
    "`work` returns, and undoes everything when `work` raises an error."
)
_PSYCOPG2_S = frozenset(
    (
        *("autocommit", "isolation_level", "readonly", "deferrable"),
        *("cursor_factory", "notices", "notifies"),
    )
)


def _changing(name: str, *, ends: bool) -> Callable[..., Any]:
    """A method of psycopg2's connection that changes what is not reset, or even more."""
    original = getattr(Connection, name)

    def method(self: WatchedConnection, *args: Any, **kwargs: Any) -> Any:
        self.check()
        if ends:
            self._refuse_in_work(name)
        self.changed = True
        return original(self, *args, **kwargs)

    method.__name__ = name
    method.__doc__ = f"As psycopg2's; see {name} there."
    return method


for _name in ("set_session", "set_isolation_level", "reset"):
    setattr(WatchedConnection, _name, _changing(_name, ends=True))
for _name in ("tpc_begin", "tpc_prepare", "tpc_commit", "tpc_rollback", "tpc_recover"):
    setattr(WatchedConnection, _name, _changing(_name, ends=True))
for _name in ("set_client_encoding", "lobject"):
    setattr(WatchedConnection, _name, _changing(_name, ends=False))


class _Watched(Cursor):
    """A cursor that tells its connection what it does."""

    connection: WatchedConnection

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 -- psycopg2's name
        """As psycopg2's.

        Raises:
            TransactionError: `work` of run_transaction would end its transaction.
            psycopg2.Error: as psycopg2's.

        """
        adapters.register()
        sent = self.mogrify(query, vars)
        self._do(super().execute, sent, sent)

    def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
        """As psycopg2's."""
        self._do(super().copy_expert, sql, sql, file, size)

    def executemany(self, query: Any, vars_list: Iterable[Any]) -> None:
        """As psycopg2's."""
        self._do(super().executemany, query, query, vars_list)

    def callproc(self, *args: Any) -> Any:
        """As psycopg2's."""
        self.connection.changed = True  # who knows what it does
        return self._do(super().callproc, "", *args)

    def _do(self, call: Callable[..., T], query: Any, *args: Any) -> T:
        """Call what sends this to the server, and note what came of it."""
        connection = self.connection
        connection.check()
        text = self._text_of(query)
        if connection.working:
            _refuse_to_end(text)
        try:
            return interruptible(connection, call, *args)
        except psycopg2.Error as error:
            connection.note(error)
            raise
        finally:
            connection.look(text, self)

    def _text_of(self, query: Any) -> str:
        if isinstance(query, sql.Composable):
            return query.as_string(self)
        if isinstance(query, bytes):
            return query.decode(encodings[self.connection.encoding], "replace")
        return str(query)


class WatchedCursor(_Watched):
    """A cursor of a WatchedConnection."""


class WatchedRuledConnection(WatchedConnection, RuledConnection):
    """The same with DSQL's rules."""


class WatchedRuledCursor(_Watched, RuledCursor):
    """The same with DSQL's rules."""


def _watching(factory: Any, connection: WatchedConnection) -> Any:
    """The same kind of cursor, of which its connection hears what it does."""
    if not isinstance(factory, type) or issubclass(factory, _Watched):
        return factory
    kind: Any = factory
    ruled = isinstance(connection, RuledConnection)
    return _watched_kind(kind, WatchedRuledCursor if ruled else WatchedCursor)


@cache
def _watched_kind(factory: Any, watched: Any) -> Any:
    return type(factory.__name__, (watched, factory), {})


def _refuse_to_end(text: str) -> None:
    words = list(first_words(text))
    for word in words:
        if word in ENDS and not (len(words) == 1 and TO_SAVEPOINT.match(text)):
            raise TransactionError(_ENDED.format(word.upper()))
