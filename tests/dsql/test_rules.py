"""What the server refuses to any client, statement by statement, alone and in a transaction."""

import io

import psycopg2
import pytest
from psycopg2 import errors

MANY = "INSERT INTO numbers SELECT i, 0 FROM generate_series(%s, %s) i"

# What is refused, DSQL's SQLSTATE and DSQL's message.
BY_THE_SERVER = {
    "TRUNCATE numbers": ("0A000", "unsupported statement: Truncate"),
    "CREATE TEMP TABLE t (id INT)": (
        "0A000", "TEMPORARY or TEMP table not supported for CREATE TABLE"),
    "CREATE UNLOGGED TABLE t (id INT)": ("0A000", "UNLOGGED table not supported"),
    "CREATE TABLE t AS SELECT 1 AS id": ("0A000", "unsupported statement: CreateTableAs"),
    "CREATE MATERIALIZED VIEW v AS SELECT 1": ("0A000", "unsupported statement: CreateTableAs"),
    "CREATE EXTENSION IF NOT EXISTS plpgsql": ("0A000", "unsupported statement: CreateExtension"),
    "CREATE TRIGGER t AFTER INSERT ON numbers EXECUTE FUNCTION dsql_rules.after_change()": (
        "0A000", "CREATE TRIGGER not supported"),
    "CREATE TYPE mood AS ENUM ('sad')": ("0A000", "CREATE TYPE not supported"),
    "CREATE FUNCTION f() RETURNS INT LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'": (
        "0A000", "CREATE FUNCTION with language plpgsql not supported"),
    "CREATE TABLE t (id SERIAL)": ("42704", 'type "serial" does not exist'),
    "CREATE TABLE t (id INT, tags TEXT[])": ("0A000", "array types are not supported"),
    "CREATE TABLE t (id INT GENERATED ALWAYS AS IDENTITY)": (
        "22023", "sequence type must be bigint"),
    "CREATE TABLE t (id BIGINT GENERATED ALWAYS AS IDENTITY (CACHE 5))": (
        "22023", r"CACHE \(5\) must be greater than or equal to 65536"),
    "CREATE SEQUENCE s AS INT": ("22023", "sequence type must be bigint"),
    "ALTER SEQUENCE counter CACHE 100": ("22023", r"CACHE \(100\) must be greater than"),
    "CREATE INDEX ON numbers (n)": (
        "0A000", "unsupported mode. please use CREATE INDEX ASYNC."),
}  # fmt: skip
ALLOWED = [
    "CREATE TABLE t (id BIGINT GENERATED ALWAYS AS IDENTITY (CACHE 65536) PRIMARY KEY, j JSONB)",
    "CREATE TABLE t (id BIGINT PRIMARY KEY REFERENCES numbers (id))",
    "CREATE TABLE t (id UUID PRIMARY KEY DEFAULT gen_random_uuid(), a INT UNIQUE)",
    "CREATE VIEW t AS SELECT id FROM numbers",
    "CREATE DOMAIN t AS INT CHECK (VALUE > 0)",
    "CREATE SEQUENCE t CACHE 1",
    "CREATE FUNCTION t() RETURNS INT LANGUAGE sql AS 'SELECT 1'",
    "ALTER TABLE numbers ADD COLUMN t INT",
]  # fmt: skip


def refused(cursor, statement, code, message):
    with pytest.raises(psycopg2.Error, match=message.replace(".", r"\.")) as caught:
        cursor.execute(statement)
    assert caught.value.pgcode == code


def test_the_server_refuses_to_any_client_what_dsql_refuses_and_allows_the_rest(client, numbers):
    alone, connection = client().cursor(), client(autocommit=False)
    in_transaction = connection.cursor()
    alone.execute("CREATE SEQUENCE counter CACHE 1")
    for statement, error in BY_THE_SERVER.items():
        refused(alone, statement, *error)
        refused(in_transaction, statement, *error)
        with pytest.raises(errors.InFailedSqlTransaction):
            in_transaction.execute("SELECT 1")
        connection.rollback()
    for statement in ALLOWED:
        in_transaction.execute(statement)
        connection.rollback()


# --- rows, bytes, age ---


ROWS = ("54000", "transaction row limit exceeded")


def test_a_transaction_changes_at_most_three_thousand_rows(client, numbers):
    connection = client(autocommit=False)
    with client().cursor() as alone, connection.cursor() as cursor:
        for start in (0, 3000):
            cursor.execute(MANY, (start + 1, start + 3000))
            connection.commit()
        refused(cursor, cursor.mogrify(MANY, (6001, 9001)).decode(), *ROWS)
        connection.rollback()
        refused(alone, alone.mogrify(MANY, (6001, 9001)).decode(), *ROWS)
        lines = "".join(f"{n}\t0\n" for n in range(6001, 9002))
        with pytest.raises(psycopg2.Error, match=ROWS[1]):
            alone.copy_expert("COPY numbers FROM STDIN", io.StringIO(lines))
        assert alone.row("SELECT count(*) FROM numbers") == (6000,)


def test_the_limit_counts_inserts_updates_and_deletes_of_all_statements_together(client, numbers):
    connection = client(autocommit=False)
    with connection.cursor() as cursor:
        cursor.execute(MANY, (1, 1000))
        cursor.execute("UPDATE numbers SET n = 1")
        cursor.execute("DELETE FROM numbers WHERE id <= 1000")
        refused(cursor, cursor.mogrify(MANY, (1, 1)).decode(), *ROWS)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("workshop.most_bytes", "transaction size limit 10mb exceeded"),
        ("workshop.most_seconds", "transaction age limit of 300s exceeded"),
    ],
)
def test_what_is_too_large_or_too_old_fails_at_commit(client, numbers, setting, message):
    cursor = client().cursor()
    cursor.execute(f"SET {setting} = 0")
    cursor.execute("BEGIN; INSERT INTO numbers VALUES (1, 0)")
    assert cursor.row("SELECT count(*) FROM numbers") == (1,)
    refused(cursor, "COMMIT", "54000", message)
    assert cursor.row("SELECT count(*) FROM numbers") == (0,)


# --- definitions ---


def test_a_transaction_defines_one_thing_or_changes_rows(client, numbers):
    several = ("0A000", "multiple ddl statements not supported in a transaction")
    mixed = ("0A000", "ddl and dml are not supported in the same transaction")
    connection = client(autocommit=False)
    with connection.cursor() as cursor:
        for first, second, error in (
            ("CREATE TABLE one (id INT)", "CREATE TABLE two (id INT)", several),
            ("CREATE TABLE one (id INT)", "INSERT INTO one VALUES (1)", mixed),
            ("INSERT INTO numbers VALUES (1, 1)", "CREATE TABLE one (id INT)", mixed),
        ):
            cursor.execute(first)
            refused(cursor, second, *error)
            connection.rollback()


def test_nobody_else_writes_into_the_list_of_jobs(client):
    with client().cursor() as cursor, pytest.raises(errors.InsufficientPrivilege):
        cursor.execute("DELETE FROM sys.jobs")


# --- on and off ---


def test_the_rules_can_be_switched_off_for_a_session(client, numbers):
    with client().cursor() as cursor:
        cursor.execute("SET workshop.dsql_rules = 'off'")
        cursor.execute(MANY, (1, 3001))
        assert cursor.rowcount == 3001
        cursor.execute("TRUNCATE numbers")
