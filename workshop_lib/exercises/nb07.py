"""The exercises of notebook 07: retry with back-off and jitter, and a delete in steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import date, timedelta
from typing import Any

import psycopg2

from workshop_lib.dsql import is_conflict
from workshop_lib.exercises.engine import Exercise, Wrong, call, function_of, show

ATTEMPTS = 10
FIRST_S = 0.001
MOST_S = 0.1
DRAWS = 60
"""So many random waits do not all lie in one half of their range, but once in 10^18 times."""
TABLE = "exercise_conflict"


class Work:
    """A piece of work that fails so many times, and then returns something.

    Attributes:
        attempts: how often it was called.
        waits: what the function slept, seconds, in order.

    """

    def __init__(self, error: BaseException | None, fails: int, value: object) -> None:
        self._error, self._fails, self._value = error, fails, value
        self.attempts = 0
        self.waits: list[float] = []

    def __call__(self) -> object:
        """Fail or return, and count it."""
        self.attempts += 1
        if self.attempts > 10 * ATTEMPTS:
            raise Wrong(f"`work()` was called more than {10 * ATTEMPTS} times. At most {ATTEMPTS}.")
        if self._error is not None and self.attempts <= self._fails:
            raise self._error
        return self._value

    def sleep(self, seconds: float) -> None:
        """What the learner's function is handed to wait with."""
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise Wrong(f"`sleep({show(seconds)})`: expected a number of seconds.")
        self.waits.append(seconds)


def limit_s(retry: int) -> float:
    """The longest wait before a retry; the first is number 1.

    >>> [limit_s(n) for n in (1, 2, 6, 7)]
    [0.002, 0.004, 0.064, 0.1]
    """
    return min(MOST_S, FIRST_S * 2.0**retry)


def check_with_retry(answer: object, ws: Any) -> None:
    """Values pass, conflicts are tried again with random waits, other errors pass at once."""
    function = function_of(answer, "with_retry", "work", "sleep")
    for value in ("done", None, 0):
        _check_success(function, Work(None, 0, value), value, 0)
    with closing(ws.connect()) as one, closing(ws.connect()) as other:
        conflict, other_error = _real_errors(ws, one, other)
    for fails in (1, 3, ATTEMPTS - 1):
        _check_success(function, Work(conflict, fails, "done"), "done", fails)
    _check_gives_up(function, conflict)
    for error in (other_error, ValueError("no such planet")):
        _check_passes(function, error)
    _check_waits(function, conflict)


def _check_success(function: Callable[..., Any], work: Work, value: object, fails: int) -> None:
    got = _run(function, work, f"`work()` conflicts {fails} times, then returns {value!r}")
    if got is not value:
        raise Wrong(
            f"`work()` conflicted {fails} times and then returned `{show(value)}`; `with_retry` "
            f"returned `{show(got)}`. Expected: what `work()` returned, also if that is None or 0."
        )
    _check_counts(work, fails + 1, fails, f"`work()` succeeded at attempt {fails + 1}")


def _check_counts(work: Work, attempts: int, waits: int, when: str) -> None:
    if work.attempts != attempts:
        raise Wrong(
            f"{when}, and `work` was called {work.attempts} times in all. Expected: {attempts}."
        )
    if len(work.waits) != waits:
        raise Wrong(
            f"{when}, and `sleep` was called {len(work.waits)} times. Expected: {waits}, once "
            "before each retry, and never when no attempt follows."
        )


def _run(function: Callable[..., Any], work: Work, when: str) -> Any:
    """What the function returns.

    Raises:
        Wrong: it raised, though the work succeeds in time.

    """
    try:
        return call(f"{when}: `with_retry`", function, work, work.sleep)
    except Wrong as wrong:
        cause = wrong.__cause__
        if isinstance(cause, Wrong):
            raise cause from None
        if cause is not None and is_conflict(cause):
            raise Wrong(
                f"{when}; `with_retry` called `work` {work.attempts} times and let the conflict "
                f"pass. Expected: up to {ATTEMPTS} attempts."
            ) from cause
        raise


def _raised(function: Callable[..., Any], work: Work) -> BaseException | None:
    try:
        function(work, work.sleep)
    except Wrong:
        raise
    except Exception as error:  # noqa: BLE001 -- which one it was is what is judged
        return error
    return None


def _check_gives_up(function: Callable[..., Any], conflict: BaseException) -> None:
    work = Work(conflict, 10**6, "done")
    error = _raised(function, work)
    when = "Every attempt conflicted"
    if error is None:
        raise Wrong(
            f"{when}, and `with_retry` returned as if nothing had happened. Expected: after "
            f"{ATTEMPTS} attempts the conflict itself, so that the caller knows."
        )
    _check_counts(work, ATTEMPTS, ATTEMPTS - 1, when)
    if error is not conflict:
        raise Wrong(
            f"{when}; expected the conflict of the last attempt, and there came "
            f"`{type(error).__name__}: {error}`."
        )


def _check_passes(function: Callable[..., Any], error: BaseException) -> None:
    work = Work(error, 1, "done")
    code = f"SQLSTATE {error.pgcode}" if isinstance(error, psycopg2.Error) else "no database error"
    name = f"{type(error).__name__} ({code})"
    raised = _raised(function, work)
    if work.attempts > 1:
        raise Wrong(
            f"`work()` raised {name}, and was tried again. Only a conflict, SQLSTATE 40001, goes "
            "away by itself: any other error passes at once."
        )
    if raised is not error:
        what = "nothing" if raised is None else f"{type(raised).__name__}: {raised}"
        raise Wrong(f"`work()` raised {name}; expected that very error, and there came {what}.")
    if work.waits:
        raise Wrong(f"`work()` raised {name}, and `sleep` was called. Nothing is to be waited for.")


def _check_waits(function: Callable[..., Any], conflict: BaseException) -> None:
    runs = []
    for _ in range(DRAWS):
        work = Work(conflict, ATTEMPTS - 1, "done")
        _run(function, work, "`work()` conflicts 9 times")
        runs.append(work.waits)
    for retry, waits in enumerate(zip(*runs, strict=True), start=1):
        _check_range(retry, waits)


def _check_range(retry: int, waits: tuple[float, ...]) -> None:
    limit, low, high = limit_s(retry), min(waits), max(waits)
    rule = f"between 0 and {limit:g} s, which is min({MOST_S:g}, {FIRST_S:g} * 2**{retry})"
    if low < 0 or high > limit * (1 + 1e-9):
        worst = high if high > limit else low
        raise Wrong(
            f"Before retry {retry} it waited for {worst:.4g} s. Expected: {rule}. Do you count the "
            "retries from 1, keep to the limit, and take seconds?"
        )
    if low == high:
        raise Wrong(
            f"Before retry {retry} it always waited for {low:.4g} s. Expected: a random time "
            f"{rule}. Those who met once would meet again at the same moment."
        )
    if low > limit / 2 or high < limit / 2:
        raise Wrong(
            f"Before retry {retry} it waited for {low:.4g} to {high:.4g} s in {DRAWS} runs. "
            f"Expected: any time {rule}, such as `random.uniform(0, limit)` gives."
        )


def _real_errors(ws: Any, one: Any, other: Any) -> tuple[psycopg2.Error, psycopg2.Error]:
    """A conflict, and an error that is none, both from the database itself."""
    ws.database.query(f"CREATE TABLE IF NOT EXISTS {TABLE} (id INT PRIMARY KEY, n INT NOT NULL)")
    ws.database.insert_rows(TABLE, ("id", "n"), [(1, 0)])
    try:
        with one.cursor() as first, other.cursor() as second:
            for cursor in (first, second):
                cursor.execute("BEGIN")
                cursor.execute(f"UPDATE {TABLE} SET n = n + 1 WHERE id = 1")  # noqa: S608
            first.execute("COMMIT")
            conflict = _error_of(second, "COMMIT")
            return conflict, _error_of(first, "SELECT 1 / 0")
    finally:
        ws.database.query(f"DROP TABLE IF EXISTS {TABLE}")


def _error_of(cursor: Any, statement: str) -> psycopg2.Error:
    try:
        cursor.execute(statement)
    except psycopg2.Error as error:
        return error
    raise AssertionError(f"{statement} passed")


LOG = "exercise_log"
DAY = date(2026, 6, 30)
OLDER, SAME, LATER = 7_001, 4, 5


class Conflicting:
    """A database whose first transaction meets a conflict, after all its work was done."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self._met = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def run_transaction(self, work: Callable[[Any], Any]) -> Any:
        """As the database's: what `work` did the first time is undone, and it runs again."""
        if not self._met:
            self._met = True
            with self._database.connection() as connection:
                connection.autocommit = False
                with connection.cursor() as cursor:
                    work(cursor)
                connection.rollback()
        return self._database.run_transaction(work)


def check_delete_before(answer: object, ws: Any) -> None:
    """All older rows go, no others, in transactions within the limit, and are counted once."""
    function = function_of(answer, "delete_before", "database", "day")
    with _log(ws):
        _check_count(_delete(function, ws.database), 0, "The table was empty")
        ws.database.insert_rows(LOG, ("id", "day", "note"), _rows())
        got = _delete(function, Conflicting(ws.database))
        _check_left(ws.database)
        _check_count(got, OLDER, f"The table held {OLDER:,} older rows")
        _check_count(_delete(function, ws.database), 0, "No older row was left")
        _check_left(ws.database)


@contextmanager
def _log(ws: Any) -> Iterator[None]:
    drop = f"DROP TABLE IF EXISTS {LOG}"
    ws.database.query(drop)
    ws.database.query(f"CREATE TABLE {LOG} (id BIGINT PRIMARY KEY, day DATE NOT NULL, note TEXT)")
    try:
        yield
    finally:
        ws.database.query(drop)


def _rows() -> Iterator[tuple[int, date, str]]:
    for number in range(OLDER + SAME + LATER):
        days = 1 + number % 50 if number < OLDER else 0 if number < OLDER + SAME else -1
        yield (number * 7, DAY - timedelta(days=days), f"entry {number}")


def _delete(function: Callable[..., Any], database: Any) -> Any:
    shown = f"`delete_before(database, {DAY!r})`".replace("datetime.", "")
    try:
        return call(shown, function, database, DAY)
    except Wrong as wrong:
        code = getattr(wrong.__cause__, "pgcode", None)
        advice = {
            "54000": " One transaction changed more than 3,000 rows: delete some of them, commit, "
            "and go on.",
            "0A000": " DSQL has no such statement: DELETE is the one to use.",
        }.get(str(code), "")
        raise Wrong(f"{wrong}{advice}") from wrong.__cause__


def _check_left(database: Any) -> None:
    count = (
        f"SELECT count(*) FILTER (WHERE day < %s), count(*) FILTER (WHERE day = %s), "  # noqa: S608
        f"count(*) FILTER (WHERE day > %s) FROM {LOG}"
    )
    older, same, later = database.query(count, (DAY, DAY, DAY))[0]
    if later < LATER:
        raise Wrong(f"Of {LATER} rows of later days, {later} are left. Expected: all of them.")
    if same < SAME:
        raise Wrong(
            f"Of {SAME} rows of the day itself, {same} are left. Expected: all of them; only rows "
            "*before* that day are to go."
        )
    if older:
        raise Wrong(
            f"Of {OLDER:,} older rows, {older:,} are left. Expected: none. Go on until a step "
            "finds nothing more, and let each step run through `database.run_transaction`, which "
            "commits it."
        )


def _check_count(got: object, expected: int, when: str) -> None:
    if isinstance(got, int) and not isinstance(got, bool) and got == expected:
        return
    hint = ""
    if got is None:
        hint = " Is there a `return`?"
    elif isinstance(got, int) and got == expected + 3_000:
        hint = (
            " One transaction met a conflict and ran again, and its rows were counted twice. What "
            "`run_transaction` returns is the count of the attempt that was committed: add that."
        )
    elif isinstance(got, int) and got > expected:
        hint = (
            " The first transaction met a conflict and ran again: are rows of an attempt that was "
            "undone counted, too?"
        )
    elif isinstance(got, int) and 0 <= got < expected:
        hint = " Do you add up all steps?"
    raise Wrong(
        f"{when}, and `delete_before` returned `{show(got)}`. Expected: {expected:,}, the number "
        f"of rows that were deleted.{hint}"
    )


EXERCISES = (
    Exercise(
        id="07.1",
        title="Try again, a little later",
        answer_name="with_retry",
        judge=check_with_retry,
        hints=(
            (
                "A `for` over the numbers of the attempts, and in it `try … except`. Which errors "
                "do you catch, and what do you do at the last attempt?"
            ),
            (
                "`psycopg2.errors.SerializationFailure` is the class of SQLSTATE 40001; "
                "`except psycopg2.Error as error` and `error.pgcode` tell as well. A bare `raise` "
                "within `except` lets the same error go on."
            ),
            (
                "Before retry `number`: `sleep(random.uniform(0, min(0.1, 0.001 * 2**number)))`. "
                "At attempt 10, `raise` instead."
            ),
        ),
        solution_source="""\
import random

import psycopg2


def with_retry(work, sleep):
    for number in range(1, 11):
        try:
            return work()
        except psycopg2.errors.SerializationFailure:
            if number == 10:
                raise
            sleep(random.uniform(0, min(0.1, 0.001 * 2**number)))
""",
        praise=(
            "Conflicts are tried again, a bounded number of times, after random waits that grow; "
            "whatever else goes wrong is known at once. `ws.database.run_transaction` does this. "
            "For an error that is no conflict, such as a broken connection at COMMIT, ask first "
            "whether doing it twice would do harm."
        ),
        needs_workshop=True,
    ),
    Exercise(
        id="07.2",
        title="Delete in steps",
        answer_name="delete_before",
        judge=check_delete_before,
        hints=(
            (
                "How do you delete at most 3,000 rows? PostgreSQL's DELETE has no LIMIT, but a "
                "SELECT has one: `DELETE … WHERE id IN (SELECT id … LIMIT 3000)`."
            ),
            (
                "`work(cursor)` runs `cursor.execute(statement, (day,))` and returns "
                "`cursor.rowcount`; `database.run_transaction(work)` returns what `work` returned "
                "in the attempt that was committed. Work that counts in a variable outside would "
                "count an undone attempt as well."
            ),
            (
                "Loop until a step deletes nothing: "
                "`while gone := database.run_transaction(step): deleted += gone`."
            ),
        ),
        solution_source='''\
STEP = """
DELETE FROM exercise_log
 WHERE id IN (SELECT id FROM exercise_log WHERE day < %s LIMIT 3000)
"""


def delete_before(database, day):
    def step(cursor):
        cursor.execute(STEP, (day,))
        return cursor.rowcount

    deleted = 0
    while gone := database.run_transaction(step):
        deleted += gone
    return deleted
''',
        praise=(
            "Each step is a transaction within the limit, may run twice without harm, and if the "
            "program dies the next call goes on where it stopped. On a large table, delete along "
            "an index, or each step searches longer than the one before."
        ),
        needs_workshop=True,
        limit_s=20.0,
    ),
)
