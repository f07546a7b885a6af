"""Conflicts on the local engine itself; on the local Aurora DSQL see test_play.py."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest

from workshop_lib import database

ADD = "UPDATE numbers SET n = n + 1 WHERE id = %s"


def value(client, row=1):
    with client().cursor() as cursor:
        cursor.execute("SELECT n FROM numbers WHERE id = %s", (row,))
        return cursor.fetchone()[0]


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
