"""What was opened before a fork works in the child, or refuses; the parent notices nothing."""

import contextlib
import multiprocessing
import os
import secrets
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import psycopg2
import pytest

from workshop_lib import QueryCache, RecordCache, Workshop, cached, open_workshop
from workshop_lib.errors import ServiceUnreachableError, WorkshopError
from workshop_lib.namespaces import wipe_namespace

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
FORK = multiprocessing.get_context("fork")
QUESTIONS = range(40)
LIMIT_S = 60


@pytest.fixture(autouse=True)
def threads_are_meant_to_be_there():
    """Python 3.12 and later warn of a fork beside other threads: that is what is tried here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
        yield


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Iterator[Workshop]:
    """A workshop that was used before any fork, and a table of what the children are asked."""
    workshop = open_workshop(
        "forks",
        workshop_namespace=f"forks_{secrets.token_hex(4)}",
        workshop_result_file=tmp_path_factory.mktemp("forks") / "forks.json",
    )
    workshop.database.query("CREATE TABLE tens (id INTEGER PRIMARY KEY, ten INTEGER NOT NULL)")
    workshop.database.insert_rows("tens", ("id", "ten"), [(n, 10 * n) for n in QUESTIONS])
    workshop.valkey.ping()
    workshop.objects.put("ten", b"10")
    CACHES["query"] = QueryCache(workshop)
    CACHES["record"] = RecordCache(workshop, "tens")

    @cached(workshop)
    def tenfold(number):
        return by_query(workshop, number)

    CACHES["function"] = tenfold
    yield workshop
    wipe_namespace(workshop.namespace)
    workshop.close()


def in_child(work: Callable[[], object]) -> object:
    """What a forked child finds; an error of it is raised here."""
    reader, writer = FORK.Pipe(duplex=False)

    def tell() -> None:
        try:
            writer.send(work())
        except BaseException as error:  # noqa: BLE001 -- told to the parent
            writer.send(error)

    child = FORK.Process(target=tell)
    child.start()
    assert reader.poll(LIMIT_S), "the child hangs"
    found = reader.recv()
    child.join()
    if isinstance(found, BaseException):
        raise found
    return found


def still_well(ws: Workshop) -> None:
    """The parent's connections are as they were: the same sessions, in step with their answers."""
    assert [ws.database.query("SELECT %s * 10", (n,))[0][0] for n in range(20)] == [
        n * 10 for n in range(20)
    ]
    assert ws.valkey.echo("here") == b"here"
    assert ws.objects.get("ten").body == b"10"


# --- 40 questions by 4 workers ---


def by_query(ws, n):
    return ws.database.query("SELECT %s * 10", (n,))[0][0]


def by_store(ws, n):
    return int(ws.objects.get("ten").body) * n


CACHES = {}
"""Made before the fork, as a notebook makes them."""
WAYS = {
    "query": by_query,
    "store": by_store,
    "cache": lambda ws, n: int(ws.valkey.echo(str(n * 10))),
    "a cached query": lambda _, n: (
        CACHES["query"].fetch("SELECT ten FROM tens WHERE id = %s", (n,)).rows[0][0]
    ),
    "a cached record": lambda _, n: CACHES["record"].get(n)["ten"],
    "a cached function": lambda _, n: CACHES["function"](n),
}
_asked: tuple[Workshop, Callable] | None = None


def ask(n):
    ws, way = _asked
    return way(ws, n)


def by_four(ws, way):
    global _asked  # noqa: PLW0603 -- forked workers find it
    _asked = ws, way
    with ProcessPoolExecutor(4, mp_context=FORK) as workers:
        return list(workers.map(ask, QUESTIONS, timeout=LIMIT_S))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_four_workers_get_their_own_answers_while_other_threads_hold_connections_and_ask(
    opened, way
):
    enough = threading.Event()

    def go_on(n):
        wrong = []
        while not enough.is_set():
            wrong += [n] * (way(opened, n % 40) != n % 40 * 10)
            n += 7
        return wrong

    with ThreadPoolExecutor(3) as threads, opened.database.connection() as held:
        busy = [threads.submit(go_on, n) for n in range(3)]
        try:
            assert by_four(opened, way) == [n * 10 for n in QUESTIONS]
        finally:
            enough.set()
        assert [one.result(LIMIT_S) for one in busy] == [[], [], []]
        with held.cursor() as cursor:
            cursor.execute("SELECT 7")
            assert cursor.fetchone() == (7,)
    opened.clear_cache()
    still_well(opened)


# --- what cannot be used says so ---


@pytest.mark.parametrize("kind", ["borrowed", "your own"])
def test_a_connection_of_the_parent_is_refused_in_the_child_and_goes_on_in_the_parent(opened, kind):
    def use(what):
        with pytest.raises(ServiceUnreachableError, match="before this process was forked"):
            what()
        return by_query(opened, 4)

    borrowed = opened.database.connection if kind == "borrowed" else None
    with borrowed() if borrowed else contextlib.closing(opened.database.connect()) as held:
        cursor = held.cursor()
        cursor.execute("SELECT pg_backend_pid()")
        (session,) = cursor.fetchone()
        watched = held.cursor(cursor_factory=psycopg2.extensions.cursor)
        plain = psycopg2.extensions.cursor(held)
        for what in (held.cursor, held.rollback, cursor.execute, watched.execute):
            arguments = ("SELECT 2",) if what in (cursor.execute, watched.execute) else ()
            assert in_child(lambda w=what, a=arguments: use(lambda: w(*a))) == 40
        with pytest.raises(psycopg2.Error):  # no answer of the parent's either
            in_child(lambda: plain.execute("SELECT 1"))
        assert in_child(lambda: (held.close(), by_query(opened, 5))[1]) == 50
        cursor.execute("SELECT pg_backend_pid()")
        assert cursor.fetchone() == (session,)


def test_a_child_forked_within_a_transaction_neither_commits_nor_disturbs_it(opened):
    def work(cursor):
        cursor.execute("INSERT INTO tens VALUES (%s, 1)", (1_000,))
        with pytest.raises(WorkshopError):
            in_child(cursor.connection.rollback)
        in_child(lambda: opened.database.run_transaction(lambda c: c.execute("SELECT 1")))
        cursor.execute("SELECT ten FROM tens WHERE id = 1000")
        return cursor.fetchone()

    assert opened.database.run_transaction(work) == (1,)
    opened.database.query("DELETE FROM tens WHERE id = 1000")


# --- ends ---


def exit_by_system(ws):
    sys.exit(0)


def exit_after_closing(ws):
    ws.close()
    sys.exit(0)


def exit_after_opening_another(ws):
    other = open_workshop("forks", workshop_namespace=ws.namespace)
    assert by_query(other, 1) == 10
    sys.exit(0)


ENDS = [exit_by_system, exit_after_closing, exit_after_opening_another]
SCRIPT = """
import os, sys, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
sys.path.insert(0, sys.argv[1])
import test_forks
from workshop_lib import open_workshop
from workshop_lib.services.local import status
from workshop_lib.services.state_folder import state_folder

namespace, results = sys.argv[2:]
ws = open_workshop("forks", workshop_namespace=namespace, workshop_result_file=results)
ws.database.query("SELECT 1")
ws.objects.put("ten", b"10")
workers = ws.load_workers(1)
ws.set_latency(cache=0.001)
ws.record("x", 1)
for end in test_forks.ENDS:
    print(end.__name__, file=sys.stderr)
    pid = os.fork()
    if pid == 0:
        assert test_forks.by_query(ws, 3) == 30
        end(ws)
    os.waitpid(pid, 0)
    test_forks.still_well(ws)
    workers.do({"run": "ping", "number": 0, "action": "EVENTS", "statements": 0}, 60)
    assert ws.latencies["cache"] == 0.001
    held = status(state_folder(ws.settings.workshop_state_dir)).users
    assert os.getpid() in [user.pid for user in held]
stays = os.fork()
if stays == 0:
    time.sleep(600)
try:
    ws.set_latency(cache=0)
    ws.wipe()
    ws.close()
finally:
    os.kill(stays, 9)
print("well")
"""


def test_however_a_child_ends_the_parent_goes_on(tmp_path):
    """In an interpreter of its own, whose end a child reaches as a script's does."""
    arguments = [str(Path(__file__).parent), f"forks_{secrets.token_hex(4)}", str(tmp_path / "r")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.stdout.split() == ["well"], done.stderr


def test_a_child_records_no_figure_in_the_parent_s_result(opened):
    opened.record("of the parent", 1)
    with pytest.raises(WorkshopError, match="forked"):
        in_child(lambda: opened.record("of the child", 2))
    assert set(opened.result.measurements) == {"of the parent"}
