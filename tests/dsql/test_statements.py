"""What Aurora DSQL allows, by the parse tree alone: no server is asked."""

import pytest

from workshop_lib.dsql.statements import check, read

CACHE = "please define CACHE greater than or equal to 65536 or equal to 1"
ADDED = "ALTER TABLE ADD COLUMN with constraint not supported"
UNSUPPORTED = {
    "TRUNCATE orders": "Truncate",
    "CREATE EXTENSION hstore": "CreateExtension",
    "CREATE DATABASE shop": "Createdb",
    "CREATE TABLE copied AS SELECT 1 AS n": "CreateTableAs",
    "CREATE MATERIALIZED VIEW totals AS SELECT 1 AS n": "CreateTableAs",
    "SELECT 1 AS n INTO copied": "CreateTableAs",
    "EXPLAIN CREATE TABLE copied AS SELECT 1 AS n": "CreateTableAs",
    "CREATE TYPE pair AS (a int, b int)": "CompositeType",
    "CREATE TYPE span AS RANGE (subtype = int8)": "CreateRange",
    "CREATE TABLESPACE fast LOCATION '/fast'": "CreateTableSpace",
    "CREATE FOREIGN TABLE far (n int) SERVER s": "CreateForeignTable",
    "LISTEN news": "Listen",
    "NOTIFY news": "Notify",
    "UNLISTEN news": "Unlisten",
    "ALTER SYSTEM SET work_mem = '8MB'": "AlterSystem",
    "LOCK TABLE orders": "Lock",
    "LOAD 'auto_explain'": "Load",
    "PREPARE p AS SELECT 1": "Prepare",
    "EXECUTE p": "Execute",
    "DEALLOCATE p": "Deallocate",
    "DISCARD ALL": "Discard",
    "DECLARE c CURSOR FOR SELECT 1": "DeclareCursor",
    "DO 'BEGIN END'": "Do",
    "REINDEX TABLE orders": "Reindex",
    "ALTER FUNCTION f() IMMUTABLE": "AlterFunction",
    "ALTER ROLE r SET work_mem = '8MB'": "AlterRoleSet",
    "CREATE POLICY p ON orders": "CreatePolicy",
    "CREATE PUBLICATION p": "CreatePublication",
}
NOT_SUPPORTED = {
    "VACUUM orders": "unsupported VACUUM statement",
    "MERGE INTO a USING b ON a.n = b.n WHEN MATCHED THEN DELETE":
        "unsupported statement type: MERGE",
    "CREATE TRIGGER t AFTER INSERT ON orders EXECUTE FUNCTION f()":
        "CREATE TRIGGER not supported",
    "CREATE TYPE size AS ENUM ('s', 'l')": "CREATE TYPE not supported",
    "ALTER TYPE size ADD VALUE 'xl'": "ALTER TYPE not supported",
    "ALTER TYPE pair ADD ATTRIBUTE c int": "ALTER TYPE not supported",
    "ALTER TYPE size RENAME TO sizes": "unsupported object in RENAME statement",
    "DROP TYPE size": "unsupported object in DROP statement",
    "DROP MATERIALIZED VIEW totals": "unsupported object in DROP statement",
    "DROP TRIGGER t ON orders": "unsupported object in DROP statement",
    "SAVEPOINT a": "unsupported transaction statement: SAVEPOINT",
    "RELEASE a": "unsupported transaction statement: RELEASE",
    "ROLLBACK TO a": "unsupported transaction statement: ROLLBACK TO",
    "PREPARE TRANSACTION 'a'": "unsupported transaction statement: PREPARE",
    "BEGIN ISOLATION LEVEL SERIALIZABLE": "Unsupported isolation level: SERIALIZABLE",
    "START TRANSACTION ISOLATION LEVEL READ COMMITTED":
        "Unsupported isolation level: READ COMMITTED",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE": "Unsupported isolation level: SERIALIZABLE",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE":
        "Unsupported isolation level: SERIALIZABLE",
    "SELECT n FROM orders FOR SHARE":
        "locking clauses other than FOR UPDATE/FOR KEY SHARE are not supported",
    "SELECT (SELECT n FROM orders LIMIT 1 FOR NO KEY UPDATE)":
        "locking clauses other than FOR UPDATE/FOR KEY SHARE are not supported",
    "SELECT n FROM orders TABLESAMPLE BERNOULLI (10)": "TABLESAMPLE clause not supported",
    "SELECT circle(point(1, 2), 3)": "datatype circle not supported",
    "SELECT '(1,2)'::point": "datatype point not supported",
    "SELECT pg_try_advisory_xact_lock(7)": "function pg_try_advisory_xact_lock not supported",
    "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'":
        "CREATE FUNCTION with language plpgsql not supported",
    "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS 'TRUNCATE orders'":
        "unsupported statement: Truncate",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET work_mem = '8MB' RETURN 1":
        'setting configuration parameter "work_mem" not supported',
    "CREATE PROCEDURE p() LANGUAGE sql AS 'SELECT 1'": "CREATE PROCEDURE not supported",
    "CREATE ROLE r LOGIN PASSWORD 'x'": "unsupported role option: PASSWORD",
    "ALTER USER r SUPERUSER": "unsupported role option: SUPERUSER",
    "COPY orders FROM '/orders.csv'": "COPY from or to a file is not supported",
    "COPY orders TO PROGRAM 'cat'": "COPY from or to a file is not supported",
}  # fmt: skip
TABLES = {
    "CREATE TEMP TABLE t (n int)": "TEMPORARY or TEMP table not supported for CREATE TABLE",
    "CREATE UNLOGGED TABLE t (n int)": "UNLOGGED table not supported for CREATE TABLE",
    "CREATE TEMP VIEW v AS SELECT 1": "TEMPORARY or TEMP table not supported for CREATE VIEW",
    "CREATE TABLE t (n int) INHERITS (u)": "INHERITS not supported for CREATE TABLE",
    "CREATE TABLE t PARTITION OF u DEFAULT": "INHERITS not supported for CREATE TABLE",
    "CREATE TABLE t (n int) PARTITION BY HASH (n)": "PARTITION BY not supported for CREATE TABLE",
    "CREATE TABLE t (n int) WITH (fillfactor = 70)": "WITH not supported for CREATE TABLE",
    "CREATE TABLE t (n int) TABLESPACE fast": "TABLESPACE not supported for CREATE TABLE",
    "CREATE TABLE t (n int) ON COMMIT DROP": "ON COMMIT not supported for CREATE TABLE",
    "CREATE TABLE t (n int, EXCLUDE USING gist (n WITH =))":
        "EXCLUDE not supported for CREATE TABLE",
    "CREATE TABLE t (n text COLLATE x)": "COLLATE clause not supported for columns",
    "ALTER TABLE t ALTER n ADD GENERATED ALWAYS AS IDENTITY":
        f"identity column is not supported without an explicit cache size. {CACHE}",
    "CREATE TABLE t (n int[])": "datatype integer[] not supported",
    "CREATE TABLE t (n varchar(3)[])": "datatype character varying[] not supported",
    "CREATE TABLE t (n bit varying(3))": "datatype bit varying not supported",
    "CREATE DOMAIN amount AS money": "datatype money not supported",
    "CREATE SCHEMA s CREATE TABLE t (n xml)": "datatype xml not supported",
    "CREATE TABLE t (n bigint GENERATED ALWAYS AS IDENTITY)":
        f"identity column is not supported without an explicit cache size. {CACHE}",
    "CREATE TABLE t (n int GENERATED BY DEFAULT AS IDENTITY (CACHE 1))":
        "datatype integer not supported, identity column type must be bigint",
    "CREATE SEQUENCE s":
        f"CREATE SEQUENCE is not supported without an explicit cache size. {CACHE}",
    "ALTER TABLE t ADD COLUMN n int DEFAULT 0": ADDED,
    "ALTER TABLE t ADD n int NOT NULL": ADDED,
    "ALTER TABLE t ADD n int CHECK (n > 0)": ADDED,
    "ALTER TABLE t ADD n int UNIQUE": ADDED,
    "ALTER TABLE t ADD n int REFERENCES u": ADDED,
    "ALTER TABLE t ADD n bigint GENERATED ALWAYS AS IDENTITY (CACHE 1)": ADDED,
    "ALTER TABLE t ADD COLUMN n inet": "datatype inet not supported",
    "ALTER TABLE t DROP COLUMN m, ADD n text[]": "datatype text[] not supported",
    "ALTER TABLE t ALTER n TYPE text":
        "unsupported ALTER TABLE ALTER COLUMN ... SET DATA TYPE statement",
    "ALTER TABLE t ALTER n SET NOT NULL":
        "unsupported ALTER TABLE ALTER COLUMN ... SET NOT NULL statement",
    "ALTER TABLE t ENABLE ROW LEVEL SECURITY":
        "unsupported ALTER TABLE ENABLE ROW SECURITY statement",
    "ALTER TABLE t REPLICA IDENTITY FULL": "unsupported ALTER TABLE REPLICA IDENTITY statement",
    "ALTER TABLE t VALIDATE CONSTRAINT c":
        "unsupported ALTER TABLE VALIDATE CONSTRAINT statement",
    **dict.fromkeys(
        (
            "ALTER TABLE t ADD PRIMARY KEY (n)",
            "ALTER TABLE t ADD CONSTRAINT c UNIQUE (n)",
            "ALTER TABLE t ADD CONSTRAINT c PRIMARY KEY USING INDEX i",
            "ALTER TABLE t ADD CONSTRAINT c CHECK (n > 0)",
            "ALTER TABLE t ADD CONSTRAINT c FOREIGN KEY (n) REFERENCES u (n)",
        ),
        "unsupported ALTER TABLE ADD CONSTRAINT statement",
    ),
    "CREATE INDEX i ON t (n)": "unsupported mode. please use CREATE INDEX ASYNC.",
    "CREATE INDEX CONCURRENTLY i ON t (n)": "unsupported mode. please use CREATE INDEX ASYNC.",
    "CREATE INDEX ASYNC i ON t USING gin (n)": "index access method gin not supported",
    "CREATE INDEX ASYNC i ON t USING btree (n)": "index access method btree not supported",
    "CREATE INDEX ASYNC i ON t (n DESC)": "specifying sort order not supported for index keys",
}  # fmt: skip
OTHERS = {
    "CREATE TABLE t (n serial)": ("42704", 'type "serial" does not exist'),
    "ALTER TABLE t ADD n bigserial": ("42704", 'type "bigserial" does not exist'),
    "SELECT to_tsquery('french', 'a')":
        ("42704", 'text search configuration "french" does not exist'),
    "SELECT to_tsvector('a')": ("42704", 'text search configuration "english" does not exist'),
    "CREATE SEQUENCE s AS smallint CACHE 1": ("22023", "sequence type must be bigint"),
    "CREATE SEQUENCE s CACHE 100":
        ("22023", "CACHE (100) must be greater than or equal to 65536 or equal to 1"),
    "ALTER SEQUENCE s CACHE 2":
        ("22023", "CACHE (2) must be greater than or equal to 65536 or equal to 1"),
    "SET client_encoding = 'LATIN1'":
        ("22023", 'invalid value for parameter "client_encoding": "LATIN1"'),
    "CREATE INDEX ASYNC s.i ON t (n)": ("42601", 'syntax error at or near "."'),
    "SELECT 1 async x": ("42601", 'syntax error at or near "ASYNC"'),
    f"CREATE TABLE t ({', '.join(f'c{n} int' for n in range(256))})":
        ("54011", "tables can have at most 255 columns"),
    "CREATE INDEX ASYNC ON t (a, b, c, d, e, f, g, h, i)":
        ("54011", "more than 8 column keys in an index are not supported"),
    "CREATE TABLE t (a int, PRIMARY KEY (a, b, c, d, e, f, g, h, i))":
        ("54011", "more than 8 column keys in an index are not supported"),
    f"SELECT {'1 + ' * 4000} 1": ("54001", "stack depth limit exceeded"),
}  # fmt: skip
REFUSED = {
    **{sql: ("0A000", f"unsupported statement: {name}") for sql, name in UNSUPPORTED.items()},
    **{sql: ("0A000", message) for sql, message in (NOT_SUPPORTED | TABLES).items()},
    **OTHERS,
}
ALLOWED = """
SELECT 1
VALUES (1), (2)
TABLE orders
WITH gone AS (DELETE FROM orders RETURNING n) SELECT n FROM gone
SELECT n FROM orders FOR UPDATE
SELECT n FROM orders FOR KEY SHARE
SELECT '127.0.0.1'::inet, string_to_array('a,b', ','), '{}'::jsonb ->> 'a'
INSERT INTO orders VALUES (1) ON CONFLICT (n) DO UPDATE SET n = excluded.n RETURNING n
UPDATE orders SET n = 1 WHERE n = 2
EXPLAIN ANALYZE VERBOSE SELECT 1
ANALYZE orders
COPY orders FROM STDIN
COPY (SELECT 1) TO STDOUT
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY
START TRANSACTION
ROLLBACK
SET CONSTRAINTS ALL DEFERRED
SET LOCAL search_path = a, b
SET TIME ZONE 'UTC'
SET NAMES 'UTF8'
SET enable_seqscan = off
SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY
SET SESSION AUTHORIZATION DEFAULT
RESET ALL
SHOW work_mem
DEALLOCATE ALL
CREATE SCHEMA s
CREATE VIEW v AS SELECT 1
CREATE DOMAIN size AS text CHECK (VALUE IN ('s', 'l'))
CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE FUNCTION two() RETURNS int RETURN 2
CREATE SEQUENCE s CACHE 65536
CREATE SEQUENCE s CACHE 9999999999
ALTER SEQUENCE s RESTART
CREATE TABLE t (n bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY, size size)
CREATE TABLE t (a smallint, b real, c numeric(9, 2), d char(3), e bytea STORAGE PLAIN, f jsonb)
CREATE TABLE t (n int REFERENCES u (n) DEFERRABLE INITIALLY DEFERRED)
ALTER TABLE t ADD COLUMN IF NOT EXISTS n text STORAGE PLAIN
ALTER TABLE t ALTER n SET DEFAULT 3
ALTER TABLE t ALTER n DROP NOT NULL
ALTER TABLE t ADD CONSTRAINT c CHECK (n > 0) NOT VALID
ALTER TABLE t ADD CONSTRAINT c FOREIGN KEY (n) REFERENCES u (n) NOT VALID
ALTER TABLE t ADD CONSTRAINT c UNIQUE USING INDEX i
ALTER TABLE t DROP CONSTRAINT c
ALTER TABLE t ALTER n ADD GENERATED BY DEFAULT AS IDENTITY (CACHE 1)
ALTER TABLE t RENAME COLUMN n TO m
ALTER TABLE t OWNER TO r
CREATE ROLE r LOGIN
ALTER ROLE r RESET ALL
GRANT SELECT ON t TO r
COMMENT ON TABLE t IS 'x'
DROP TABLE IF EXISTS t CASCADE
DROP TRIGGER IF EXISTS x ON t
CALL sys.wait_for_job('a')
""".strip().splitlines()


def test_what_is_not_on_the_list_is_refused_as_by_the_service():
    assert {sql: check(sql) for sql in REFUSED} == REFUSED


def test_what_is_on_the_list_or_cannot_be_parsed_goes_to_the_server_as_it_is():
    for sql in (*ALLOWED, "SELEC 1", "'", "SELECT (("):
        assert [one[:3] for one in read(sql)] == [(sql, None, "")]


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE INDEX ASYNC i ON t (n)",
        "create unique index async IF NOT EXISTS i ON s.t (n) INCLUDE (m) NULLS NOT DISTINCT",
        "CREATE INDEX ASYNC ON t ((lower(n))) WHERE n <> 'it''s'",
    ],
)
def test_an_index_is_made_by_a_function_that_answers_with_a_job(sql):
    ((text, refusal, tag, *_),) = read(sql)
    assert (refusal, tag) == (None, "CREATE INDEX")
    made = sql.replace("ASYNC", " " * 5).replace("async", " " * 5).replace("'", "''")
    assert text == f"SELECT dsql_rules.run_job('INDEX_BUILD', '{made}') AS job_id"


def test_asynchronous_statements_may_stand_among_others():
    found = read(
        "SELECT 'é'; CREATE INDEX ASYNC ön ON t (é); ALTER TABLE ASYNC t VALIDATE CONSTRAINT c"
    )
    assert [one.tag for one in found] == ["", "CREATE INDEX", "ALTER TABLE"]
    assert "CREATE INDEX       ön ON t (é)" in found[1].text
    assert [one.refusal is None for one in read("SELECT 1; VACUUM; SELECT 2")] == [
        True,
        False,
        True,
    ]


def test_triggers_are_switched_off_without_switching_off_the_rules():
    (found,) = read("ALTER TABLE t DISABLE TRIGGER USER")
    assert found[:3] == ("DO 'BEGIN END'", None, "ALTER TABLE")


def test_nothing_is_nothing_and_words_in_texts_names_and_comments_are_no_statements():
    for sql in ("", ";", "-- nothing", "/* SELECT; */"):
        assert read(sql) == []
    for sql in (
        "SELECT 'TRUNCATE t; VACUUM'",
        'SELECT 1 AS "MERGE"',
        "SELECT $$;LISTEN x;$$ -- VACUUM",
    ):
        assert check(sql) is None
