"""Optimistic commit through the front: several sessions, played step by step as on a cluster."""

import io
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from transaction_model import Table

from workshop_lib.database import Database

SQL = {
    "begin": "BEGIN",
    "commit": "COMMIT",
    "rollback": "ROLLBACK",
    "read": "SELECT n, v FROM t ORDER BY n",
    "qualified": "SELECT n, v FROM {schema}.t x WHERE x.n > 0 ORDER BY n",
    "set": "UPDATE t SET v = v || '{1}' WHERE n = {0} RETURNING n, v",
    "all": "UPDATE t SET v = v || '{0}'",
    "add": "INSERT INTO t VALUES ({0}, '{1}')",
    "put": "INSERT INTO t VALUES ({0}, '{1}') ON CONFLICT (n) DO UPDATE SET v = excluded.v",
    "delete": "DELETE FROM t WHERE n = {0}",
    "move": "UPDATE t SET n = {1} WHERE n = {0}",
    "lock": "SELECT n, v FROM t WHERE n = {0} FOR UPDATE",
    "share": "SELECT n, v FROM t WHERE n = {0} FOR KEY SHARE",
    "child": "INSERT INTO c VALUES ({0}, {1})",
    "define": "ALTER TABLE t ADD COLUMN w int",
    "grant": "GRANT SELECT ON t TO PUBLIC",
}
PLAYS = {  # what the model below knows nothing of; random plays show the rest
    "the first to commit wins, not the first to write": (
        "A begin, B begin, A set 1 a, B set 1 b, B commit, A read =1-a 2-, A commit !OC000",
        "1-b 2-"),
    "many rows of one statement, one of which was lost": (
        "A begin, A all a, B set 2 b, A read =1-a 2-a, A commit !OC000", "1- 2-b"),
    "the loser learns it earlier where it names a schema": (
        ("A begin, A set 1 a, A qualified =1-a 2-, B set 1 b, A read =1-a 2-, A qualified !OC000, "
        "A read !25P02, A commit =ROLLBACK"), "1-b 2-"),
    "a key is free for others only after COMMIT": (
        "A begin, A move 1 5, B add 1 b !23505, A commit, B add 1 b", "1b 2- 5-"),
    "rows that moved are the same rows": (
        ("A begin, A move 1 5, A set 5 a, B set 2 b, A move 5 6, A delete 6, A add 7 a, B set 2 c, "
        "A read =2- 7a, A commit"), "2-bc 7a"),
    "a check fails at once": ("A begin, A set 1 BAD !23514, A rollback", "1- 2-"),
    "a missing parent is an error at once": (
        "A begin, B add 3 b, A child 1 3 !23503, A rollback, A child 1 3", "1- 2- 3b"),
    "a child of a parent of the same transaction": (
        "A begin, A add 3 a, A child 1 3, B set 1 b, A read =1- 2- 3a, A commit", "1-b 2- 3a"),
    "a parent that another one deletes": (
        "A begin, A child 1 1, B begin, B delete 1, B commit, A commit !OC000", "2-"),
    "a parent of which another one changes no key": (
        "A begin, B begin, A set 1 a, B child 1 1, A commit, B commit", "1-a 2-"),
    "a key that is shared and committed is not deleted": (
        "A begin, B begin, A share 1 =1-, B delete 1, A commit, B commit !OC000", "1- 2-"),
    "a definition waits for no reader": (
        "A begin, A read =1- 2-, B define, A read !OC001, A read !25P02, A rollback", "1- 2-"),
    "nor for a writer, who learns it at COMMIT": (
        "A begin, A set 1 a, B define, A commit !OC001", "1- 2-"),
}  # fmt: skip


@pytest.fixture
def table(cursor):
    """A table t (n, v) with the rows 1 and 2, and one of its children."""
    cursor.execute("DROP TABLE IF EXISTS c")
    cursor.execute("DROP TABLE IF EXISTS t")
    cursor.execute("CREATE TABLE t (n int PRIMARY KEY, v text CHECK (v <> '-BAD'))")
    cursor.execute("CREATE TABLE c (n int PRIMARY KEY, t int REFERENCES t)")
    cursor.execute("INSERT INTO t VALUES (1, '-'), (2, '-')")
    return "t"


@pytest.fixture
def players(connect):
    return {who: connect().cursor() for who in "ABCD"}


def rows_of(cursor):
    return " ".join(f"{n}{v}" for n, v in cursor.fetchall())


def say(cursor, what, *values, schema=""):
    """The rows, the tag, or the error of one statement."""
    try:
        cursor.execute(SQL[what].format(*values, schema=schema))
    except psycopg2.Error as error:
        found = str(error).partition("(OC")[2][:3]
        return f"!OC{found}" if found else f"!{error.pgcode}"
    return f"={rows_of(cursor) if cursor.description else cursor.statusmessage}"


@pytest.mark.parametrize("name", PLAYS)
def test_plays(players, cursor, schema, table, name):
    script, last = PLAYS[name]
    for step in script.split(", "):
        sent, *wanted = re.split(" (?=[=!])", step)
        who, what, *values = sent.split()
        got = say(players[who], what, *values, schema=schema)
        assert [got] == wanted if wanted else got[0] == "=", (step, got)
    assert say(cursor, "read") == f"={last}"


# --- random plays against a model of the rules ---

STEPS = st.tuples(
    st.sampled_from("ABCD"),
    st.sampled_from(["read", "set", "set", "add", "put", "delete", "lock", "end", "end", "grant"]),
    st.integers(1, 4),
    st.booleans(),
)


@settings(
    max_examples=int(os.environ.get("RANDOM_PLAYS", "40")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(count=st.integers(2, 4), steps=st.lists(STEPS, min_size=6, max_size=24))
def test_random_plays_end_as_the_rules_say(players, cursor, table, count, steps):
    for one in players.values():
        one.execute("ROLLBACK")
    cursor.execute("DELETE FROM t; INSERT INTO t VALUES (1, 'x'), (2, 'y')")
    model, told = Table({1: "x", 2: "y"}), []
    for number, (who, step, key, well) in enumerate(steps):
        if who not in "ABCD"[:count] or (step == "grant" and who in model.open):
            continue
        what, value = step, f"{who}{number} "
        if what == "end":
            what = "begin" if who not in model.open else "commit" if well else "rollback"
        wanted = model.play(who, what, key, value)
        got = say(players[who], what, key, value)
        told.append((who, what, key, got))
        if wanted == "=COMMIT or !OC000" and got in wanted:
            (model.apply if got == "=COMMIT" else id)(model.open.pop(who))
            continue
        assert got == wanted, told
    assert say(cursor, "read") == model.play("nobody", "read"), told


# --- what is kept when a transaction's changes are made again ---


def test_no_value_that_a_client_has_seen_changes(connect, cursor, table):
    cursor.execute("DROP TABLE IF EXISTS drawn")
    cursor.execute(
        "CREATE TABLE drawn (id bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,"
        " r float8, u uuid DEFAULT gen_random_uuid(), x float8 DEFAULT random(),"
        " at timestamptz DEFAULT now(), c timestamptz DEFAULT clock_timestamp(), j jsonb, b bytea,"
        " i interval, n numeric, s text GENERATED ALWAYS AS ('s' || u) STORED)"
    )
    first = connect().cursor()
    first.execute("BEGIN")
    first.execute(
        "INSERT INTO drawn (j, b, i, n) VALUES (NULL, NULL, NULL, 'NaN'),"
        " ('{\"a\": [1, null]}', '\\x00ff', '-1 day 2:03', 1e-30)"
    )
    first.execute("UPDATE drawn SET r = '-0' RETURNING drawn::text, now()::text")
    seen = first.fetchall()
    for _ in range(2):
        cursor.execute("UPDATE t SET v = 'b'")
        assert first.rows("SELECT drawn::text, now()::text FROM drawn ORDER BY id") == seen
    cursor.execute("UPDATE t SET v = 'c'")
    first.execute("COMMIT")
    assert cursor.rows("SELECT drawn::text FROM drawn ORDER BY id") == [row[:1] for row in seen]


def test_rows_without_a_key_are_made_again(connect, cursor, table):
    cursor.execute("DROP TABLE IF EXISTS plain")
    cursor.execute("CREATE TABLE plain (a int, b text)")
    cursor.execute("INSERT INTO plain VALUES (1, NULL), (2, 'x'), (3, 'y')")
    first = connect().cursor()
    first.execute("BEGIN")
    first.execute("UPDATE plain SET b = 'z' WHERE a = 1")
    first.execute("DELETE FROM plain WHERE a = 2")
    cursor.execute("UPDATE t SET v = 'b'")
    first.execute("COMMIT")
    assert cursor.rows("SELECT * FROM plain ORDER BY a") == [(1, "z"), (3, "y")]


def test_settings_and_the_count_of_rows_are_kept(connect, cursor, table, schema):
    first = connect().cursor()
    first.execute("BEGIN")
    first.execute(f"INSERT INTO {schema}.t SELECT generate_series(10, 2009)")
    first.execute("SET search_path = pg_catalog")
    first.execute("SET LOCAL TimeZone = 'Asia/Tokyo'")
    cursor.execute("UPDATE t SET v = 'b' WHERE n = 1")
    assert first.row("SELECT current_setting('search_path'), current_setting('TimeZone')") == (
        "pg_catalog",
        "Asia/Tokyo",
    )
    with pytest.raises(psycopg2.errors.ProgramLimitExceeded):
        first.execute(f"INSERT INTO {schema}.t SELECT generate_series(3000, 4500)")
    first.execute("ROLLBACK")
    assert first.row("SHOW search_path") == (schema,)


def test_copy_takes_part(connect, cursor, table):
    first = connect().cursor()
    first.execute("BEGIN")
    first.copy_expert("COPY t FROM STDIN", io.StringIO("3\ta\n4\tb\n"))
    cursor.execute("INSERT INTO t VALUES (4, 'theirs')")
    assert first.rows("SELECT v FROM t WHERE n >= 3 ORDER BY n") == [("a",), ("b",)]
    with pytest.raises(psycopg2.errors.SerializationFailure):
        first.execute("COMMIT")


def test_a_role_with_few_rights_may_lose(connect, cursor, table, schema):
    role = f"few_{os.getpid()}"
    cursor.execute(f"CREATE ROLE {role} LOGIN")
    cursor.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    cursor.execute(f"GRANT SELECT, UPDATE ON t TO {role}")
    first = connect(role).cursor()
    first.execute("BEGIN")
    first.execute("UPDATE t SET v = 'few' WHERE n = 1")
    cursor.execute("UPDATE t SET v = 'admin'")
    assert first.rows("SELECT v FROM t ORDER BY n") == [("few",), ("-",)]
    with pytest.raises(psycopg2.errors.SerializationFailure, match="OC000"):
        first.execute("COMMIT")
    cursor.execute(f"REVOKE ALL ON t FROM {role}")
    cursor.execute(f"REVOKE ALL ON SCHEMA {schema} FROM {role}")
    cursor.execute(f"DROP ROLE {role}")


def test_sixteen_writers_of_one_counter_lose_no_step(cluster, cursor, table, schema):
    database = Database(cluster, schema)
    cursor.execute("UPDATE t SET v = '0' WHERE n = 1")

    def add(mine):
        mine.execute("SELECT v::int + 1 FROM t WHERE n = 1")
        mine.execute("UPDATE t SET v = %s WHERE n = 1", mine.fetchone())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: database.run_transaction(add), range(48)))
    assert database.stats().conflicts > 0
    database.close()
    assert cursor.row("SELECT v FROM t WHERE n = 1") == ("48",)


def test_a_client_that_hangs_up_leaves_no_locks(connect, cursor, table):
    first = connect()
    first.cursor().execute("BEGIN; UPDATE t SET v = 'a'")
    first.close()
    cursor.execute("UPDATE t SET v = 'b' WHERE n = 1")
    assert cursor.statusmessage == "UPDATE 1"


def test_a_statement_that_takes_long_is_not_waited_for(connect, cursor, table):
    sleep = "UPDATE t SET v = 'slow' FROM pg_sleep(4) WHERE n = 1"
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(connect().cursor().execute, sleep)
        time.sleep(0.5)
        cursor.execute("UPDATE t SET v = 'b' WHERE n = 2")
        assert not slow.done()
        slow.result()
    assert say(cursor, "read") == "=1slow 2b"
