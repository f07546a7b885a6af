"""Optimistic commit through the front: several sessions, played step by step as on a cluster."""

import contextlib

import psycopg2
import pytest

from workshop_lib.services.local_dsql import open_cluster
from workshop_lib.settings import load_settings

FAILURES = {
    "OC000": ("40001", "change conflicts with another transaction (OC000)"),
    "OC001": (
        "40001",
        "schema has been updated by another transaction, please retry: (OC001)",
    ),
    "duplicate": ("23505", "duplicate key value violates unique constraint"),
    "parent": ("23503", "violates foreign key constraint"),
    "check": ("23514", "violates check constraint"),
    "aborted": ("25P02", "current transaction is aborted"),
}
SQL = {
    "begin": "BEGIN",
    "commit": "COMMIT",
    "rollback": "ROLLBACK",
    "set": "UPDATE t SET v = '{1}' WHERE n = {0}",
    "add": "INSERT INTO t VALUES ({0}, '{1}')",
    "put": "INSERT INTO t VALUES ({0}, '{1}') ON CONFLICT (n) DO UPDATE SET v = excluded.v",
    "delete": "DELETE FROM t WHERE n = {0}",
    "move": "UPDATE t SET n = {1} WHERE n = {0}",
    "returning": "UPDATE t SET v = v || '{1}' WHERE n = {0} RETURNING n, v",
    "all": "UPDATE t SET v = v || '{0}'",
    "read": "SELECT n, v FROM t ORDER BY n",
    "qualified": "SELECT n, v FROM {schema}.t x WHERE x.n > 0 ORDER BY n",
    "lock": "SELECT n, v FROM t WHERE n = {0} FOR UPDATE",
    "child": "INSERT INTO c VALUES ({0}, {1})",
    "define": "ALTER TABLE t ADD COLUMN w int",
    "other": "CREATE TABLE IF NOT EXISTS another (n int)",
    "grant": "GRANT SELECT ON t TO PUBLIC",
    "wrong": "SELECT 1 / 0",
}
TAGS = {
    "set": "UPDATE 1",
    "add": "INSERT 0 1",
    "put": "INSERT 0 1",
    "delete": "DELETE 1",
    "move": "UPDATE 1",
    "begin": "BEGIN",
    "commit": "COMMIT",
    "rollback": "ROLLBACK",
}
PLAYS = {
    # Who wins.
    "the first to commit wins, not the first to write": (
        "A begin, B begin, A set 1 a, B set 1 b, B commit, A commit !OC000", "1b 2-"),
    "the first writer commits first": (
        "A begin, B begin, A set 1 a, B set 1 b, A commit, B commit !OC000", "1a 2-"),
    "if the first rolls back, the second commits": (
        "A begin, B begin, A set 1 a, B set 1 b, A rollback, B commit", "1b 2-"),
    "different rows": (
        "A begin, B begin, A set 1 a, B set 2 b, A commit, B commit", "1a 2b"),
    "crossed updates: one commits": (
        "A begin, B begin, A set 1 a, B set 2 b, A set 2 a, B set 1 b, A commit, B commit !OC000",
        "1a 2a"),
    "crossed updates: the other commits": (
        "A begin, B begin, A set 1 a, B set 2 b, A set 2 a, B set 1 b, B commit, A commit !OC000",
        "1b 2b"),
    "three writers of a row": (
        ("A begin, B begin, C begin, A set 1 a, B set 1 b, C set 1 c, C commit, A commit !OC000, "
        "B commit !OC000"), "1c 2-"),
    "a statement alone wins over an open writer": (
        "A begin, A set 1 a, B set 1 b, A commit !OC000", "1b 2-"),
    "a deletion wins over an update": (
        "A begin, B begin, A set 1 a, B delete 1, B commit, A commit !OC000", "2-"),
    "an update wins over a deletion": (
        "A begin, B begin, A delete 1, B set 1 b, B commit, A commit !OC000", "1b 2-"),
    "nothing of the loser stays, and it can try again": (
        "A begin, A set 2 a, A set 1 a, B set 1 b, A commit !OC000, A begin, A set 2 a, A commit",
        "1b 2a"),
    "many rows of one statement, one of which was lost": (
        "A begin, A all a, B set 2 b, A read =1-a 2-a, A commit !OC000", "1- 2b"),
    "without writes nothing conflicts: a reader commits": (
        "A begin, A read =1- 2-, B set 1 b, A read =1- 2-, A commit", "1b 2-"),
    "write skew is not prevented": (
        "A begin, B begin, A read =1- 2-, B read =1- 2-, A set 1 a, B set 2 b, A commit, B commit",
        "1a 2b"),
    # What one sees.
    "the snapshot is taken at BEGIN": (
        "A begin, B set 1 b, A read =1- 2-, A commit, A read =1b 2-", "1b 2-"),
    "a write on an old snapshot goes through, and conflicts at COMMIT": (
        "A begin, B set 1 b, A set 1 a, A read =1a 2-, A commit !OC000", "1b 2-"),
    "one's own writes are there, whoever writes in between": (
        ("A begin, B begin, A set 1 a, B set 1 b, A read =1a 2-, B read =1b 2-, A set 2 a, "
        "B read =1b 2-, A read =1a 2a, B rollback, A commit"), "1a 2a"),
    "the loser sees its own writes until COMMIT": (
        ("A begin, B begin, A set 1 a, B set 1 b, B add 3 b, A commit, B read =1b 2- 3b, "
        "B qualified =1b 2- 3b, B set 2 b, B read =1b 2b 3b, B commit !OC000"), "1a 2-"),
    "the loser may give up": (
        "A begin, A set 1 a, B set 1 b, A read =1a 2-, A rollback, A read =1b 2-", "1b 2-"),
    "the loser gets what RETURNING returns": (
        ("A begin, B begin, A returning 1 a =1-a, B returning 1 b =1-b, A commit, "
        "B returning 1 b =1-bb, B commit !OC000"), "1-a 2-"),
    "the loser of a row that it did not yet have": (
        "B begin, A set 1 a, B returning 1 b =1-b, B returning 1 b =1-bb, B commit !OC000",
        "1a 2-"),
    # Locks.
    "who has locked and committed wins over who has locked": (
        "A begin, B begin, A lock 1 =1-, B lock 1 =1-, A commit, B commit !OC000", "1- 2-"),
    "a lock prevents write skew": (
        ("A begin, B begin, A lock 1 =1-, A set 2 a, B lock 2 =2-, B set 1 b, A commit, "
        "B commit !OC000"), "1- 2a"),
    "a lock of a row that was changed since": (
        "A begin, B set 1 b, A lock 1 =1-, A commit !OC000", "1b 2-"),
    # Keys.
    "a key that the snapshot sees is a duplicate at once": (
        "A begin, A add 1 a !duplicate, A read !aborted, A commit =ROLLBACK", "1- 2-"),
    "one's own key is a duplicate at once": (
        "A begin, A add 3 a, B add 4 b, A add 3 a !duplicate, A rollback", "1- 2- 4b"),
    "a key among open transactions conflicts at COMMIT": (
        ("A begin, B begin, A add 3 a, B add 3 b, B read =1- 2- 3b, A commit, B read =1- 2- 3b, "
        "B commit !OC000"), "1- 2- 3a"),
    "a key that came after the snapshot": (
        "A begin, B add 3 b, A add 3 a, A read =1- 2- 3a, A commit !OC000", "1- 2- 3b"),
    "a key that a loser has twice is a duplicate": (
        "A begin, B add 3 b, A add 3 a, A add 3 x !duplicate, A commit =ROLLBACK", "1- 2- 3b"),
    "ON CONFLICT among open transactions": (
        "A begin, B begin, A put 3 a, B put 3 b, A put 3 aa, A commit, B commit !OC000",
        "1- 2- 3aa"),
    "a key is free for others only after COMMIT": (
        "A begin, A move 1 5, B add 1 b !duplicate, A commit, B add 1 b", "1b 2- 5-"),
    "rows that moved are still one's own": (
        ("A begin, A move 1 5, A set 5 a, B set 2 b, A move 5 6, A delete 6, A add 7 a, B set 2 c, "
        "A read =2- 7a, A commit"), "2c 7a"),
    # True errors.
    "a check fails at once": ("A begin, A set 1 BAD !check, A rollback", "1- 2-"),
    "a missing parent is an error at once": (
        "A begin, B add 3 b, A child 1 3 !parent, A rollback, A child 1 3", "1- 2- 3b"),
    "a child of one's own parent": (
        "A begin, A add 3 a, A child 1 3, B set 1 b, A read =1- 2- 3a, A commit", "1b 2- 3a"),
    "a parent that another one deletes": (
        "A begin, A child 1 1, B begin, B delete 1, B commit, A commit !OC000", "2-"),
    # Definitions.
    "a definition waits for no reader": (
        "A begin, A read =1- 2-, B define, A read !OC001, A read !aborted, A rollback", "1- 2-"),
    "nor for a writer, who learns it at COMMIT": (
        "A begin, A set 1 a, B define, A commit !OC001", "1- 2-"),
    "any definition is meant, and any open transaction": (
        "A begin, A read =1- 2-, B other, A commit !OC001", "1- 2-"),
    "a grant is one": ("A begin, B grant, A read !OC001, A commit =ROLLBACK", "1- 2-"),
    "a transaction that is over is left alone": (
        "A begin, A read =1- 2-, A commit, B define, A read =1- 2-", "1- 2-"),
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster(shared):
    found = open_cluster(load_settings().values)
    yield found
    found.release()


@pytest.fixture
def connect(cluster, schema):
    """Signs in, in the file's schema; closes what is left open."""
    with contextlib.ExitStack() as stack:

        def sign_in():
            arguments = {**cluster.arguments(), "options": f"-c search_path={schema}"}
            connection = psycopg2.connect(**arguments)
            stack.callback(connection.close)
            connection.autocommit = True
            return connection

        yield sign_in


@pytest.fixture
def cursor(connect):
    return connect().cursor()


@pytest.fixture
def table(cursor):
    """A table t (n, v) with the rows 1 and 2, and one of its children."""
    cursor.execute("DROP TABLE IF EXISTS c")
    cursor.execute("DROP TABLE IF EXISTS t")
    cursor.execute("CREATE TABLE t (n int PRIMARY KEY, v text CHECK (v <> 'BAD'))")
    cursor.execute("CREATE TABLE c (n int PRIMARY KEY, t int REFERENCES t)")
    cursor.execute("INSERT INTO t VALUES (1, '-'), (2, '-')")
    return "t"


def rows_of(cursor):
    return " ".join(f"{n}{v}" for n, v in cursor.fetchall())


def take_step(cursor, schema, step):
    what, *values = step.split()
    wanted = values.pop() if values and values[-1][0] == "!" else ""
    if "=" in step:
        step, wanted = step.split(" =")
        what, *values = step.split()
        wanted = f"={wanted}"
    sql = SQL[what].format(*values, schema=schema)
    if wanted.startswith("!"):
        code, text = FAILURES[wanted[1:]]
        with pytest.raises(psycopg2.Error) as caught:
            cursor.execute(sql)
        assert (caught.value.pgcode, text in str(caught.value)) == (code, True), str(caught.value)
        return
    cursor.execute(sql)
    if cursor.description:
        assert rows_of(cursor) == wanted[1:], step
    elif what in TAGS:
        assert cursor.statusmessage == (wanted[1:] or TAGS[what]), step


@pytest.mark.parametrize("name", PLAYS)
def test_plays(connect, cursor, schema, table, name):
    script, last = PLAYS[name]
    players = {who: connect().cursor() for who in "ABC"}
    for step in script.split(", "):
        who, what = step.split(" ", 1)
        take_step(players[who], schema, what)
    cursor.execute(SQL["read"])
    assert rows_of(cursor) == last
