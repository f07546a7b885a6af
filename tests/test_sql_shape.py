"""What a statement's text tells of caching its answer, for every kind of statement."""

import pytest

from workshop_lib.advise.sql_shape import shape
from workshop_lib.dsql.parse_tree import MAX_PARSED

READS = [
    "SELECT * FROM t WHERE id = $1",
    "TABLE t",
    "WITH recent AS (SELECT * FROM t) SELECT count(*) FROM recent",
    "SELECT * FROM a UNION ALL SELECT * FROM b",
    "SELECT (SELECT max(x) FROM u) FROM t",
    "/* update t */ SELECT 'delete from t for update' FROM t",
    "SELECT t.* FROM t JOIN pg_class c ON c.relname = t.name",
    "SELECT * FROM t WHERE created_at > now() - interval $1",
    "SELECT * FROM t TABLESAMPLE system (1) REPEATABLE (1)",
    "SELECT 'pg_notify' FROM t",
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
        ("WITH gone AS (DELETE FROM t RETURNING *) SELECT * FROM gone", "it writes"),
        ("SELECT a INTO copy FROM t", "it writes"),
        ("COPY t TO STDOUT", "it is no query (Copy)"),
        ("CALL p($1)", "it is no query (Call)"),
        ("DO $$ begin end $$", "it is no query (Do)"),
        ("BEGIN", "it is no query (Transaction)"),
        ("SET work_mem = $1", "it is no query (VariableSet)"),
        ("CREATE TABLE u AS SELECT * FROM t", "it is no query (CreateTableAs)"),
        ("EXPLAIN SELECT * FROM t", "it is no query (Explain)"),
        ("SELECT * FROM t FOR UPDATE", "it locks rows"),
        ("SELECT * FROM (SELECT * FROM t FOR SHARE) x", "it locks rows"),
        ("SELECT nextval('s') FROM t", "side effects, so it must reach the database (nextval())"),
        ("SELECT pg_catalog.setval('s', $1)", "it has side effects"),
        ("SELECT do_it($1)", "it reads no table"),  # who knows what it does
        ("SELECT * FROM t ORDER BY random() LIMIT 1", "its answer should differ each time"),
        ("SELECT pg_try_advisory_lock(id) FROM t", "it has side effects"),
        ("SELECT pg_advisory_xact_lock(id) FROM t", "it has side effects"),
        ("SELECT txid_current() FROM t", "it has side effects"),
        ("SELECT pg_sleep_for($1) FROM t", "it has side effects"),
        ("SELECT pg_stat_reset() FROM t", "it has side effects"),
        ("SELECT gen_random_uuid()", "differ each time (gen_random_uuid())"),
        ("SELECT pg_current_snapshot() FROM t", "differ each time"),
        ("SELECT * FROM t TABLESAMPLE system (1)", "differ each time (TABLESAMPLE)"),
        ("SELECT * FROM t WHERE owner = CURRENT_USER", "who asks"),
        ("SELECT * FROM t WHERE tenant = current_setting('a.b')", "who asks"),
        ("SELECT currval('s') FROM t", "who asks"),
        ("SELECT lastval() FROM t", "who asks"),
        ("SELECT has_table_privilege(name, 'SELECT') FROM t", "who asks"),
        ("SELECT inet_client_port() FROM t", "who asks"),
        ("SELECT CURRENT_SCHEMA FROM t", "who asks"),
        ("SELECT current_schema() FROM t", "who asks"),
        ("SELECT 1", "it reads no table"),
        ("SELECT oid FROM pg_catalog.pg_type WHERE typname = $1", "it reads the catalogue"),
        ("SELECT * FROM information_schema.tables", "it reads the catalogue"),
        ("WITH c AS (SELECT * FROM pg_class) SELECT * FROM c", "it reads the catalogue"),
        ("WITH one AS (SELECT 1) SELECT * FROM one", "it reads no table"),
        ("SELEC 1", "it cannot be parsed"),
        ("SELECT 1; DELETE FROM t", "it cannot be parsed"),
        ("", "it cannot be parsed"),
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
    ],
)
def test_a_text_that_is_nested_too_deep_is_not_followed(query):
    assert "cannot be parsed" in shape(query).leave


def test_only_tables_count_as_read_and_only_the_target_as_changed():
    read = shape("WITH x AS (SELECT * FROM shop.a) SELECT * FROM x JOIN b ON true")
    assert (read.reads, read.changes) == ({"a", "b"}, frozenset())
    written = shape("INSERT INTO a SELECT * FROM b")
    assert (written.reads, written.changes) == ({"b"}, {"a"})


@pytest.mark.parametrize(
    ("query", "tables"),
    [
        ("WITH t AS (SELECT * FROM t) SELECT * FROM t", {"t"}),
        ("WITH RECURSIVE t AS (SELECT * FROM u UNION SELECT * FROM t) SELECT * FROM t", {"u"}),
        ("WITH a AS (SELECT * FROM b), b AS (SELECT * FROM a) SELECT * FROM b", {"b"}),
        ("SELECT * FROM (WITH a AS (SELECT * FROM b) SELECT * FROM a) x, a", {"a", "b"}),
        ("WITH a AS (SELECT * FROM b) SELECT * FROM public.a", {"a", "b"}),
    ],
)
def test_a_name_of_with_hides_a_table_only_where_it_can_be_seen(query, tables):
    assert shape(query).reads == tables


def test_parameters_are_told_from_none():
    assert shape("SELECT * FROM t WHERE id = $1").parameters
    assert not shape("SELECT count(*) FROM t").parameters


@pytest.mark.parametrize(
    "where",
    [
        "created_at > $1",
        "$1::timestamptz <= created_at",
        "created_at BETWEEN $1 AND $2",
        "name ILIKE $1",
        "body @@ to_tsquery($1)",
        "id = ANY($1::int[])",
        "id IN ($1, $2 /*, ... */)",
        "true ORDER BY id LIMIT $1 OFFSET $2",
    ],
)
def test_parameters_that_can_make_every_call_unique_are_a_doubt(where):
    assert "may be unique" in shape(f"SELECT * FROM t WHERE {where}").doubt


@pytest.mark.parametrize("where", ["id = $1", "size > 10", "true LIMIT $1"])
def test_other_parameters_are_not(where):
    assert shape(f"SELECT * FROM t WHERE {where}").doubt == ""


CLOCKS = ["now()", "CURRENT_DATE", "LOCALTIMESTAMP", "clock_timestamp()", "age(born)",
          "'now'::timestamptz", "x < 'yesterday'", "x BETWEEN ' Today' AND 'tomorrow'"]  # fmt: skip


@pytest.mark.parametrize("clock", CLOCKS)
def test_asking_for_the_time_is_a_doubt(clock):
    assert "asks for the time" in shape(f"SELECT {clock} FROM t").doubt


@pytest.mark.parametrize("column", ["age(died, born)", "day = 'today'", "'now'"])
def test_an_age_between_two_dates_and_a_word_that_is_no_time_are_none(column):
    assert shape(f"SELECT {column} FROM t").doubt == ""


def test_a_text_is_shown_on_one_line_without_values_and_without_control_characters():
    assert shape("SELECT *\n  FROM t\tWHERE pin = '1234'").text == "SELECT * FROM t WHERE pin = $1"
    assert shape("ALTER ROLE a PASSWORD 'secret'").text == "ALTER ROLE a PASSWORD $1"
    assert shape("SELECT /* \x1b[2J\u202e */ 1").text == "SELECT /* [2J */ $1"
    assert shape("ALTER ROL a PASSWORD 'secret'").text == "ALTER ROL a PASSWORD"
