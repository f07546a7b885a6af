"""Notebook 08: a delete in steps, each of which may meet a conflict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date, timedelta
from typing import Any

from psycopg2.errors import SerializationFailure

from workshop_lib.exercises.check import Check

LOG = "exercise_log"
LEFT = (
    f"SELECT count(*) FILTER (WHERE day < %s), count(*) FILTER (WHERE day = %s), "  # noqa: S608
    f"count(*) FILTER (WHERE day > %s) FROM {LOG}"
)
DAYS = 4
"""So many rows are of the day itself, and as many of the next."""
SPARE = 100
PRIME = 59_999
"""Above every id. Modulo a prime, ids that are multiples of another one differ."""


class Observed:
    """What the answer may use of a database; it can let transactions meet conflicts.

    Attributes:
        transactions: how many were asked for.

    """

    def __init__(self, check: Check, most: int, conflicts: bool) -> None:
        self._check, self._database = check, check.ws.database
        self._most, self._conflicts = most, conflicts
        self.transactions = 0

    def __getattr__(self, name: str) -> Any:
        self._check.judge("used", name=name)
        return getattr(self._database, name)

    def query(self, statement: Any, params: Any = None, **_: Any) -> Any:
        """As the database's, but not to delete with."""
        return self._database.query(statement, params, read_only=True)

    def run_transaction(self, work: Callable[[Any], Any]) -> Any:
        """As the database's. With conflicts: what `work` does first is undone, and it runs again.

        That happens after all its work was done, as on DSQL, where conflicts appear at COMMIT.
        """
        self.transactions += 1
        self._check.judge("begun", transactions=self.transactions, most=self._most)
        if self._conflicts:
            self._do_and_undo(work)
        return self._database.run_transaction(work)

    def _do_and_undo(self, work: Callable[[Any], Any]) -> None:
        with self._database.connection() as connection, suppress(SerializationFailure):
            connection.autocommit = False
            with connection.cursor() as cursor:
                work(cursor)
            connection.rollback()


def delete_before(check: Check) -> None:
    """All older rows go, no others, in transactions within the limit, and are counted once."""
    for call, older, conflicts in check.table.cases:
        [day] = check.arguments(call, database=None)[1:]
        with _log(check, day, int(older)):
            _try_delete(check, call, day, int(older), bool(conflicts))
            _try_delete(check, call, day, 0, False)


@contextmanager
def _log(check: Check, day: date, older: int) -> Iterator[None]:
    """The table, with rows before the day, on the day and after it; ids are in another order."""
    days = [day - timedelta(days=1 + number % 50) for number in range(older)]
    days += [day] * DAYS + [day + timedelta(days=1)] * DAYS
    rows = [(number * 7_919 % PRIME, one, f"entry {number}") for number, one in enumerate(days)]
    query = check.ws.database.query
    query(f"DROP TABLE IF EXISTS {LOG}")
    try:
        query(f"CREATE TABLE {LOG} (id BIGINT PRIMARY KEY, day DATE NOT NULL, note TEXT)")
        check.ws.database.insert_rows(LOG, ("id", "day", "note"), rows)
        yield
    finally:
        query(f"DROP TABLE IF EXISTS {LOG}")


def _try_delete(check: Check, call: str, day: date, older: int, conflicts: bool) -> None:
    when = "conflicts" if conflicts else "older" if older else "none_older"
    check.facts |= {"older": older, "days": DAYS, "conflicts": conflicts}
    check.facts["when"] = check.say(when)
    database = Observed(check, older + SPARE, conflicts)
    got = check.call(database, day, shown=f"`{call}`")
    left, same, later = check.ws.database.query(LEFT, (day,) * 3)[0]
    check.facts |= {"left": left, "same": same, "later": later}
    check.judge("deleted", got=got, transactions=database.transactions)


JUDGES = {"08.2": delete_before}
