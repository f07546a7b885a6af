"""The rows that load tests leave in the tables: found by their ids, counted, and deleted again."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor

from workshop_lib.database import Database
from workshop_lib.dsql import MAX_ROWS_PER_TRANSACTION
from workshop_lib.errors import DataError
from workshop_lib.load.traffic import FIRST_ID, IDS_PER_RUN, MAX_STATEMENTS, row_id

BETWEEN = "id >= %s AND id < %s"


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
        """Delete them, if there is the table, in transactions that Aurora DSQL accepts.

        Returns:
            How many.

        """
        statement = sql.SQL("DELETE FROM {} WHERE id IN ({} ORDER BY id LIMIT %s)").format(
            sql.Identifier(self.table), self._sql("SELECT id")
        )

        def delete(cursor: Cursor) -> int:
            cursor.execute(statement, (*self.values, MAX_ROWS_PER_TRANSACTION))
            return cursor.rowcount

        deleted = 0
        with suppress(psycopg2.errors.UndefinedTable):
            while gone := database.run_transaction(delete):
                deleted += gone
        return deleted

    def _sql(self, select: str) -> sql.Composed:
        return sql.SQL(f"{select} FROM {{}} WHERE {self.where}").format(sql.Identifier(self.table))


def rows_of(run: str | None) -> list[LoadRows]:
    """The rows of a run in each table, those of a warm-up among them; None: of all runs.

    Raises:
        DataError: this cannot be the name of a run.

    """
    if run is None:  # nothing else writes events; other transactions have lower ids
        return [
            LoadRows("business_events", "id LIKE %s", ("%/%",)),
            LoadRows("transactions", "id >= %s", (FIRST_ID,)),
        ]
    if not run or "/" in run:
        raise DataError(f"{run!r} is not the name of a run. A report has it: report.run.")
    return [  # "0" follows "/"
        LoadRows("business_events", BETWEEN, (f"{run}/", f"{run}0")),
        LoadRows("transactions", BETWEEN, (row_id(run, 0), row_id(run, IDS_PER_RUN))),
    ]


def measured_rows(run: str) -> LoadRows:
    """The rows of an insert load without its warm-up's, in whatever order a server sorts texts."""
    found = (f"{run}/", f"{run}0", f"{run}/warm-up-%")
    return LoadRows("business_events", f"{BETWEEN} AND id NOT LIKE %s", found)


def count_rows(database: Database, run: str) -> int:
    """How many rows of a run are in the tables, a warm-up's among them."""
    return sum(rows.count(database) for rows in rows_of(run))


def delete_rows(database: Database, run: str) -> int:
    """Delete the rows of a run, in transactions that Aurora DSQL accepts. Returns how many."""
    return sum(rows.delete(database) for rows in rows_of(run))


def count_by_message(database: Database, run: str) -> dict[int, int]:
    """How many rows of a mixed load each message has in the table, by its number."""
    first, end = row_id(run, 0), row_id(run, IDS_PER_RUN)
    rows = database.query(
        "SELECT (id - %s) / %s AS message, count(*) FROM transactions "
        "WHERE id >= %s AND id < %s GROUP BY 1",
        (first, MAX_STATEMENTS, first, end),
    )
    return {int(str(message)): int(str(number)) for message, number in rows}
