"""Conflicts as on DSQL: nobody waits, and the loser learns of it when it commits."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest
from psycopg2 import errors

from workshop_lib import database

OC000 = r"change conflicts with another transaction \(OC000\)"
ADD = "UPDATE numbers SET n = n + 1 WHERE id = %s"


@pytest.fixture
def two(client, numbers):
    """Two cursors, each in a transaction of its own, and two rows."""
    with client().cursor() as cursor:
        cursor.execute("INSERT INTO numbers VALUES (1, 10), (2, 20)")
    return [client(ours=True, autocommit=False).cursor() for _ in range(2)]


def value(client, row=1):
    with client().cursor() as cursor:
        cursor.execute("SELECT n FROM numbers WHERE id = %s", (row,))
        return cursor.fetchone()[0]


def loses(cursor):
    with pytest.raises(errors.SerializationFailure, match=OC000) as caught:
        cursor.connection.commit()
    assert caught.value.pgcode == "40001"


def test_one_cell_can_play_both_transactions(two, client):
    first, second = two
    first.execute(ADD, (1,))
    second.execute(ADD, (1,))
    first.connection.commit()
    loses(second)
    assert value(client) == 11


def test_a_snapshot_older_than_a_commit_is_a_conflict_as_well(two, client):
    first, second = two
    second.execute("SELECT n FROM numbers WHERE id = 1")
    first.execute(ADD, (1,))
    first.connection.commit()
    second.execute(ADD, (1,))
    second.execute("SELECT n FROM numbers WHERE id = 1")
    assert second.fetchone() == (10,)
    loses(second)
    assert value(client) == 11


def test_nothing_of_the_loser_is_kept(two, client):
    first, second = two
    second.execute(ADD, (2,))
    first.execute(ADD, (1,))
    second.execute(ADD, (1,))
    first.connection.commit()
    loses(second)
    assert (value(client, 1), value(client, 2)) == (11, 20)
    second.execute(ADD, (1,))
    second.connection.commit()
    assert value(client) == 12


def test_different_rows_do_not_conflict(two, client):
    first, second = two
    first.execute(ADD, (1,))
    second.execute(ADD, (2,))
    second.connection.commit()
    first.connection.commit()
    assert (value(client, 1), value(client, 2)) == (11, 21)


def test_two_who_insert_the_same_key_conflict(two):
    first, second = two
    for cursor in two:
        cursor.execute("INSERT INTO numbers VALUES (3, 0)")
    first.connection.commit()
    loses(second)


def test_a_statement_alone_raises_the_conflict_itself(two, client):
    first, _ = two
    first.execute(ADD, (1,))
    with (
        client(ours=True).cursor() as alone,
        pytest.raises(errors.SerializationFailure, match=OC000),
    ):
        alone.execute(ADD, (1,))
    first.connection.rollback()


def test_rows_that_nobody_can_know_are_a_conflict_at_once(two):
    first, second = two
    first.execute(ADD, (1,))
    with pytest.raises(errors.SerializationFailure, match=OC000):
        second.execute(ADD + " RETURNING n", (1,))
    with pytest.raises(errors.InFailedSqlTransaction):
        second.execute("SELECT 1")


def test_write_skew_happens(two, client):
    # Each may go off duty as long as the other one is on: together they break the rule.
    for cursor, mine in zip(two, (1, 2), strict=True):
        cursor.execute("SELECT sum(n) FROM numbers")
        assert cursor.fetchone() == (30,)
        cursor.execute("UPDATE numbers SET n = 0 WHERE id = %s", (mine,))
    for cursor in two:
        cursor.connection.commit()
    assert (value(client, 1), value(client, 2)) == (0, 0)


def test_for_update_prevents_it(two, client):
    first, second = two
    for cursor, mine in zip(two, (1, 2), strict=True):
        cursor.execute("SELECT id, n FROM numbers ORDER BY id FOR UPDATE")
        assert cursor.fetchall() == [(1, 10), (2, 20)]
        cursor.execute("UPDATE numbers SET n = 0 WHERE id = %s", (mine,))
    first.connection.commit()
    loses(second)
    assert (value(client, 1), value(client, 2)) == (0, 20)


def test_many_statements_in_one_transaction_need_one_hidden_savepoint(client, numbers):
    connection = client(ours=True, autocommit=False)
    with connection.cursor() as cursor:
        for n in range(300):
            cursor.execute("INSERT INTO numbers VALUES (%s, 0)", (n,))
    connection.commit()
    with connection.cursor() as cursor:
        cursor.executemany("UPDATE numbers SET n = 1 WHERE id = %s", [(n,) for n in range(300)])
        cursor.execute("SELECT sum(n) FROM numbers")
        assert cursor.fetchone() == (300,)
    connection.commit()


def test_sixteen_writers_of_one_counter_lose_no_step(shared, schema, client, numbers, monkeypatch):
    monkeypatch.setattr(database, "CONFLICT_S", 120)  # on a busy machine ten may not be enough
    with client().cursor() as cursor:
        cursor.execute("INSERT INTO numbers VALUES (1, 0)")
    table = f"{schema}.numbers"
    together = threading.Barrier(16)

    def add(cursor):
        cursor.execute(f"SELECT n FROM {table} WHERE id = 1")
        (n,) = cursor.fetchone()
        cursor.execute(f"UPDATE {table} SET n = %s WHERE id = 1", (n + 1,))

    def write(_):
        together.wait()
        for _ in range(10):
            shared.database.run_transaction(add)

    before = shared.database.stats().conflicts
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(16)))
    assert value(client) == 160
    assert shared.database.stats().conflicts > before


def test_a_conflict_of_the_engine_s_own_client_is_an_error_too(client, numbers):
    """Any other client waits for the first writer, as PostgreSQL has it, and then loses."""
    with client().cursor() as cursor:
        cursor.execute("INSERT INTO numbers VALUES (1, 0)")
    first, second = (client(autocommit=False).cursor() for _ in range(2))
    second.execute("SELECT n FROM numbers WHERE id = 1")
    first.execute(ADD, (1,))
    first.connection.commit()
    with pytest.raises(psycopg2.Error) as caught:
        second.execute(ADD, (1,))
    assert caught.value.pgcode == "40001"
