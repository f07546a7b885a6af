"""Attach to this checkout's local engines, starting them if need be; list, stop and delete them.

Also what a client and the supervisor say to each other. Once each has proved that it knows the key
in the state folder, the client sends `Request`s. Each is answered by a `Status`, or by the
EngineError to raise.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from workshop_lib import forks
from workshop_lib.errors import EngineError
from workshop_lib.services.processes import end_processes, wait_until
from workshop_lib.services.state_folder import SUPERVISOR, StateFolder, log_tail, remove

if TYPE_CHECKING:
    from workshop_lib.settings import Settings

HOST = "127.0.0.1"
LOGIN = {
    "sslmode": "disable",
    "gssencmode": "disable",
    # If another program took its port, the password is not sent to it as text.
    "require_auth": "scram-sha-256",
}
"""How clients sign in to the local PostgreSQL, which has no TLS."""
Challenge = Callable[[Connection, bytes], None]
MAX_CALLERS = 128
"""Connections that may wait for the supervisor at a time."""
SILENCE_S = 3.0
"""A supervisor that does not say that it is there within this time is stuck."""
SUPERVISOR_S = 20.0
"""How long a new one may take to say so, seconds."""
ANSWER_S = 90.0
"""How long it may take to do what it is asked: engines are started one after another."""
ATTEMPTS = 3
STOPPING_S = 10.0
RELEASE_S = 4.0
"""How long releasing waits; the supervisor goes on by itself if it needs longer."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the supervisor says of one engine.

    Attributes:
        port: where it is; 0 if it is not up.
        pid: of the server, else 0.
        emulated: an emulation stands in for the real server.
        message: why it failed.

    """

    name: str
    port: int
    pid: int
    emulated: bool
    message: str

    @property
    def status(self) -> str:
        """It is "up", "down" (stopped, or about to come) or "failed"."""
        return "up" if self.pid else "failed" if self.message else "down"


class User(NamedTuple):
    """A process that uses engines."""

    pid: int
    command: str

    def __str__(self) -> str:
        """As `workshop status` shows it."""
        return f"{self.command} (pid {self.pid})"


NO_USER = User(0, "")


@dataclass(frozen=True, slots=True)
class Request:
    """What a client wants.

    Attributes:
        do: "attach", "sandbox" or "status" at first; then "release", and for an engine of a sandbox
            "start", "stop", "freeze" or "thaw".
        engines: their names.
        user: who asks.
        cache_mb: the memory of a cache, MiB; 0 for what it had.
        idle_s: how long the engines outlive this use, seconds.

    """

    do: str
    engines: tuple[str, ...] = ()
    user: User = NO_USER
    cache_mb: int = 0
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Status:
    """What `workshop status` shows; to a client that holds engines, of these alone.

    Attributes:
        folder: where the engines keep their state.
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


class Attachment:
    """This process's hold on local engines: a connection to their supervisor.

    It ends with `release`, or with this process. A forked child has no part in it.

    Args:
        home: the state folder.
        request: what is wanted of its supervisor.

    Attributes:
        folder: where the engines keep their state: the same folder, or a sandbox's in it.
        engines: by name; those that were asked for are up.
        secrets: their passwords.

    """

    def __init__(self, home: StateFolder, request: Request) -> None:
        self._home, self._request = home, request
        self._connection, opened = _open(home, request)
        self._released = False
        self._lock = threading.Lock()
        self.folder = StateFolder(opened.folder)
        self.secrets = self.folder.secrets()
        self.engines = {engine.name: engine for engine in opened.engines}
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        if request.do == "attach":  # a sandbox ends with the supervisor
            self._keeper.start()
        forks.tell_child(self)

    def _keep(self) -> None:
        """Take the lease again whenever the supervisor is killed, until `release`."""
        with contextlib.suppress(EngineError):
            while not self._released:
                with contextlib.suppress(EOFError, OSError):
                    self._connection.recv()  # nothing is said, until it ends
                self._connection.close()
                # One that was told to end has deleted its address.
                if self._released or not self._home.address_file.exists():
                    return
                self._connection, _ = _open(self._home, self._request)
            self._connection.close()

    def release(self) -> None:
        """Release the engines, and wait until the supervisor knows. Twice is harmless.

        It stops them when no process uses them; a sandbox's at once, and deletes what they wrote.
        """
        if self._released:
            return
        self._released = True
        with contextlib.suppress(OSError):
            self._connection.send(Request("release"))
            if self._keeper.ident is None:
                self._connection.poll(RELEASE_S)
        if self._keeper.ident is None:
            self._connection.close()
        else:
            self._keeper.join(RELEASE_S)

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
                _ask(self._connection, Request(what, (engine,)))
        except (EOFError, OSError):
            raise EngineError(
                "This sandbox is closed, and its engines have ended. Run the cell that opens it "
                "again."
            ) from None

    def _after_fork(self) -> None:
        """In a forked process: the lease is the parent's."""
        self._released = True
        self._connection.close()


def attach(
    folder: StateFolder, names: Iterable[str], settings: Settings, *, sandbox: bool = False
) -> Attachment:
    """Have these engines running and keep them so until `release`.

    Args:
        folder: whose engines, or in whose sandboxes they keep their state.
        names: of "postgres", "valkey", "s3", "aws", "dsql"; further ones of a kind end in a number,
            such as "valkey-2".
        settings: for the caches' memory and the idle time.
        sandbox: engines for this process alone: they end when it releases them, or ends.

    Raises:
        EngineError: an engine did not come up, or the state folder cannot be used.

    """
    folder.prepare()
    do, idle_s = ("sandbox", 0.0) if sandbox else ("attach", settings.workshop_linger_seconds)
    return Attachment(
        folder, Request(do, tuple(names), _user(), settings.workshop_cache_mb, idle_s)
    )


def status(folder: StateFolder) -> Status:
    """What runs now and who uses it. Starts nothing."""
    with contextlib.suppress(EOFError, OSError):
        if connection := _connect(folder, SILENCE_S):
            with connection:
                return _ask(connection, Request("status"))
    return Status(folder.path)


def stop(folder: StateFolder) -> bool:
    """Stop the engines now, even while they are in use. Returns whether any were running.

    Raises:
        EngineError: they could not be stopped.

    """
    if not folder.ours:
        return False
    with folder.locked():
        return _end_all(folder, signal.SIGTERM)


def reset(folder: StateFolder) -> bool:
    """Stop the engines and delete their data, passwords and logs.

    Returns:
        Whether there were any.

    Raises:
        EngineError: they could not be stopped or deleted.

    """
    if not folder.ours:
        return False
    try:
        with folder.locked():
            _end_all(folder, signal.SIGTERM)
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


def _open(folder: StateFolder, request: Request) -> tuple[Connection, Status]:
    """A connection to the supervisor, which is started if need be, and its answer.

    Raises:
        EngineError: it refuses, or does not come up.

    """
    for _ in range(ATTEMPTS):
        with folder.locked():
            connection = _connect(folder, SILENCE_S) or _start_supervisor(folder)
        # An error: it has just ended, or is stuck.
        with contextlib.ExitStack() as on_error, contextlib.suppress(EOFError, OSError):
            if connection:
                on_error.enter_context(connection)
                answer = _ask(connection, request)
                on_error.pop_all()
                return connection, answer
    with folder.usable():
        log, said = folder.supervisor_log, log_tail(folder.supervisor_log)
    raise EngineError(
        "The local engines' supervisor did not start, or ended at once. The end of its log "
        f"({log}):\n{said}"
    )


def _connect(folder: StateFolder, patience_s: float) -> Connection | None:
    """A connection to the supervisor; None if it is not there, or stuck."""
    address = folder.read(folder.address_file)
    try:
        line = socket.create_connection((HOST, address["port"]), patience_s)
        line.settimeout(None)
        # Another program may have its port by now: what that says is not unpickled.
        return greet(line, address["key"], patience_s, (answer_challenge, deliver_challenge))
    except Exception:  # noqa: BLE001 -- the file may be damaged, and a stranger says anything
        return None


def greet(
    line: socket.socket, key: str, patience_s: float, steps: Iterable[Challenge]
) -> Connection:
    """A connection over a socket, once both ends have proved that they know the key.

    Raises:
        OSError, EOFError, AuthenticationError: it took too long, or one does not know the key.

    """
    connection = Connection(os.dup(line.fileno()))

    def break_off() -> None:
        with contextlib.suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)

    # A stranger may fall silent in the middle of a word: no read is left without an end.
    limit = threading.Timer(patience_s, break_off)
    limit.start()
    with line, contextlib.ExitStack() as on_error:
        on_error.enter_context(connection)
        on_error.callback(limit.cancel)
        for step in steps:
            step(connection, key.encode())
        limit.cancel()
        on_error.pop_all()
    return connection


def _start_supervisor(folder: StateFolder) -> Connection | None:
    """Start a supervisor, after the end of one that is stuck, and connect; None if it fails.

    It inherits the socket, at which clients can wait from now on.
    """
    _end_all(folder, signal.SIGKILL)
    folder.secrets()
    with (
        socket.create_server((HOST, 0), backlog=MAX_CALLERS) as listener,
        folder.supervisor_log.open("wb") as log,
    ):
        address = {"port": listener.getsockname()[1], "key": secrets.token_hex(20)}
        folder.write(folder.address_file, address)
        process = subprocess.Popen(
            [sys.executable, "-m", SUPERVISOR, str(folder.path), str(listener.fileno())],
            pass_fds=[listener.fileno()],
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
    return _connect(folder, SUPERVISOR_S)


def _ask(connection: Connection, request: Request) -> Status:
    """Ask the supervisor.

    Raises:
        EngineError: it refuses.
        EOFError, OSError: it is gone, or stuck.

    """
    connection.send(request)
    if not connection.poll(ANSWER_S):
        raise TimeoutError("the supervisor is silent")
    answer: Status | EngineError = connection.recv()
    if isinstance(answer, EngineError):
        raise answer
    return answer


def _end_all(folder: StateFolder, number: signal.Signals) -> bool:
    """End the supervisor and all engines. Returns whether any ran.

    SIGTERM ends its users' leases as well; if it is killed, they take them again from the next one.
    """
    if number == signal.SIGTERM:
        remove(folder.address_file)
    found = folder.processes()
    end_processes(found.supervisors, number, STOPPING_S)
    folder.clear()
    return any(found)


def _user() -> User:
    """This process, as `workshop status` shows it."""
    if "ipykernel" in sys.modules:
        return User(os.getpid(), "a notebook")
    program, *words = sys.argv or ["python"]
    name = "workshop" if "workshop" in program else Path(program).name or "python"
    return User(os.getpid(), " ".join([name, *words[:1]])[:60])
