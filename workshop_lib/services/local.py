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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from workshop_lib import forks
from workshop_lib.errors import EngineError
from workshop_lib.services.processes import SUPERVISOR, end_processes, wait_until
from workshop_lib.services.state_folder import StateFolder, log_tail, remove
from workshop_lib.settings import Settings

HOST = "127.0.0.1"
MAX_LINE = 1 << 20
SILENCE_S = 3.0
"""A supervisor that says nothing for so long is stuck: also while engines start, it says that it
is alive."""
SUPERVISOR_S = 20.0
STOPPING_S = 10.0
REPLACING_S = 3.0
"""How long a supervisor has to end, at a command and when another one is to take its place."""
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

    Empty lines say that the answer is on its way.

    Raises:
        OSError: the other side is gone, or silent for longer than the connection's timeout.
        ValueError: it is not JSON, or too long.

    """
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(65_536)
        if not part:
            raise ConnectionResetError("the other side has closed the connection")
        line = (line + part).lstrip(b"\n")
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

    def keep(self, take_again: Callable[[], socket.socket]) -> None:
        """Take the lease again whenever the supervisor is killed, until `release`."""
        with contextlib.suppress(EngineError, OSError):  # OSError: released before it began
            self._connection.settimeout(None)
            while not self._ended():
                self._connection.close()
                self._connection = take_again()
                if self not in _kept:  # released meanwhile
                    self._connection.close()

    def _ended(self) -> bool:
        """Wait for the end of the lease. Whether it was wanted, here or by the supervisor."""
        with contextlib.suppress(OSError):
            return bool(self._connection.recv(1)) or self not in _kept
        return self not in _kept

    def release(self) -> None:
        """Release the engines, and wait until the supervisor knows. Twice is harmless.

        It stops them when no process uses them; a sandbox's at once, and deletes what they wrote.
        """
        _kept.discard(self)
        with contextlib.suppress(OSError, ValueError):
            self._connection.shutdown(socket.SHUT_WR)
            self._connection.settimeout(RELEASE_S)
            receive(self._connection)
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # wakes up whoever waits for it
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
                send(self._connection, {"do": what, "engine": engine})
                _result(receive(self._connection))
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
    address = folder.read(folder.address_file)
    if not (answered := _ask(address, {"do": "status"})):
        return Status(folder.path)
    connection, found = answered
    connection.close()
    return Status(
        folder.path,
        address["pid"],
        _states(found["engines"]),
        tuple(User(*user) for user in found["users"]),
        tuple((User(*user), _states(engines)) for user, engines in found["sandboxes"]),
        found["idle_s"],
    )


def stop(folder: StateFolder) -> bool:
    """Stop the engines now, even while they are in use. Returns whether any were running.

    Raises:
        EngineError: they could not be stopped.

    """
    if not folder.ours:
        return False
    with folder.locked():
        return _end_all(folder, signal.SIGTERM, STOPPING_S)


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
            _end_all(folder, signal.SIGTERM, STOPPING_S)
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
    connection, answer = _find(folder, request)
    try:
        with folder.usable():
            held = Attachment(connection, _result(answer))
    except BaseException:
        connection.close()
        raise
    if do == "attach":
        again = lambda: _find(folder, request)[0]  # noqa: E731
        threading.Thread(target=held.keep, args=[again], name="lease", daemon=True).start()
    return held


def _find(folder: StateFolder, request: dict[str, Any]) -> tuple[socket.socket, Any]:
    """A connection to the supervisor, which is started if need be, and its answer."""
    address = folder.read(folder.address_file)
    if answered := _ask(address, request):
        return answered
    with folder.locked():
        # Another process may have started a new one; else nobody can reach the old one.
        present = folder.read(folder.address_file)
        answered = _ask(present, request) if present != address else None
        return answered or _ask_new(folder, request)


def _ask(address: dict[str, Any], request: dict[str, Any]) -> tuple[socket.socket, Any] | None:
    """A connection to the supervisor and its answer; None if there is none, or a stranger."""
    damaged = (ValueError, TypeError, KeyError, OverflowError)
    with contextlib.suppress(OSError, *damaged), contextlib.ExitStack() as to_close:
        place = (HOST, int(address["port"]))
        connection = to_close.enter_context(socket.create_connection(place, SILENCE_S))
        send(connection, {**request, "token": address["token"]})
        answer = receive(connection)
        if answer["proof"] == address["proof"]:
            to_close.pop_all()
            return connection, answer
    return None


def _ask_new(folder: StateFolder, request: dict[str, Any]) -> tuple[socket.socket, Any]:
    """Start a supervisor, after the end of one that is stuck, and ask it."""
    _end_all(folder, signal.SIGINT, REPLACING_S)
    folder.secrets()
    log_file = folder.logs / "supervisor.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", SUPERVISOR, str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            # It outlives the shell that it was started from, so it takes little from it.
            env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        )
    # It may outlive this process; if it does not, its end has to be noted.
    threading.Thread(target=process.wait, name="supervisor", daemon=True).start()
    wait_until(lambda: folder.address_file.exists() or process.poll() is not None, SUPERVISOR_S)
    if answered := _ask(folder.read(folder.address_file), request):
        return answered
    raise EngineError(
        f"The local engines' supervisor did not start, or ended at once. The end of its log "
        f"({log_file}):\n{log_tail(log_file)}"
    )


def _result(answer: dict[str, Any]) -> dict[str, Any]:
    """What the supervisor has answered.

    Raises:
        EngineError: it refuses.

    """
    if "error" in answer:
        raise EngineError(answer["error"])
    return answer


def _end_all(folder: StateFolder, number: signal.Signals, patience_s: float) -> bool:
    """End the supervisor, its engines and what killed ones have left. Returns whether any ran.

    SIGTERM ends its users' leases as well; after SIGINT they take them again from the next one.
    """
    first = folder.processes()
    end_processes(first.supervisors, number, patience_s)
    found = folder.processes() if first.supervisors else first
    end_processes([*found.watchdogs, *found.engines])
    remove(folder.address_file)
    folder.delete_sandboxes()
    return any(first)


def _states(found: list[dict[str, Any]]) -> tuple[EngineState, ...]:
    return tuple(EngineState(**one) for one in found)


def _command() -> str:
    """What to call this process in `workshop status`."""
    if "ipykernel" in sys.modules:
        return "a notebook"
    program, *words = sys.argv or ["python"]
    name = "workshop" if "workshop" in program else Path(program).name or "python"
    return " ".join([name, *words[:1]])[:60]
