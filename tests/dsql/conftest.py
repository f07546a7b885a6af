"""Connections with DSQL's rules: our own, and plain ones as any other client's."""

import secrets
import sys
from pathlib import Path

import psycopg2
import pytest
from psycopg2 import sql

from workshop_lib.services import resolve_cluster
from workshop_lib.settings import load_settings

sys.path.append(str(Path(__file__).parent))  # the model of the rules is no part of the package


@pytest.fixture(scope="module")
def cluster(shared):
    """The local Aurora DSQL."""
    found, release = resolve_cluster(load_settings().values)
    yield found
    release()


@pytest.fixture(scope="module")
def schema(shared):
    """A schema for the tests of one file."""
    name = f"rules_{secrets.token_hex(4)}"
    shared.database.query(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
    yield name
    shared.database.query(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


@pytest.fixture
def client(shared, schema):
    """Opens connections, of our own, to the local DSQL, or the server; closes them at the end."""
    opened = []

    def connect(*, ours=False, local_dsql=False, autocommit=True):
        if ours:
            connection = shared.database.connect()
        elif local_dsql:
            connection = psycopg2.connect(**shared.database_arguments())
        else:
            connection = psycopg2.connect(**shared.endpoints.database.arguments)
        opened.append(connection)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(schema)))
        connection.autocommit = autocommit
        return connection

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture
def numbers(client):
    """An empty table `numbers (id, n)`."""
    with client().cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS numbers (id BIGINT PRIMARY KEY, n INT NOT NULL)")
        while True:
            cursor.execute("DELETE FROM numbers WHERE id IN (SELECT id FROM numbers LIMIT 3000)")
            if cursor.rowcount == 0:
                return "numbers"
