"""Which errors mean that a transaction lost against a concurrent one, and may be run again."""

from __future__ import annotations

import psycopg2

RETRYABLE = frozenset({"40001", "40P01"})
"""serialization_failure (on DSQL: OC000, OC001) and deadlock_detected (plain PostgreSQL only)."""


def is_conflict(error: BaseException) -> bool:
    """Whether the transaction was rolled back because of a concurrent one.

    >>> is_conflict(ValueError("no"))
    False
    """
    return isinstance(error, psycopg2.Error) and error.pgcode in RETRYABLE


def comes_from_conflict(error: BaseException, outside: BaseException | None = None) -> bool:
    """Whether an error is a conflict, or was raised because of one (`raise … from None` is not).

    `outside`: what was being handled before; Python has it as the context of every error since.
    """
    known = {id(outside)}
    cause: BaseException | None = error
    while cause is not None and id(cause) not in known:
        if is_conflict(cause):
            return True
        known.add(id(cause))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return False
