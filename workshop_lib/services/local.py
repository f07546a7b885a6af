"""Attach to this checkout's local engines, starting them if need be; list, stop and delete them.

Also what a client and the supervisor say to each other. A client connects and authenticates, sends
a `Request` and gets a `Status` or the EngineError to raise. While the supervisor works, it sends
None now and then, so that a client can tell a slow one from a stuck one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from workshop_lib import forks
from workshop_lib.errors import EngineError
from workshop_lib.services.processes import SUPERVISOR, end_processes, wait_until
from workshop_lib.services.state_folder import StateFolder, log_tail, remove

if TYPE_CHECKING:
    from workshop_lib.settings import Settings

HOST = "127.0.0.1"
MAX_WORD = 100
"""The longest word by which a client and a supervisor know each other, bytes."""
SILENCE_S = 3.0
"""A supervisor that says nothing for so long is stuck."""
SUPERVISOR_S = 20.0
"""How long a new supervisor may take until its first word, seconds."""
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
        connection: on which the supervisor has answered.
        opened: its answer.
        take_again: connects anew if the supervisor is killed; None if the engines go with it.

    Attributes:
        folder: where they keep their state.
        engines: by name; those that were asked for are up.
        secrets: their passwords.

    """

    def __init__(
        self, connection: Connection, opened: Status, take_again: Callable[[], Connection] | None
    ) -> None:
        self._connection = connection
        self._released = False
        self._lock = threading.Lock()
        self.folder = StateFolder(opened.folder)
        self.secrets = self.folder.secrets()
        self.engines = {engine.name: engine for engine in opened.engines}
        self._keeper = None
        if take_again:
            self._keeper = threading.Thread(target=self._keep, args=[take_again], daemon=True)
            self._keeper.start()
        forks.tell_child(self)

    def _keep(self, take_again: Callable[[], Connection]) -> None:
        """Take the lease again whenever the supervisor is killed, until `release`."""
        with contextlib.suppress(EngineError):
            while not self._released:
                try:
                    self._connection.recv()
                    break  # the supervisor was told to end
                except (EOFError, OSError):
                    self._connection.close()
                    if not self._released:
                        self._connection = take_again()
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
            if not self._keeper:
                self._connection.poll(RELEASE_S)
        if self._keeper:
            self._keeper.join(RELEASE_S)
        else:
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
                self._connection.send(Request(what, (engine,)))
                _receive(self._connection)
        except (EOFError, OSError):
            raise EngineError(
                "This sandbox is closed, and its engines have ended. Run the cell that opens it "
                "again."
            ) from None

    def _after_fork(self) -> None:
        """In a forked process: the lease is the parent's."""
        self._released = True
        self._connection.close()


def attach(folder: StateFolder, names: Iterable[str], settings: Settings) -> Attachment:
    """Have these engines running and keep them so until `release`.

    Args:
        folder: whose engines.
        names: of "postgres", "valkey", "s3", "aws", "dsql".
        settings: for the cache's memory and the idle time.

    Raises:
        EngineError: an engine did not come up, or the state folder cannot be used.

    """
    return _open(folder, "attach", names, settings)


def open_group(folder: StateFolder, names: Iterable[str], settings: Settings) -> Attachment:
    """Start engines for this process alone: they end when it releases them, or ends.

    Args:
        folder: in whose sandboxes they keep their state.
        names: "postgres", "valkey", and further ones of a kind such as "valkey-2".
        settings: for the caches' memory.

    Raises:
        EngineError: as `attach`; nothing is left of them.

    """
    return _open(folder, "sandbox", names, settings)


def status(folder: StateFolder) -> Status:
    """What runs now and who uses it. Starts nothing."""
    if not (answered := _ask(folder.read(folder.address_file), Request("status"))):
        return Status(folder.path)
    connection, found = answered
    connection.close()
    return found


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
        Whether there were any; what the workshop did not make is left alone.

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


def _open(folder: StateFolder, do: str, names: Iterable[str], settings: Settings) -> Attachment:
    shared = do == "attach"
    idle_s = settings.workshop_linger_seconds if shared else 0.0
    request = Request(do, tuple(names), _user(), settings.workshop_cache_mb, idle_s)
    folder.prepare()
    connection, opened = _find(folder, request)
    again = (lambda: _find(folder, request)[0]) if shared else None
    try:
        with folder.usable():
            return Attachment(connection, opened, again)
    except BaseException:
        connection.close()
        raise


def _find(folder: StateFolder, request: Request) -> tuple[Connection, Status]:
    """A connection to the supervisor, which is started if need be, and its answer."""
    address = folder.read(folder.address_file)
    if answered := _ask(address, request):
        return answered
    with folder.locked():
        # Another process may have started a new one; else the old one cannot be reached.
        present = folder.read(folder.address_file)
        answered = _ask(present, request) if present != address else None
        return answered or _start_supervisor(folder, request)


def _ask(address: dict[str, Any], request: Request) -> tuple[Connection, Status] | None:
    """A connection to the supervisor and its answer; None if it is not there, or stuck.

    Raises:
        EngineError: the supervisor refuses.

    """
    try:
        token, proof = address["token"].encode(), address["proof"].encode()
        with socket.create_connection((HOST, address["port"]), SILENCE_S) as plain:
            plain.settimeout(None)
            connection = Connection(plain.detach())
        connection.send_bytes(token)
        # Another program may have its port by now: what that says is not unpickled.
        if connection.poll(SILENCE_S) and connection.recv_bytes(MAX_WORD) == proof:
            return _converse(connection, request)
        connection.close()
    except EngineError:
        raise
    except Exception:  # noqa: BLE001 -- the file may be damaged, and a stranger says anything
        return None
    return None


def _start_supervisor(folder: StateFolder, request: Request) -> tuple[Connection, Status]:
    """Start a supervisor, after the end of one that is stuck, and ask it."""
    _end_all(folder, signal.SIGKILL)
    folder.secrets()
    log_file = folder.logs / "supervisor.log"
    ours, theirs = Pipe()
    with log_file.open("wb") as log, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", SUPERVISOR, str(folder.path), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
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
    try:
        return _converse(ours, request, SUPERVISOR_S)
    except (EOFError, OSError):
        raise EngineError(
            f"The local engines' supervisor did not start, or ended at once. The end of its log "
            f"({log_file}):\n{log_tail(log_file)}"
        ) from None


def _converse(
    connection: Connection, request: Request, patience_s: float = SILENCE_S
) -> tuple[Connection, Status]:
    """Send the first request. Returns the connection, which is closed on an error, and the answer.

    Raises:
        EngineError, EOFError, OSError: as `_receive`.

    """
    with contextlib.ExitStack() as on_error:
        on_error.enter_context(connection)
        connection.send(request)
        answer = _receive(connection, patience_s)
        on_error.pop_all()
    return connection, answer


def _receive(connection: Connection, patience_s: float = SILENCE_S) -> Status:
    """Wait for an answer.

    Raises:
        EngineError: the supervisor refuses.
        EOFError, OSError: it is gone, or has been silent for too long.

    """
    while connection.poll(patience_s):
        answer: Status | EngineError | None = connection.recv()
        if isinstance(answer, EngineError):
            raise answer
        if answer is not None:
            return answer
        patience_s = SILENCE_S
    raise TimeoutError("the supervisor is silent")


def _end_all(folder: StateFolder, number: signal.Signals) -> bool:
    """End the supervisor and all engines. Returns whether any ran.

    SIGTERM ends its users' leases as well; if it is killed, they take them again from the next one.
    """
    found = folder.processes()
    end_processes(found.supervisors, number, STOPPING_S)
    remove(folder.address_file)
    folder.clear()
    return any(found)


def _user() -> User:
    """This process, as `workshop status` shows it."""
    if "ipykernel" in sys.modules:
        return User(os.getpid(), "a notebook")
    program, *words = sys.argv or ["python"]
    name = "workshop" if "workshop" in program else Path(program).name or "python"
    return User(os.getpid(), " ".join([name, *words[:1]])[:60])
