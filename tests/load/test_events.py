"""Events are seeded, complete, and add up."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, strategies as st

from workshop_lib.load.events import EVENT_TYPES, TERMS_MONTHS, events, monthly_payment

SAVED = datetime(2026, 6, 30, 12, tzinfo=UTC)


def make(kind, count=50, seed="a"):
    return list(events(kind, (f"id-{n}" for n in range(count)), seed, SAVED))


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_a_seed_makes_complete_rows_and_the_same_ones_again(kind):
    assert make(kind) == make(kind) != make(kind, seed="b")
    for number, (key, name, entity, created, saved, data) in enumerate(make(kind)):
        assert key == f"id-{number}"
        assert name in EVENT_TYPES
        assert entity == ("Car" if name.startswith("Car") else "Loan")
        assert SAVED - timedelta(hours=1) <= created <= saved == SAVED
        assert isinstance(json.loads(data), dict)


def test_a_kind_makes_only_its_own_events_and_the_mix_all_four():
    for kind in EVENT_TYPES[:-1]:
        assert {row[1] for row in make(kind)} == {kind}
    found = [row[1] for row in make("Mixed", 400)]
    assert set(found) == set(EVENT_TYPES) - {"Mixed"}
    assert all(60 <= found.count(kind) <= 140 for kind in set(found))


def test_a_loan_runs_for_one_of_four_terms_and_is_amortised():
    terms = set()
    for row in make("LoanCreated", 200):
        loan = json.loads(row[5])
        terms.add(loan["term_months"])
        paid = Decimal(loan["monthly_payment"]) * loan["term_months"]
        assert paid > Decimal(loan["loan_amount"])
    assert terms == set(TERMS_MONTHS)


@given(st.integers(5_000, 60_000), st.integers(1, 1_200), st.sampled_from(TERMS_MONTHS))
def test_the_payments_pay_the_loan_off(principal, basis_points, months):
    rate = Decimal(basis_points) / 100
    payment, left = monthly_payment(Decimal(principal), rate, months), Decimal(principal)
    for _ in range(months):
        left += left * rate / 1_200 - payment
    # Half a cent of rounding a month, with interest on it.
    assert abs(left) <= Decimal("0.01") * months
