"""A proxy that adds distance: when replies come, what becomes of connections, and when it ends."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from hashlib import sha256

import psutil
import pytest

from workshop_lib.errors import EngineError, WorkshopError
from workshop_lib.services import dial as dials, distance
from workshop_lib.services.dial import Dial
from workshop_lib.services.endpoints import Endpoint
from workshop_lib.services.processes import wait_until

SOON = 30.0
Handler = Callable[[socket.socket], None]
MOST_HELD = 1.5 * distance.MOST_PIECES * distance.PIECE
LOTS = random.Random(1).randbytes(16_000_000)


class Server:
    """A server on loopback, each of whose connections is handled in a thread."""

    def __init__(self, handler: Handler, port: int = 0) -> None:
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port = self.listener.getsockname()[1]
        self.handler = handler
        self.handled = 0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.handle, args=(connection,), daemon=True).start()

    def handle(self, connection: socket.socket) -> None:
        with connection:
            try:
                self.handler(connection)
            except OSError:
                pass
            finally:
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


def reset(connection: socket.socket) -> None:
    """Break a connection without a goodbye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Place:
    """Where a dial says that its service is to be reached."""

    def __init__(self) -> None:
        self.ports: list[int] = []

    def __call__(self, host: str, port: int) -> None:
        assert host == "127.0.0.1"
        self.ports.append(port)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def far(stack: ExitStack) -> Callable[..., Dial]:
    """Makes a server and a dial that is set to a distance from it."""

    def make(handler: Handler = echo, seconds: float = 0.0) -> Dial:
        server = Server(handler)
        stack.callback(server.close)
        place = Place()
        dial = Dial("database", endpoint_of(server.port), place)
        stack.callback(dial.close)
        dial.server, dial.place = server, place
        dial.set(seconds)
        return dial

    return make


def endpoint_of(port: int) -> Endpoint:
    return Endpoint("a server", f"127.0.0.1:{port}", "127.0.0.1", port, {}, embedded=True)


def connect(dial: Dial) -> socket.socket:
    return socket.create_connection(("127.0.0.1", dial.place.ports[-1]), timeout=20)


def process_of(dial: Dial) -> psutil.Process:
    return psutil.Process(dial._proxy._process.pid)


def ask(connection: socket.socket, size: int = 4) -> float:
    """Send something and wait until all of it is back. How long that took, seconds."""
    started = time.monotonic()
    connection.sendall(b"x" * size)
    read(connection, size)
    return time.monotonic() - started


def fastest(connection: socket.socket) -> float:
    """The shortest of several questions: a busy machine makes single ones late."""
    return min(ask(connection) for _ in range(7))


def read(connection: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        received = connection.recv(65_536)
        if not received:
            break
        found += received
    return bytes(found)


def read_all(connection: socket.socket) -> bytes:
    return read(connection, 1 << 40)


def ended(connection: socket.socket) -> bool:
    """Whether the other side has closed or broken the connection, waiting for that."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("seconds", [0.001, 0.005, 0.02, 0.1])
def test_a_reply_never_comes_before_its_time(far, seconds):
    with connect(far(seconds=seconds)) as connection:
        found = [ask(connection) for _ in range(15)]
    assert min(found) >= seconds


def test_connecting_takes_one_round_trip_more(far):
    dial = far(seconds=0.1)
    started = time.monotonic()
    with connect(dial) as connection:
        ask(connection)
        assert time.monotonic() - started >= 0.2
        assert 0.1 <= fastest(connection) < 0.2


def test_pipelined_requests_wait_one_round_trip_and_not_one_each(far):
    with connect(far(seconds=0.2)) as connection:
        ask(connection)
        started = time.monotonic()
        for _ in range(30):
            connection.sendall(b"request")
            time.sleep(0.002)  # each reply comes as a piece of its own
        read(connection, 30 * len(b"request"))
    assert 0.2 <= time.monotonic() - started < 3


def test_a_reply_of_many_pieces_arrives_whole_and_waits_once(far):
    def send_lots(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(LOTS)

    with connect(far(send_lots, 0.2)) as connection:
        started = time.monotonic()
        connection.sendall(b"?")
        found = read_all(connection)
    assert time.monotonic() - started < 0.2 * len(LOTS) / distance.PIECE / 4
    assert found == LOTS


def test_long_requests_arrive_whole(far):
    def digest(connection: socket.socket) -> None:
        found = read(connection, len(LOTS))
        connection.sendall(sha256(found).digest())

    with connect(far(digest, 0.05)) as connection:
        connection.sendall(LOTS)
        assert read_all(connection) == sha256(LOTS).digest()


def test_more_than_is_held_back_at_once_arrives_whole_and_takes_bounded_memory(far):
    def send_lots(connection: socket.socket) -> None:
        for _ in range(20):
            connection.sendall(LOTS)

    dial, largest, found = far(send_lots, dials.MOST_S), 0, sha256()
    with connect(dial) as connection:
        while received := connection.recv(1 << 20):
            found.update(received)
            largest = max(largest, process_of(dial).memory_info().rss)
    assert found.digest() == sha256(20 * LOTS).digest()
    assert 20 * len(LOTS) > MOST_HELD > largest - 30e6


def test_many_connections_wait_side_by_side(far):
    dial = far(seconds=0.2)

    def visit(_: int) -> float:
        with connect(dial) as connection:
            return ask(connection)

    started = time.monotonic()
    with ThreadPoolExecutor(30) as threads:
        found = list(threads.map(visit, range(30)))
    assert min(found) >= 0.2
    assert time.monotonic() - started < 30 * 0.4 / 3


def test_a_client_that_has_no_more_to_say_still_gets_its_reply(far):
    with connect(far(seconds=0.05)) as connection:
        connection.sendall(b"question")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b"question|8 in all"


def test_a_server_that_closes_is_heard_to_the_end(far):
    def say_and_close(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"last words")

    with connect(far(say_and_close, 0.05)) as connection:
        connection.sendall(b"?")
        assert read_all(connection) == b"last words"


def test_a_server_that_breaks_a_connection_ends_this_one_and_no_other(far):
    def break_if_asked(connection: socket.socket) -> None:
        while received := connection.recv(100):
            if received == b"break":
                return reset(connection)
            connection.sendall(received)
        return None

    dial = far(break_if_asked, 0.01)
    with connect(dial) as first, connect(dial) as second:
        ask(first), ask(second)
        first.sendall(b"break")
        assert ended(first)
        assert ask(second) >= 0.01


def test_a_client_that_breaks_its_connection_harms_no_other_and_the_server_hears_of_it(far):
    dial = far(seconds=0.05)
    with connect(dial) as second:
        for _ in range(5):
            first = connect(dial)
            ask(first)
            first.sendall(b"and off")
            reset(first)
        assert wait_until(lambda: dial.server.handled == 5, SOON)
        assert ask(second) >= 0.05


def test_a_client_that_does_not_read_holds_up_nobody_else(far):
    def send_lots(connection: socket.socket) -> None:
        if connection.recv(4) == b"lots":
            for _ in range(10):
                connection.sendall(LOTS)
        else:
            connection.sendall(b"hello")

    dial = far(send_lots, 0.01)
    with connect(dial) as lazy, connect(dial) as other:
        lazy.sendall(b"lots")
        time.sleep(0.2)
        other.sendall(b"few")
        assert read_all(other) == b"hello"
        assert process_of(dial).memory_info().rss < MOST_HELD + 30e6


def test_connections_that_have_ended_leave_no_thread_behind(far):
    dial = far(seconds=0.01)
    process = process_of(dial)
    before = process.num_threads()
    for _ in range(10):
        with connect(dial) as connection:
            ask(connection)
    assert wait_until(lambda: process.num_threads() == before, SOON)


def test_without_the_server_clients_are_hung_up_on_until_it_is_back(far):
    dial = far(seconds=0.01)
    dial.server.close()
    with connect(dial) as connection:
        assert ended(connection)
    again = Server(echo, dial.server.port)
    with connect(dial) as connection:
        assert ask(connection) >= 0.01
    again.close()


def test_the_distance_changes_for_connections_that_are_open(far):
    dial = far(seconds=0.3)
    with connect(dial) as connection:
        ask(connection)
        assert ask(connection) >= 0.3
        dial.set(0.01)
        assert 0.01 <= fastest(connection) < 0.3
        dial.set(0.3)
        assert ask(connection) >= 0.3
    assert len(dial.place.ports) == 1


def test_replies_stay_in_order_when_the_distance_shrinks_meanwhile(far):
    dial = far(seconds=0.3)
    with connect(dial) as connection:
        connection.sendall(b"first, ")
        wait_until(lambda: False, 0.35)  # the server has it, and its reply is held back
        dial.set(0.001)
        connection.sendall(b"second")
        assert read(connection, 13) == b"first, second"


def test_nothing_runs_before_the_dial_is_turned(far):
    dial = far(seconds=0)
    assert (dial._proxy, dial.place.ports) == (None, [])


def test_off_means_connecting_directly_and_on_again_the_same_proxy(far):
    dial = far(seconds=0.01)
    process = process_of(dial)
    dial.set(0)
    dial.set(0.02)
    proxied, direct, again = dial.place.ports
    assert proxied == again != direct == dial.server.port
    assert process_of(dial) == process


def test_a_connection_in_use_outlives_turning_the_distance_off(far):
    dial = far(seconds=0.1)
    with connect(dial) as connection:
        ask(connection)
        dial.set(0)
        assert fastest(connection) < 0.1


def test_closing_ends_the_proxy_and_doing_it_twice_is_harmless(far):
    dial = far(seconds=0.01)
    process = process_of(dial)
    dial.close()
    dial.close()
    assert not process.is_running()
    assert dial.place.ports[-1] == dial.server.port
    assert dial.seconds == 0


def test_a_proxy_that_was_killed_is_replaced_when_the_dial_is_set_again(far):
    dial = far(seconds=0.01)
    process_of(dial).kill()
    assert wait_until(lambda: not dial._proxy.alive, SOON)
    dial.set(0.01)
    with connect(dial) as connection:
        assert ask(connection) >= 0.01
    first, *_, second = dial.place.ports
    assert first != second


def test_a_proxy_that_does_not_answer_is_a_clear_error_and_is_replaced(far, monkeypatch):
    dial = far(seconds=0.01)
    process = process_of(dial)
    monkeypatch.setattr(dials, "ANSWER_S", 0.2)
    monkeypatch.setattr(dials, "END_S", 0.2)
    process.suspend()
    with pytest.raises(EngineError, match="proxy that adds distance"):
        dial.set(0.02)
    assert not process.is_running()
    assert (dial.seconds, dial.place.ports[-1]) == (0, dial.server.port)
    monkeypatch.undo()
    dial.set(0.02)
    with connect(dial) as connection:
        assert ask(connection) >= 0.02


def test_a_proxy_that_does_not_start_is_a_clear_error(far, monkeypatch):
    dial = far()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineError, match="proxy that adds distance"):
        dial.set(0.01)
    assert (dial.seconds, dial.place.ports) == (0, [])


def test_an_answer_left_over_from_an_interrupted_change_is_not_taken_for_the_next(far):
    dial = far(seconds=0.3)
    dial._proxy._process.stdin.write(b"0.2\n")  # nobody waits for the answer
    dial.set(0.01)
    with connect(dial) as connection:
        assert fastest(connection) < 0.2


def test_threads_that_turn_the_dial_at_once_share_one_proxy_and_get_an_answer_each(far):
    dial = far()
    steps = [0.001 * step for step in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(dial.set, steps))
    assert dial.seconds in steps
    dial.set(0.01)
    assert len({port for port in dial.place.ports if port != dial.server.port}) == 1
    running = [child.cmdline() for child in psutil.Process().children()]
    assert sum(str(dial.server.port) in words for words in running) == 1


def test_the_proxy_listens_on_loopback_only(far):
    sockets = process_of(far(seconds=0.01)).net_connections(kind="all")
    listening = [s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]


@pytest.mark.parametrize("wrong", [-0.001, 0.41, 5, True, float("nan"), float("inf"), "far", None])
def test_a_distance_out_of_range_is_refused(far, wrong):
    dial = far(seconds=0.01)
    with pytest.raises(ValueError, match=r"a round-trip time of 0 to 0\.4 seconds: 0\.005 for 5 m"):
        dial.set(wrong)
    assert dial.seconds == 0.01


def test_a_service_elsewhere_has_its_own_distance_and_0_is_no_error():
    place = Place()
    elsewhere = replace(endpoint_of(1), label="Aurora DSQL in eu-west-1", embedded=False)
    dial = Dial("database", elsewhere, place)
    dial.set(0)
    with pytest.raises(WorkshopError, match=r"the database is Aurora DSQL in eu-west-1, which has"):
        dial.set(0.005)
    assert (dial.seconds, place.ports) == (0, [])


USER = """
    import multiprocessing, os, signal, sys, time
    from workshop_lib.services.dial import Dial
    from workshop_lib.services.endpoints import Endpoint
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    endpoint = Endpoint("a server", "127.0.0.1:1", "127.0.0.1", 1, {}, embedded=True)
    dial = Dial("cache", endpoint, lambda host, port: None)
    dial.set(0.01)
    print(dial._proxy._process.pid, flush=True)
"""


def user(then: str = "") -> tuple[subprocess.Popen[str], psutil.Process]:
    """A process that adds distance and then does what it is told; and its proxy."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(USER) + textwrap.dedent(then)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    return process, psutil.Process(int(process.stdout.readline()))


def gone(process: psutil.Process) -> bool:
    return wait_until(
        lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, SOON
    )


def test_the_proxy_ends_when_its_process_does():
    process, proxy = user("input()")  # reads the end of its input at once
    with process:
        pass
    assert gone(proxy)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_proxy_ends_when_its_process_is_killed(number):
    process, proxy = user("time.sleep(60)")
    with process:
        assert proxy.is_running()
        process.send_signal(number)
    assert gone(proxy)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_the_proxy_ends_when_its_process_is_killed_though_a_fork_of_it_lives():
    process, proxy = user(
        """
        if child := os.fork():
            print(child, flush=True)
        time.sleep(60)
        """
    )
    with process:
        child = int(process.stdout.readline())
        process.kill()
        assert gone(proxy)
        os.kill(child, signal.SIGKILL)


def test_an_interrupt_reaches_the_notebook_and_not_the_proxy():
    process, proxy = user(
        """
        try:
            print("ready", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        time.sleep(60)
        """
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)  # what Jupyter's Interrupt and Ctrl-C send
        assert process.stdout.readline() == "interrupted\n"
        time.sleep(0.2)
        assert proxy.is_running()
        process.kill()
    assert gone(proxy)
