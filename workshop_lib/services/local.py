"""Attach to this checkout's local engines, starting them if need be; list, stop and delete them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from workshop_lib import forks
from workshop_lib.errors import EngineError
from workshop_lib.paths import CHECKOUT
from workshop_lib.services.processes import (
    SUPERVISOR,
    end_processes,
    is_alive,
    wait_until,
)
from workshop_lib.services.state_folder import StateFolder, log_tail, remove
from workshop_lib.settings import Settings

HOST = "127.0.0.1"
MAX_LINE = 1 << 20
ATTACH_S = 75.0
SUPERVISOR_S = 20.0
GREETING_S = 1.0
"""A supervisor greets at once, unless it is frozen or the machine very busy."""
STATUS_S = 3.0
THAWING_S = 2.0
"""How long one that was out of reach has to greet, before another one takes its place."""
STOPPING_S = 10.0
RELEASE_S = 4.0
"""How long releasing waits; the supervisor goes on by itself if it needs longer."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the supervisor says of one engine.

    Attributes:
        status: "up", "down" (not asked for, or about to come) or "failed".
        port: where it is, or will be again; 0 if it is not asked for.
        pid: of the running server, else 0.
        emulated: an emulation stands in for the real server.
        message: why it failed.

    """

    name: str
    status: str
    port: int = 0
    pid: int = 0
    emulated: bool = False
    message: str = ""


class User(NamedTuple):
    """A process that uses engines."""

    pid: int
    command: str

    def __str__(self) -> str:
        """As `workshop status` shows it."""
        return f"{self.command} (pid {self.pid})"


def send(connection: socket.socket, message: object) -> None:
    """Send one line."""
    connection.sendall(json.dumps(message).encode() + b"\n")


def receive(connection: socket.socket) -> Any:
    """Wait for one line; no side sends a second one before it has been answered.

    Raises:
        OSError: the other side is gone, or silent for longer than the connection's timeout.
        ValueError: it is not JSON, or too long.

    """
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(65_536)
        if not part:
            raise ConnectionResetError("the other side has closed the connection")
        line += part
        if len(line) > MAX_LINE:
            raise ValueError("the line is too long")
    return json.loads(line)


class Attachment:
    """This process's hold on local engines: a connection to their supervisor.

    It ends with `release`, or with this process. A forked child has no part in it.

    Attributes:
        folder: where they keep their state.
        engines: by name; those that were asked for are up.
        secrets: their passwords.

    """

    def __init__(self, connection: socket.socket, answer: dict[str, Any]) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.folder = StateFolder(Path(answer["folder"]))
        self.secrets = self.folder.secrets()
        self.engines = {engine.name: engine for engine in _states(answer["engines"])}
        _kept.add(self)
        forks.tell_child(self)

    def release(self) -> None:
        """Release the engines, and wait until the supervisor knows. Twice is harmless.

        It stops them when no process uses them; a sandbox's at once, and deletes what they wrote.
        """
        _kept.discard(self)
        with contextlib.suppress(OSError, ValueError):
            self._connection.shutdown(socket.SHUT_WR)
            self._connection.settimeout(RELEASE_S)
            receive(self._connection)
        self._connection.close()

    def tell(self, what: str, engine: str) -> None:
        """Have an engine of a sandbox started, stopped, frozen or thawed.

        Args:
            what: "start", "stop", "freeze" or "thaw".
            engine: its name.

        Raises:
            EngineError: it could not be done, or the sandbox is closed.

        """
        try:
            with self._lock:
                _ask(self._connection, {"do": what, "engine": engine})
        except OSError:
            raise EngineError(
                "This sandbox is closed, and its engines have ended. Run the cell that opens it "
                "again."
            ) from None

    def _after_fork(self) -> None:
        """In a forked process: the lease is the parent's."""
        _kept.discard(self)
        self._connection.close()


_kept: set[Attachment] = set()
"""Held until they are released, also if nobody refers to them any more."""


@dataclass(frozen=True, slots=True)
class Status:
    """What `workshop status` shows.

    Attributes:
        supervisor_pid: None if no engines run.
        users: who uses the shared engines.
        sandboxes: of each, who uses it, and its engines.
        idle_s: how long the engines would stay without users, seconds.

    """

    folder: Path
    supervisor_pid: int | None = None
    engines: tuple[EngineState, ...] = ()
    users: tuple[User, ...] = ()
    sandboxes: tuple[tuple[User, tuple[EngineState, ...]], ...] = ()
    idle_s: float = 0.0


def attach(
    folder: StateFolder, names: Iterable[str], settings: Settings, idle_s: float | None = None
) -> Attachment:
    """Have these engines running and keep them so until `release`.

    Args:
        folder: whose engines.
        names: of "postgres", "valkey", "s3", "aws".
        settings: for the cache's memory and the idle time.
        idle_s: the idle time, if it is to be another, seconds.

    Raises:
        EngineError: an engine did not come up, or the state folder cannot be used.

    """
    idle_s = settings.workshop_linger_seconds if idle_s is None else idle_s
    return _open(folder, "attach", names, settings, idle_s)


def open_group(folder: StateFolder, names: Iterable[str], settings: Settings) -> Attachment:
    """Start engines for this process alone: they end when it releases them, or ends.

    Args:
        folder: in whose sandboxes they keep their state.
        names: "postgres", "valkey", and further ones of a kind such as "valkey-2".
        settings: for the caches' memory.

    Raises:
        EngineError: as `attach`; nothing is left of them.

    """
    return _open(folder, "sandbox", names, settings, 0.0)


def status(folder: StateFolder) -> Status:
    """What runs now and who uses it. Starts nothing."""
    with contextlib.suppress(OSError, ValueError):
        if connection := _connect(folder, STATUS_S):
            with connection:
                found = _ask(connection, {"do": "status"})
            return Status(
                folder.path,
                folder.read(folder.address_file).get("pid"),
                _states(found["engines"]),
                tuple(User(*user) for user in found["users"]),
                tuple((User(*user), _states(engines)) for user, engines in found["sandboxes"]),
                found["idle_s"],
            )
    return Status(folder.path)


def stop(folder: StateFolder) -> bool:
    """Stop the engines now, even while they are in use. Returns whether any were running.

    Raises:
        EngineError: they could not be stopped.

    """
    if not folder.ours:
        return False
    with folder.locked():
        return _end_all(folder)


def reset(folder: StateFolder) -> bool:
    """Stop the engines and delete their data, passwords and logs.

    Returns:
        Whether there were any; what the workshop did not make is left alone.

    Raises:
        EngineError: they could not be stopped or deleted.

    """
    if not folder.ours:
        return False
    try:
        with folder.locked():
            _end_all(folder)
            folder.delete()
    except EngineError:
        if folder.path.exists():  # else another process has reset it meanwhile
            raise
    return True


def wait_gone(folder: StateFolder, seconds: float = 20.0) -> bool:
    """Wait for the engines to end once they have no users.

    Returns:
        True if they have; False, at once, while others use them or they stay idle for a time.

    """
    found = status(folder)
    if found.users or found.sandboxes or found.idle_s:
        return False
    return wait_until(lambda: not any(folder.processes()), seconds, step_s=0.1)


def _open(
    folder: StateFolder, do: str, names: Iterable[str], settings: Settings, idle_s: float
) -> Attachment:
    request = {
        "do": do,
        "engines": list(names),
        "cache_mb": settings.workshop_cache_mb,
        "idle_s": idle_s,
        "user": User(os.getpid(), _command()),
    }
    folder.prepare()
    for last_try in (False, False, True):
        with contextlib.ExitStack() as to_close:
            connection = to_close.enter_context(_connect(folder) or _connect_to_new(folder))
            try:
                connection.settimeout(ATTACH_S)
                answer = _ask(connection, request)
                connection.settimeout(None)
            except TimeoutError:
                raise EngineError(
                    f"The local engines did not come up within {ATTACH_S:.0f} s. `workshop status` "
                    f"shows them; their logs are in {folder.logs}."
                ) from None
            except OSError:  # the supervisor has ended meanwhile
                if last_try:
                    raise EngineError(_ended(folder, "ended while they were starting")) from None
                continue
            with folder.usable():
                held = Attachment(connection, answer)
            to_close.pop_all()
            return held
    raise AssertionError("unreachable")


def _ask(connection: socket.socket, request: dict[str, Any]) -> dict[str, Any]:
    """Ask the supervisor.

    Raises:
        EngineError: it refuses.
        OSError: it is gone.

    """
    send(connection, request)
    answer: dict[str, Any] = receive(connection)
    if "error" in answer:
        raise EngineError(answer["error"])
    return answer


def _connect(folder: StateFolder, patience_s: float = GREETING_S) -> socket.socket | None:
    """A connection to the supervisor, if it is there: it proves that it is no stranger."""
    known = folder.read(folder.address_file)
    damaged = (ValueError, TypeError, KeyError, OverflowError)
    with contextlib.suppress(OSError, *damaged), contextlib.ExitStack() as to_close:
        address = (HOST, int(known["port"]))
        connection = socket.create_connection(address, timeout=patience_s)
        to_close.enter_context(connection)
        send(connection, known["token"])
        if receive(connection) == known["proof"]:
            to_close.pop_all()
            return connection
    return None


def _connect_to_new(folder: StateFolder) -> socket.socket:
    """Start a supervisor, unless another process has done so, or one was only frozen."""
    with folder.locked():
        for process in folder.processes().supervisors:
            with contextlib.suppress(psutil.Error):
                process.resume()  # it also writes its address anew
            if connection := _connect_within(THAWING_S, folder, partial(is_alive, process)):
                return connection
        _end_all(folder, THAWING_S / 2)
        folder.secrets()
        return _start_supervisor(folder)


def _start_supervisor(folder: StateFolder) -> socket.socket:
    with (folder.logs / "supervisor.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", SUPERVISOR, str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=CHECKOUT,
            # It outlives the shell that it was started from, so it takes little from it.
            env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        )
    # It may outlive this process; if it does not, its end has to be noted.
    threading.Thread(target=process.wait, name="supervisor", daemon=True).start()
    connection = _connect_within(SUPERVISOR_S, folder, lambda: process.poll() is None)
    if connection is None:
        raise EngineError(_ended(folder, "did not start"))
    return connection


def _connect_within(
    seconds: float, folder: StateFolder, runs: Callable[[], bool]
) -> socket.socket | None:
    """Try again and again to connect, for as long as the supervisor runs."""
    end = time.monotonic() + seconds
    while runs() and time.monotonic() < end:
        if connection := _connect(folder):
            return connection
        time.sleep(0.02)
    return None


def _end_all(folder: StateFolder, patience_s: float = STOPPING_S) -> bool:
    """End the supervisor, its engines and what killed ones have left. Returns whether any ran."""
    found = first = folder.processes()
    if first.supervisors:
        end_processes(first.supervisors, signal.SIGTERM, patience_s)
        found = folder.processes()
    end_processes([*found.watchdogs, *found.engines])
    remove(folder.address_file)
    folder.delete_sandboxes()
    return any(first)


def _states(found: list[dict[str, Any]]) -> tuple[EngineState, ...]:
    return tuple(EngineState(**one) for one in found)


def _ended(folder: StateFolder, what: str) -> str:
    log = folder.logs / "supervisor.log"
    return f"The local engines' supervisor {what}. The end of its log ({log}):\n{log_tail(log)}"


def _command() -> str:
    """What to call this process in `workshop status`."""
    if "ipykernel" in sys.modules:
        return "a notebook"
    program, *words = sys.argv or ["python"]
    name = "workshop" if "workshop" in program else Path(program).name or "python"
    return " ".join([name, *words[:1]])[:60]
