"""The rows that a mixed load test leaves in `transactions`: counted, and deleted again."""

from __future__ import annotations

from psycopg2.extensions import cursor as Cursor

from workshop_lib.database import Database
from workshop_lib.dsql import MAX_ROWS_PER_TRANSACTION
from workshop_lib.load.traffic import ids_of


def count_transactions(database: Database, run: int) -> int:
    """How many rows of a run the table has."""
    found = database.query(
        "SELECT count(*) FROM transactions WHERE id >= %s AND id < %s", ids_of(run)
    )
    return int(str(found[0][0]))


def delete_transactions(database: Database, run: int) -> int:
    """Delete the rows of a run, in transactions that Aurora DSQL accepts. Returns how many."""

    def delete(cursor: Cursor) -> int:
        cursor.execute(
            "DELETE FROM transactions WHERE id IN (SELECT id FROM transactions "
            "WHERE id >= %s AND id < %s ORDER BY id LIMIT %s)",
            (*ids_of(run), MAX_ROWS_PER_TRANSACTION),
        )
        return cursor.rowcount

    deleted = 0
    while gone := database.run_transaction(delete):
        deleted += gone
    return deleted
