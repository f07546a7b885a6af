"""Hold the replies of a server back by a round-trip time: a TCP proxy, run as a program.

`python distance.py HOST PORT SECONDS` prints the port on 127.0.0.1 at which it stands for the
server. Each line on standard input is a new round-trip time, and is printed once it is in force;
when standard input closes, the proxy ends. Standard library only, so that it starts at once.

A request passes at once. Each piece of a reply is due one round trip after it came from the server:
pieces wait side by side, so pipelined replies, or a long one, wait once. Connecting takes one round
trip more. Threads, because an event loop wakes up later (measured: 6.6 ms instead of 5).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

HOST = "127.0.0.1"
PIECE = 65_536
MOST_PIECES = 1024
"""Of one connection, held back at a time: a real network does not hold any number, either."""
CONNECT_S = 5.0
ORPHANED_EVERY_S = 0.5


class Proxy:
    """Stands for one server, at `seconds` from its clients."""

    def __init__(self, server: tuple[str, int], seconds: float) -> None:
        self.server = server
        self.seconds = seconds
        self.listener = socket.create_server((HOST, 0))
        self.port = int(self.listener.getsockname()[1])

    def serve(self) -> None:
        """Take in clients, each in threads of its own, so that none disturbs another."""
        while True:
            try:
                client, _ = self.listener.accept()
                _in_thread(self._connect, client)
            except (OSError, RuntimeError):  # too many files or threads: some will be freed
                time.sleep(0.01)

    def _connect(self, client: socket.socket) -> None:
        """Connect a client with the server until both have said all they had to say."""
        time.sleep(self.seconds)
        with (
            client,
            contextlib.suppress(OSError),
            socket.create_connection(self.server, CONNECT_S) as server,
        ):
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            requests = _in_thread(_pass_on, client, server)
            self._hold_back(server, client)
            requests.join()

    def _hold_back(self, server: socket.socket, client: socket.socket) -> None:
        """Pass on what the server says, each piece when it is due; the last, empty, is its end."""
        waiting: deque[tuple[float, bytes]] = deque()
        more = True
        try:
            while more or waiting:
                pause = waiting[0][0] - time.monotonic() if waiting else None
                if pause is not None and pause <= 0:
                    piece = waiting.popleft()[1]
                    if piece:
                        client.sendall(piece)
                    else:
                        client.shutdown(socket.SHUT_WR)
                elif not more or len(waiting) >= MOST_PIECES:
                    time.sleep(pause or 0)
                elif select.select([server], [], [], pause)[0]:
                    piece = _receive(server)
                    waiting.append((time.monotonic() + self.seconds, piece))
                    more = bool(piece)
        except (OSError, ValueError):  # the client has gone; ValueError: too many files for select
            _hang_up(client, server)


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


def _hang_up(*ends: socket.socket) -> None:
    """Close for both directions at once, which wakes up whoever waits for them."""
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _in_thread(work: Callable[..., object], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def _end_with(parent: int) -> None:
    """End when the parent has; standard input alone would not tell while a fork of it lives."""
    while os.getppid() == parent:
        time.sleep(ORPHANED_EVERY_S)
    os._exit(0)


def main() -> None:
    """Stand for the server named on the command line until standard input closes."""
    host, port, seconds = sys.argv[1:]
    proxy = Proxy((host, int(port)), float(seconds))
    _in_thread(_end_with, os.getppid())
    _in_thread(proxy.serve)
    sys.stdout.write(f"{proxy.port}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        proxy.seconds = float(line)
        sys.stdout.write(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
