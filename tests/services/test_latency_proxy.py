"""A latency proxy: when replies come, what becomes of connections, and when it ends."""

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
from dataclasses import replace
from hashlib import sha256

import psutil
import pytest

from workshop_lib.errors import EngineError, WorkshopError
from workshop_lib.services.endpoints import Endpoint
from workshop_lib.services.latency_proxy import MAX_PIECES, MAX_S, PIECE, LatencyProxy
from workshop_lib.services.processes import is_alive, wait_until

SOON_S = 30.0
MAX_HELD = 1.5 * MAX_PIECES * PIECE
LOTS = random.Random(1).randbytes(16_000_000)


class Server:
    """A server on loopback, each of whose connections is handled in a thread."""

    def __init__(self, handler: Callable[[socket.socket], None], port: int = 0) -> None:
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port = self.listener.getsockname()[1]
        self.handler, self.handled = handler, 0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self.handle, args=(connection,), daemon=True).start()

    def handle(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self.handler(connection)
        self.handled += 1

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes up accept()
        self.listener.close()


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


def endpoint_of(port: int) -> Endpoint:
    return Endpoint("a server", "127.0.0.1", port, {}, embedded=True)


class Far(LatencyProxy):
    """A latency proxy that remembers its routes, and the server behind it."""

    def __init__(self, handler: Callable[[socket.socket], None] = echo) -> None:
        self.server, self.ports = Server(handler), []
        super().__init__("database", endpoint_of(self.server.port), self.note)

    def note(self, host: str, port: int) -> None:
        assert host == "127.0.0.1"
        self.ports.append(port)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.route, timeout=20)


@pytest.fixture
def far() -> Iterator[Callable[..., Far]]:
    """Makes a server and a proxy that has this latency."""
    with ExitStack() as stack:

        def make(seconds: float = 0.01, handler: Callable[[socket.socket], None] = echo) -> Far:
            proxy = Far(handler)
            stack.callback(proxy.server.close)
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


def fastest(connection: socket.socket) -> float:
    """The shortest of several questions: a busy machine makes single ones late."""
    return min(ask(connection) for _ in range(7))


def ended(connection: socket.socket) -> bool:
    """Whether the other side has closed or broken the connection, waiting for that."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


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
    digest = far(0.05, lambda c: c.sendall(sha256(read(c, len(LOTS))).digest()))
    with digest.connect() as connection:
        connection.sendall(LOTS)
        assert read(connection) == sha256(LOTS).digest()
    proxy, found = far(MAX_S, send_lots), sha256()
    started = time.monotonic()
    with proxy.connect() as lazy, proxy.connect() as other:
        lazy.sendall(b"\x08")
        other.sendall(b"\0")
        assert read(other) == b""  # nobody else is held up
        while received := lazy.recv(1 << 20):
            found.update(received)
        largest = psutil.Process(proxy.pid).memory_info().rss
    assert found.digest() == sha256(8 * LOTS).digest()
    assert time.monotonic() - started < MAX_S * 8 * len(LOTS) / PIECE / 4
    assert 8 * len(LOTS) > MAX_HELD > largest - 30e6


def test_who_has_no_more_to_say_is_heard_to_the_end_and_without_the_server_hung_up_on(far):
    proxy = far()
    with proxy.connect() as connection:
        connection.sendall(b"question")
        connection.shutdown(socket.SHUT_WR)
        assert read(connection) == b"question|8 in all"
    proxy.server.close()
    with proxy.connect() as connection:
        assert ended(connection)
    proxy.server = Server(echo, proxy.server.port)
    with proxy.connect() as connection:
        assert ask(connection) >= 0.01
    proxy.server.close()


def test_it_changes_for_connections_that_are_open_whose_replies_stay_in_order(far):
    proxy = far(0.3)
    with proxy.connect() as connection:
        assert ask(connection) >= 0.3
        proxy.set(0.01)
        assert 0.01 <= fastest(connection) < 0.3
        proxy.set(0.3)
        connection.sendall(b"first, ")
        time.sleep(0.1)  # the server has it, and its reply is held back
        proxy.set(0)
        connection.sendall(b"second")
        assert read(connection, 13) == b"first, second"
        assert fastest(connection) < 0.3
    assert len(proxy.ports) == 2


def test_nothing_runs_before_it_is_set_and_off_means_connecting_directly(far):
    proxy = far(0)
    assert (proxy.pid, proxy.ports) == (None, [])
    proxy.set(0.01)
    process = psutil.Process(proxy.pid)
    proxy.set(0)
    proxy.set(0.02)
    there, direct, again = proxy.ports
    assert there == again != direct == proxy.server.port
    assert proxy.pid == process.pid
    proxy.close()
    proxy.close()
    assert not process.is_running()
    assert (proxy.seconds, proxy.ports[-1]) == (0, proxy.server.port)


def test_a_proxy_that_does_not_start_is_a_clear_error(far, monkeypatch):
    proxy = far(0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineError, match="proxy that adds latency to the database"):
        proxy.set(0.01)
    assert (proxy.seconds, proxy.ports) == (0, [])


@pytest.mark.parametrize("wrong", [-0.001, 0.41, True, float("nan"), float("inf"), "far", None])
def test_a_latency_out_of_range_is_refused(far, wrong):
    proxy = far(0)
    with pytest.raises(ValueError, match=r"a round-trip time of 0 to 0\.4 seconds: 0\.005 for 5 m"):
        proxy.set(wrong)
    assert proxy.seconds == 0


def test_a_service_elsewhere_has_its_own_latency_and_0_is_no_error():
    elsewhere = replace(endpoint_of(1), label="Aurora DSQL in eu-west-1", embedded=False)
    proxy = LatencyProxy("database", elsewhere)
    proxy.set(0)
    with pytest.raises(WorkshopError, match=r"the database is Aurora DSQL in eu-west-1, which has"):
        proxy.set(0.005)
    assert (proxy.seconds, proxy.route) == (0, ("127.0.0.1", 1))


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
        input()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        input()
    os.kill(child, signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["by itself", "killed", "interrupted before"])
def test_the_proxy_ends_with_its_process_though_a_fork_of_it_lives_and_hears_no_interrupt(end):
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(USER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        proxy, child = (psutil.Process(int(pid)) for pid in process.stdout.readline().split())
        if end == "interrupted before":
            os.killpg(process.pid, signal.SIGINT)  # what Jupyter's Interrupt and Ctrl-C send
            assert process.stdout.readline() == "interrupted\n"
            assert is_alive(proxy)
        if end == "killed":
            process.kill()
            assert wait_until(lambda: not is_alive(proxy), SOON_S)
            child.kill()
        else:
            process.communicate("\n")
    assert wait_until(lambda: not is_alive(proxy), SOON_S)
