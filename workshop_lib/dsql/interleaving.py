"""Play several transactions against each other, one statement at a time, and note what happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection, cursor as Cursor

MOST_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Step:
    """One statement of one of the players.

    Attributes:
        who: the player.
        statement: what was sent, with its values.
        outcome: the rows, "ok", or the error, in a line.
        code: the SQLSTATE of the error; empty if there was none.

    """

    who: str
    statement: str
    outcome: str
    code: str = ""


def play(connect: Callable[[], Connection], script: Iterable[Sequence[Any]]) -> list[Step]:
    """Send statements in this order, those of each player over a connection of their own.

    An error of the database is noted and the play goes on. What is not committed at the end is
    rolled back.

    Args:
        connect: opens a connection in autocommit mode, so that BEGIN and COMMIT are statements.
        script: in order, the player, the statement, and the values for its placeholders.

    Returns:
        The steps, as many as the script has.

    """
    with ExitStack() as stack:
        players: dict[str, Cursor] = {}
        steps = []
        for who, statement, *values in script:
            if who not in players:
                connection = connect()
                stack.callback(connection.close)
                players[who] = connection.cursor()
            steps.append(_step(players[who], who, statement, values))
        return steps


def _step(cursor: Cursor, who: str, query: str, values: Sequence[Any]) -> Step:
    statement = cursor.mogrify(query, values or None).decode()
    try:
        cursor.execute(query, values or None)
    except psycopg2.Error as error:
        code = error.pgcode or "error"
        message = str(error).partition("\n")[0]
        return Step(who, statement, f"{code}: {message}", code)
    if cursor.description is None:
        # COMMIT of an aborted transaction is no error: its answer is ROLLBACK.
        undone = cursor.statusmessage == "ROLLBACK"
        return Step(who, statement, "ROLLBACK" if undone else "ok")
    rows = cursor.fetchall()
    shown = ", ".join(" ".join(map(str, row)) for row in rows[:MOST_SHOWN]) or "no rows"
    more = len(rows) - MOST_SHOWN
    return Step(who, statement, shown + (f" and {more} more" if more > 0 else ""))
