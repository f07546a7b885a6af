"""Services that are silent, and one that is killed under its cache."""

import signal
import threading

import psutil
import pytest

from workshop_lib.cache.object_cache import ObjectCache
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.services import local
from workshop_lib.services.engines import ObjectStore
from workshop_lib.services.processes import wait_until

SOON_S = 30.0


def postgres_of(database):
    """The server and its helpers, the server first."""
    port = database.endpoint.port
    for process in psutil.Process().children(recursive=True):
        if process.name() == "postgres" and any(
            c.laddr.port == port and c.status == psutil.CONN_LISTEN
            for c in process.net_connections("tcp")
        ):
            return [process, *process.children(recursive=True)]
    raise AssertionError(port)


def test_a_silent_database_is_given_up_and_used_again_when_it_answers(ws):
    box = ws.sandbox(database=True)
    box.database.query("CREATE TABLE kept (n int PRIMARY KEY)")
    box.database.query("INSERT INTO kept VALUES (1)")
    halted = postgres_of(box.database)
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(box.database.query("TABLE kept").rows))
    for process in halted:
        process.suspend()
    try:
        waiting.start()  # on a connection that was open before: it waits for the answer
        with pytest.raises(ServiceUnreachableError, match="timeout expired"):
            box.database.connect()
    finally:
        for process in halted:
            process.resume()
    waiting.join(SOON_S)
    assert answers == [[(1,)]]
    box.database.connect().close()
    box.close()


def test_a_killed_store_is_back_with_its_objects(ws, state):
    cache = ObjectCache(ws, ttl=60)
    cache.put("kept", b"kept")
    report = next(one for one in local.status(state).engines if one.name == ObjectStore.kind)
    psutil.Process(report.pid).send_signal(signal.SIGKILL)
    assert cache.get("kept") == b"kept"  # meanwhile from the cache
    cache.invalidate("kept")

    def from_the_store():
        try:
            return cache.fetch("kept").body == b"kept"
        except ServiceUnreachableError:
            return False

    assert wait_until(from_the_store, SOON_S)
    cache.delete("kept")
