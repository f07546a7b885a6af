"""Which errors mean "somebody else was faster: run the transaction again"."""

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
