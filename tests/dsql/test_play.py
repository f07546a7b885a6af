"""Transactions played against each other: the steps, and the picture of them."""

import pytest

from workshop_lib.dsql import play


@pytest.fixture
def row(numbers, client):
    """A table with one row (1, 0)."""
    with client().cursor() as cursor:
        cursor.execute("INSERT INTO numbers VALUES (1, 0)")


def outcomes(steps):
    return [(step.who, step.outcome) for step in steps]


READ = "SELECT n FROM numbers WHERE id = 1"
WRITE = "UPDATE numbers SET n = %s WHERE id = 1"


def test_two_play_in_turn_each_on_a_connection_of_their_own(row, client):
    steps = play(lambda: client(local_dsql=True), [
        ("Ann", "BEGIN"), ("Bob", "BEGIN"),
        ("Ann", WRITE, 7), ("Ann", READ), ("Bob", READ),
        ("Ann", "COMMIT"), ("Bob", READ), ("Bob", "COMMIT"), ("Bob", READ),
    ])  # fmt: skip
    assert outcomes(steps) == [
        ("Ann", "ok"), ("Bob", "ok"), ("Ann", "ok"), ("Ann", "7"), ("Bob", "0"),
        ("Ann", "ok"), ("Bob", "0"), ("Bob", "ok"), ("Bob", "7"),
    ]  # fmt: skip
    assert steps[2].statement == "UPDATE numbers SET n = 7 WHERE id = 1"


def test_a_conflict_is_noted_at_commit_and_the_play_goes_on(row, client):
    steps = play(lambda: client(local_dsql=True), [
        ("Ann", "BEGIN"), ("Bob", "BEGIN"), ("Ann", WRITE, 1), ("Bob", WRITE, 2),
        ("Ann", "COMMIT"), ("Bob", "COMMIT"), ("Bob", READ),
    ])  # fmt: skip
    assert [step.code for step in steps] == ["", "", "", "", "", "40001", ""]
    assert steps[5].outcome == "40001: change conflicts with another transaction (OC000)"
    assert steps[6].outcome == "1"


def test_a_commit_of_an_aborted_transaction_is_seen_to_be_a_rollback(row, client):
    steps = play(lambda: client(local_dsql=True), [
        ("Ann", "BEGIN"), ("Ann", "SELECT 1 / 0"), ("Ann", READ), ("Ann", "COMMIT"),
    ])  # fmt: skip
    assert [step.code for step in steps] == ["", "22012", "25P02", ""]
    assert steps[-1].outcome == "ROLLBACK"


def test_what_is_not_committed_at_the_end_is_rolled_back(row, client):
    play(lambda: client(local_dsql=True), [("Ann", "BEGIN"), ("Ann", WRITE, 5)])
    with client().cursor() as cursor:
        cursor.execute(READ)
        assert cursor.fetchone() == (0,)


def test_many_rows_are_cut_short_and_none_are_said_so(row, client):
    steps = play(lambda: client(local_dsql=True), [
        ("Ann", "SELECT n, n + 1 FROM generate_series(1, 5) AS t (n)"),
        ("Ann", "SELECT 1 WHERE false"),
    ])  # fmt: skip
    assert [step.outcome for step in steps] == ["1 2, 2 3, 3 4 and 2 more", "no rows"]
