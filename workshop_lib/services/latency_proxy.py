"""A TCP proxy before a local engine that holds each reply back, as a network between would.

A request passes at once. Each piece of a reply is due one round trip after it came from the server:
pieces wait side by side, so pipelined replies, or a long one, wait once. Connecting takes one round
trip more. The proxy is this module run as a program (threads, because an event loop wakes up
later: measured, 6.6 ms instead of 5); it ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from queue import Queue
from typing import TYPE_CHECKING, Any

from workshop_lib import forks
from workshop_lib.errors import EngineError, WorkshopError

if TYPE_CHECKING:
    from workshop_lib.services.endpoints import Endpoint

HOST = "127.0.0.1"
MAX_S = 0.4
"""Farther, and connecting would take longer than the clients wait. Round the globe it is 0.3."""
PIECE = 65_536
MAX_PIECES = 1024
"""Of one connection, held back at a time: a real network does not hold any number, either."""
CONNECT_S = 5.0


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
        self,
        service: str,
        endpoint: Endpoint,
        reroute: Callable[[str, int], object] = lambda *_: None,
    ) -> None:
        self.service = service
        self.endpoint = endpoint
        self.seconds = 0.0
        self.route = self._direct = (endpoint.host, endpoint.port)
        self._reroute = reroute
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        forks.tell_child(self)

    def _after_fork(self) -> None:
        """Let go of what tells the proxy that the parent lives."""
        if self._process and self._process.stdin:
            self._process.stdin.close()

    @property
    def pid(self) -> int | None:
        """The proxy's process; None where none runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def check(self, seconds: float) -> float:
        """The round-trip time in seconds, if it can be set here.

        Raises:
            ValueError: it is out of range.
            WorkshopError: the service is not a local engine, or this process was forked.

        """
        try:
            wanted = float(seconds)
        except (TypeError, ValueError):
            wanted = -1.0
        if not 0 <= wanted <= MAX_S:
            raise ValueError(
                f"The latency of the {self.service} is {seconds!r}; it is a round-trip time of 0 "
                f"to {MAX_S:g} seconds: 0.005 for 5 ms."
            )
        if wanted and not self.endpoint.embedded:
            raise WorkshopError(
                f"Latency can be added to the local engines only, and the {self.service} is "
                f"{self.endpoint.label}, which has a latency of its own. Set it to 0."
            )
        if self._pid != os.getpid() and wanted != self.seconds:
            raise WorkshopError(
                "This process was forked since the workshop was opened: the latency of the "
                f"{self.service} is its parent's. Set it there, or open a workshop here."
            )
        return wanted

    def set(self, seconds: float) -> None:
        """Set the round-trip time; it is in force when this returns.

        Raises:
            EngineError: the proxy did not start.
            ValueError, WorkshopError: as `check`.

        """
        wanted = self.check(seconds)
        if self._pid != os.getpid():
            return
        with self._lock:
            if not self.pid:
                self._end()
            # Also where it is 0: connections in use stay with the proxy until they are closed.
            if wanted or self._process:
                # Once more, as it may be just ending.
                port = self._tell(wanted) or self._tell(wanted)
                if not port:
                    raise EngineError(
                        f"The proxy that adds latency to the {self.service} did not start. Run the "
                        "cell that sets the latency again."
                    )
                self._go_by((HOST, port) if wanted else self._direct)
            self.seconds = wanted

    def close(self) -> None:
        """Connect directly again and end the proxy. Doing it twice is harmless."""
        if self._pid == os.getpid():
            with self._lock:
                self._end()

    def _tell(self, seconds: float) -> int:
        """Tell the proxy the round-trip time; start it if need be. Its port; 0 if it ended."""
        self._process = self._process or subprocess.Popen(
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
            return 0

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


class _Proxy(socketserver.ThreadingTCPServer):
    """Stands for one server, `seconds` away; a thread for each client, so that none waits."""

    daemon_threads = True
    request_queue_size = 128
    seconds = 0.0

    def __init__(self, server: tuple[str, int]) -> None:
        super().__init__((HOST, 0), socketserver.BaseRequestHandler)
        self._server = server

    def finish_request(self, client: Any, client_address: Any) -> None:
        """Connect a client with the server until both have said all they had to say."""
        del client_address
        time.sleep(self.seconds)
        with (
            contextlib.suppress(OSError),
            socket.create_connection(self._server, CONNECT_S) as server,
        ):
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            replies: Queue[tuple[float, bytes]] = Queue(MAX_PIECES)
            threads = [
                _in_thread(self._take_replies, server, replies),
                _in_thread(_deliver, replies, client, server),
            ]
            _pass_on(client, server)
            for thread in threads:
                thread.join()

    def _take_replies(self, server: socket.socket, replies: Queue[tuple[float, bytes]]) -> None:
        """Note of each piece that the server sends when it is due; the last, empty, is its end."""
        piece = b"more"
        while piece:
            piece = _receive(server)
            replies.put((time.monotonic() + self.seconds, piece))


def _deliver(
    replies: Queue[tuple[float, bytes]], client: socket.socket, server: socket.socket
) -> None:
    """Pass on each piece when it is due, and in the end that there is no more."""
    piece = b"more"
    while piece:
        due, piece = replies.get()
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            client.sendall(piece)
            if not piece:
                client.shutdown(socket.SHUT_WR)
        except OSError:  # the client has gone
            _hang_up(client)
            _hang_up(server)


def _pass_on(client: socket.socket, server: socket.socket) -> None:
    """Pass on what the client says, and that it has no more to say: replies may still come."""
    try:
        while piece := _receive(client):
            server.sendall(piece)
        server.shutdown(socket.SHUT_WR)
    except OSError:  # the server has gone; what it said last still reaches the client
        _hang_up(server)


def _receive(end: socket.socket) -> bytes:
    """The next piece; empty at the end, also at an abrupt one."""
    try:
        return end.recv(PIECE)
    except OSError:
        return b""


def _hang_up(end: socket.socket) -> None:
    """Close for both directions at once, which wakes up whoever waits for it."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def _in_thread(work: Callable[..., object], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def main() -> None:
    """Stand for the server named on the command line for as long as standard input is open."""
    proxy = _Proxy((sys.argv[1], int(sys.argv[2])))
    _in_thread(proxy.serve_forever)
    for line in sys.stdin:
        proxy.seconds = float(line)
        print(proxy.server_address[1], flush=True)  # noqa: T201 -- who told it waits for this
    os._exit(0)


if __name__ == "__main__":
    main()
