"""What of Aurora DSQL's behaviour no trigger can bring about, done by our own connections.

Two things. Statements that PostgreSQL knows and DSQL refuses are replaced by one that fails on the
server with DSQL's error. And conflicts appear when a transaction commits: PostgreSQL makes the
second writer of a row wait for the first. Here it waits for a moment only; then its statement is
undone, the transaction goes on as if nothing had happened, and is made to fail at COMMIT.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from psycopg2 import sql
from psycopg2.errors import LockNotAvailable, SerializationFailure
from psycopg2.extensions import (
    TRANSACTION_STATUS_IDLE,
    TRANSACTION_STATUS_INERROR,
    connection as Connection,
    cursor as Cursor,
)

from workshop_lib.errors import SettingsError

CONFLICT = ("40001", "change conflicts with another transaction (OC000)")
LOCK_WAIT_MS = 100
"""How long the second writer of a row waits for the first, milliseconds. On DSQL nobody waits."""
DDL_WAIT_MS = 10_000
NOT_SUPPORTED = "0A000"
REFUSED = {
    r"savepoint\b": "unsupported transaction statement: SAVEPOINT",
    r"release\b": "unsupported transaction statement: RELEASE",
    r"rollback\s+(work\s+|transaction\s+)?to\b": "unsupported transaction statement: ROLLBACK TO",
    r"set\s+transaction\b": 'setting configuration parameter "TRANSACTION" not supported',
    r"vacuum\b": "unsupported VACUUM statement",
    r"listen\b": "unsupported statement: Listen",
    r"unlisten\b": "unsupported statement: Unlisten",
    r"notify\b": "unsupported statement: Notify",
    r"alter\s+system\b": "unsupported statement: AlterSystem",
    r"alter\s+(role|user)\b[^;]*\bpassword\b": "unsupported role option: PASSWORD",
    r"create\s+database\b": "unsupported statement: Createdb",
    r"drop\s+database\b": "unsupported statement: Dropdb",
    r"create\s+tablespace\b": "unsupported statement: CreateTableSpace",
    r"merge\b": "unsupported statement: Merge",
}
"""How a statement begins that DSQL refuses, and what DSQL says."""
_REFUSED = [(re.compile(how, re.IGNORECASE), says) for how, says in REFUSED.items()]
_ANY_REFUSED = re.compile("|".join(REFUSED), re.IGNORECASE)
_ASYNC = re.compile(r"(create\s+(?:unique\s+)?index)\s+async\b", re.IGNORECASE)
_DDL = re.compile(r"(create|alter|drop|grant|revoke|comment)\b", re.IGNORECASE)
_LOCKING = re.compile(
    r"\bfor\s+(no\s+key\s+)?(update|share|key\s+share)\b[^;)]*;?\s*$", re.IGNORECASE
)
_CHANGES = re.compile(r"(insert|update|delete)\b", re.IGNORECASE)
_CHANGES_WITHIN = re.compile(r"\b(insert\s+into|update|delete\s+from)\b", re.IGNORECASE)
_RETURNING = re.compile(r"\breturning\b", re.IGNORECASE)
_IGNORED = re.compile(r"(\s+|--[^\n]*(\n|$)|/\*.*?\*/)*", re.DOTALL)


def set_rules(connection: Connection, *, on: bool) -> None:
    """Switch the rules of a new connection on or off.

    Raises:
        SettingsError: they are to be on and are not installed in this server.

    """
    with connection.cursor(cursor_factory=Cursor) as cursor:
        if not on:
            cursor.execute("SET workshop.dsql_rules = 'off'")
            return
        cursor.execute(
            f"SET workshop.dsql_rules = 'on'; SET lock_timeout = {LOCK_WAIT_MS}; "
            "SELECT to_regnamespace('dsql_rules') IS NOT NULL"
        )
        (installed,) = cursor.fetchone() or (False,)
    if not installed:
        raise SettingsError(
            "DSQL_RULES is on, and this PostgreSQL has not got the rules. `workshop rules install` "
            "installs them, signed in as its superuser; DSQL_RULES=off goes without them."
        )


class RuledConnection(Connection):
    """A connection that keeps DSQL's rules. `guarded`: a hidden savepoint is there."""

    guarded = False


class RuledCursor(Cursor):
    """A cursor that keeps DSQL's rules, and otherwise is psycopg2's."""

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 -- psycopg2's name
        """As psycopg2's.

        Raises:
            psycopg2.errors.SerializationFailure: a conflict, of a statement that is a transaction
                of its own, or one with RETURNING whose rows nobody can know.
            psycopg2.Error: as on DSQL.

        """
        connection: Any = self.connection
        if connection.get_transaction_status() == TRANSACTION_STATUS_IDLE:
            connection.guarded = False  # a new transaction: the savepoint went with the last
        text = self._text(query)
        start = _IGNORED.match(text).end()  # type: ignore[union-attr]  # it matches emptiness
        if _ANY_REFUSED.match(text, start):
            says = next(says for pattern, says in _REFUSED if pattern.match(text, start))
            return self._refuse(NOT_SUPPORTED, says)
        if _ASYNC.match(text, start):
            plain = _ASYNC.sub(r"\1", text, count=1)
            return super().execute("SELECT dsql_rules.create_index(%s) AS job_id", (plain,))
        if _DDL.match(text, start):
            return self._define(query, vars)
        if not _may_wait(text, start):
            return super().execute(query, vars)
        if self._alone:
            return self._execute_alone(query, vars)
        return self._execute_guarded(query, vars, text)

    def executemany(self, query: Any, vars_list: Iterable[Any]) -> None:
        """As psycopg2's: one after another."""
        for one in vars_list:
            self.execute(query, one)

    def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
        """As psycopg2's; a row that another transaction is writing is a conflict at once."""
        try:
            super().copy_expert(sql, file, size)
        except (LockNotAvailable, SerializationFailure):
            # Nothing more can be asked of this transaction. Not by a subclass's own rollback.
            Connection.rollback(self.connection)
            self._refuse(*CONFLICT)

    @property
    def _alone(self) -> bool:
        """Whether the next statement is a transaction of its own, or there is nothing to save."""
        status = self.connection.get_transaction_status()
        if status == TRANSACTION_STATUS_INERROR:
            return True
        return bool(self.connection.autocommit) and status == TRANSACTION_STATUS_IDLE

    def _execute_alone(self, query: Any, values: Any) -> None:
        try:
            super().execute(query, values)
        except (LockNotAvailable, SerializationFailure):
            self._refuse(*CONFLICT)

    def _execute_guarded(self, query: Any, values: Any, text: str) -> None:
        """Run a statement of a transaction; if it conflicts, doom the transaction and go on."""
        connection: Any = self.connection
        release = "RELEASE SAVEPOINT dsql_rules; " if connection.guarded else ""
        super().execute(f"{release}SAVEPOINT dsql_rules")
        connection.guarded = True
        try:
            super().execute(query, values)
        except (LockNotAvailable, SerializationFailure):
            super().execute("ROLLBACK TO SAVEPOINT dsql_rules")
            if _RETURNING.search(text):
                self._refuse(*CONFLICT)
            super().execute("SELECT dsql_rules.doom(%s, %s)", CONFLICT)
            locking = _LOCKING.search(text)
            if locking:
                super().execute(text[: locking.start()], values)
            else:
                super().execute("SET LOCAL workshop.doomed = 'on'")  # no rows, as after a change

    def _define(self, query: Any, values: Any) -> None:
        """Wait longer for a table than for a row: nobody plays two parts with definitions."""
        super().execute(f"SET lock_timeout = {DDL_WAIT_MS}")
        try:
            super().execute(query, values)
        finally:
            if self.connection.get_transaction_status() != TRANSACTION_STATUS_INERROR:
                super().execute(f"SET lock_timeout = {LOCK_WAIT_MS}")

    def _refuse(self, code: str, message: str) -> None:
        """Have the server raise it: the error is a real one, and the transaction is aborted."""
        super().execute("SELECT dsql_rules.refuse(%s, %s)", (code, message))

    def _text(self, query: Any) -> str:
        if isinstance(query, sql.Composable):
            return query.as_string(self)
        return query.decode("utf-8", "replace") if isinstance(query, bytes) else str(query)


def _may_wait(text: str, start: int) -> bool:
    """Whether a statement may meet a row that another transaction holds."""
    if _CHANGES.match(text, start):
        return True
    verb = text[start : start + 6].lower()
    if verb.startswith("with"):
        return bool(_CHANGES_WITHIN.search(text, start) or _LOCKING.search(text, start))
    return verb == "select" and bool(_LOCKING.search(text, start))
