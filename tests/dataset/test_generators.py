"""The same seed gives the same rows, and a larger table begins with the smaller one's."""

import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import islice

import pytest
from hypothesis import given, settings, strategies as st

from workshop_lib.dataset import generators
from workshop_lib.dataset.generators import TODAY

KINDS = {
    "users": generators.users,
    "orders": lambda count, seed: generators.orders(count, seed, 500),
    "transactions": generators.transactions,
    "objects": generators.objects,
}
OLDEST = TODAY - timedelta(days=89)
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
quick = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 2**70)


@kinds
@given(st.integers(0, 1_500), st.integers(0, 1_500), seeds)
@quick
def test_a_table_is_made_the_same_every_time_and_begins_with_every_smaller_one(make, a, b, seed):
    small, large = sorted((a, b))
    assert list(islice(make(large, seed), small)) == list(make(small, seed))


@kinds
@given(seeds)
@quick
def test_rows_are_as_many_as_asked_for_and_numbered_from_1(make, seed):
    numbers = [
        int(re.sub(r"\D", "", row[0])) if isinstance(row[0], str) else row[0]
        for row in make(1_001, seed)
    ]
    assert numbers == list(range(1, 1_002))


@kinds
def test_other_seeds_and_later_blocks_differ(make):
    def without_numbers(rows):
        return [row[1:] for row in rows]

    first, other = (without_numbers(make(2_000, seed)) for seed in (42, 43))
    assert first != other
    assert first[:1_000] != first[1_000:]


def test_the_first_rows_of_the_default_seed_are_these_on_every_machine():
    login = datetime(2026, 4, 30, 18, 25, tzinfo=UTC)
    user = (1, "Luis Rossi", "user1@example.com", "Sales", "analyst", login)
    assert list(generators.users(1, 42)) == [user]
    assert list(generators.orders(1, 42, 500)) == [
        (1, 92, date(2026, 6, 2), Decimal("6.84"), "store")
    ]
    assert list(generators.transactions(1, 42)) == [
        (1, 9, date(2026, 5, 29), 672, Decimal("460.98"))
    ]
    ((name, body),) = generators.objects(1, 42)
    assert (name, body[49:64]) == ("filename1.txt", b"mdqfkncHnTVePrg")


def test_users_have_the_columns_types_and_ranges_of_their_table():
    rows = list(generators.users(2_000, 42))
    for user_id, name, email, department, role, login in rows:
        given_name, family = name.split()
        assert given_name in generators.FIRST_NAMES
        assert family in generators.LAST_NAMES
        assert email == f"user{user_id}@example.com"
        assert department in generators.DEPARTMENTS
        assert role in generators.ROLES
        assert login is None or (type(login) is datetime and login.tzinfo is UTC)
    logins = [login for *_, login in rows if login]
    end = datetime(2026, 6, 30, tzinfo=UTC)
    assert end - timedelta(days=90) < min(logins) < max(logins) <= end
    assert {row[3] for row in rows} == set(generators.DEPARTMENTS)
    assert {row[4] for row in rows} == set(generators.ROLES)
    assert len({row[2] for row in rows}) == 2_000
    never = [row[0] for row in rows if row[5] is None]  # every twentieth
    assert never == list(range(20, 2_001, 20))


def test_orders_have_the_types_and_ranges_of_their_table():
    rows = list(generators.orders(3_000, 42, 50))
    assert {row[1] for row in rows} == set(range(1, 51))
    assert {type(row[2]) for row in rows} == {date}
    assert (min(row[2] for row in rows), max(row[2] for row in rows)) == (OLDEST, TODAY)
    amounts = [row[3] for row in rows]
    assert {type(amount) for amount in amounts} == {Decimal}
    assert {amount.as_tuple().exponent for amount in amounts} == {-2}
    assert Decimal("0.99") <= min(amounts) < max(amounts) <= Decimal("9999.99")
    assert {row[4] for row in rows} == set(generators.ORDER_TYPES)


def test_transactions_have_the_types_and_ranges_of_their_table():
    rows = list(generators.transactions(20_000, 42))
    assert {row[1] for row in rows} == set(range(1, 11))
    assert (min(row[2] for row in rows), max(row[2] for row in rows)) == (OLDEST, TODAY)
    assert {row[3] for row in rows} == set(range(1, 1_001))
    prices = [row[4] for row in rows]
    assert {price.as_tuple().exponent for price in prices} == {-2}
    assert Decimal(0) <= min(prices) < Decimal(1)
    assert Decimal(499) < max(prices) <= Decimal(500)


def test_types_are_ten_names_with_an_id():
    assert list(generators.types()) == list(enumerate(generators.TYPE_NAMES, start=1))
    assert len(set(generators.TYPE_NAMES)) == 10


def test_objects_are_text_files_of_200_to_399_random_characters_after_a_fixed_beginning():
    found = dict(generators.objects(2_000, 42))
    assert list(found) == [f"filename{n}.txt" for n in range(1, 2_001)]
    beginning = b"This object belongs to the cache-aside workshop. "
    tails = [body.removeprefix(beginning) for body in found.values()]
    assert [beginning + tail for tail in tails] == list(found.values())
    assert {len(tail) for tail in tails} == set(range(200, 400))
    assert all(re.fullmatch(rb"[A-Za-z0-9]+", tail) for tail in tails)
    assert len(set(b"".join(tails))) == 62
    assert len(set(tails)) == 2_000
