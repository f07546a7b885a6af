"""What a worker works with: clients, kept from job to job, and when it sends a statement again."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import psycopg2
import redis
from psycopg2.extensions import connection as Connection
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_fixed,
    wait_random_exponential,
)

from workshop_lib.database import Database
from workshop_lib.dsql import is_conflict
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.queues import messaging_client
from workshop_lib.services import DatabaseEndpoint, MessagingEndpoint

STATEMENT_LIMIT_S = 30.0
MAX_CONNECTIONS = 64
"""Of one worker: as many as it may have requests under way."""
MAX_NAMESPACES = 3
"""For which a worker keeps connections: a function outlives the runs that used it."""
LOOK_S = 0.1
PATIENCE_S = 10.0
"""How long a worker tries to reach a database that has gone away, for one statement, seconds."""
ATTEMPTS = 30
CONFLICT_WAIT = wait_random_exponential(multiplier=0.005, max=0.25)
RECONNECT_WAIT = wait_fixed(0.2)


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """What a worker process is given to work with; it travels through a pipe: it holds passwords.

    Attributes:
        database: where to write, and to read unless there is a `reader`.
        namespace: the schema, and the beginning of cache keys.
        reader: another endpoint of the same data, for reads.
        cache: arguments of redis.Redis; None if there is no cache.
        messaging: where metrics go; None if they go nowhere.
        statement_limit_s: after which a statement counts as lost, seconds.

    """

    database: DatabaseEndpoint
    namespace: str
    reader: DatabaseEndpoint | None = None
    cache: Mapping[str, Any] | None = field(default=None, repr=False)
    messaging: MessagingEndpoint | None = None
    statement_limit_s: float = STATEMENT_LIMIT_S


class Clients:
    """The clients made of a `ClientConfig`; a cache takes them in the place of a workshop.

    Attributes:
        database, reader: for writes, and for reads.
        namespace: the schema, and the beginning of cache keys.
        default_ttl: where a job gives none, seconds.
        watch: hangs up on statements that take too long.

    """

    default_ttl = 30.0

    def __init__(self, config: ClientConfig) -> None:
        self.namespace = config.namespace
        self.database = _open(config.database, config.namespace)
        self.reader = self.database
        if config.reader is not None:
            self.reader = _open(config.reader, config.namespace)
        self.watch = Watch(config.statement_limit_s)
        self._config = config

    @cached_property
    def valkey(self) -> redis.Redis:
        """The cache.

        Raises:
            AttributeError: there is none.

        """
        if self._config.cache is None:
            raise AttributeError("these workers were given no cache")
        return redis.Redis(**self._config.cache)

    @cached_property
    def cloudwatch(self) -> Any:
        """The client for metrics; None if they go nowhere."""
        messaging = self._config.messaging
        return messaging_client(messaging, "cloudwatch") if messaging else None

    def close(self) -> None:
        """Let go of everything."""
        self.watch.close()
        self.database.close()
        self.reader.close()
        for client in ("valkey", "cloudwatch"):
            if opened := self.__dict__.get(client):
                opened.close()


class ClientsByNamespace:
    """The clients of each namespace that was lately worked for."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._kept: dict[str, Clients] = {}

    def of(self, namespace: str = "") -> Clients:
        """Those of a namespace, opened if need be; of the worker's own if it is empty."""
        name = namespace or self._config.namespace
        # Put in anew each time, so that the first is the one that was not used for longest.
        found = self._kept.pop(name, None)
        if found is None:
            found = Clients(replace(self._config, namespace=name))
            while len(self._kept) >= MAX_NAMESPACES:
                self._kept.pop(next(iter(self._kept))).close()
        self._kept[name] = found
        return found

    def close(self) -> None:
        """Let go of everything."""
        while self._kept:
            self._kept.popitem()[1].close()


def _open(endpoint: DatabaseEndpoint, namespace: str) -> Database:
    # One that broke is replaced before the pool has seen its end, so a worker needs one more.
    return Database(endpoint, namespace, pool_min=1, pool_max=MAX_CONNECTIONS + 1)


class Counts(Protocol):
    """Where further attempts are counted, by their reason."""

    conflicts: int
    reconnects: int


def is_lost(error: BaseException | None) -> bool:
    """Whether the database was not there, or went away in the middle of a statement."""
    if isinstance(error, ServiceUnreachableError):
        return True
    if not isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        return False
    return not error.pgcode or error.pgcode.startswith(("08", "57P"))


def attempts(end: float, counts: Counts | None = None) -> Retrying:
    """Try again after a conflict or a lost connection, within the patience and the time left.

    Only for a statement that may be sent twice.

    Args:
        end: by when to have done, by `time.monotonic()`.
        counts: told of each further attempt.

    """

    def note(state: RetryCallState) -> None:
        if counts is None:
            return
        if _was_lost(state):
            counts.reconnects += 1
        else:
            counts.conflicts += 1

    left = max(0.0, min(PATIENCE_S, end - time.monotonic()))
    return Retrying(
        retry=retry_if_exception(lambda error: is_conflict(error) or is_lost(error)),
        wait=_wait,
        stop=stop_after_attempt(ATTEMPTS) | stop_after_delay(left),
        before_sleep=note,
        reraise=True,
    )


def _wait(state: RetryCallState) -> float:
    return (RECONNECT_WAIT if _was_lost(state) else CONFLICT_WAIT)(state)


def _was_lost(state: RetryCallState) -> bool:
    assert state.outcome is not None  # noqa: S101 -- there is one before a wait
    return is_lost(state.outcome.exception())


class Watch:
    """Hangs up on a server that has not answered in time.

    A server's own statement_timeout does not help where the network has gone silent. So the client
    ends the connection: the statement then fails like any other whose connection broke, and whether
    it was committed is not known.

    Args:
        limit_s: seconds that a statement may take.

    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._lock = threading.Lock()
        self._watched: dict[int, tuple[Connection, float]] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def over(self, connection: Connection) -> Iterator[None]:
        """Watch what is asked of this connection within the block."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
                self._thread.start()
            self._watched[id(connection)] = (connection, time.monotonic() + self.limit_s)
        try:
            yield
        finally:
            with self._lock:
                self._watched.pop(id(connection), None)

    def close(self) -> None:
        """End the watching thread."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_S):
            with self._lock:
                for key, (connection, end) in list(self._watched.items()):
                    if time.monotonic() > end:
                        _hang_up(connection)
                        del self._watched[key]


def _hang_up(connection: Connection) -> None:
    """Shut the socket down; close() would wait for the thread that is reading from it."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
