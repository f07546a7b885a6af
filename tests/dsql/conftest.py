"""Connections with DSQL's rules: our own, and plain ones as any other client's."""

import contextlib
import secrets
import sys
from pathlib import Path

import psycopg2
import pytest
from psycopg2 import sql

from workshop_lib.services import resolve_cluster
from workshop_lib.settings import load_settings

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "cloud" / "standin")]  # helpers, no part of the package


class Cursor(psycopg2.extensions.cursor):
    """A cursor that asks and fetches at once."""

    def row(self, sql):
        self.execute(sql)
        return self.fetchone()

    def rows(self, sql):
        self.execute(sql)
        return self.fetchall()


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
def opened():
    """Closes at the end what is put into it."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def connect(cluster, schema, opened):
    """Signs in to the local DSQL, in the file's schema."""

    def sign_in(user="admin", **changes):
        given = {**cluster.login(user), "options": f"-c search_path={schema}", **changes}
        given = {name: value for name, value in given.items() if value is not None}
        connection = psycopg2.connect(**given, cursor_factory=Cursor)
        opened.callback(connection.close)
        connection.autocommit = True
        return connection

    return sign_in


@pytest.fixture
def cursor(connect):
    return connect().cursor()


@pytest.fixture
def client(shared, schema, opened):
    """Opens connections to the server, as any client, in the file's schema."""

    def connect(*, autocommit=True):
        arguments = {**shared.endpoints.database.arguments, "options": f"-c search_path={schema}"}
        connection = psycopg2.connect(**arguments, cursor_factory=Cursor)
        opened.callback(connection.close)
        connection.autocommit = autocommit
        return connection

    return connect


@pytest.fixture
def numbers(client):
    """An empty table `numbers (id, n)`."""
    with client().cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS numbers (id BIGINT PRIMARY KEY, n INT NOT NULL)")
        while True:
            cursor.execute("DELETE FROM numbers WHERE id IN (SELECT id FROM numbers LIMIT 3000)")
            if cursor.rowcount == 0:
                return "numbers"
