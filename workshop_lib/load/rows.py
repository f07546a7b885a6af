"""The rows that load tests leave in the tables: found by their ids, counted, and deleted again."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor

from workshop_lib.database import Database
from workshop_lib.dsql import MAX_ROWS_PER_TRANSACTION
from workshop_lib.errors import DataError
from workshop_lib.load.traffic import FIRST_ID, MAX_STATEMENTS, row_id

# A run's number is below this.
MAX_RUNS = 1 << 32


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
        """How many there are; 0 if there is no such table."""
        try:
            return int(str(database.query(self._sql("SELECT count(*)"), self.values)[0][0]))
        except psycopg2.errors.UndefinedTable:
            return 0

    def delete(self, database: Database) -> int:
        """Delete them, in transactions that Aurora DSQL accepts. Returns how many."""
        chosen = self._sql("SELECT id")
        statement = sql.SQL("DELETE FROM {} WHERE id IN ({} ORDER BY id LIMIT %s)").format(
            sql.Identifier(self.table), chosen
        )

        def delete(cursor: Cursor) -> int:
            cursor.execute(statement, (*self.values, MAX_ROWS_PER_TRANSACTION))
            return cursor.rowcount

        deleted = 0
        while gone := database.run_transaction(delete):
            deleted += gone
        return deleted

    def _sql(self, select: str) -> sql.Composed:
        return sql.SQL(f"{select} FROM {{}} WHERE {self.where}").format(sql.Identifier(self.table))


def rows_of(run: str | int, *, measured: bool = False) -> LoadRows:
    """The rows of a run: of an insert load by its name, of a mixed load by its number.

    Args:
        run: its name or number.
        measured: without those of an insert load's warm-up.

    Raises:
        DataError: this cannot be the name of a run.

    """
    between = "id >= %s AND id < %s"
    if isinstance(run, int):
        return LoadRows("transactions", between, (row_id(run, 0), row_id(run + 1, 0)))
    if not run or "/" in run:
        raise DataError(f"{run!r} is not the name of a run. A report has it: report.run.")
    # "0" follows "/", and ":" follows "9": a worker's number comes next, or "warm-up-".
    end = f"{run}/:" if measured else f"{run}0"
    return LoadRows("business_events", between, (f"{run}/", end))


def rows_named(run: str | None) -> list[LoadRows]:
    """The rows of the run with this name or number, in either table; None: of all runs.

    Raises:
        DataError: this can be neither.

    """
    if run is None:  # nothing else writes events; other transactions have lower ids
        return [
            LoadRows("business_events", "id LIKE %s", ("%/%",)),
            LoadRows("transactions", "id >= %s", (FIRST_ID,)),
        ]
    number = [rows_of(int(run))] if run.isdecimal() and int(run) < MAX_RUNS else []
    return [rows_of(run), *number]


def count_rows(database: Database, run: str | int) -> int:
    """How many rows of a run are in the table, a warm-up's among them."""
    return rows_of(run).count(database)


def delete_rows(database: Database, run: str | int) -> int:
    """Delete the rows of a run, in transactions that Aurora DSQL accepts. Returns how many."""
    return rows_of(run).delete(database)


def count_by_message(database: Database, run: int) -> dict[int, int]:
    """How many rows of a mixed load each message has in the table, by its number."""
    rows = database.query(
        "SELECT (id - %s) / %s AS message, count(*) FROM transactions "
        "WHERE id >= %s AND id < %s GROUP BY 1",
        (row_id(run, 0), MAX_STATEMENTS, *rows_of(run).values),
    )
    return {int(str(message)): int(str(number)) for message, number in rows}
