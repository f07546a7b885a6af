"""Transactions played against each other: the steps, and the picture of them."""

import pytest

from workshop_lib.dsql import run_interleaved


@pytest.fixture
def row(numbers, client):
    """A table with one row (1, 0)."""
    with client().cursor() as cursor:
        cursor.execute("INSERT INTO numbers VALUES (1, 0)")


def outcomes(steps):
    return [(step.session, step.outcome) for step in steps]


READ = "SELECT n FROM numbers WHERE id = 1"
WRITE = "UPDATE numbers SET n = %s WHERE id = 1"


def test_each_plays_on_a_connection_of_its_own_and_errors_are_noted(row, client, connect):
    steps = run_interleaved(connect, [
        ("Ann", "BEGIN"), ("Bob", "BEGIN"), ("Ann", WRITE, 7), ("Bob", WRITE, 8),
        ("Ann", "COMMIT"), ("Bob", READ), ("Bob", "COMMIT"), ("Bob", READ),
        ("Ann", "BEGIN"), ("Ann", "SELECT 1 / 0"), ("Ann", READ), ("Ann", "COMMIT"),
    ])  # fmt: skip
    lost = "40001: change conflicts with another transaction (OC000)"
    assert outcomes(steps[:8]) == [
        ("Ann", "ok"), ("Bob", "ok"), ("Ann", "ok"), ("Bob", "ok"),
        ("Ann", "ok"), ("Bob", "8"), ("Bob", lost), ("Bob", "7"),
    ]  # fmt: skip
    assert [step.code for step in steps[6:]] == ["40001", "", "", "22012", "25P02", ""]
    assert steps[-1].outcome == "ROLLBACK"
    assert steps[2].statement == "UPDATE numbers SET n = 7 WHERE id = 1"


def test_what_is_not_committed_at_the_end_is_rolled_back_and_answers_are_cut_short(
    row, client, connect
):
    steps = run_interleaved(connect, [
        ("Ann", "BEGIN"), ("Ann", WRITE, 5),
        ("Bob", "SELECT n, n + 1 FROM generate_series(1, 5) AS t (n)"),
        ("Bob", "SELECT 1 WHERE false"),
    ])  # fmt: skip
    assert [step.outcome for step in steps[2:]] == ["1 2, 2 3, 3 4 and 2 more", "no rows"]
    with client().cursor() as cursor:
        cursor.execute(READ)
        assert cursor.fetchone() == (0,)
