"""Mixed traffic on paper: seeded, at random, with ids of its own."""

import random
from decimal import Decimal

from hypothesis import given, strategies as st

from workshop_lib.load.traffic import ACTIONS, FIRST_ID, STATEMENTS, row_id, values_of

RUNS = st.integers(0, 2**31 - 1)


def inserts(seed=1, run=0):
    rng = random.Random(seed)
    return [values_of("INSERT", rng, run, number) for number in range(1_000)]


def test_the_same_seed_gives_the_same_values_and_another_run_other_ids_only():
    assert inserts() == inserts()
    assert inserts(seed=2) != inserts()
    assert [row[1:] for row in inserts(run=1)] == [row[1:] for row in inserts(run=2)]
    assert not {row[0] for row in inserts(run=1)} & {row[0] for row in inserts(run=2)}


def test_each_action_has_a_statement_with_as_many_placeholders_as_values():
    assert set(ACTIONS) == set(STATEMENTS)
    for action, statement in STATEMENTS.items():
        assert statement.count("%s") == len(values_of(action, random.Random(1), 0, 0))


def test_an_insert_is_a_row_within_the_ranges():
    for key, kind, _, quantity, price in inserts():
        assert key >= FIRST_ID
        assert 1 <= kind <= 10
        assert 1 <= quantity <= 1_000
        assert Decimal(0) <= price <= 500
        assert -price.as_tuple().exponent == 2


@given(RUNS, st.integers(0, 2**30 - 1))
def test_ids_fit_the_column_and_their_run(run, number):
    assert row_id(run, 0) <= row_id(run, number) < row_id(run + 1, 0) <= 2**63
