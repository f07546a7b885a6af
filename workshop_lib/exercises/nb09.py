"""Notebook 09: work that conflicts, with real errors of the database."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from psycopg2.errors import Error, OperationalError, StatementCompletionUnknown

from workshop_lib.dsql import is_conflict
from workshop_lib.exercises.check import Check, Recorder, say_error

ATTEMPTS = 10
DRAWS = 300
TABLE = "exercise_conflict"
SCHEMA_CHANGED = "schema has been updated by another transaction, please retry: (OC001)"
"""DSQL's other conflict: the same code, another text. It does not happen on PostgreSQL."""


def with_retry(check: Check) -> None:
    """Values pass, conflicts are tried again with random waits, other errors pass at once."""
    for value in ("done", None, 0):
        _try(check, "returns", [], 0, value)
    *conflicts, other_conflict, duplicate = _real_errors(check)
    other_conflict.args = (SCHEMA_CHANGED,)
    in_doubt = StatementCompletionUnknown("nobody knows whether it was committed")
    in_doubt.__setstate__({"pgcode": "40003"})  # the only way to have one: servers hardly ever do
    lost = OperationalError("the connection was lost")
    for fails in (1, 3, ATTEMPTS - 1):
        _try(check, "conflicts", conflicts, fails)
    _try(check, "conflicts", conflicts, 1, None)
    _try(check, "other_text", [other_conflict], 1)
    _try(check, "every_attempt", conflicts, 10**6)
    for error in (duplicate, in_doubt, lost, ValueError("no such planet")):
        _try(check, "raises", [error], 1)
    runs = [_try(check, "conflicts", conflicts, ATTEMPTS - 1) for _ in range(DRAWS)]
    for retry, waits in enumerate(zip(*runs, strict=True), start=1):
        limit = min(0.1, 0.001 * 2.0**retry)
        check.judge("spread", retry=retry, limit=limit, waits=waits, mean=sum(waits) / DRAWS)


def _try(
    check: Check, when: str, errors: Sequence[Exception], fails: int, value: object = "done"
) -> list[float]:
    """Call the answer with work that fails so many times, then returns a value; what it slept."""

    def fail_or_return() -> object:
        attempts = len(work.calls)
        check.judge("work", attempts=attempts)
        if attempts > fails:
            return value
        error = errors[(attempts - 1) % len(errors)]
        error.__cause__ = error.__context__ = None  # nothing of the last time
        raise error.with_traceback(None)

    def note(seconds: object) -> None:
        check.judge("sleep", seconds=seconds, waits=len(sleep.calls))

    work, sleep = Recorder(fail_or_return), Recorder(note)
    raised = say_error(errors[-1] if errors else None)
    called = check.say(when, fails=times(fails), value=value, error=raised)
    outcome = check.attempt(work, sleep)
    error = outcome.error
    check.facts |= {"stage": when, "when": called, "got": outcome.value, "value": value}
    check.facts |= {"error": error, "came": say_error(error), "conflicts": errors}
    check.facts |= {"conflict": error is not None and is_conflict(error)}
    tries = 1 if when == "raises" else min(fails + 1, ATTEMPTS)
    check.judge("tried", error, attempts=len(work.calls), waits=len(sleep.calls), tries=tries)
    return [seconds for [seconds] in sleep.calls]


def times(number: int) -> str:
    """How often, in words."""
    return {0: "never", 1: "once"}.get(number, f"{number} times")


def even(waits: Sequence[float], limit: float) -> bool:
    """Whether random waits reach both ends of their range, and lie evenly in between.

    So many reach into both outer tenths, but once in 10^12 times; their mean lies between 0.35 and
    0.65 of the range, which is 9 standard errors each way.
    """
    ends = min(waits) <= 0.1 * limit and max(waits) >= 0.9 * limit
    between = any(limit < 3 * wait < 2 * limit for wait in waits)
    return ends and between and 0.35 < sum(waits) / len(waits) / limit < 0.65


def _real_errors(check: Check) -> list[Exception]:
    """From the database itself: conflicts, one more than are tried, and an error that is none.

    The second transaction is told of its conflict at COMMIT on DSQL, at its UPDATE on PostgreSQL.
    The first has committed by then, so that nobody waits for it, whatever rules are in force.
    """
    errors: list[Exception] = []
    ws = check.ws
    read = f"SELECT n FROM {TABLE}"  # noqa: S608 - our own name; here a snapshot is taken
    update = f"UPDATE {TABLE} SET n = n + 1 WHERE id = 1"  # noqa: S608
    insert = f"INSERT INTO {TABLE} VALUES (1, 0)"  # noqa: S608
    try:
        ws.database.query(f"CREATE TABLE IF NOT EXISTS {TABLE} (id INT PRIMARY KEY, n INT)")
        ws.database.insert_rows(TABLE, ("id", "n"), [(1, 0)])
        with closing(ws.connect()) as one, closing(ws.connect()) as other:
            first, second = one.cursor(), other.cursor()
            script = [(cursor, text) for text in ("BEGIN", read) for cursor in (first, second)]
            script += [(first, update), (first, "COMMIT")]
            script += [(second, update), (second, "COMMIT"), (second, "ROLLBACK")]
            for cursor, statement in [*script * (ATTEMPTS + 1), (first, insert)]:
                try:
                    cursor.execute(statement)
                except Error as error:
                    errors.append(error)
    finally:
        ws.database.query(f"DROP TABLE IF EXISTS {TABLE}")
    check.judge("errors", errors=errors, wanted=ATTEMPTS + 2)
    return errors


JUDGES = {"09.1": with_retry}
