"""A database that can be slow or out of order, and an ear on the cache server's line."""

from __future__ import annotations

import re
import secrets
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from workshop_lib.cache import breaker
from workshop_lib.objects import StoredObject, Unchanged
from workshop_lib.rows import Rows
from workshop_lib.services.engines import Valkey
from workshop_lib.services.state_folder import StateFolder


@dataclass
class Parts:
    """A source of a test's own making."""

    database: Any
    valkey: Any
    namespace: str
    default_ttl: float = 30.0

    @property
    def objects(self) -> Shelf:
        return Shelf(self.database)


@dataclass
class OneValue:
    """A database that holds one value under every question, and counts the questions."""

    value: object = 1
    seconds: float = 0.0
    """What an answer takes, and is said to take."""
    error: Exception | None = None
    """Raised anew in place of each answer."""
    identity: str = "one value"
    queries: int = 0
    asked: threading.Event = field(default_factory=threading.Event)
    answering: threading.Event = field(default_factory=threading.Event)
    """Cleared, it keeps those who have asked waiting for an answer."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.answering.set()

    def query(self, statement: str, params: Any = None, *, read_only: bool = False) -> Rows:
        del statement, read_only
        with self._lock:
            self.queries += 1
        seen = self.value  # as at the moment of asking: a slow reader comes home with it
        self.asked.set()
        assert self.answering.wait(20)
        time.sleep(self.seconds)
        if self.error is not None:
            raise type(self.error)(*self.error.args)
        asked = params[0] if params else 0
        ids = asked if isinstance(asked, tuple) else (asked,)
        return Rows(("id", "v"), [(one, seen) for one in ids], self.seconds)


@dataclass
class Shelf:
    """A store whose every object is the database's one value, as text."""

    database: Any
    identity: str = "shelf"
    prefix: str = ""

    def get(self, name: str) -> StoredObject:
        found = self.database.query(name)
        body = f"{found[0][1]}".encode()
        return StoredObject(body, f'"{zlib.crc32(body)}"', found.seconds)

    def get_if_changed(self, name: str, etag: str) -> StoredObject | Unchanged:
        found = self.get(name)
        return Unchanged(found.seconds) if found.etag == etag else found

    def put(self, name: str, body: bytes) -> str:
        del name
        return f'"{zlib.crc32(body)}"'

    def delete(self, name: str) -> None:
        """As of a value that was changed already."""


class Switchable:
    """A Valkey client that can be exchanged for another one, as if the server came back."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)


@pytest.fixture
def database() -> Iterator[OneValue]:
    one = OneValue()
    yield one
    one.answering.set()


@pytest.fixture
def source(ws, database) -> Parts:
    return Parts(database, ws.valkey, ws.namespace)


@pytest.fixture
def parts() -> type[Parts]:
    return Parts


@pytest.fixture
def rest(monkeypatch) -> Callable[[float], None]:
    """Sets how long a cache that failed is left alone, seconds."""
    return lambda seconds: monkeypatch.setattr(breaker, "REST_S", seconds)


@pytest.fixture
def switch() -> Iterator[Switchable]:
    """A client of a port on which no server listens yet."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port, never = taken.getsockname()[1], Retry(NoBackoff(), 0)
        client = redis.Redis(port=port, socket_connect_timeout=0.5, retry=never)
        yield Switchable(client)
        client.close()


@pytest.fixture
def engine(tmp_path) -> Iterator[Valkey]:
    """A cache server of this test's own, to be stopped and started."""
    folder = StateFolder(tmp_path)
    folder.prepare()
    server = Valkey(folder)
    server.start(0)
    yield server
    server.stop()


@pytest.fixture
def engine_client(engine) -> Iterator[Callable[[float], redis.Redis]]:
    """Makes clients of that server, which wait so many seconds for an answer."""
    with ExitStack() as made:

        def make(timeout_s: float) -> redis.Redis:
            client = redis.Redis(
                port=engine.port,
                password=engine.folder.secrets()["valkey"],
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
            return made.enter_context(client)

        yield make


@pytest.fixture
def at_once() -> Callable[..., list[Any]]:
    """Calls a function in so many threads at one moment; returns the answers or errors."""

    def call(threads: int, function: Callable[[], Any]) -> list[Any]:
        start = threading.Barrier(threads)

        def one(_: int) -> Any:
            start.wait(20)
            try:
                return function()
            except BaseException as error:  # noqa: BLE001 - what was raised is what is looked at
                return error

        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(one, range(threads)))

    return call


@pytest.fixture
def commands(ws) -> Callable[[], Any]:
    """Everything that the server is told within a `with`: who says it, and the words."""

    @contextmanager
    def listen() -> Iterator[list[tuple[str, list[str]]]]:
        heard: list[tuple[str, list[str]]] = []
        begin, end = secrets.token_hex(8), secrets.token_hex(8)
        with ws.valkey.monitor() as monitor:

            def next_line() -> str:
                return monitor.connection.read_response().decode("latin-1")

            ws.valkey.echo(begin)  # on a connection that may have to be opened first
            while begin not in next_line():
                pass
            yield heard
            ws.valkey.echo(end)
            while end not in (line := next_line()):
                speaker = re.search(r"\[\d+ (.*?)\]", line).group(1)
                heard.append((speaker, re.findall(r'"((?:[^"\\]|\\.)*)"', line)))

    return listen


@pytest.fixture
def database_queries(ws) -> Callable[[int], Any]:
    """Within such a `with`, the workshop's database is asked so many times."""

    @contextmanager
    def expect(expected: int) -> Iterator[None]:
        before = ws.database.stats().queries
        yield
        assert ws.database.stats().queries - before == expected

    return expect


@pytest.fixture
def round_trips(monkeypatch) -> Callable[[], Any]:
    """One item for each command or pipeline that this process sends within a `with`."""
    line = redis.connection.AbstractConnection
    send = line.send_packed_command

    @contextmanager
    def listen() -> Iterator[list[int]]:
        sent: list[int] = []

        def count(*args: Any, **kwargs: Any) -> Any:
            sent.append(1)
            return send(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(line, "send_packed_command", count)
            yield sent

    return listen
