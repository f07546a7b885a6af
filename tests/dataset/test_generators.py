"""The same seed gives the same rows, and a larger table begins with the smaller one's."""

from datetime import UTC, date, datetime
from decimal import Decimal
from hashlib import sha256
from itertools import islice

import pytest
from hypothesis import given, settings, strategies as st

from workshop_lib.dataset import generators

KINDS = {
    "users": generators.users,
    "orders": lambda count, seed: generators.orders(count, seed, 500),
    "transactions": generators.transactions,
    "objects": generators.objects,
}
DIGESTS = {
    "users": "84f06bf0b8c5",
    "orders": "473779e16135",
    "transactions": "89f310402c9a",
    "objects": "073f56ae4dba",
}
"""Of 3,000 rows by the default seed, as Python writes them."""
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
quick = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 2**70)


@kinds
@given(st.integers(0, 1_500), st.integers(0, 1_500), seeds)
@quick
def test_a_table_is_made_the_same_every_time_and_begins_with_every_smaller_one(make, a, b, seed):
    small, large = sorted((a, b))
    rows = list(make(small, seed))
    assert len(rows) == small
    assert list(islice(make(large, seed), small)) == rows


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
    assert list(generators.types()) == list(enumerate(generators.TYPE_NAMES, start=1))
    ((name, body),) = generators.objects(1, 42)
    beginning = b"This object belongs to the cache-aside workshop. "
    assert (name, body[:64]) == ("filename1.txt", beginning + b"mdqfkncHnTVePrg")
    rows = {kind: repr(list(make(3_000, 42))).encode() for kind, make in KINDS.items()}
    assert {kind: sha256(text).hexdigest()[:12] for kind, text in rows.items()} == DIGESTS
