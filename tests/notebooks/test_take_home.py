"""The files that learners take home: cells of the notebooks, word for word, and they work."""

from __future__ import annotations

import ast
import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import nbformat
import psycopg2
import pytest

from workshop_lib.notebooks import NOTEBOOKS

FILES = sorted((NOTEBOOKS / "take_home").glob("*.py"))
each = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def load(name):
    spec = importlib.util.spec_from_file_location(name, NOTEBOOKS / "take_home" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cells():
    paths = NOTEBOOKS.glob("*.ipynb")
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    return [cell.source for one in notebooks for cell in one.cells if cell.cell_type == "code"]


@each
def test_each_function_is_the_text_of_a_cell(file, cells):
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            text = "\n".join(lines[first - 1 : node.end_lineno])
            assert any(text in cell for cell in cells), node.name


@each
def test_it_is_short_and_needs_nothing_of_the_workshop(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    names += [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert not [name for name in names if name.startswith("workshop_lib")]
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 180


# dsql_service.py, on the local Aurora DSQL.


@pytest.fixture
def service(ws):
    """The module, and a way to open connections that find the workshop's tables."""
    module, place = load("dsql_service"), ws.database_arguments()
    where = {name: place[name] for name in ("hostaddr", "port", "sslrootcert")}

    def connect():
        connection = module.connect(ws.dsql, place["host"], **where)
        with connection, connection.cursor() as cursor:
            cursor.execute(f"SET search_path TO {ws.namespace}")
        return connection

    ws.database.query("CREATE TABLE taken_home (id INT PRIMARY KEY, n INT NOT NULL)")
    ws.database.query("INSERT INTO taken_home VALUES (1, 0)")
    yield module, connect
    ws.database.query("DROP TABLE taken_home")


def increment(cursor):
    cursor.execute("SELECT n FROM taken_home WHERE id = 1")
    n = cursor.fetchone()[0]
    cursor.execute("UPDATE taken_home SET n = %s WHERE id = 1", (n + 1,))
    return n + 1


def test_no_increment_of_concurrent_writers_is_lost(ws, service):
    module, connect = service
    begin = partial(module.transaction, module.new_pool(3), connect, timeout_s=60)
    run = partial(module.run_transaction, begin, increment, attempts=100)
    with ThreadPoolExecutor(6) as threads:
        found = [one.result() for one in [threads.submit(run) for _ in range(12)]]
    assert sorted(found) == list(range(1, 13))
    assert ws.database.query("SELECT n FROM taken_home")[0][0] == 12


def test_only_conflicts_are_tried_again_and_not_for_ever(service):
    module, connect = service
    begin = partial(module.transaction, module.new_pool(1), connect)
    for error, tries in (
        (psycopg2.errors.SerializationFailure("conflict"), 3),
        (psycopg2.errors.UniqueViolation("twice"), 1),
    ):
        calls = []

        def work(_, error=error, calls=calls):
            calls.append(1)
            raise error

        with pytest.raises(type(error)):
            module.run_transaction(begin, work, attempts=3)
        assert len(calls) == tries


def test_the_pool_keeps_connections_and_replaces_the_old_and_the_broken(service):
    module, connect = service
    pool = module.new_pool(1)

    def session(max_age_s=2400):
        with module.transaction(pool, connect, max_age_s=max_age_s) as cursor:
            return cursor.connection

    first = session(max_age_s=0)
    second = session()
    assert first.closed  # its age was over
    assert second is not first
    assert session() is second
    second.close()
    assert session() is not second


def test_a_change_is_undone_after_an_error_and_the_pool_is_whole(ws, service):
    module, connect = service
    pool = module.new_pool(1)

    def fail(cursor):
        increment(cursor)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), module.transaction(pool, connect) as cursor:
        fail(cursor)
    with module.transaction(pool, connect, timeout_s=1) as cursor:
        assert increment(cursor) == 1
    assert ws.database.query("SELECT n FROM taken_home")[0][0] == 1


def test_a_caught_error_is_no_commit(ws, service):
    module, connect = service
    begin = partial(module.transaction, module.new_pool(1), connect)

    def work(cursor):
        increment(cursor)
        with suppress(psycopg2.errors.UniqueViolation):
            cursor.execute("INSERT INTO taken_home VALUES (1, 1)")
        return "saved"

    with pytest.raises(RuntimeError, match="COMMIT would save nothing"):
        module.run_transaction(begin, work)
    assert ws.database.query("SELECT n FROM taken_home")[0][0] == 0
    assert module.run_transaction(begin, increment) == 1


def rolled_back(cursor):
    increment(cursor)
    cursor.connection.rollback()


def rolled_back_after_an_error(cursor):
    increment(cursor)
    with suppress(psycopg2.errors.UniqueViolation):
        cursor.execute("INSERT INTO taken_home VALUES (1, 1)")
    cursor.connection.rollback()


def rolled_back_in_words(cursor):
    increment(cursor)
    cursor.execute("ROLLBACK")


def closed_its_cursor(cursor):
    rolled_back(cursor)
    cursor.close()


def left_open_in_autocommit_mode(cursor):
    cursor.connection.autocommit = True
    cursor.execute("BEGIN")
    increment(cursor)


@pytest.mark.parametrize(
    "work",
    [
        rolled_back,
        rolled_back_after_an_error,
        rolled_back_in_words,
        closed_its_cursor,
        left_open_in_autocommit_mode,
    ],
)
def test_a_transaction_that_was_ended_by_other_means_is_no_commit(ws, service, work):
    module, connect = service
    begin = partial(module.transaction, module.new_pool(1), connect)
    with pytest.raises(RuntimeError, match="COMMIT would save nothing"):
        module.run_transaction(begin, work)
    assert module.run_transaction(begin, increment) == 1
    assert ws.database.query("SELECT n FROM taken_home")[0][0] == 1


def test_a_mode_and_local_settings_end_with_their_user(ws, service):
    module, connect = service
    begin = partial(module.transaction, module.new_pool(1), connect)

    def ask_in_autocommit_mode(cursor):
        cursor.connection.autocommit = True
        cursor.execute("SELECT 1")

    def fail(cursor):
        increment(cursor)
        raise ZeroDivisionError

    with pytest.raises(RuntimeError):
        module.run_transaction(begin, ask_in_autocommit_mode)
    with begin() as cursor:
        cursor.execute("SET LOCAL search_path = nowhere")
    with pytest.raises(ZeroDivisionError):
        module.run_transaction(begin, fail)
    assert ws.database.query("SELECT n FROM taken_home")[0][0] == 0


def test_a_transaction_may_ask_nothing_or_by_another_cursor(ws, service):
    module, connect = service
    begin = partial(module.transaction, module.new_pool(1), connect)
    assert module.run_transaction(begin, lambda _: "nothing") == "nothing"
    assert module.run_transaction(begin, lambda one: increment(one.connection.cursor())) == 1
    assert ws.database.query("SELECT n FROM taken_home")[0][0] == 1


def test_a_connection_that_cannot_be_opened_leaves_its_place_free(service):
    module, connect = service
    pool = module.new_pool(1)

    def refuse():
        raise psycopg2.OperationalError("waking up")

    with pytest.raises(psycopg2.OperationalError), module.transaction(pool, refuse):
        pass
    with module.transaction(pool, connect, timeout_s=1) as cursor:
        cursor.execute("SELECT 1")


def test_waiting_too_long_for_a_connection_is_an_error(service):
    module, connect = service
    pool, taken, done = module.new_pool(1), threading.Event(), threading.Event()

    def hold():
        with module.transaction(pool, connect):
            taken.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert taken.wait(60)
        with pytest.raises(module.queue.Empty), module.transaction(pool, connect, timeout_s=0.01):
            pass
    finally:
        done.set()
        holder.join()
