"""Run several transactions against each other, one statement at a time, and note what happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection, cursor as Cursor

MAX_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Step:
    """One statement of one of the sessions.

    Attributes:
        session: whose it is.
        statement: what was sent, with its values.
        outcome: the rows, "ok", or the error, in a line.
        code: the SQLSTATE of the error; empty if there was none.

    """

    session: str
    statement: str
    outcome: str
    code: str = ""


def run_interleaved(
    connect: Callable[[], Connection], script: Iterable[Sequence[Any]]
) -> list[Step]:
    """Send statements in this order, those of each session over a connection of its own.

    An error of the database is noted and the rest goes on. What is not committed at the end is
    rolled back.

    Args:
        connect: opens a connection in autocommit mode, so that BEGIN and COMMIT are statements.
        script: in order, the session, the statement, and the values for its placeholders.

    Returns:
        The steps, as many as the script has.

    """
    with ExitStack() as stack:
        cursors: dict[str, Cursor] = {}
        steps = []
        for session, query, *values in script:
            if session not in cursors:
                connection = connect()
                stack.callback(connection.close)
                cursors[session] = connection.cursor()
            statement = cursors[session].mogrify(query, values or None).decode()
            steps.append(Step(session, statement, *_outcome(cursors[session], statement)))
        return steps


def _outcome(cursor: Cursor, statement: str) -> tuple[str, str]:
    try:
        cursor.execute(statement)
    except psycopg2.Error as error:
        code, message = error.pgcode or "error", str(error).partition("\n")[0]
        return f"{code}: {message}", code
    if cursor.description is None:
        # COMMIT of an aborted transaction is no error: its answer is ROLLBACK.
        return ("ROLLBACK" if cursor.statusmessage == "ROLLBACK" else "ok"), ""
    rows = cursor.fetchall()
    shown = ", ".join(" ".join(map(str, row)) for row in rows[:MAX_SHOWN]) or "no rows"
    more = len(rows) - MAX_SHOWN
    return shown + (f" and {more} more" if more > 0 else ""), ""
