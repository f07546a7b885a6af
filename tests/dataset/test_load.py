"""What is there after a load depends on seed and sizes alone, whatever happened before."""

import contextlib
import csv
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from decimal import Decimal
from itertools import count
from typing import Any
from unittest import mock

import pytest
from psycopg2 import sql

from workshop_lib import database as database_module, open_workshop
from workshop_lib.database import Database
from workshop_lib.dataset import (
    Sizes,
    create_table,
    drop_everything,
    ensure_objects,
    ensure_table,
    find_table,
    generators,
    list_objects,
    list_tables,
    load as load_module,
    load_objects,
    load_table,
)
from workshop_lib.errors import DataError
from workshop_lib.namespaces import wipe_namespace

SMALL = Sizes(users=100, orders=250, transactions=100)


@pytest.fixture
def database(shared) -> Iterator[Database]:
    """A schema of this test's own."""
    own = Database(
        shared.endpoints.database, f"test_{secrets.token_hex(4)}", pool_min=1, pool_max=4
    )
    own.create_schema()
    yield own
    own.query(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(own.schema)))
    own.close()


@pytest.fixture
def small_steps(monkeypatch):
    """Transactions of 40 rows instead of 3,000."""
    monkeypatch.setattr(load_module, "MAX_ROWS_PER_TRANSACTION", 40)
    monkeypatch.setattr(database_module, "MAX_ROWS_PER_TRANSACTION", 40)


def interrupted_at(database: Database, number: int) -> Any:
    """Interrupts the load inside the block before its transaction of this number, from 1."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    return before_transaction(database, number, interrupt)


def before_transaction(database: Database, number: int, act: Callable[[], object]) -> Any:
    """Does something inside the block before the transaction of this number, from 1."""
    original, numbers = database.run_transaction, count(1)

    def run_transaction(work):
        if next(numbers) == number:
            act()
        return original(work)

    return mock.patch.object(database, "run_transaction", run_transaction)


@pytest.fixture
def paused_load(database, small_steps) -> Iterator[Any]:
    """A load of 100 users of seed 7 that has committed its first rows, and goes on when told to."""
    other = Database(database.endpoint, database.schema, pool_min=1, pool_max=1)
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert go_on.wait(60)

    def load() -> Any:
        # Take the claim, find nothing to delete, insert: the next transaction waits.
        with before_transaction(other, 4, wait):
            return load_table(other, "users", Sizes(seed=7, users=100))

    def finish() -> Any:
        go_on.set()
        return loading.result()

    with ThreadPoolExecutor(1) as thread:
        loading = thread.submit(load)
        assert begun.wait(60)
        yield finish
        go_on.set()
    other.close()


def content(database: Database, name: str) -> list[tuple[object, ...]]:
    order = sql.SQL("SELECT * FROM {} ORDER BY {}")
    table = find_table(name)
    return database.query(
        order.format(sql.Identifier(name), sql.Identifier(table.number)),
    ).rows


# --- tables ---


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("users", lambda s: generators.users(s.users, s.seed)),
        ("orders", lambda s: generators.orders(s.orders, s.seed, s.users)),
        ("transactions", lambda s: generators.transactions(s.transactions, s.seed)),
    ],
)
def test_a_table_is_brought_to_exactly_what_sizes_and_seed_ask_for(database, name, rows):
    for size, seed, new, removed in (
        (50, 42, 50, 0),  # from nothing
        (50, 42, 0, 0),  # again
        (80, 42, 30, 0),  # more
        (20, 42, 0, 60),  # fewer
        (20, 7, 20, 20),  # other rows
    ):
        users = size if name == "users" else 50
        sizes = Sizes(seed, users, orders=size, transactions=size)
        loaded = load_table(database, name, sizes)
        expected = list(rows(sizes))
        assert (loaded.name, loaded.rows) == (name, len(expected))
        assert (loaded.new, loaded.removed) == (new, removed)
        assert content(database, name) == expected
    if name == "orders":  # those of another number of users are others
        loaded = load_table(database, "orders", Sizes(7, users=60, orders=20))
        assert (loaded.new, loaded.removed) == (20, 20)


def test_the_default_sizes_are_those_of_the_text_and_files_keep_their_columns_types(database):
    for name, rows in {
        "users": 500, "orders": 2_500, "transactions": 7_000, "planet": 8, "users1": 10, "type": 10,
    }.items():  # fmt: skip
        first, again = load_table(database, name), load_table(database, name)
        assert (first.rows, first.new, first.removed) == (rows, rows, 0)
        assert (again.rows, again.new, again.removed) == (rows, 0, 0)
    # The rules refuse a transaction that changes more than 3,000 rows.
    assert load_table(database, "transactions", Sizes(transactions=500)).removed == 6_500
    assert content(database, "transactions") == list(generators.transactions(500, 42))
    with (load_module.DATA / "users1.csv").open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    found = database.query("SELECT * FROM users1 ORDER BY id").as_dicts()
    assert [{name: str(value) for name, value in row.items()} for row in found] == [
        {**line, "is_active": line["is_active"].capitalize()} for line in lines
    ]
    first = {name: type(value) for name, value in found[0].items()}
    assert (first["salary"], first["hire_date"], first["is_active"]) == (Decimal, date, bool)


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM users1 WHERE id IN (3, 10)",
        "UPDATE users1 SET name = 'changed' WHERE id = 2",
        "UPDATE users1 SET salary = NULL WHERE id = 2",
        "UPDATE users1 SET id = 0 WHERE id = 2",
        "UPDATE users1 SET id = 999, name = 'mine' WHERE id = 2",
        "INSERT INTO users1 (id, name, email, is_active) VALUES (11, 'mine', 'me', TRUE)",
        # A row of their own, with the unique value of one that they deleted.
        "UPDATE users1 SET id = 11 WHERE id = 2",
        "DELETE FROM users1",
    ],
)
def test_whatever_a_learner_changed_is_undone(database, change):
    load_table(database, "users1")
    rows = content(database, "users1")
    database.query(change)
    left = len(content(database, "users1"))
    loaded = load_table(database, "users1")
    assert (loaded.rows, loaded.new, loaded.removed) == (10, 10, left)
    assert content(database, "users1") == rows
    assert load_table(database, "users1").new == 0


def test_changed_rows_do_not_stay_when_a_table_grows_or_shrinks(database):
    for users in (50, 80, 20):
        load_table(database, "users", Sizes(users=users))
        database.query("UPDATE users SET role = 'changed' WHERE user_id = 7")
    load_table(database, "users", Sizes(users=60))
    assert content(database, "users") == list(generators.users(60, 42))


def test_rows_that_share_a_number_are_removed_in_steps_that_dsql_accepts(database):
    load_table(database, "orders")
    database.query(
        "INSERT INTO orders SELECT order_id, user_id + 1000, order_date, order_amount, order_type "
        "FROM orders"
    )
    sizes = Sizes(seed=1)
    assert load_table(database, "orders", sizes).removed == 5_000
    assert content(database, "orders") == list(generators.orders(2_500, 1, 500))


def test_a_table_that_is_as_asked_costs_four_questions_and_no_transaction(database):
    load_table(database, "users")
    for look in (load_table, ensure_table):
        before = database.stats()
        look(database, "users")
        after = database.stats()
        assert (after.queries - before.queries, after.transactions - before.transactions) == (4, 0)


def test_a_load_that_an_earlier_version_has_noted_counts_as_finished(database):
    load_table(database, "users", Sizes(seed=7, users=30))
    for column in load_module.LATER_COLUMNS:
        database.query(f"ALTER TABLE workshop_loaded DROP COLUMN {column.split()[0]}")
    ensure_table(database, "users")
    assert content(database, "users") == list(generators.users(30, 7))
    load_table(database, "users", Sizes(seed=7, users=30))
    assert content(database, "users") == list(generators.users(30, 7))


# --- loads that are interrupted ---


def test_a_load_of_another_seed_never_leaves_a_mixture_wherever_it_is_interrupted(
    database, small_steps, monkeypatch
):
    monkeypatch.setattr(load_module, "CLAIM_S", 0.1)  # an Interrupt may keep it from being released
    rows = {seed: list(generators.users(100, seed)) for seed in (1, 2)}
    sizes = {seed: Sizes(seed=seed, users=100) for seed in (1, 2)}
    load_table(database, "users", sizes[1])
    for number in range(1, 1_000):
        try:
            with interrupted_at(database, number):
                load_table(database, "users", sizes[2])
        except KeyboardInterrupt:
            left = set(content(database, "users"))
            assert left <= set(rows[1]) or left <= set(rows[2])
            for seed in (2, 1):
                load_table(database, "users", sizes[seed])
                assert content(database, "users") == rows[seed]
        else:
            break
    # Claim, delete 39 + 39 + 22 and find none, insert 39 + 39 + 22, note, release: ten in all.
    assert number == 11
    assert content(database, "users") == rows[2]


def test_an_interrupted_load_is_not_taken_for_a_finished_one(database, small_steps):
    with interrupted_at(database, 6), pytest.raises(KeyboardInterrupt):
        load_table(database, "users", SMALL)  # all rows are there, but not the note that says so
    assert len(content(database, "users")) == 100
    ensure_table(database, "users")
    assert content(database, "users") == list(generators.users(500, 42))


# --- loads of one table at once ---


@pytest.mark.parametrize("loads", [2, 3])
def test_loads_of_one_table_at_once_end_with_the_rows_of_one_of_them(database, small_steps, loads):
    load_table(database, "orders", Sizes(seed=7, orders=300))
    all_sizes = [Sizes(seed=seed, orders=100 + seed) for seed in range(loads)]
    with ThreadPoolExecutor(loads) as threads:
        done = list(threads.map(lambda sizes: load_table(database, "orders", sizes), all_sizes))
    assert [one.rows for one in done] == [sizes.orders for sizes in all_sizes]
    found = content(database, "orders")
    (last,) = (sizes for sizes in all_sizes if sizes.orders == len(found))
    assert found == list(generators.orders(last.orders, last.seed, last.users))
    assert load_table(database, "orders", last).new == 0


def test_two_loads_of_one_table_at_once_end_with_exactly_its_rows(database, small_steps):
    load_table(database, "users", Sizes(seed=7, users=300))
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lambda _: load_table(database, "users", SMALL), range(2)))
    assert sorted(one.new for one in done) == [0, 100]  # the second one waits, and finds them
    assert content(database, "users") == list(generators.users(100, 42))


def test_opening_another_notebook_waits_for_a_load_and_leaves_its_rows_alone(database, paused_load):
    with ThreadPoolExecutor(1) as thread:
        opening = thread.submit(ensure_table, database, "users")
        with pytest.raises(TimeoutError):
            opening.result(timeout=0.5)
        assert content(database, "users") == list(generators.users(39, 7))
        loaded = paused_load()
        opening.result()
    assert (loaded.rows, loaded.new, loaded.removed) == (100, 100, 0)
    assert content(database, "users") == list(generators.users(100, 7))


def test_a_load_that_stood_still_is_replaced_and_commits_nothing_any_more(
    database, paused_load, monkeypatch
):
    monkeypatch.setattr(load_module, "LOAD_WAIT_S", 0.1)
    with pytest.raises(DataError, match="Another load of users has not finished within 0 s"):
        load_table(database, "users", SMALL)
    monkeypatch.setattr(load_module, "LOAD_WAIT_S", 60)
    database.query("UPDATE workshop_loaded SET claimed_until = now()")  # as time will
    loaded = load_table(database, "users", SMALL)
    assert (loaded.new, loaded.removed) == (100, 39)
    with pytest.raises(DataError, match="stood still for more than 10 s, and another one has"):
        paused_load()
    assert content(database, "users") == list(generators.users(100, 42))
    assert load_table(database, "users", SMALL).new == 0


def test_a_load_that_was_stopped_in_a_transaction_is_an_error_that_says_so(database, monkeypatch):
    load_table(database, "users", SMALL)
    monkeypatch.setattr(load_module, "LOAD_WAIT_S", 0)
    monkeypatch.setattr(database_module, "LOCK_WAIT_S", 0.2)
    other = Database(database.endpoint, database.schema, pool_min=0)
    with (
        contextlib.closing(other),
        database.connection() as stopped,
        stopped.cursor() as cursor,
    ):
        cursor.execute("BEGIN")
        cursor.execute("UPDATE workshop_loaded SET complete = FALSE")
        with pytest.raises(DataError, match="Another load of users has not finished"):
            load_table(other, "users")


def test_what_is_written_into_a_table_during_its_load_is_an_error_and_goes_with_the_next(
    database, paused_load
):
    database.query("INSERT INTO users VALUES (70, 'mine', 'me', 'none', 'none', NULL)")
    with pytest.raises(DataError, match="99 of 100 rows could be loaded, and it holds 100"):
        paused_load()
    ensure_table(database, "users")
    assert content(database, "users") == list(generators.users(500, 42))


# --- ensure_table ---


def test_ensure_table_leaves_a_finished_load_of_any_size_alone_and_mends_others(database):
    ensure_table(database, "users")
    assert content(database, "users") == list(generators.users(500, 42))
    load_table(database, "users", Sizes(seed=7, users=30))
    ensure_table(database, "users")
    assert content(database, "users") == list(generators.users(30, 7))
    database.query("DELETE FROM users WHERE user_id = 3")
    ensure_table(database, "users")
    assert content(database, "users") == list(generators.users(500, 42))


# --- what is refused ---


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"users": 0}, "users is 0; it must be a whole number, 1 to 100,000"),
        ({"orders": 1_000_001}, "orders is 1000001; it must be a whole number, 1 to 1,000,000"),
        ({"objects": 1.5}, "objects is 1.5; it must be a whole number, 1 to 10,000"),
        ({"seed": -1}, "seed is -1; it must be a whole number from 0 up"),
    ],
)
def test_sizes_out_of_range_are_refused(sizes, said):
    with pytest.raises(DataError, match=said):
        Sizes(**sizes)


def test_an_unknown_table_is_refused_with_the_known_ones(database):
    for ask in (load_table, create_table, ensure_table):
        with pytest.raises(DataError, match=r"no table 'user' in the workshop.*users1, users"):
            ask(database, "user")
    with pytest.raises(DataError, match="no rows for a table 'workshop_loaded'"):
        load_table(database, "workshop_loaded")


# --- dropping it all ---


def test_dropping_takes_the_workshop_s_tables_and_what_others_made_only_if_asked(database):
    gone = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
    load_table(database, "type")
    database.query("CREATE TABLE counters (n INT)")  # as a notebook makes
    database.query("CREATE TABLE mine (n INT DEFAULT 7)")
    database.query("CREATE VIEW seen AS SELECT 7 AS n")
    assert drop_everything(database) == ["counters", "type", "workshop_loaded"]
    assert list_tables(database) == ["mine"]
    assert database.query("SELECT n FROM seen").rows == [(7,)]
    database.query("DROP VIEW seen")
    assert drop_everything(database, of_others=True) == ["mine"]
    assert database.query(gone, (database.schema,)).rows == []
    assert drop_everything(database) == []


# --- objects ---


@pytest.fixture
def prefix(shared) -> Iterator[str]:
    """A place in the bucket of this test's own."""
    name = f"test_{secrets.token_hex(4)}"
    yield f"{name}/"
    for key in list(list_objects(shared.s3, shared.bucket, name)):
        shared.s3.delete_object(Bucket=shared.bucket, Key=key)


def bodies(shared, prefix):
    """What lies under a prefix, by name."""
    found = {}
    for key in list_objects(shared.s3, shared.bucket, prefix):
        answer = shared.s3.get_object(Bucket=shared.bucket, Key=key)
        found[key.removeprefix(prefix)] = answer["Body"].read()
    return found


def test_objects_are_added_removed_and_replaced_as_asked_and_others_left_alone(shared, prefix):
    own = dict.fromkeys(("mine.txt", "filename.txt", "a/filename1.txt"), b"of a learner")
    for name, body in own.items():
        shared.s3.put_object(Bucket=shared.bucket, Key=f"{prefix}{name}", Body=body)
    neighbour = f"{prefix[:-1]}2/filename1.txt"
    shared.s3.put_object(Bucket=shared.bucket, Key=neighbour, Body=b"of another")
    for sizes, found in (
        (Sizes(objects=5), (5, 5, 0)),
        (Sizes(objects=8), (8, 3, 0)),
        (Sizes(objects=3), (3, 0, 5)),
        (Sizes(7, objects=3), (3, 3, 0)),
        (Sizes(7, objects=3), (3, 2, 1)),
        (Sizes(), (200, 200, 0)),
    ):
        done = load_objects(shared.s3, shared.bucket, prefix, sizes)
        assert (done.rows, done.new, done.removed) == found
        wanted = dict(generators.objects(sizes.objects, sizes.seed))
        assert bodies(shared, prefix) == {**own, **wanted}
        if found == (3, 3, 0):  # damaged by hand
            for name in ("filename1.txt", "filename2.txt", "filename7.txt"):
                shared.s3.put_object(Bucket=shared.bucket, Key=f"{prefix}{name}", Body=b"x")
    assert bodies(shared, neighbour) == {"": b"of another"}


def test_loaders_that_start_at_once_put_each_object_once(shared, prefix):
    loaders = 8
    start = threading.Barrier(loaders)

    def load(_):
        start.wait()
        return load_objects(shared.s3, shared.bucket, prefix, Sizes(objects=50))

    with ThreadPoolExecutor(loaders) as pool:
        done = list(pool.map(load, range(loaders)))
    assert sorted(one.new for one in done) == [0] * (loaders - 1) + [50]
    assert {(one.rows, one.removed) for one in done} == {(50, 0)}
    assert bodies(shared, prefix) == dict(generators.objects(50, 42))


def test_ensure_objects_leaves_a_finished_load_of_any_size_alone_and_mends_others(shared, prefix):
    place = (shared.s3, shared.bucket, prefix)
    ensure_objects(*place)
    assert bodies(shared, prefix) == dict(generators.objects(200, 42))
    load_objects(*place, Sizes(seed=7, objects=12))
    ensure_objects(*place)
    assert bodies(shared, prefix) == dict(generators.objects(12, 7))
    for lost in ("filename1.txt", "filename4.txt"):
        load_objects(*place, Sizes(seed=7, objects=12))
        shared.s3.delete_object(Bucket=shared.bucket, Key=prefix + lost)
        ensure_objects(*place)
        assert bodies(shared, prefix) == dict(generators.objects(200, 42))


@pytest.mark.parametrize("sizes", [Sizes(objects=30), Sizes(objects=12), Sizes(7, objects=20)])
def test_an_interrupted_load_of_objects_is_not_taken_for_a_finished_one(shared, prefix, sizes):
    place = (shared.s3, shared.bucket, prefix)
    load_objects(*place, Sizes(objects=20))
    method = "delete_object" if sizes.objects == 12 else "put_object"
    original, numbers = getattr(shared.s3, method), count(1)

    def interrupted(**arguments):
        if next(numbers) > 5:
            raise KeyboardInterrupt
        return original(**arguments)

    with mock.patch.object(shared.s3, method, interrupted), pytest.raises(KeyboardInterrupt):
        load_objects(*place, sizes)
    ensure_objects(*place)
    assert bodies(shared, prefix) == dict(generators.objects(200, 42))


def test_opening_a_notebook_leaves_a_learner_s_objects_and_other_numbers_of_them_alone(tmp_path):
    settings = {
        "workshop_namespace": f"test_{secrets.token_hex(4)}",
        "workshop_result_file": tmp_path / "result.json",
    }
    with contextlib.closing(open_workshop("one", **settings)) as ws:
        ws.load_objects(Sizes(seed=7, objects=12))
        ws.objects.put("mine.txt", b"my own work")
        open_workshop("another", needs=["objects"], **settings).close()
        expected = {**dict(generators.objects(12, 7)), "mine.txt": b"my own work"}
        assert bodies(ws, ws.object_prefix) == expected
        ws.wipe()


@pytest.fixture
def wiped(ws):
    """The workshop with nothing in it; its schema is made again afterwards, for later tests."""
    ws.wipe()
    ws.database.create_schema()
    yield ws
    ws.database.create_schema()


def test_the_inventory_counts_what_wiping_removes_and_nothing_of_others(wiped):
    ws = wiped
    ws.load_table("planet")
    ws.valkey.set(f"{ws.namespace}:a", 1)
    ws.valkey.set("of another", 1)
    ws.objects.put("one", b"")
    before = ws.inventory()
    assert before["tables"] >= 2  # and what the loads are noted in
    assert (before["keys"], before["objects"]) == (1, 1)
    assert wipe_namespace(ws.namespace) == before
    assert ws.inventory() == {"tables": 0, "keys": 0, "objects": 0}
    assert ws.valkey.delete("of another") == 1
