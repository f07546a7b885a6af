"""What load tests send: seeded business events, and three statements with values (pure)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Literal, TypeAlias, get_args
from zlib import crc32

# Which events to make; "Mixed" draws one of the other four for each.
EventType: TypeAlias = Literal[
    "CarCreated", "LoanCreated", "LoanPaymentSubmitted", "CarServiceDone", "Mixed"
]
Action: TypeAlias = Literal["EVENTS", "SELECT", "INSERT", "SELECT2"]
EventRow: TypeAlias = tuple[str, str, str, datetime, datetime, str]
Values: TypeAlias = tuple[int | date | Decimal, ...]

EVENT_TYPES: tuple[str, ...] = get_args(EventType)
TERMS_MONTHS = (36, 48, 60, 72)
CENT = Decimal("0.01")
FIRST_DAY = date(2026, 4, 2)
DAYS = 90
MAKES = {
    "Toyota": ("Corolla", "RAV4", "Yaris"),
    "Ford": ("Fiesta", "Focus", "Puma"),
    "Renault": ("Clio", "Mégane", "Zoe"),
    "Kia": ("Ceed", "Niro", "Picanto"),
    "Volvo": ("EX30", "V60", "XC40"),
}
SERVICES = ("oil", "brakes", "tyres", "inspection", "battery")
# Vehicle identification numbers leave out I, O and Q, which look like digits (ISO 3779).
VIN_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ0123456789"

# Of a mixed load.
ACTIONS: tuple[Action, ...] = ("SELECT", "INSERT", "SELECT2")
INSERT_EVENTS = """
    INSERT INTO business_events
           (id, event_name, event_type, created_date, saved_date, event_data)
    VALUES {} ON CONFLICT (id) DO NOTHING
"""
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
# Of one message: more would take longer than a message should.
MAX_STATEMENTS = 1_000
# Ids of load tests begin here, far above those of the workshop's own rows.
FIRST_ID = 1 << 62
IDS_PER_RUN = 1 << 30


def events(
    kind: EventType, ids: Iterator[str], rng: random.Random, saved: datetime
) -> Iterator[EventRow]:
    """Rows for `business_events`, one for each id.

    Args:
        kind: which events.
        ids: the primary keys.
        rng: where chance comes from: the same seed gives the same events.
        saved: `saved_date`; `created_date` is up to an hour before it.

    Yields:
        id, event_name ("CarCreated"), event_type ("Car" or "Loan"), created_date, saved_date,
        and event_data, JSON as text.

    """
    names = tuple(MAKERS) if kind == "Mixed" else (kind,)
    for key in ids:
        name = rng.choice(names)
        created = saved - timedelta(seconds=rng.randrange(3_600))
        entity = "Car" if name.startswith("Car") else "Loan"
        yield key, name, entity, created, saved, json.dumps(MAKERS[name](rng))


def monthly_payment(principal: Decimal, yearly_percent: Decimal, months: int) -> Decimal:
    """The monthly payment that pays a loan off, rounded to the cent.

    The annuity formula: principal × r / (1 − (1 + r)^−months), with r the monthly rate.

    >>> monthly_payment(Decimal(10_000), Decimal(6), 36)
    Decimal('304.22')
    """
    rate = yearly_percent / 1_200
    exact = principal * rate / (1 - (1 + rate) ** -months) if rate else principal / months
    return exact.quantize(CENT, ROUND_HALF_EVEN)


def _car(rng: random.Random) -> dict[str, Any]:
    make = rng.choice(tuple(MAKES))
    model, year, mileage = rng.choice(MAKES[make]), rng.randint(2012, 2026), rng.randrange(180_000)
    return {"vin": _vin(rng), "make": make, "model": model, "year": year, "mileage": mileage}


def _loan(rng: random.Random) -> dict[str, Any]:
    principal, months = Decimal(rng.randrange(5_000, 60_001, 500)), rng.choice(TERMS_MONTHS)
    percent = Decimal(rng.randrange(199, 1_200)) / 100
    return {
        "loan_id": f"loan-{rng.randrange(10**9):09d}",
        "vin": _vin(rng),
        "loan_amount": str(principal),
        "interest_rate": str(percent),
        "term_months": months,
        "monthly_payment": str(monthly_payment(principal, percent, months)),
    }


def _payment(rng: random.Random) -> dict[str, Any]:
    loan = _loan(rng)
    number, amount = rng.randint(1, loan["term_months"]), loan["monthly_payment"]
    paid_on = str(_day(rng))
    return {"loan_id": loan["loan_id"], "number": number, "amount": amount, "paid_on": paid_on}


def _service(rng: random.Random) -> dict[str, Any]:
    services = rng.sample(SERVICES, rng.randint(1, 3))
    cost = str(Decimal(rng.randrange(5_000, 200_000)) / 100)
    return {"vin": _vin(rng), "services": services, "cost": cost, "done_on": str(_day(rng))}


def _day(rng: random.Random) -> date:
    return FIRST_DAY + timedelta(days=rng.randrange(DAYS))


def _vin(rng: random.Random) -> str:
    return "".join(rng.choices(VIN_LETTERS, k=17))


MAKERS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "CarCreated": _car,
    "LoanCreated": _loan,
    "LoanPaymentSubmitted": _payment,
    "CarServiceDone": _service,
}


def statement_of(action: Action, rows: int = 1) -> str:
    """The SQL of an action; EVENTS inserts that many rows."""
    row = "(%s, %s, %s, %s, %s, %s)"
    return (
        INSERT_EVENTS.format(", ".join([row] * rows)) if action == "EVENTS" else STATEMENTS[action]
    )


def values_of(action: Action, rng: random.Random, run: str, number: int) -> Values:
    """Values for a statement.

    Args:
        action: which statement.
        rng: where chance comes from.
        run, number: give the id of an INSERT's row: the same two, the same id.

    """
    if action == "SELECT":
        return ()
    if action == "SELECT2":
        # The second value leaves out rows of load tests, so that answers do not grow.
        return (rng.randrange(900, 1_000), FIRST_ID)
    price = Decimal(rng.randint(0, 50_000)).scaleb(-2)
    return (row_id(run, number), rng.randint(1, 10), _day(rng), rng.randint(1, 1_000), price)


def row_id(run: str, number: int) -> int:
    """The id of a run's row, which has a number where other ids have the run's name.

    It is below 2**63, as BIGINT holds it.

    >>> row_id("a", 5) - row_id("a", 0), FIRST_ID <= row_id("a", 0) < 2**63
    (5, True)
    """
    return FIRST_ID + (crc32(run.encode()) >> 1) * IDS_PER_RUN + number
