"""A TCP proxy in front of a local engine that delays each reply, as a network between would.

A request passes at once. Each piece of a reply is due one round trip after it came from the server:
pieces wait side by side, so pipelined replies, or a long one, wait once. Connecting takes one round
trip more. The proxy is this module run as a program, so that it does not compete with the
notebook's own threads; it ends with the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from asyncio import Queue, StreamReader, StreamWriter
from collections.abc import Callable
from typing import TYPE_CHECKING

from workshop_lib import forks
from workshop_lib.errors import EngineError, WorkshopError

if TYPE_CHECKING:
    from workshop_lib.services.endpoints import Endpoint

Reroute = Callable[[str, int], object]

HOST = "127.0.0.1"
MAX_S = 0.4
"""Farther, and connecting would take longer than the clients wait. Round the globe it is 0.3."""
PIECE = 65_536
MAX_PIECES = 1024
"""Of one connection, held back at a time: a real network does not hold any number, either."""


class LatencyProxy:
    """The latency between this process and one service. Nothing runs before one is set.

    Args:
        service: what the learner calls it, for messages.
        endpoint: where it is.
        reroute: called with host and port whenever `route` has changed.

    Attributes:
        seconds: the round-trip time that is added, 0 for none.
        route: the host and port by which clients should connect now.

    """

    def __init__(
        self, service: str, endpoint: Endpoint, reroute: Reroute = lambda *_: None
    ) -> None:
        self.service = service
        self.endpoint = endpoint
        self.seconds = 0.0
        self.route = self._direct = (endpoint.host, endpoint.port)
        self._reroute = reroute
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        forks.tell_child(self)

    def _after_fork(self) -> None:
        """The proxy stays the parent's; its route stays until `set`."""
        if self._process and self._process.stdin:
            self._process.stdin.close()  # by which it knows that the parent lives
        self._process, self._lock = None, threading.Lock()

    @property
    def pid(self) -> int | None:
        """The proxy's process; None where none runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def check(self, seconds: float) -> float:
        """The round-trip time in seconds, if it can be set here.

        Raises:
            ValueError: it is out of range.
            WorkshopError: the service is not a local engine.

        """
        number = isinstance(seconds, int | float)
        if not number or not 0 <= seconds <= MAX_S:
            raise ValueError(
                f"The latency of the {self.service} is {seconds!r}; it is a round-trip time of 0 "
                f"to {MAX_S:g} seconds: 0.005 for 5 ms."
            )
        if seconds and not self.endpoint.embedded:
            raise WorkshopError(
                f"Latency can be added to the local engines only, and the {self.service} is "
                f"{self.endpoint.label}, which has a latency of its own. Set it to 0."
            )
        return seconds

    def set(self, seconds: float) -> None:
        """Set the round-trip time; it is in force when this returns.

        Raises:
            EngineError: the proxy did not start.
            ValueError, WorkshopError: as `check`.

        """
        wanted = self.check(seconds)
        with self._lock:
            # Also where it is 0: connections in use stay with the proxy until they are closed.
            if wanted or self.pid:
                port = self._tell(wanted)
                self._go_by((HOST, port) if wanted else self._direct)
            else:
                self._end()
            self.seconds = wanted

    def close(self) -> None:
        """Connect directly again and end the proxy. Doing it twice is harmless."""
        with self._lock:
            self._end()

    def _tell(self, seconds: float) -> int:
        """Tell the proxy the round-trip time; start it if need be. Returns its port."""
        if not self.pid:
            self._end()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", __name__, *map(str, self._direct)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Jupyter's Interrupt goes to the whole process group: the proxy has its own.
                start_new_session=True,
                cwd="/",
            )
        try:
            self._process.stdin.write(f"{seconds}\n".encode())  # type: ignore[union-attr]
            return int(self._process.stdout.readline())  # type: ignore[union-attr]
        except (OSError, ValueError):
            self._end()
            raise EngineError(
                f"The proxy that adds latency to the {self.service} did not start, or was killed. "
                "Run the cell that sets the latency again."
            ) from None

    def _end(self) -> None:
        self.seconds = 0.0
        self._go_by(self._direct)
        if self._process:
            self._process.kill()  # it has nothing to tidy up
            self._process.communicate()
            self._process = None

    def _go_by(self, route: tuple[str, int]) -> None:
        if route != self.route:
            self.route = route
            self._reroute(*route)


# --- the program ---


class _Proxy:
    """Stands for one server, `seconds` away."""

    def __init__(self, host: str, port: int) -> None:
        self.server = (host, port)
        self.seconds = 0.0

    async def connect(self, from_client: StreamReader, to_client: StreamWriter) -> None:
        """Connect a client with the server until both have said all they had to say."""
        with contextlib.closing(to_client):
            await asyncio.sleep(self.seconds)
            try:
                from_server, to_server = await asyncio.open_connection(*self.server)
                replies: Queue[tuple[float, bytes]] = Queue(MAX_PIECES)
                with contextlib.closing(to_server):
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(_pass_on(from_client, to_server))
                        tasks.create_task(self._take_replies(from_server, replies))
                        tasks.create_task(_deliver(replies, to_client))
            except* OSError:  # the server is not there, or the client has gone
                pass

    async def _take_replies(
        self, server: StreamReader, replies: Queue[tuple[float, bytes]]
    ) -> None:
        """Note of each piece that the server sends when it is due; the last, empty, is its end."""
        piece = b"more"
        while piece:
            piece = await _read(server)
            await replies.put((time.monotonic() + self.seconds, piece))


async def _deliver(replies: Queue[tuple[float, bytes]], client: StreamWriter) -> None:
    """Pass on each piece when it is due, and in the end that there is no more."""
    piece = b"more"
    while piece:
        due, piece = await replies.get()
        await asyncio.sleep(due - time.monotonic())
        client.write(piece)
        await client.drain()
    client.write_eof()


async def _pass_on(client: StreamReader, server: StreamWriter) -> None:
    """Pass on what the client says, and that it has no more to say: replies may still come."""
    with contextlib.suppress(OSError):  # the server has gone; what it said last is still passed on
        while piece := await _read(client):
            server.write(piece)
            await server.drain()
        server.write_eof()


async def _read(end: StreamReader) -> bytes:
    """The next piece; empty at the end, also at an abrupt one."""
    try:
        return await end.read(PIECE)
    except OSError:
        return b""


async def _serve(host: str, port: int) -> None:
    proxy = _Proxy(host, port)
    server = await asyncio.start_server(proxy.connect, HOST, 0)

    def listen() -> None:
        try:
            for line in sys.stdin:
                proxy.seconds = float(line)
                print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 -- the answer
        finally:
            os._exit(0)  # the process that started it has ended

    threading.Thread(target=listen, daemon=True).start()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
