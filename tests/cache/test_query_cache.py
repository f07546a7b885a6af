"""Answers from the cache are the database's own, found by statement, parameters and tags."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg2
import pytest
from psycopg2 import sql

from workshop_lib import QueryCache
from workshop_lib.cache.keys import tag_keys
from workshop_lib.cache.stats import CacheStats

EVERY_TYPE = """
SELECT 1::int AS "int", 9223372036854775807::bigint AS "bigint", 12.50::numeric AS "numeric",
       'NaN'::numeric AS "no number", 123456789012345678901234567890.10::numeric AS "long numeric",
       99999999999999999999999999::numeric AS "beyond 64 bits",
       'NaN'::float8 AS "nan", 'Infinity'::float8 AS "inf", 0.1::float8 AS "float8",
       date '2026-06-30' AS "date", timestamp '2026-06-30 12:34:56.789012' AS "timestamp",
       timestamptz '2026-06-30 12:34:56+02' AS "timestamptz", time '12:34:56.5' AS "time",
       interval '3 days 4 hours' AS "interval",
       '5f0c6b1e-8b0a-4a0e-9a4e-0d4b3b1c2d3e'::uuid AS "uuid", '\\x00ff'::bytea AS "bytea",
       true AS "boolean", NULL AS "null", NULL::int AS "null int", '' AS "empty",
       'García, Öztürk, 東京, עברית, 🪐' AS "text",
       '{"b": [1, 2.5, null, true], "a": {"ü": "x"}}'::jsonb AS "jsonb",
       ARRAY[1, NULL, 3] AS "array", ARRAY['\\x00ff'::bytea, NULL] AS "bytea array"
"""
ASK = "SELECT v"
NUMBERS = "SELECT n, n * %s AS product FROM generate_series(1, 20) AS n"


@pytest.fixture
def cache(ws):
    return QueryCache(ws)


@pytest.fixture
def full(ws) -> Iterator[None]:
    """A cache server without memory for a single entry more."""
    before = {**ws.valkey.config_get("maxmemory"), **ws.valkey.config_get("maxmemory-policy")}
    yield ws.valkey.config_set("maxmemory-policy", "noeviction", "maxmemory", 1)
    ws.valkey.config_set(*(word for setting in before.items() for word in setting))


def exactly(rows: list[tuple[object, ...]]) -> list[list[tuple[type, str]]]:
    """The rows in a form in which NaN equals NaN, and 12.5 does not equal 12.50."""
    return [[(type(value), repr(value)) for value in row] for row in rows]


# --- hits and misses ---


def test_a_hit_equals_the_miss_in_every_type_and_value(ws, cache):
    miss, hit = cache.fetch(EVERY_TYPE), cache.fetch(EVERY_TYPE)
    assert (miss.source, hit.source) == ("database", "cache")
    assert len(miss.columns) == 24
    assert hit.columns == miss.columns
    assert exactly(hit.rows) == exactly(miss.rows) == exactly(ws.database.query(EVERY_TYPE).rows)


def test_one_miss_fills_the_cache_for_nine_hits(ws, cache, database_queries):
    assert (cache.stats(), cache.stats().hit_ratio) == (CacheStats(), 0.0)
    with database_queries(1):
        sources = [cache.fetch(NUMBERS, (3,)).source for _ in range(10)]
    assert sources == ["database"] + ["cache"] * 9
    size = ws.valkey.strlen(cache.key(NUMBERS, (3,)))
    assert cache.stats() == CacheStats(hits=9, misses=1, bytes_read=9 * size, bytes_written=size)
    assert cache.stats().hit_ratio == 0.9


# --- what belongs to the key ---


def test_another_database_has_entries_of_its_own(ws, parts):
    @dataclass
    class Planted:
        identity: str

        def query(self, *_, **__):
            return ws.database.query("SELECT %s::text", (self.identity,))

    caches = [QueryCache(parts(Planted(i), ws.valkey, ws.namespace)) for i in ("east", "west")]
    for _ in range(2):
        assert [c.fetch("SELECT here()").rows for c in caches] == [[("east",)], [("west",)]]
    assert [(c.stats().misses, c.stats().hits) for c in caches] == [(1, 1), (1, 1)]


def test_the_time_to_live_is_the_settings_where_none_is_given(ws, cache):
    cache.fetch(NUMBERS, (1,))
    assert ws.settings.valkey_ttl == 30.0
    assert 20_000 < ws.valkey.pttl(cache.key(NUMBERS, (1,))) <= 30_000


# --- what cannot be kept ---


def test_a_result_that_would_not_come_back_equal_is_answered_but_not_kept(
    ws, cache, database_queries
):
    statement = "SELECT int4range(1, 5) AS span"
    with database_queries(2):
        answers = [cache.fetch(statement) for _ in range(2)]
    assert [a.source for a in answers] == ["database", "database"]
    assert answers[0].rows[0][0].upper == 5
    assert ws.valkey.exists(cache.key(statement)) == 0
    stats = cache.stats()
    assert (stats.uncacheable, stats.misses, stats.bytes_written) == (2, 2, 0)


def test_a_parameter_without_a_key_is_answered_but_not_kept(ws, cache):
    span = ws.database.query("SELECT int4range(1, 5)")[0][0]
    answers = [cache.fetch("SELECT upper(%s::int4range)", (span,)) for _ in range(2)]
    assert [(a.source, a.rows) for a in answers] == [("database", [(5,)])] * 2
    assert list(ws.valkey.scan_iter(f"{ws.namespace}:*")) == []
    assert (cache.stats().uncacheable, cache.stats().misses) == (2, 2)


def test_parameters_that_a_dict_makes_up_are_not_taken_for_others(cache):
    answers = [cache.fetch("SELECT %(a)s", defaultdict(lambda n=n: n)).rows for n in (1, 2)]
    assert answers == [[(1,)], [(2,)]]


# --- a cache that fails ---


def test_a_cache_without_memory_left_takes_nothing_but_still_gives_what_it_has(
    ws, cache, rest, request
):
    rest(60.0)
    cache.fetch(NUMBERS, (2,))
    request.getfixturevalue("full")
    answers = [cache.fetch(NUMBERS, (1,)) for _ in range(2)]
    assert [a.source for a in answers] == ["database", "database"]
    assert ws.valkey.exists(cache.key(NUMBERS, (1,))) == 0
    assert cache.stats().errors == 2
    assert cache.fetch(NUMBERS, (2,)).source == "cache"


def test_clearing_removes_this_namespace_s_keys_and_no_others_in_few_round_trips(ws, round_trips):
    neighbour = f"{ws.namespace}_2:v3:x:1"
    ws.valkey.set(neighbour, "x", px=60_000)
    ws.valkey.mset({f"{ws.namespace}:v3:x:{n}": "x" for n in range(2_000)})
    with round_trips() as sent:
        assert ws.clear_cache() == 2_000
    assert 2 <= len(sent) <= 4
    assert ws.clear_cache() == 0
    assert ws.valkey.delete(neighbour) == 1


# --- what is refused ---


@pytest.mark.parametrize("statement", [b"SELECT 1", sql.SQL("SELECT 1")], ids=["bytes", "composed"])
def test_a_statement_that_is_no_text_is_refused_with_what_to_do(ws, statement):
    with pytest.raises(TypeError, match="Pass its text"):
        QueryCache(ws).fetch(statement)


def test_a_statement_that_writes_is_refused_each_time(ws, cache):
    ws.database.query("CREATE TABLE counted (n int)")
    ws.database.query("INSERT INTO counted VALUES (0)")
    for statement in (
        "DELETE FROM counted",
        "WITH u AS (UPDATE counted SET n = n + 1 RETURNING n) SELECT * FROM u",
    ):
        for _ in range(2):
            with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
                cache.fetch(statement)
    assert ws.database.query("SELECT n FROM counted").rows == [(0,)]
    ws.database.query("DROP TABLE counted")


@pytest.mark.parametrize("statement", ["SET TIME ZONE 'UTC'", "BEGIN", "DO 'BEGIN END'"])
def test_a_statement_that_asks_for_nothing_is_refused_with_advice(ws, statement):
    with pytest.raises(ValueError, match=r"database\.query without read_only"):
        QueryCache(ws).fetch(statement)


# --- tags ---


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1 FROM (SELECT pg_notify('a', 'b')) x",
        "SELECT PG_CATALOG.PG_NOTIFY ('a', 'b')",
        'SELECT "pg_notify"(%s, %s)',
        "SELECT txid_current()",
        "SELECT pg_logical_emit_message(false, 'a', 'b')",
        "SELECT pg_try_advisory_xact_lock(7)",
        "SELECT pg_advisory_xact_lock_shared(7)",
        "SELECT set_config('application_name', 'a', true)",
    ],
)
def test_what_has_an_effect_in_a_read_only_transaction_has_it_each_time(
    cache, statement, database_queries
):
    params = ("a", "b") if "%s" in statement else None
    with database_queries(3):
        answers = [cache.fetch(statement, params).source for _ in range(3)]
    assert answers == ["database"] * 3
    assert cache.stats().uncacheable == 3


def test_invalidating_a_tag_invalidates_all_entries_under_it_and_no_others(source):
    cache = QueryCache(source)

    def read(n: int) -> str:
        return cache.fetch(ASK, (n,), tags=["odd" if n % 2 else "even", "all"]).source

    for n in range(25):
        read(n)
    cache.fetch(ASK, (99,))
    cache.invalidate_tag("odd")
    assert cache.fetch(ASK, (99,)).source == "cache"
    assert [read(n) for n in range(25)] == ["cache", "database"] * 12 + ["cache"]


@pytest.mark.parametrize("filed", [(), ("a",), ("a", "b", "c")])
def test_an_entry_that_is_filed_under_other_tags_is_not_taken(source, database, filed):
    cache = QueryCache(source)
    cache.fetch(ASK, tags=filed)
    database.value = 2
    for tags in (["a", "b"], ["b", "a"]):
        assert cache.fetch(ASK, tags=tags).rows[0][1] == 2
    assert database.queries == 2


def test_a_tag_that_was_evicted_makes_misses_and_no_old_answers(ws, source, database):
    cache = QueryCache(source)
    cache.fetch(ASK, tags=["t"])
    ws.valkey.delete(tag_keys(ws.namespace, ["t"])[0])  # as an eviction would
    database.value = 2
    assert [cache.fetch(ASK, tags=["t"]).rows for _ in range(2)] == [[(0, 2)]] * 2
    assert cache.stats().hits == 1


@pytest.mark.parametrize("spoil", [
    lambda valkey, tag: valkey.set(tag, b"\xff"),
    lambda valkey, tag: valkey.set(tag, ""),
    lambda valkey, tag: (valkey.delete(tag), valkey.rpush(tag, "x")),
])  # fmt: skip
def test_a_tag_that_another_program_s_value_took_makes_misses(ws, source, spoil):
    cache, tag = QueryCache(source), tag_keys(ws.namespace, ["t"])[0]
    cache.fetch(ASK, tags=["t"])
    spoil(ws.valkey, tag)
    assert cache.fetch(ASK, tags=["t"]).source == "database"


@pytest.mark.parametrize("tags", [[1], 1, "orders"])
def test_tags_that_are_no_list_of_texts_are_refused(source, tags):
    with pytest.raises(TypeError, match="Tags are a list of texts"):
        QueryCache(source).fetch(ASK, tags=tags)
