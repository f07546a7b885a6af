"""When a worker sends a statement again: after a conflict, or a connection that was lost."""

from __future__ import annotations

import time
from typing import Protocol

import psycopg2
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_fixed,
    wait_random_exponential,
)

from workshop_lib.dsql import is_conflict
from workshop_lib.errors import ServiceUnreachableError

PATIENCE_S = 10.0
"""How long a worker tries to reach a database that has gone away, for one statement, seconds."""
ATTEMPTS = 30
CONFLICT_WAIT = wait_random_exponential(multiplier=0.005, max=0.25)
RECONNECT_WAIT = wait_fixed(0.2)


class Counts(Protocol):
    """Where further attempts are counted, by their reason."""

    conflicts: int
    reconnects: int


def is_lost(error: BaseException | None) -> bool:
    """Whether the database was not there, or went away in the middle of a statement."""
    if isinstance(error, ServiceUnreachableError):
        return True
    if not isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        return False
    return not error.pgcode or error.pgcode.startswith(("08", "57P"))


def attempts(counts: Counts, end: float) -> Retrying:
    """Try again after a conflict or a lost connection, within the patience and the time left.

    Only for a statement that may be sent twice.

    Args:
        counts: told of each further attempt.
        end: by when to have done, by `time.monotonic()`.

    """

    def note(state: RetryCallState) -> None:
        if _was_lost(state):
            counts.reconnects += 1
        else:
            counts.conflicts += 1

    left = max(0.0, min(PATIENCE_S, end - time.monotonic()))
    return Retrying(
        retry=retry_if_exception(lambda error: is_conflict(error) or is_lost(error)),
        wait=_wait,
        stop=stop_after_attempt(ATTEMPTS) | stop_after_delay(left),
        before_sleep=note,
        reraise=True,
    )


def _wait(state: RetryCallState) -> float:
    return (RECONNECT_WAIT if _was_lost(state) else CONFLICT_WAIT)(state)


def _was_lost(state: RetryCallState) -> bool:
    assert state.outcome is not None  # noqa: S101 -- there is one before a wait
    return is_lost(state.outcome.exception())
