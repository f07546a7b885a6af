"""What a statement's text tells of caching its answer, for every kind of statement."""

import pytest

from workshop_lib.dsql.parse_tree import MAX_PARSED
from workshop_lib.sql_shape import shape

READS = [
    "SELECT * FROM t WHERE id = $1",
    "TABLE t",
    "WITH recent AS (SELECT * FROM t) SELECT count(*) FROM recent",
    "SELECT * FROM a UNION ALL SELECT * FROM b",
    "SELECT (SELECT max(x) FROM u) FROM t",
    "/* update t */ SELECT 'delete from t for update' FROM t",
    "SELECT t.* FROM t JOIN pg_class c ON c.relname = t.name",
    "SELECT * FROM t WHERE created_at > now() - interval $1",
]


@pytest.mark.parametrize("query", READS)
def test_a_read_can_be_cached(query):
    assert shape(query).leave == ""


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("INSERT INTO t VALUES ($1)", "it writes"),
        ("UPDATE t SET a = $1", "it writes"),
        ("DELETE FROM t", "it writes"),
        ("MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE", "it writes"),
        ("WITH gone AS (DELETE FROM t RETURNING *) SELECT * FROM gone", "it writes"),
        ("SELECT a INTO copy FROM t", "it writes"),
        ("COPY t FROM STDIN", "it writes"),
        ("COPY t TO STDOUT", "it copies rows out"),
        ("CALL p($1)", "it calls a procedure"),
        ("DO $$ begin end $$", "it runs code"),
        ("BEGIN", "it begins or ends a transaction"),
        ("ROLLBACK", "it begins or ends a transaction"),
        ("DECLARE c CURSOR FOR SELECT * FROM t", "it reads through a cursor"),
        ("SET work_mem = $1", "it is no query (VariableSet)"),
        ("SHOW server_version", "it is no query (VariableShow)"),
        ("VACUUM t", "it is no query (Vacuum)"),
        ("CREATE INDEX ON t (a)", "it is no query (Index)"),
        ("CREATE TABLE u AS SELECT * FROM t", "it is no query (CreateTableAs)"),
        ("EXPLAIN SELECT * FROM t", "it is no query (Explain)"),
        ("EXECUTE p(1)", "it is no query (Execute)"),
        ("SELECT * FROM t FOR UPDATE", "it locks rows"),
        ("SELECT * FROM t FOR NO KEY UPDATE SKIP LOCKED", "it locks rows"),
        ("SELECT * FROM (SELECT * FROM t FOR SHARE) x", "it locks rows"),
        ("SELECT pg_try_advisory_lock($1)", "it locks rows"),
        ("SELECT nextval('s')", "it has side effects (nextval())"),
        ("SELECT pg_catalog.setval('s', $1), nextval('s')", "side effects (nextval(), setval())"),
        ("SELECT * FROM t ORDER BY random() LIMIT 1", "its answer should differ each time"),
        ("SELECT gen_random_uuid()", "its answer should differ each time (gen_random_uuid())"),
        ("SELECT * FROM t WHERE owner = CURRENT_USER", "who asks (CURRENT_USER)"),
        ("SELECT * FROM t WHERE tenant = current_setting('a.b')", "who asks (current_setting())"),
        ("SELECT 1", "it reads no table"),
        ("VALUES ($1)", "it reads no table"),
        ("SELECT oid FROM pg_catalog.pg_type WHERE typname = $1", "it reads the catalogue"),
        ("SELECT * FROM pg_stat_activity", "it reads the catalogue"),
        ("SELECT * FROM information_schema.tables", "it reads the catalogue"),
        ("SELEC 1", "it cannot be parsed"),
        ("SELECT * FROM t WHERE", "it cannot be parsed"),
        ("SELECT 1; DELETE FROM t", "it cannot be parsed"),
        ("", "it cannot be parsed"),
        ("-- a comment", "it cannot be parsed"),
    ],
)
def test_what_is_no_plain_read_is_left_with_the_reason(query, why):
    assert why in shape(query).leave


@pytest.mark.parametrize(
    "query",
    [
        f"SELECT {'(' * 20_000}1{')' * 20_000}",
        f"SELECT 1{'+1' * 30_000}",  # its parser goes so deep that printing the tree would crash
        f"SELECT 1{'+1' * MAX_PARSED}",
        f"SELECT {'NOT ' * 10_000}true",
    ],
)
def test_a_text_that_is_nested_too_deep_is_not_followed(query):
    assert "cannot be parsed" in shape(query).leave


def test_only_tables_count_as_read_and_only_the_target_as_changed():
    read = shape("WITH x AS (SELECT * FROM shop.a) SELECT * FROM x JOIN b ON true")
    assert (read.reads, read.changes) == ({"a", "b"}, frozenset())
    written = shape("INSERT INTO a SELECT * FROM b")
    assert (written.reads, written.changes) == ({"b"}, {"a"})
    assert shape("COPY a FROM STDIN").changes == {"a"}


def test_parameters_are_told_from_none():
    assert shape("SELECT * FROM t WHERE id = $1").parameters
    assert not shape("SELECT count(*) FROM t").parameters


@pytest.mark.parametrize(
    ("where", "note"),
    [
        ("created_at > $1", "by < or >"),
        ("$1::timestamptz <= created_at", "by < or >"),
        ("created_at BETWEEN $1 AND $2", "by < or >"),
        ("name ILIKE $1", "searches for a text"),
        ("name ~ $1", "searches for a text"),
        ("body @@ to_tsquery($1)", "searches for a text"),
        ("id = ANY($1::int[])", "list of values"),
        ("id IN ($1, $2 /*, ... */)", "list of values"),
        ("true ORDER BY id LIMIT $1 OFFSET $2", "OFFSET"),
    ],
)
def test_parameters_that_can_make_every_call_unique_are_named(where, note):
    found = shape(f"SELECT * FROM t WHERE {where}")
    assert found.unique
    (said,) = found.notes
    assert note in said


@pytest.mark.parametrize(
    "where", ["id = $1", "size > 10", "created_at > now() - interval $1", "true LIMIT $1"]
)
def test_other_parameters_are_not(where):
    assert not shape(f"SELECT * FROM t WHERE {where}").unique


def test_the_time_and_functions_whose_effect_the_text_does_not_show_are_noted():
    for clock in ("now()", "CURRENT_DATE", "LOCALTIMESTAMP", "clock_timestamp()"):
        assert "asks for the time" in shape(f"SELECT {clock} FROM t").notes[0]
    assert "shop.price()" in shape("SELECT shop.price(id) FROM t").notes[0]
    assert "do_it()" in shape("SELECT do_it($1)").notes[0]
    assert shape("SELECT pg_catalog.lower(name) FROM t").notes == ()


def test_a_text_is_shown_on_one_line_without_values_and_without_control_characters():
    assert shape("SELECT *\n  FROM t\tWHERE pin = '1234'").text == "SELECT * FROM t WHERE pin = $1"
    assert shape("ALTER ROLE a PASSWORD 'secret'").text == "ALTER ROLE a PASSWORD $1"
    assert shape("SELECT /* \x1b[2J\u202e */ 1").text == "SELECT /* [2J */ $1"
    assert shape("ALTER ROL a PASSWORD 'secret'").text == "ALTER ROL a PASSWORD"
