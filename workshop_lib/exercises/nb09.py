"""Notebook 09: work that fails so many times, with errors as the database raises them."""

from __future__ import annotations

from psycopg2 import Error
from psycopg2.errors import lookup

from workshop_lib.exercises.check import Check

MAX_CALLS = 100
DRAWS = 300
TEXTS = ("change conflicts with another transaction (OC000)", "schema has been updated (OC001)")
"""A conflict's text varies; its SQLSTATE does not."""


def with_retry(check: Check) -> None:
    """Conflicts are tried again, after random waits that grow; any other error passes at once."""
    for code, fails in check.table.cases:
        _try(check, code, int(fails))
    runs = [_try(check, "40001", 9) for _ in range(DRAWS)]
    for retry, waits in enumerate(zip(*runs, strict=True), start=1):
        limit = min(0.1, 0.001 * 2.0**retry)
        check.judge("spread", retry=retry, limit=limit, waits=waits, mean=sum(waits) / DRAWS)


def _try(check: Check, code: str, fails: int) -> list[float]:
    """Call the answer with work that fails so often, and returns how often; what it slept."""
    raised: list[Error] = []
    waits: list[float] = []

    def work() -> int:
        check.judge("work", calls=len(raised))
        raised.append(_error(code, TEXTS[len(raised) % 2]))
        if len(raised) <= fails:
            raise raised[-1]
        return len(raised) - 1

    outcome = check.attempt(work, waits.append)
    if outcome.error is not None and outcome.error not in raised:
        check.stop(outcome.error)
    tries, calls = len(raised), 1 if code != "40001" else min(fails + 1, 10)
    came = outcome.error or outcome.value
    right = (raised[-1] if tries <= fails else tries - 1) if raised else None
    facts = {"code": code, "fails": fails, "tries": tries, "calls": calls, "waits": len(waits)}
    check.judge("tried", **facts, came=came, right=right)
    return waits


def _error(code: str, text: str) -> Error:
    """An error with its SQLSTATE, which otherwise only a server can give it."""
    error: Error = lookup(code)(text)
    error.__setstate__({"pgcode": code})
    return error


JUDGES = {"09.1": with_retry}
