"""Seeded business events for the insert load: cars, loans, payments, services (pure)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Literal, TypeAlias, get_args

from workshop_lib.errors import DataError

EventType: TypeAlias = Literal[
    "CarCreated", "LoanCreated", "LoanPaymentSubmitted", "CarServiceDone", "Mixed"
]
"""What to make; "Mixed" draws one of the other four for each event."""

COLUMNS = ("id", "event_name", "event_type", "created_date", "saved_date", "event_data")
TERMS_MONTHS = (36, 48, 60, 72)
CENT = Decimal("0.01")
EPOCH = date(2026, 1, 1)
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

EventRow: TypeAlias = tuple[str, str, str, datetime, datetime, str]


def events(
    kind: EventType, ids: Iterator[str], seed: str | random.Random, saved: datetime
) -> Iterator[EventRow]:
    """Rows for `business_events`, one for each id.

    Args:
        kind: which events.
        ids: the primary keys.
        seed: the same seed gives the same events; a generator goes on where it is.
        saved: what stands in `saved_date`; `created_date` is up to an hour before it.

    Raises:
        DataError: there are no such events.

    Yields:
        id, event_name ("CarCreated"), event_type ("Car" or "Loan"), created_date, saved_date,
        and event_data, JSON as text.

    """
    if kind not in EVENT_TYPES:
        raise DataError(f"There are no events {kind!r}. There are: {', '.join(EVENT_TYPES)}.")
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    names = tuple(MAKERS) if kind == "Mixed" else (kind,)
    for key in ids:
        name = rng.choice(names)
        created = saved - timedelta(seconds=rng.randrange(3_600))
        entity = "Car" if name.startswith("Car") else "Loan"
        yield key, name, entity, created, saved, json.dumps(MAKERS[name](rng))


def monthly_payment(principal: Decimal, yearly_percent: Decimal, months: int) -> Decimal:
    """What is paid each month so that the loan is gone after the last, rounded to the cent.

    The annuity formula: principal × r / (1 − (1 + r)^−months), with r the rate of a month.

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
    return {"loan_id": loan["loan_id"], "number": number, "amount": amount, "paid_on": _day(rng)}


def _service(rng: random.Random) -> dict[str, Any]:
    services = rng.sample(SERVICES, rng.randint(1, 3))
    cost = str(Decimal(rng.randrange(5_000, 200_000)) / 100)
    return {"vin": _vin(rng), "services": services, "cost": cost, "done_on": _day(rng)}


def _day(rng: random.Random) -> str:
    return str(EPOCH + timedelta(days=rng.randrange(300)))


def _vin(rng: random.Random) -> str:
    return "".join(rng.choices(VIN_LETTERS, k=17))


MAKERS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "CarCreated": _car,
    "LoanCreated": _loan,
    "LoanPaymentSubmitted": _payment,
    "CarServiceDone": _service,
}
EVENT_TYPES: tuple[str, ...] = get_args(EventType)
