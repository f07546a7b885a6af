"""A record from the cache is the database's own, whole or by field, and never without an end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import psycopg2
import pytest

from workshop_lib.cache import keys
from workshop_lib.cache.record_cache import RecordCache
from workshop_lib.cache.stats import CacheStats
from workshop_lib.rows import Rows

COLUMNS = """
    id int PRIMARY KEY, name text, price numeric, ratio float8, born date, seen timestamptz,
    at time, long interval, mark uuid, raw bytea, good boolean, nothing text, data jsonb
"""
ROWS = """
    (1, 'García', 12.50, 0.1, '2026-06-30', '2026-06-30 12:34:56.789+00', '12:30', '3 days 4 hours',
     '5f0c6b1e-8b0a-4a0e-9a4e-0d4b3b1c2d3e', '\\x00ff', true, NULL, '{"b": [1, null]}'),
    (2, '', 'NaN', 'Infinity', NULL, NULL, NULL, NULL, NULL, NULL, false, NULL, NULL),
    (3, 'a:b', 1.0, 1, NULL, NULL, NULL, NULL, NULL, '', NULL, NULL, '"x"'),
    (4, '🪐', 1.00, -0.0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '[]')
"""


@pytest.fixture(scope="module")
def table(shared) -> Iterator[None]:
    shared.database.query(f'CREATE TABLE "order" ({COLUMNS})')
    shared.database.query(f'INSERT INTO "order" VALUES {ROWS}')
    yield
    shared.database.query('DROP TABLE "order"')


@pytest.fixture
def orders(ws, table) -> RecordCache:
    """Records of a table whose name is one of SQL's own words."""
    return RecordCache(ws, "order", ttl=30, empty_ttl=5)


def row(ws, number: int) -> dict[str, object]:
    (found,) = ws.database.query('SELECT * FROM "order" WHERE id = %s', (number,)).as_dicts()
    return found


def exactly(record: dict[str, object]) -> list[tuple[str, type, str]]:
    return [(name, type(value), repr(value)) for name, value in record.items()]


# --- one record ---


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_hit_equals_the_miss_in_every_field_and_type(ws, orders, number, database_queries):
    with database_queries(1):
        miss, hit = orders.fetch(number), orders.fetch(number)
    assert (miss.source, hit.source) == ("database", "cache")
    assert len(miss.record) == 13
    assert exactly(hit.record) == exactly(miss.record) == exactly(row(ws, number))


def test_each_field_is_stored_so_that_a_person_can_read_it(ws, orders):
    orders.get(1)
    stored = {n.decode(): v.decode() for n, v in ws.valkey.hgetall(orders.key(1)).items()}
    assert json.loads(stored.pop("@"))["columns"] == list(row(ws, 1))
    assert [stored[name] for name in ("id", "name", "price", "nothing")] == [
        "1", '"García"', '["Decimal","12.50"]', "null",
    ]  # fmt: skip


def test_an_absent_record_is_cached_on_purpose_for_a_time_of_its_own(ws, orders, database_queries):
    with database_queries(2):  # one of them asks for the type of the keys
        answers = [orders.fetch(999) for _ in range(5)]
    with database_queries(1):
        assert [orders.get(998) for _ in range(5)] == [None] * 5
    assert [a.record for a in answers] == [None] * 5
    assert [a.source for a in answers] == ["database"] + ["cache"] * 4
    orders.get(1)
    assert 0 < ws.valkey.pttl(orders.key(999)) <= 5_000 < ws.valkey.pttl(orders.key(1)) <= 30_000


def test_an_absent_record_is_found_after_its_insertion_and_an_invalidation(ws, orders):
    assert orders.get(5) is None
    ws.database.query('INSERT INTO "order" (id, name) VALUES (5, %s)', ("new",))
    assert orders.get(5) is None
    assert orders.invalidate(5) is True
    assert orders.get(5)["name"] == "new"
    ws.database.query('DELETE FROM "order" WHERE id = 5')
    assert [orders.invalidate(5), orders.invalidate(5)] == [True, False]
    assert orders.get(5) is None


@pytest.mark.parametrize(
    "bad", ["Order", "or der", 'order"', "order; --", "", "1st", "a" * 64, "ö", "order\n"]
)
def test_a_name_that_is_not_plain_sql_is_refused(ws, bad):
    for names in ({"table": bad}, {"table": "order", "key": bad}):
        with pytest.raises(ValueError, match="is not a plain SQL name"):
            RecordCache(ws, **names)


def test_a_primary_key_never_becomes_part_of_the_statement(ws, orders):
    with pytest.raises(psycopg2.errors.InvalidTextRepresentation):
        orders.get("1; DROP TABLE x")
    assert orders.stats() == CacheStats()


# --- some fields ---


def test_only_the_fields_asked_for_travel(ws, orders, commands, database_queries):
    orders.get(1)
    with commands() as heard, database_queries(0):
        found = orders.get_fields(1, ["price", "nothing", "seen"])
    assert exactly(found) == exactly({
        "price": Decimal("12.50"),
        "nothing": None,
        "seen": datetime(2026, 6, 30, 12, 34, 56, 789000, tzinfo=UTC),
    })  # fmt: skip
    assert [words[:1] for speaker, words in heard if speaker != "lua"] == [["EVAL"]]
    assert [words for speaker, words in heard if speaker == "lua"] == [
        ["HMGET", orders.key(1), "@", "price", "nothing", "seen"],
    ]
    assert orders.get_fields(1, []) == {}
    assert (orders.stats().hits, orders.stats().misses) == (2, 1)


def test_fields_of_a_record_that_is_not_cached_are_loaded_with_the_whole(
    ws, orders, database_queries
):
    with database_queries(1):
        assert orders.get_fields(3, ["name"]) == {"name": "a:b"}
        assert orders.get(3)["price"] == Decimal("1.0")
    assert (orders.stats().misses, orders.stats().hits) == (1, 1)


@pytest.mark.parametrize("cached_before", [True, False])
def test_a_field_that_the_record_has_not_got_is_a_key_error(ws, orders, cached_before):
    if cached_before:
        orders.get(1)
    with pytest.raises(KeyError, match="colour"):
        orders.get_fields(1, ["name", "colour"])


@pytest.mark.parametrize("names", ["name", b"name", ["name", 1], None, 7])
def test_what_is_no_list_of_names_or_keys_is_refused(ws, orders, names):
    orders.get(1)
    with pytest.raises(TypeError, match=r"Fields are a list of texts, as in \['name'\]"):
        orders.get_fields(1, names)
    assert orders.get_fields(1, (name for name in ["name"])) == {"name": "García"}
    for key in ("12", b"12"):
        with pytest.raises(TypeError, match="Keys are a list"):
            orders.get_many(key)


# --- many records ---


def test_missing_records_take_one_select_and_three_round_trips(
    ws, orders, round_trips, database_queries
):
    orders.get(1)
    with database_queries(1), round_trips() as sent:
        found = orders.get_many(range(200))
    assert [number for number, record in found.items() if record] == [1, 2, 3, 4]
    assert len(sent) == 3
    with database_queries(0), round_trips() as sent:
        assert str(orders.get_many(range(200))) == str(found)  # a NaN equals nothing
    assert len(sent) == 1
    stats = orders.stats()
    assert (stats.misses, stats.hits) == (200, 201)
    assert all(ws.valkey.pttl(orders.key(n)) > 0 for n in range(200))
    assert not list(ws.valkey.scan_iter(f"{ws.namespace}:lock:*"))


def test_keys_that_only_the_database_finds_equal_find_their_records(ws, orders):
    ws.database.query("CREATE TABLE codes (code char(4) PRIMARY KEY, n int)")
    ws.database.query("INSERT INTO codes VALUES ('ab', 1), ('cd', 2)")
    codes = RecordCache(ws, "codes", "code")
    for _ in range(2):
        found = codes.get_many(["ab", "cd  ", "ab  ", "xy"])
        assert {key: record and record["n"] for key, record in found.items()} == {
            "ab": 1, "cd  ": 2, "ab  ": 1, "xy": None,
        }  # fmt: skip
        texts = orders.get_many(["1", 2, Decimal(3), "999"])
        assert [record and record["id"] for record in texts.values()] == [1, 2, 3, None]
    ws.database.query("DROP TABLE codes")


def test_what_is_found_by_another_key_than_its_own_is_answered_and_not_kept(ws, orders):
    """For invalidating it would not find it."""
    others: tuple[object, ...] = ("2", Decimal(2), 2.0)

    def names():
        found = [orders.get(2)["name"], *(orders.get(one)["name"] for one in others)]
        return found + [orders.get_many([one])[one]["name"] for one in others]

    assert names() == [""] * 7
    ws.database.query('UPDATE "order" SET name = %s WHERE id = 2', ("new",))
    orders.invalidate(2)
    assert names() == ["new"] * 7
    for one in ("7", Decimal(7)):
        assert [orders.get(one), orders.get_many([one])[one]] == [None, None]
    ws.database.query('INSERT INTO "order" (id) VALUES (7)')
    for one in ("7", Decimal(7)):
        assert [orders.get(one)["id"], orders.get_many([one])[one]["id"]] == [7, 7]
    ws.database.query('UPDATE "order" SET name = %s WHERE id = 2', ("",))
    ws.database.query('DELETE FROM "order" WHERE id = 7')
    assert orders.stats().uncacheable == 2 * 6 + 2 * 2 + 2 * 2
    assert not list(ws.valkey.scan_iter(f"{ws.namespace}:lock:*"))


KEYS = {
    "int": (7, ["7", Decimal(7)]),
    "numeric": (Decimal("5.0"), [Decimal(5), Decimal("5.00"), 5, "5.0"]),
    "float8": (0.0, [-0.0, 0, "0"]),
    "timestamptz": (
        datetime(2026, 1, 1, tzinfo=UTC),
        [datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), "2026-01-01 00:00Z"],
    ),
    "char(5)": ("zz   ", ["zz", "zz "]),
    "uuid": (UUID(int=7), [str(UUID(int=7)), UUID(int=7).hex]),
    "date": (date(2026, 1, 1), ["2026-01-01", datetime(2026, 1, 1)]),  # noqa: DTZ001
    "short": (7, ["7", Decimal(7)]),  # a domain: what its rules are is not looked into
}
ONE_FORM = {"int", "uuid", "date"}


@pytest.fixture
def keyed(ws) -> Iterator[Callable[[str], RecordCache]]:
    """Makes a table without rows, its keys of a type, and its records."""

    def make(kind: str) -> RecordCache:
        ws.database.query(f"CREATE TABLE keyed (k {kind} PRIMARY KEY, v int)")
        return RecordCache(ws, "keyed", "k", ttl=60)

    ws.database.query("CREATE DOMAIN short AS int")
    yield make
    ws.database.query("DROP TABLE keyed")
    ws.database.query("DROP DOMAIN short")


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("kind", KEYS)
def test_an_absence_is_kept_only_where_its_key_has_no_other_form(ws, keyed, kind, many):
    own, others = KEYS[kind]
    records = keyed(kind)

    def read(key):
        return records.get_many([key])[key] if many else records.get(key)

    assert [read(key) for key in (own, *others)] == [None] * (1 + len(others))
    assert ws.valkey.exists(records.key(own)) == (kind in ONE_FORM)
    ws.database.query("INSERT INTO keyed VALUES (%s, 1)", (own,))
    records.invalidate(own)
    assert [read(key)["v"] for key in (own, *others)] == [1] * (1 + len(others))


@pytest.mark.parametrize("kind", ["text", "varchar(9)"])
def test_the_absence_of_a_text_is_kept_and_many_take_one_select(keyed, kind, database_queries):
    records = keyed(kind)
    records.get("a")
    with database_queries(1):
        assert records.get_many(["a", "b", "b "]) == {"a": None, "b": None, "b ": None}
    with database_queries(0):
        assert [records.get(key) for key in ("a", "b", "b ")] == [None] * 3


def test_where_the_type_of_the_keys_cannot_be_asked_for_no_absence_is_kept(source, database):
    answers = iter([Rows(("id", "v"), [], 0.0), LookupError("no catalogue")] * 2)

    def query(*_):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    database.query = query
    things = RecordCache(source, "thing")
    assert [things.get(1), things.get(1)] == [None, None]
    assert (things.stats().misses, things.stats().uncacheable) == (2, 2)


def test_a_key_that_several_rows_have_is_refused(ws):
    ws.database.query("CREATE TABLE twins (id int, k text, v int, PRIMARY KEY (id))")
    ws.database.query("INSERT INTO twins VALUES (1, 'a', 1), (2, 'a', 2), (3, 'b', 3)")
    twins = RecordCache(ws, "twins", "k")
    for read in (twins.get, lambda key: twins.get_many([key, "b"])):
        with pytest.raises(ValueError, match="2 rows of twins have the k 'a'"):
            read("a")
    assert twins.get("b")["v"] == 3
    ws.database.query("DROP TABLE twins")


def test_a_column_may_have_any_name(ws):
    names = ["@", "@@", "@v", "self", "primary_key", "ä b"]
    columns = ", ".join(f'"{name}" int' for name in names)
    ws.database.query(f"CREATE TABLE named (id int PRIMARY KEY, {columns})")
    ws.database.query("INSERT INTO named VALUES (1, 1, 2, 3, 4, 5, 6)")
    named = RecordCache(ws, "named")
    miss, hit = named.fetch(1), named.fetch(1)
    assert (miss.source, hit.source) == ("database", "cache")
    assert hit.record == miss.record == {"id": 1, **dict(zip(names, range(1, 7), strict=True))}
    assert named.update(1, **dict.fromkeys(names, 9))
    assert named.get_fields(1, ["@", "self"]) == {"@": 9, "self": 9}
    assert named.get(1) == {"id": 1, **dict.fromkeys(names, 9)}
    assert named.stats().corrupt == 0
    ws.database.query("DROP TABLE named")


def test_many_that_another_request_is_loading_are_waited_for(ws, orders, at_once):
    answers = at_once(4, lambda: orders.get_many(range(50)))
    assert {str(answer) for answer in answers} == {str(orders.get_many(range(50)))}
    assert answers[0][1]["id"] == 1
    stats = orders.stats()
    assert stats.misses - stats.coalesced == 50


def test_many_locks_that_nobody_releases_are_waited_for_together(ws, source):
    things = RecordCache(source, "thing", lock_seconds=0.5, load_seconds=1.0)
    for n in range(100):
        ws.valkey.set(keys.lock_key(things.key(n)), "theirs")
    found = things.get_many(range(100))
    assert [record["id"] for record in found.values()] == [*range(100)]
    # One after another they would have lived for 100 s.
    assert things.stats().misses == 100
    assert not list(ws.valkey.scan_iter(f"{ws.namespace}:lock:*"))


# --- writing ---


def test_a_put_replaces_the_older_record_and_all_its_fields(ws, orders):
    orders.get(1)
    orders.put(1, {"id": 1, "name": "new"})
    assert orders.get(1) == {"id": 1, "name": "new"}
    assert ws.valkey.hlen(orders.key(1)) == 3
    ws.valkey.delete(orders.key(1))
    ws.valkey.rpush(orders.key(1), "not a record")
    orders.put(1, {"id": 1})
    assert orders.get(1) == {"id": 1}


@pytest.mark.parametrize("record", [{}, {1: 2}, {"id": 1, "": 2}])
def test_a_put_of_what_is_no_record_is_refused(orders, record):
    with pytest.raises(TypeError, match="is not a record"):
        orders.put(1, record)


@pytest.mark.parametrize(
    ("value", "counted"), [("x" * 2_000, "too_large"), ({1, 2}, "uncacheable")]
)
def test_a_put_that_cannot_be_stored_takes_the_older_record_away(ws, source, value, counted):
    things = RecordCache(source, "thing", max_bytes=1_000)
    things.get(1)
    things.put(1, {"id": 1, "v": value})
    assert ws.valkey.exists(things.key(1)) == 0
    assert getattr(things.stats(), counted) == 1


def test_a_put_of_another_record_is_not_kept(ws, orders):
    for key in (1, "2"):
        orders.get(key)
        orders.put(key, {"id": 2, "name": "new"})
        assert ws.valkey.exists(orders.key(key)) == 0
    orders.get(1)
    assert orders.update(1, id=2) is False
    assert ws.valkey.exists(orders.key(1)) == 0


def test_an_update_changes_its_fields_and_neither_the_others_nor_the_ttl(
    ws, orders, database_queries
):
    before = orders.get(1)
    ws.valkey.pexpire(orders.key(1), 9_000)
    with database_queries(0):
        assert orders.update(1, price=Decimal("13.00"), nothing="now something") is True
        after = orders.fetch(1)
    assert after.source == "cache"
    changed = {**before, "price": Decimal("13.00"), "nothing": "now something"}
    assert exactly(after.record) == exactly(changed)
    assert 0 < ws.valkey.pttl(orders.key(1)) <= 9_000


def test_an_update_that_finds_no_whole_record_leaves_none(ws, orders):
    def leaves_none(plant):
        plant()
        assert orders.update(1, name="x", price=Decimal(1)) is False
        assert ws.valkey.exists(orders.key(1)) == 0

    leaves_none(lambda: None)
    leaves_none(lambda: orders.put(1, {"id": 1, "name": "from before the column was added"}))
    leaves_none(lambda: ws.valkey.rpush(orders.key(1), "x"))
    assert orders.get(6) is None
    assert orders.update(6, name="new") is False
    assert ws.valkey.exists(orders.key(6)) == 0  # nor its absence
    orders.get(1)
    assert orders.update(1, name={1, 2}) is False
    assert ws.valkey.exists(orders.key(1)) == 0
    assert orders.stats().uncacheable == 1
