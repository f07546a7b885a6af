"""Mixed traffic over `type` and `transactions`: its three statements and their values (pure)."""

from __future__ import annotations

import random
from datetime import date, timedelta
from decimal import Decimal
from typing import Literal, TypeAlias

Action: TypeAlias = Literal["SELECT", "INSERT", "SELECT2"]
ACTIONS: tuple[Action, ...] = ("SELECT", "INSERT", "SELECT2")

TYPES = 10
MAX_QUANTITY = 1_000
MAX_CENTS = 50_000
FIRST_DAY = date(2026, 4, 2)
DAYS = 90
STATEMENTS = {
    "SELECT": """
        SELECT t.name, sum(x.quantity) AS quantity
          FROM type t JOIN transactions x ON x.type = t.id
         GROUP BY t.name ORDER BY t.name
    """,
    "SELECT2": """
        SELECT id, type, date, quantity, price FROM transactions
         WHERE quantity > %s AND id < %s
    """,
    "INSERT": """
        INSERT INTO transactions (id, type, date, quantity, price)
        VALUES (%s, %s, %s, %s, %s) ON CONFLICT (id) DO NOTHING
    """,
}
FIRST_ID = 1 << 62
"""Ids of load tests begin here, far above those that were loaded."""
IDS_OF_A_RUN = 1 << 30
LOWEST, THRESHOLDS = 900, 100

Values: TypeAlias = tuple[int | date | Decimal, ...]


def values_of(action: Action, rng: random.Random, run: int, number: int) -> Values:
    """Values for a statement.

    Args:
        action: which statement.
        rng: where chance comes from.
        run, number: make the id of an INSERT's row; the same two, the same id.

    """
    if action == "SELECT":
        return ()
    if action == "SELECT2":
        # The second value leaves out rows of load tests: answers stay as long as they are.
        return (rng.randrange(LOWEST, LOWEST + THRESHOLDS), FIRST_ID)
    return (
        row_id(run, number),
        rng.randint(1, TYPES),
        FIRST_DAY + timedelta(days=rng.randrange(DAYS)),
        rng.randint(1, MAX_QUANTITY),
        Decimal(rng.randint(0, MAX_CENTS)).scaleb(-2),
    )


def row_id(run: int, number: int) -> int:
    """The id of a run's row: below 2**63, as BIGINT holds it.

    >>> row_id(0, 5) - FIRST_ID, row_id(1, 0) - row_id(0, 0) == IDS_OF_A_RUN
    (5, True)
    """
    return FIRST_ID + run * IDS_OF_A_RUN + number
