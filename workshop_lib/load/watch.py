"""A time limit for statements that holds whatever the server or the network does."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

from psycopg2.extensions import connection as Connection

LOOK_S = 0.1


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
