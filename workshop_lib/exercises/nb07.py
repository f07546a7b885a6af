"""The exercises of notebook 07: retry with back-off and jitter, and a delete in steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import psycopg2
from psycopg2.errors import OperationalError, SerializationFailure, StatementCompletionUnknown
from psycopg2.extensions import cursor as Cursor

from workshop_lib.dsql import MAX_ROWS_PER_TRANSACTION, is_conflict
from workshop_lib.exercises.engine import Exercise, Wrong, call, function_of, show


class Enough(BaseException):
    """What is wrong is known already. An answer's own `except Exception` does not catch it."""


ATTEMPTS = 10
FIRST_S = 0.001
MOST_S = 0.1
MOST_CALLS = 10 * ATTEMPTS
DRAWS = 300
"""So many random waits reach into both ends of their range, but once in 10^12 times."""
END = 0.1
"""The share of a range that counts as its end."""
MEANS = (0.35, 0.65)
"""Between these shares of the range lies the mean of so many waits; 9 standard errors each way."""
TABLE = "exercise_conflict"
INSERT = f"INSERT INTO {TABLE} VALUES (1, 0)"  # noqa: S608 - our own name
UPDATE = f"UPDATE {TABLE} SET n = n + 1 WHERE id = 1"  # noqa: S608
SCHEMA_CHANGED = "schema has been updated by another transaction, please retry: (OC001)"
"""DSQL's other conflict: the same code, another text. It does not happen on PostgreSQL."""


class Work:
    """A piece of work that fails so many times, and then returns something.

    Attributes:
        raised: the errors so far.
        attempts: how often it was called.
        waits: what the function slept, seconds, in order.

    """

    def __init__(self, errors: Sequence[Exception], fails: int, value: object) -> None:
        self._errors, self._fails, self._value = errors, fails, value
        self.raised: list[Exception] = []
        self.attempts = 0
        self.waits: list[float] = []

    def __call__(self) -> object:
        """Fail or return, and count it."""
        self.attempts += 1
        if self.attempts > MOST_CALLS:
            raise Enough(
                f"`work()` was called more than {MOST_CALLS} times. Expected: {ATTEMPTS} attempts "
                "at most, the first one included."
            )
        if self.attempts > self._fails:
            return self._value
        error = self._errors[(self.attempts - 1) % len(self._errors)]
        error.__cause__ = error.__context__ = None  # nothing of the last time
        self.raised.append(error)
        raise error.with_traceback(None)

    def sleep(self, seconds: float) -> None:
        """What the learner's function is handed to wait with."""
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise Enough(f"`sleep({show(seconds)})`: expected a number of seconds.")
        if len(self.waits) >= MOST_CALLS:
            raise Enough(f"`sleep` was called more than {MOST_CALLS} times.")
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
        _check_success(function, Work((), 0, value), value, 0)
    conflicts, other_conflict, duplicate = _real_errors(ws)
    for fails in (1, 3, ATTEMPTS - 1):
        _check_success(function, Work(conflicts, fails, "done"), "done", fails)
    _check_success(function, Work(conflicts, 1, None), None, 1)
    _check_other_text(function, other_conflict)
    _check_gives_up(function, conflicts)
    for error in (duplicate, _in_doubt(), OperationalError("the connection was lost"),
                  ValueError("no such planet")):  # fmt: skip
        _check_passes(function, error)
    _check_waits(function, conflicts)


def _check_success(function: Callable[..., Any], work: Work, value: object, fails: int) -> None:
    conflicts = f"conflicts {_times(fails)} and then " if fails else ""
    when = f"`work()` {conflicts}returns `{value!r}`"
    got = _run(function, work, when)
    if got is not value:
        raise Wrong(
            f"{when}; `with_retry` returned `{show(got)}`. Expected: what `work()` returned, also "
            "if that is None or 0."
        )
    _check_counts(work, fails + 1, fails, when)


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _check_counts(work: Work, attempts: int, waits: int, when: str) -> None:
    if work.attempts != attempts:
        raise Wrong(
            f"{when}, and `work` was called {_times(work.attempts)} in all. Expected: "
            f"{_times(attempts)}."
        )
    if len(work.waits) != waits:
        own = "" if work.waits else " Use the `sleep` that is handed in."
        raise Wrong(
            f"{when}, and `sleep` was called {_times(len(work.waits))}. Expected: "
            f"{_times(waits)}. It is called once before each retry, and never when no attempt "
            f"follows.{own}"
        )


def _run(function: Callable[..., Any], work: Work, when: str) -> Any:
    """What the function returns.

    Raises:
        Wrong: it raised, though the work succeeds in time.

    """
    try:
        return call(f"{when}: `with_retry`", function, work, work.sleep)
    except Enough as enough:
        raise Wrong(str(enough)) from enough
    except Wrong as wrong:
        cause = wrong.__cause__
        if cause is not None and is_conflict(cause):
            raise Wrong(
                f"{when}; `with_retry` called `work` {_times(work.attempts)} and let the conflict "
                f"pass. Expected: up to {ATTEMPTS} attempts."
            ) from cause
        raise


def _raised(function: Callable[..., Any], work: Work) -> Exception | None:
    try:
        function(work, work.sleep)
    except Enough as enough:
        raise Wrong(str(enough)) from enough
    except Exception as error:  # noqa: BLE001 -- which one it was is what is judged
        return error
    return None


def _check_other_text(function: Callable[..., Any], conflict: Exception) -> None:
    raised = _raised(function, Work([conflict], 1, "done"))
    if raised is not None:
        came = "it pass" if raised is conflict else f"`{type(raised).__name__}: {raised}` out"
        raise Wrong(
            f"`work()` raised SQLSTATE 40001 with the text `{conflict}`, and `with_retry` "
            f"let {came}. That is a conflict as well: look at the code, `error.pgcode`, and not "
            "at the text."
        ) from raised


def _check_gives_up(function: Callable[..., Any], conflicts: Sequence[Exception]) -> None:
    work = Work(conflicts, 10**6, "done")
    error = _raised(function, work)
    when = "Every attempt conflicted"
    if error is None:
        raise Wrong(
            f"{when}, and `with_retry` returned as if nothing had happened. Expected: after "
            f"{ATTEMPTS} attempts the conflict itself, so that the caller knows."
        )
    _check_counts(work, ATTEMPTS, ATTEMPTS - 1, when)
    if error is not work.raised[-1]:
        came = f"`{type(error).__name__}: {error}`"
        if error in work.raised:
            came = f"that of attempt {work.raised.index(error) + 1}"
        raise Wrong(
            f"{when}; expected the conflict of the last attempt, and there came {came}."
        ) from error


def _in_doubt() -> Exception:
    error = StatementCompletionUnknown("nobody knows whether it was committed")
    error.__setstate__({"pgcode": "40003"})  # the only way to have one: servers hardly ever do
    return error


def _check_passes(function: Callable[..., Any], error: Exception) -> None:
    work = Work([error], 1, "done")
    code = "no database error"
    if isinstance(error, psycopg2.Error):
        code = f"SQLSTATE {error.pgcode}" if error.pgcode else "no SQLSTATE: `pgcode` is None"
    name = f"{type(error).__name__} ({code})"
    raised = _raised(function, work)
    if work.attempts > 1:
        raise Wrong(
            f"`work()` raised {name}, and was tried again. Only after a conflict, SQLSTATE 40001, "
            "is it certain that nothing was done and that a second try may succeed: any other "
            "error passes at once."
        )
    if raised is not work.raised[-1]:
        came = "nothing" if raised is None else f"{type(raised).__name__}: {raised}"
        raise Wrong(
            f"`work()` raised {name}; expected that very error, and there came {came}."
        ) from raised
    if work.waits:
        raise Wrong(f"`work()` raised {name}, and `sleep` was called. Nothing is to be waited for.")


def _check_waits(function: Callable[..., Any], conflicts: Sequence[Exception]) -> None:
    runs = []
    for _ in range(DRAWS):
        work = Work(conflicts, ATTEMPTS - 1, "done")
        _check_success(function, work, "done", ATTEMPTS - 1)
        runs.append(work.waits)
    for retry, waits in enumerate(zip(*runs, strict=True), start=1):
        _check_range(retry, waits)


def _check_range(retry: int, waits: tuple[float, ...]) -> None:
    limit = limit_s(retry)
    rule = f"between 0 and {limit:g} s, which is min({MOST_S:g}, {FIRST_S:g} * 2**{retry})"
    outside = [wait for wait in waits if not 0 <= wait <= limit * (1 + 1e-9)]  # NaN as well
    if outside:
        raise Wrong(
            f"Before retry {retry} it waited for {outside[0]:.4g} s. Expected: {rule}. Do you "
            "count the retries from 1, keep to the limit, and take seconds?"
        )
    low, mean, high = min(waits), sum(waits) / DRAWS, max(waits)
    if low == high:
        raise Wrong(
            f"Before retry {retry} it always waited for {low:.4g} s. Expected: a random time "
            f"{rule}. Those who met once would meet again at the same moment."
        )
    at_most = waits.count(high)
    if mean > limit * MEANS[1] and at_most > DRAWS / 3:
        raise Wrong(
            f"Before retry {retry}, {at_most} of {DRAWS} waits were exactly {high:g} s: those meet "
            "again at the same moment. Take the smaller limit first, and then a random time below "
            "it: `random.uniform(0, min(…, …))`."
        )
    between = any(limit / 3 < wait < limit * 2 / 3 for wait in waits)
    ends = low <= limit * END and high >= limit * (1 - END)
    if not (between and ends and limit * MEANS[0] < mean < limit * MEANS[1]):
        raise Wrong(
            f"Before retry {retry} it waited for {low:.4g} to {high:.4g} s in {DRAWS} runs, "
            f"{mean:.4g} s on average. Expected: any time {rule}, one as likely as another, such "
            "as `random.uniform(0, limit)` gives."
        )


def _real_errors(ws: Any) -> tuple[list[Exception], Exception, Exception]:
    """From the database itself: conflicts, another kind of conflict, and an error that is none."""
    try:
        ws.database.query(f"CREATE TABLE IF NOT EXISTS {TABLE} (id INT PRIMARY KEY, n INT)")
        ws.database.insert_rows(TABLE, ("id", "n"), [(1, 0)])
        with (
            closing(ws.connect()) as one, closing(ws.connect()) as other,
            one.cursor() as first, other.cursor() as second,
        ):  # fmt: skip
            *conflicts, last = [_conflict_of(first, second) for _ in range(ATTEMPTS + 1)]
            last.args = (SCHEMA_CHANGED,)
            return conflicts, last, _error_of(first, INSERT)
    finally:
        ws.database.query(f"DROP TABLE IF EXISTS {TABLE}")


def _conflict_of(first: Cursor, second: Cursor) -> Exception:
    """What the second transaction is told, on DSQL at COMMIT, on PostgreSQL at its UPDATE.

    The first has committed by then, so that nobody waits for it, whatever rules are in force.
    """
    for cursor in (first, second):
        cursor.execute("BEGIN")
        cursor.execute(f"SELECT n FROM {TABLE}")  # noqa: S608 - here its snapshot is taken
    first.execute(UPDATE)
    first.execute("COMMIT")
    try:
        return _error_of(second, UPDATE, "COMMIT")
    finally:
        second.execute("ROLLBACK")


def _error_of(cursor: Cursor, *statements: str) -> Exception:
    try:
        for statement in statements:
            cursor.execute(statement)
    except psycopg2.Error as error:
        return error
    raise Wrong(
        f"This check needs a database that finds conflicts, as Aurora DSQL does, and this one let "
        f"`{statements[0]}` pass. Is its isolation level REPEATABLE READ?"
    )


LOG = "exercise_log"
COUNT = f"SELECT count(*) FROM {LOG}"  # noqa: S608
DAY, OTHER_DAY = date(2026, 6, 30), date(2025, 3, 1)
SAME, LATER = 4, 5
SPARE = 100
TOO_LARGE = "One transaction changed more than 3,000 rows: delete some of them, commit, and go on."
ADVICE = {
    "54000": TOO_LARGE,
    "0A000": "DSQL has no such statement: DELETE is the one to use.",
    "42883": (
        "Is the day part of the statement's text? Put `%s` in its place, and hand it over beside "
        "the text: `cursor.execute(statement, (day,))`."
    ),
}
"""What to do about an error of the database, by its SQLSTATE."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is in the table, beside rows of the day itself and later ones.

    Attributes:
        older: so many rows are to be deleted.
        conflicts: whether each transaction meets a conflict once.

    """

    older: int
    day: date
    conflicts: bool = False

    @property
    def shown(self) -> str:
        """The call in words."""
        day = self.day
        return f"`delete_before(database, date({day.year}, {day.month}, {day.day}))`"

    @property
    def when(self) -> str:
        """The case in words."""
        held = f"The table held {self.older:,} older rows" if self.older else "No row was older"
        twice = ", and each transaction met a conflict, so that its `work` ran twice"
        return f"{held}{twice if self.conflicts else ''}"

    def rows(self) -> Iterator[tuple[int, date, str]]:
        """All of them; the ids have gaps."""
        for number in range(self.older + SAME + LATER):
            after = number - self.older
            days = -1 - number % 50 if after < 0 else 0 if after < SAME else 1
            yield number * 7, self.day + timedelta(days), f"entry {number}"


CASES = (
    Case(0, DAY),
    Case(7_001, DAY),
    Case(MAX_ROWS_PER_TRANSACTION, DAY),
    Case(MAX_ROWS_PER_TRANSACTION + 1, OTHER_DAY, conflicts=True),
)


class Observed:
    """A database that notices what goes past `run_transaction`, and can let it meet conflicts.

    Attributes:
        transactions: how many were asked for.

    """

    def __init__(self, database: Any, case: Case) -> None:
        self._database, self._case = database, case
        self.transactions = 0

    def __getattr__(self, name: str) -> Any:
        if name in {"connect", "connection"}:
            raise Enough(
                f"`database.{name}` was used. Let each step run through "
                "`database.run_transaction(work)`: it commits, and after a conflict it tries again."
            )
        return getattr(self._database, name)

    def query(self, statement: Any, params: Any = None) -> Any:
        """As the database's, but not to delete with."""
        past = Enough(
            "`database.query` was used to delete. It does not try again after a conflict: let "
            "each step run through `database.run_transaction(work)`."
        )
        if re.search(r"\bDELETE\b", str(statement), re.IGNORECASE):
            raise past
        before = self._count()
        rows = self._database.query(statement, params)
        if self._count() != before:
            raise past
        return rows

    def run_transaction(self, work: Callable[[Any], Any]) -> Any:
        """As the database's. With conflicts: what `work` does first is undone, and it runs again.

        That happens after all its work was done, as on DSQL, where conflicts appear at COMMIT.
        """
        self.transactions += 1
        most = self._case.older + SPARE
        if self.transactions > most:
            raise Enough(
                f"{self._case.when}, and {self._case.shown} called `database.run_transaction` "
                f"more than {most:,} times. When does it stop? If a step has deleted nothing, "
                "nothing is left."
            )
        if self._case.conflicts:
            self._do_and_undo(work)
        return self._database.run_transaction(work)

    def _do_and_undo(self, work: Callable[[Any], Any]) -> None:
        before = self._count()
        with self._database.connection() as connection, suppress(SerializationFailure):
            connection.autocommit = False
            with connection.cursor(cursor_factory=self._reader(connection)) as cursor:
                work(cursor)
                cursor.execute(COUNT)
                left = cursor.fetchone()[0]
            connection.rollback()
            if before - left > MAX_ROWS_PER_TRANSACTION:  # on a database that keeps no rules
                raise Enough(TOO_LARGE)
        if self._count() != before:
            raise Enough(
                "A transaction was rolled back after its `work(cursor)`, and its rows are deleted "
                "all the same. Does `work` commit by itself? Leave that to `run_transaction`, so "
                "that each attempt happens whole or not at all."
            )

    def _reader(self, connection: Any) -> type[Cursor]:
        """The connection's own kind of cursor, which looks for the day in the statements."""
        plain: Any = connection.cursor_factory or Cursor
        day = str(self._case.day)

        class Reader(plain):  # type: ignore[misc]  # whichever it is
            def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 - psycopg2's name
                if isinstance(query, str) and day in query:
                    raise Enough(
                        f"The day is part of the statement's text: `{show(' '.join(query.split()))}"
                        "`. A value from outside belongs beside the text, where it can never be "
                        "taken for SQL: `%s` in its place, and `cursor.execute(statement, (day,))`."
                    )
                super().execute(query, vars)

        return Reader

    def _count(self) -> int:
        return int(self._database.query(COUNT)[0][0])


def check_delete_before(answer: object, ws: Any) -> None:
    """All older rows go, no others, in transactions within the limit, and are counted once."""
    function = function_of(answer, "delete_before", "database", "day")
    for case in CASES:
        with _log(ws, case):
            _check_delete(function, ws.database, case)
            _check_delete(function, ws.database, Case(0, case.day))


@contextmanager
def _log(ws: Any, case: Case) -> Iterator[None]:
    drop = f"DROP TABLE IF EXISTS {LOG}"
    columns = "id BIGINT PRIMARY KEY, day DATE NOT NULL, note TEXT"
    try:
        ws.database.query(drop)
        ws.database.query(f"CREATE TABLE {LOG} ({columns})")
        ws.database.insert_rows(LOG, ("id", "day", "note"), case.rows())
        yield
    finally:
        ws.database.query(drop)


def _check_delete(function: Callable[..., Any], database: Any, case: Case) -> None:
    observed = Observed(database, case)
    got = _delete(function, observed, case)
    _check_left(database, case)
    if case.older and not observed.transactions:
        raise Wrong(
            f"After {case.shown} the rows are gone, and the `database` that was handed in has seen "
            "no transaction. Use the parameter, not `ws.database`."
        )
    _check_count(got, case)


def _delete(function: Callable[..., Any], database: Observed, case: Case) -> Any:
    try:
        return call(case.shown, function, database, case.day)
    except Enough as enough:
        raise Wrong(str(enough)) from enough
    except Wrong as wrong:
        error = wrong.__cause__
        code = getattr(error, "pgcode", None)
        if code not in ADVICE:
            raise
        says = str(error).splitlines()[0]
        raise Wrong(f"{case.shown}: SQLSTATE {code}, `{says}`. {ADVICE[code]}") from error


def _check_left(database: Any, case: Case) -> None:
    count = (
        f"SELECT count(*) FILTER (WHERE day < %s), count(*) FILTER (WHERE day = %s), "  # noqa: S608
        f"count(*) FILTER (WHERE day > %s) FROM {LOG}"
    )
    older, same, later = database.query(count, (case.day,) * 3)[0]
    if later < LATER:
        raise Wrong(
            f"After {case.shown}, of {LATER} rows of later days {later} are left. Expected: all of "
            "them. Does the statement compare with the `day` that was handed in?"
        )
    if same < SAME:
        raise Wrong(
            f"After {case.shown}, of {SAME} rows of the day itself {same} are left. Expected: all "
            "of them; only rows *before* that day are to go."
        )
    if not older:
        return
    advice = (
        "Go on until a step finds nothing more, and let each step run through "
        "`database.run_transaction`, which commits it."
    )
    if case.conflicts:
        advice = (
            "Without conflicts it was right. Does `work` keep in mind, or use up, something of the "
            "attempt that was undone? It has to begin afresh each time."
        )
    raise Wrong(
        f"{case.when}. After {case.shown}, {older:,} of them are left. Expected: none. {advice}"
    )


def _check_count(got: object, case: Case) -> None:
    number = isinstance(got, int) and not isinstance(got, bool)
    if number and got == case.older:
        return
    hint = " Is there a `return`?" if got is None else ""
    if isinstance(got, int) and number and got < case.older:
        hint = " Do you add up all steps?"
    elif number and case.conflicts:
        hint = (
            " Are rows of an attempt that was undone counted, too? What `run_transaction` returns "
            "is what `work` returned in the attempt that was committed: add that."
        )
    elif number:
        hint = " `cursor.rowcount` says how many rows the last statement has deleted."
    raise Wrong(
        f"{case.when}. {case.shown} returned `{show(got)}`. Expected: {case.older:,}, the number "
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
