"""Mixed traffic on paper: seeded, at random, with ids of its own."""

import itertools
from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given, strategies as st

from workshop_lib.load.traffic import (
    ACTIONS,
    FIRST_ID,
    SHARES,
    STATEMENTS,
    requests,
    row_id,
)

RUNS = st.integers(0, 2**31 - 1)


def stream(rate=1_000.0, seconds=10.0, seed=1, run=0):
    return list(requests(rate, seconds, seed, run))


def test_the_same_seed_gives_the_same_stream_and_another_run_other_ids_only():
    assert stream() == stream()
    assert stream(seed=2) != stream()
    for one, other in zip(stream(run=1), stream(run=2), strict=True):
        assert (one.at, one.action) == (other.at, other.action)
        assert (one.values == other.values) == (one.action != "INSERT")


def test_arrivals_are_a_poisson_process():
    at = [request.at for request in stream()]
    assert at == sorted(at)
    assert at[-1] < 10
    # 10,000 expected, with a standard deviation of 100.
    assert 9_500 < len(at) < 10_500
    gaps = [b - a for a, b in itertools.pairwise(at)]
    # Exponential gaps: mean and standard deviation are alike, and 63 % are shorter than the mean.
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert spread == pytest.approx(mean, rel=0.1)
    assert 0.60 < sum(gap < mean for gap in gaps) / len(gaps) < 0.66


def test_actions_come_in_their_shares():
    found = Counter(request.action for request in stream())
    total = sum(found.values())
    assert set(found) == set(ACTIONS) == set(STATEMENTS) == set(SHARES)
    for action, share in SHARES.items():
        assert found[action] / total == pytest.approx(share, abs=0.02)


def test_an_insert_is_a_row_within_the_ranges():
    rows = [request.values for request in stream() if request.action == "INSERT"]
    for key, kind, _, quantity, price in rows:
        assert key >= FIRST_ID
        assert 1 <= kind <= 10
        assert 1 <= quantity <= 1_000
        assert Decimal(0) <= price <= 500
        assert -price.as_tuple().exponent == 2
    assert len({row[0] for row in rows}) == len(rows)


@given(RUNS, st.integers(0, 2**30 - 1))
def test_ids_fit_the_column_and_their_run(run, number):
    assert row_id(run, 0) <= row_id(run, number) < row_id(run + 1, 0) <= 2**63
