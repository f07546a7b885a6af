"""The supervisor: one process per state folder that starts, watches and ends the local engines.

Whoever needs engines connects to it, says which, and gets their ports. The connection is the lease:
it ends with the client, however that ends. A sandbox is a group of engines that ends with the
connection that opened it. The supervisor leaves when nobody is connected and all idle times have
passed. Run as a program: `python -m workshop_lib.services.supervisor STATE_FOLDER`.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from workshop_lib.errors import EngineError
from workshop_lib.services.engines import Engine, make_engine
from workshop_lib.services.local import HOST, User, receive, send
from workshop_lib.services.processes import WATCHDOG, wait_until
from workshop_lib.services.state_folder import StateFolder, remove

LOOK_S = 0.1
"""How often the supervisor looks after its engines."""
FIRST_CLIENT_S = 4.0
"""How long it waits for whoever started it."""
FIRST_WORD_S = 5.0
ALIVE_S = 0.5
"""How often a client that waits for an answer is told that it is on its way."""
SILENT_S = 6.0
RESTARTS, RESTARTS_WITHIN_S = 5, 60.0
"""An engine that dies more often than this is reported as failed instead of restarted."""


class Group:
    """Engines that share a state folder: everybody's, or a sandbox's."""

    def __init__(self, folder: StateFolder) -> None:
        self.folder = folder
        self.engines: dict[str, Engine] = {}
        self.lock = threading.Lock()
        self.ended = False

    def open(self, names: list[str], cache_mb: int) -> None:
        """Have these engines run and answer.

        Raises:
            EngineError: one did not come up, or runs and is silent.

        """
        with self.lock:
            for name in names:
                engine = self.engines.setdefault(name, make_engine(name, self.folder))
                engine.cache_mb = cache_mb
                self._start(engine)
        for engine in map(self.engines.__getitem__, names):
            if not wait_until(lambda e=engine: e.state().pid and e.admits(), SILENT_S):  # type: ignore[misc]
                raise EngineError(
                    engine.failure
                    or f"{engine.name} runs (pid {engine.state().pid}) but has not answered for "
                    f"{SILENT_S:.0f} s. `workshop stop` ends it; the next opening starts it again."
                )

    def start(self, name: str) -> None:
        """Start an engine that was stopped, at the same port.

        Raises:
            EngineError: it did not come up, or its port was taken meanwhile.

        """
        with self.lock:
            engine = self.engines[name]
            before = engine.port
            self._start(engine)
            if engine.port != before:
                engine.stop()
                engine.port = before
                raise EngineError(f"its port {before} is taken")

    def stop(self, name: str) -> None:
        """Stop an engine; it stays stopped."""
        with self.lock:
            self.engines[name].wanted = False
            self.engines[name].stop()

    def mend(self) -> None:
        """Start again what has died, unless something is being started or stopped just now."""
        if not self.lock.acquire(blocking=False):
            return
        try:
            for engine in self.engines.values():
                if engine.died and not self.ended:
                    self._start_again(engine)
        finally:
            self.lock.release()

    def end(self) -> None:
        """Stop all engines, for good."""
        self.ended = True
        with self.lock:
            for engine in self.engines.values():
                engine.stop()

    @property
    def hurt(self) -> bool:
        """Whether an engine has died."""
        return any(engine.died for engine in list(self.engines.values()))

    def states(self) -> list[dict[str, Any]]:
        """The state of each engine, as clients are told."""
        return [asdict(engine.state()) for engine in list(self.engines.values())]

    def _start_again(self, engine: Engine) -> None:
        now = time.monotonic()
        engine.deaths = [*(t for t in engine.deaths if now - t < RESTARTS_WITHIN_S), now]
        if len(engine.deaths) > RESTARTS:
            engine.failure = (
                f"It died {RESTARTS} times within {RESTARTS_WITHIN_S:.0f} s; see {engine.log}."
            )
            return
        with contextlib.suppress(EngineError):  # the engine knows why
            self._start(engine)

    def _start(self, engine: Engine) -> None:
        """Start an engine that does not run: at the port it had before, if that is free."""
        if self.ended:
            raise EngineError("The local engines were stopped while they were starting.")
        engine.wanted, engine.failure = True, ""
        if engine.running:
            return
        ports = self.folder.read(self.folder.ports_file)
        try:
            engine.start(engine.port or _port(ports.get(engine.name)))
        except Exception as error:  # noqa: BLE001 -- whatever it is, the other engines go on
            engine.stop()
            engine.failure = (
                f"{engine.name} did not start: {str(error).rstrip('.')}. If the disk is full, free "
                f"it; if {self.folder.path} is damaged, `workshop reset` starts afresh."
            )
            raise EngineError(engine.failure) from None
        with contextlib.suppress(OSError):
            self.folder.write(self.folder.ports_file, {**ports, engine.name: engine.port})


@dataclass(slots=True, eq=False)
class Lease:
    """What one connection holds."""

    user: User
    idle_s: float
    group: Group
    connection: socket.socket

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what the client asks, and say how the engines are then, or what went wrong."""
        try:
            match request["do"]:
                case "attach" | "sandbox":
                    self.group.open(request["engines"], request["cache_mb"])
                case "start":
                    self.group.start(request["engine"])
                case "stop":
                    self.group.stop(request["engine"])
                case "freeze" | "thaw":
                    number = signal.SIGSTOP if request["do"] == "freeze" else signal.SIGCONT
                    self.group.engines[request["engine"]].signal(number)
        except EngineError as error:
            self.idle_s = 0.0  # nobody comes back to what did not come up
            return {"error": str(error)}
        return {"engines": self.group.states(), "folder": str(self.group.folder.path)}


class Supervisor:
    """A loop that takes connections and looks after the engines; a thread for each connection."""

    def __init__(self, folder: StateFolder) -> None:
        self.folder = folder
        self.shared = Group(folder)
        self.lock = threading.Lock()
        self.leases: list[Lease] = []
        self.stays_until = time.monotonic() + FIRST_CLIENT_S
        self.expecting = True
        self.told_to_end = self.replaced = self.leaving = False
        self.listener = socket.create_server((HOST, 0))
        self.address = {
            "port": self.listener.getsockname()[1],
            "pid": os.getpid(),
            "token": secrets.token_hex(20),
            "proof": secrets.token_hex(20),
        }
        self.watchdog = _start_watchdog(folder)

    def run(self) -> None:
        """Serve until told to end, or until nobody is left."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        self.folder.write(self.folder.address_file, self.address)
        self.listener.settimeout(LOOK_S)
        while not self._leaves():
            # A full disk, no more processes or threads: better luck next time.
            with contextlib.suppress(OSError, RuntimeError):
                self._look_after()
            with contextlib.suppress(OSError, RuntimeError):
                _run(self._serve, self.listener.accept()[0])
        self.listener.close()
        remove(self.folder.address_file)
        # Those who hear nothing take us for killed, and turn to the next supervisor.
        for lease in () if self.replaced else list(self.leases):
            with contextlib.suppress(OSError):
                lease.connection.sendall(b"\n")
        for group in self._groups():
            group.end()
        self.folder.delete_sandboxes()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.watchdog.communicate(timeout=5)  # it ends what is left of a killed engine
        self.watchdog.kill()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.told_to_end, self.replaced = True, number == signal.SIGINT

    def _leaves(self) -> bool:
        with self.lock:
            unused = not self.leases and time.monotonic() > self.stays_until
            self.leaving = self.told_to_end or unused
            return self.leaving

    def _look_after(self) -> None:
        for group in self._groups():
            if group.hurt:
                _run(group.mend)
        if self.watchdog.poll() is not None:
            self.watchdog = _start_watchdog(self.folder)

    def _groups(self) -> set[Group]:
        with self.lock:
            return {self.shared, *(lease.group for lease in self.leases)}

    def _serve(self, connection: socket.socket) -> None:
        """Serve one client for as long as it is there."""
        strange = (ValueError, TypeError, KeyError)
        with connection, contextlib.suppress(OSError, *strange):
            connection.settimeout(FIRST_WORD_S)
            request = receive(connection)
            if not hmac.compare_digest(
                str(request["token"]).encode(), str(self.address["token"]).encode()
            ):
                return
            if request["do"] == "status":
                self._send(connection, self._status())
                return
            try:
                with self.folder.usable():
                    lease = self._lease(request, connection)
            except EngineError as error:
                self._send(connection, {"error": str(error)})
                return
            if lease:
                connection.settimeout(None)
                try:
                    while True:
                        self._answer(lease, request)
                        request = receive(connection)
                finally:
                    self._end(lease)

    def _answer(self, lease: Lease, request: dict[str, Any]) -> None:
        """Answer a request; until then, let the client hear that this process is not stuck."""
        answers: list[dict[str, Any]] = []
        work = _run(lambda: answers.append(lease.answer(request)))
        while work.is_alive():
            lease.connection.sendall(b"\n")
            work.join(ALIVE_S)
        self._send(lease.connection, answers[0])

    def _send(self, connection: socket.socket, answer: dict[str, Any]) -> None:
        send(connection, {**answer, "proof": self.address["proof"]})

    def _lease(self, request: dict[str, Any], connection: socket.socket) -> Lease | None:
        """Note who is there from now on; nothing if it is too late for that."""
        with self.lock:
            if self.leaving:
                return None
            if self.expecting:
                self.expecting, self.stays_until = False, 0.0
            group = self.shared
            if request["do"] == "sandbox":
                group = Group(self.folder.new_sandbox())
            self.leases.append(Lease(User(*request["user"]), request["idle_s"], group, connection))
            return self.leases[-1]

    def _end(self, lease: Lease) -> None:
        if lease.group is not self.shared:
            lease.group.end()
            lease.group.folder.delete_sandbox()
        with self.lock:
            self.leases.remove(lease)
            # A user who asks for less does not shorten what another one has asked for.
            self.stays_until = max(self.stays_until, time.monotonic() + lease.idle_s)

    def _status(self) -> dict[str, Any]:
        with self.lock:
            leases = list(self.leases)
        return {
            "engines": self.shared.states(),
            "users": [one.user for one in leases if one.group is self.shared],
            "sandboxes": [
                (one.user, one.group.states()) for one in leases if one.group is not self.shared
            ],
            "idle_s": max(0.0, self.stays_until - time.monotonic()),
        }


def _start_watchdog(folder: StateFolder) -> subprocess.Popen[bytes]:
    """Start the process that ends the engines if this one is killed."""
    return subprocess.Popen(
        [sys.executable, "-m", WATCHDOG, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _run(function: Callable[..., object], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def _port(value: object) -> int:
    """A port of a file that may be damaged; 0, for any, where it is none."""
    return value if isinstance(value, int) and 0 < value < 65_536 else 0


def main() -> None:
    """Supervise the engines of the folder named on the command line."""
    os.umask(0o077)
    Supervisor(StateFolder(Path(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
