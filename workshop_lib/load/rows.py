"""The rows that load tests leave in the tables: found by their ids, counted, and deleted again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor

from workshop_lib.database import Database
from workshop_lib.dsql import MAX_ROWS_PER_TRANSACTION
from workshop_lib.errors import DataError, WorkshopError, redact
from workshop_lib.load.jobs import MAX_STATEMENTS
from workshop_lib.load.traffic import FIRST_ID, ids_of, row_id

R = TypeVar("R", str, int)
T = TypeVar("T")
MAX_RUNS = 1 << 32
"""A run's number is below this."""


@dataclass(frozen=True, slots=True)
class LoadRows:
    """Rows of load tests in one table.

    Attributes:
        table: which.
        where: a condition on its ids.
        values: for the condition's placeholders.

    """

    table: str
    where: str
    values: tuple[str | int, ...]

    def count(self, database: Database) -> int:
        """How many there are; 0 where there is not even the table."""
        if database.query("SELECT to_regclass(%s) IS NULL", (self.table,))[0][0]:
            return 0
        return int(str(database.query(self._sql("SELECT count(*) FROM {}"), self.values)[0][0]))

    def delete(self, database: Database) -> int:
        """Delete them, in transactions that Aurora DSQL accepts. Returns how many."""

        def delete(cursor: Cursor) -> int:
            cursor.execute(
                sql.SQL("DELETE FROM {} WHERE id IN ({} ORDER BY id LIMIT %s)").format(
                    sql.Identifier(self.table), self._sql("SELECT id FROM {}")
                ),
                (*self.values, MAX_ROWS_PER_TRANSACTION),
            )
            return cursor.rowcount

        deleted = 0
        while gone := database.run_transaction(delete):
            deleted += gone
        return deleted

    def _sql(self, begin: str) -> sql.Composed:
        select = sql.SQL(begin).format(sql.Identifier(self.table))
        return select + sql.SQL(f" WHERE {self.where}")


def events_of(run: str) -> LoadRows:
    """The rows of an insert load.

    Raises:
        DataError: this cannot be the name of a run.

    """
    if not run or "/" in run:
        raise DataError(f"{run!r} is not the name of a run. A report has it: report.run.")
    # "0" follows "/".
    return LoadRows("business_events", "id >= %s AND id < %s", (f"{run}/", f"{run}0"))


def warm_up_of(run: str) -> LoadRows:
    """Those rows of an insert load that its warm-up stored."""
    return LoadRows("business_events", "id LIKE %s", (f"{run}/warm-up-%",))


def transactions_of(run: int) -> LoadRows:
    """The rows of a mixed load, or of a stream."""
    return LoadRows("transactions", "id >= %s AND id < %s", ids_of(run))


def all_rows() -> tuple[LoadRows, LoadRows]:
    """The rows of all load tests. Nothing else writes events; other transactions have lower ids."""
    return (
        LoadRows("business_events", "id LIKE %s", ("%/%",)),
        LoadRows("transactions", "id >= %s", (FIRST_ID,)),
    )


def rows_of(run: str) -> tuple[LoadRows, ...]:
    """The rows of a run of this name, or of this number, wherever they are.

    Raises:
        DataError: this can be neither.

    """
    if run.isdecimal() and int(run) < MAX_RUNS:
        return events_of(run), transactions_of(int(run))
    return (events_of(run),)


def count_transactions(database: Database, run: int) -> int:
    """How many rows of a run the table has."""
    return transactions_of(run).count(database)


def count_by_message(database: Database, run: int) -> dict[int, int]:
    """How many rows of a mixed load each message has in the table, by its number."""
    rows = database.query(
        "SELECT (id - %s) / %s AS message, count(*) FROM transactions "
        "WHERE id >= %s AND id < %s GROUP BY 1",
        (row_id(run, 0), MAX_STATEMENTS, *ids_of(run)),
    )
    return {int(str(message)): int(str(number)) for message, number in rows}


def delete_transactions(database: Database, run: int) -> int:
    """Delete the rows of a run, in transactions that Aurora DSQL accepts. Returns how many."""
    return transactions_of(run).delete(database)


def count_or_say(
    count: Callable[[Database, R], T], database: Database, run: R
) -> tuple[T | None, str]:
    """What a count of a run's rows gives; or None, and why they cannot be counted."""
    try:
        return count(database, run), ""
    except (WorkshopError, psycopg2.Error) as error:
        return None, redact(error)
