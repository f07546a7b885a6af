"""A latency proxy: when replies come, what happens to connections, and when it ends."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from hashlib import sha256
from socketserver import BaseRequestHandler, ThreadingTCPServer

import psutil
import pytest

from workshop_lib.errors import EngineError, WorkshopError
from workshop_lib.services.endpoints import Endpoint
from workshop_lib.services.latency_proxy import MAX_PIECES, MAX_S, PIECE, LatencyProxy
from workshop_lib.services.processes import is_alive, wait_until

SOON_S = 30.0
MAX_HELD = 1.5 * MAX_PIECES * PIECE
LOTS = random.Random(1).randbytes(16_000_000)
Handler = Callable[[socket.socket], None]


def echo(connection: socket.socket) -> None:
    """Send back whatever comes; in the end say how much it was."""
    total = 0
    while received := connection.recv(65_536):
        total += len(received)
        connection.sendall(received)
    connection.sendall(f"|{total} in all".encode())


def send_lots(connection: socket.socket) -> None:
    for _ in range(connection.recv(1)[0]):
        connection.sendall(LOTS)


class Server(ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


class Far(LatencyProxy):
    """A latency proxy, and the server behind it."""

    def __init__(self, handler: Handler) -> None:
        class Handle(BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    handler(self.request)

        self.server = Server(("127.0.0.1", 0), Handle)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        port = self.server.server_address[1]
        super().__init__("database", Endpoint("a server", "127.0.0.1", port, {}, embedded=True))

    def close_server(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.route, timeout=20)


@pytest.fixture
def far() -> Iterator[Callable[..., Far]]:
    """Makes a server and a proxy that has this latency."""
    with ExitStack() as stack:

        def make(seconds: float = 0.01, handler: Handler = echo) -> Far:
            proxy = Far(handler)
            stack.callback(proxy.close_server)
            stack.callback(proxy.close)
            proxy.set(seconds)
            return proxy

        yield make


def read(connection: socket.socket, size: int = 1 << 40) -> bytes:
    found = bytearray()
    while len(found) < size and (received := connection.recv(1 << 18)):
        found += received
    return bytes(found)


def ask(connection: socket.socket) -> float:
    """Send something and wait until all of it is back. How long that took, seconds."""
    started = time.monotonic()
    connection.sendall(b"xxxx")
    assert read(connection, 4) == b"xxxx"
    return time.monotonic() - started


@pytest.mark.parametrize("seconds", [0.001, 0.1])
def test_a_reply_never_comes_before_its_time_and_connecting_takes_one_round_trip_more(far, seconds):
    proxy = far(seconds)
    started = time.monotonic()
    with proxy.connect() as connection:
        ask(connection)
        assert time.monotonic() - started >= 2 * seconds
        assert min(ask(connection) for _ in range(5)) >= seconds


def test_pipelined_requests_wait_one_round_trip_and_not_one_each(far):
    with far(0.2).connect() as connection:
        started = time.monotonic()
        for _ in range(40):
            connection.sendall(b"request")
            time.sleep(0.002)  # each reply comes as a piece of its own
        read(connection, 40 * len(b"request"))
    assert 0.4 <= time.monotonic() - started < 40 * 0.2 / 2


def test_long_replies_and_requests_arrive_whole_wait_once_and_take_bounded_memory(far):
    with far(0.05, lambda c: c.sendall(sha256(read(c, len(LOTS))).digest())).connect() as far_one:
        far_one.sendall(LOTS)
        assert read(far_one) == sha256(LOTS).digest()
    proxy, found = far(MAX_S, send_lots), sha256()
    started = time.monotonic()
    with proxy.connect() as lazy, proxy.connect() as other:
        lazy.sendall(b"\x08")
        other.sendall(b"\0")
        assert read(other) == b""  # other clients are not held up
        while received := lazy.recv(1 << 20):
            found.update(received)
        largest = psutil.Process(proxy.pid).memory_info().rss
    assert found.digest() == sha256(8 * LOTS).digest()
    assert time.monotonic() - started < MAX_S * 8 * len(LOTS) / PIECE / 4
    assert 8 * len(LOTS) > MAX_HELD > largest - 30e6


def test_a_client_that_ends_first_is_answered_to_the_end_and_without_a_server_is_hung_up_on(far):
    proxy = far()
    with proxy.connect() as connection:
        connection.sendall(b"question")
        connection.shutdown(socket.SHUT_WR)
        assert read(connection) == b"question|8 in all"
    proxy.close_server()
    with proxy.connect() as connection, suppress(ConnectionError):
        assert connection.recv(1) == b""


def test_it_changes_for_connections_that_are_open_whose_replies_stay_in_order(far):
    proxy = far(0.3)
    with proxy.connect() as connection:
        assert ask(connection) >= 0.3
        proxy.set(0.01)
        # The shortest of several: a busy machine makes single ones late.
        assert 0.01 <= min(ask(connection) for _ in range(7)) < 0.3
        proxy.set(0.3)
        connection.sendall(b"first, ")
        time.sleep(0.1)  # the server has it, and its reply is held back
        proxy.set(0)
        connection.sendall(b"second")
        assert read(connection, 13) == b"first, second"


def test_what_cannot_be_set_is_a_clear_error_and_changes_nothing(far, monkeypatch):
    proxy = far(0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineError, match="proxy that adds latency to the database"):
        proxy.set(0.01)
    assert (proxy.seconds, proxy.pid) == (0, None)
    elsewhere = LatencyProxy("database", Endpoint("Aurora DSQL in eu-west-1", "127.0.0.1", 1, {}))
    elsewhere.set(0)
    with pytest.raises(WorkshopError, match=r"the database is Aurora DSQL in eu-west-1, which has"):
        elsewhere.set(0.005)


USER = """
    import os, signal, time
    from workshop_lib.services.endpoints import Endpoint
    from workshop_lib.services.latency_proxy import LatencyProxy
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    proxy = LatencyProxy("cache", Endpoint("a server", "127.0.0.1", 1, {}, embedded=True))
    proxy.set(0.01)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(600)
    try:
        print(proxy.pid, child, flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    time.sleep(600)
"""


def test_the_proxy_hears_no_interrupt_and_ends_with_its_process_though_a_fork_of_it_lives():
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(USER)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        proxy, child = (psutil.Process(int(pid)) for pid in process.stdout.readline().split())
        os.killpg(process.pid, signal.SIGINT)  # what Jupyter's Interrupt and Ctrl-C send
        assert process.stdout.readline() == "interrupted\n"
        assert is_alive(proxy)
        process.kill()
        assert wait_until(lambda: not is_alive(proxy), SOON_S)
        child.kill()
