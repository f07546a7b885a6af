"""The supervisor: one process per state folder that starts, watches and ends the local engines.

A client connects to it, says which engines it needs, and gets their ports. The connection is the
lease: it ends with the client, however that ends. A sandbox is a group of engines that ends with
the connection that opened it. The supervisor leaves when no client is connected and all idle times
have passed. Run as a program:
`python -m workshop_lib.services.supervisor STATE_FOLDER CONNECTION`.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener
from pathlib import Path

from workshop_lib.errors import EngineError
from workshop_lib.services.engines import Engine, make_engine
from workshop_lib.services.local import (
    HOST,
    MAX_WORD,
    EngineState,
    Request,
    Status,
    User,
)
from workshop_lib.services.processes import wait_until
from workshop_lib.services.state_folder import StateFolder, remove

LOOK_S = 0.1
"""How often the supervisor looks after its engines."""
ALIVE_S = 0.5
"""How often a client that waits for an answer is told that it is on its way."""
SILENT_S = 6.0
"""How long an engine that runs may take to answer."""
MAX_CALLERS = 128
"""Connections that may wait for the supervisor at a time."""
RESTARTS = 5
"""An engine that dies more often than this is reported as failed instead of restarted."""


class Group:
    """Engines that share a state folder: those of all clients, or of a sandbox."""

    def __init__(self, folder: StateFolder) -> None:
        self.folder = folder
        self.engines: dict[str, Engine] = {}
        self.lock = threading.Lock()
        self.ended = False

    def start(self, names: tuple[str, ...], cache_mb: int) -> None:
        """Have these engines run.

        Raises:
            EngineError: one did not come up.

        """
        with self.lock:
            for name in names:
                engine = self.engines.setdefault(name, make_engine(name, self.folder))
                engine.cache_mb, engine.deaths = cache_mb or engine.cache_mb, 0
                self._start(engine)

    def open(self, names: tuple[str, ...], cache_mb: int) -> None:
        """Have these engines run and answer.

        Raises:
            EngineError: one did not come up, or runs and is silent.

        """
        self.start(names, cache_mb)
        for engine in map(self.engines.__getitem__, names):
            if not wait_until(lambda e=engine: e.state().pid and e.admits(), SILENT_S):  # type: ignore[misc]
                raise EngineError(
                    engine.failure
                    or f"{engine.name} runs (pid {engine.state().pid}) but has not answered for "
                    f"{SILENT_S:.0f} s. `workshop stop` ends it; the next opening starts it again."
                )

    def stop(self, name: str) -> None:
        """Stop an engine; it stays stopped."""
        with self.lock:
            self.engines[name].wanted = False
            self.engines[name].stop()

    def mend(self) -> None:
        """Start again what has died, unless something is being started or stopped just now."""
        if self.lock.acquire(blocking=False):
            try:
                for engine in filter(lambda one: one.died, self.engines.values()):
                    engine.deaths += 1
                    if engine.deaths > RESTARTS:
                        engine.failure = f"It died {RESTARTS} times; see {engine.log}."
                    else:
                        with contextlib.suppress(EngineError):  # the engine knows why
                            self._start(engine)
            finally:
                self.lock.release()

    def end(self) -> None:
        """Stop all engines, for good."""
        self.ended = True
        with self.lock:
            for engine in self.engines.values():
                engine.stop()

    def states(self) -> tuple[EngineState, ...]:
        """The state of each engine."""
        return tuple(engine.state() for engine in list(self.engines.values()))

    def _start(self, engine: Engine) -> None:
        """Start an engine that does not run: at the port it had before, if that is free."""
        if self.ended:
            raise EngineError("The local engines were stopped while they were starting.")
        engine.wanted, engine.failure = True, ""
        if engine.running:
            return
        ports = self.folder.read(self.folder.ports_file)
        try:
            engine.start(engine.port or ports.get(engine.name))
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

    connection: Connection
    user: User
    idle_s: float
    group: Group

    def do(self, request: Request) -> Status | EngineError:
        """Do what the client asks. Returns how the engines are then, or what went wrong."""
        try:
            match request.do:
                case "stop":
                    self.group.stop(request.engines[0])
                case "freeze":
                    self.group.engines[request.engines[0]].send_signal(signal.SIGSTOP)
                case "thaw":
                    self.group.engines[request.engines[0]].send_signal(signal.SIGCONT)
                case "start":
                    self.group.start(request.engines, request.cache_mb)
                case _:
                    self.group.open(request.engines, request.cache_mb)
        except EngineError as error:
            self.idle_s = 0.0  # no reason to stay for what did not come up
            return EngineError(str(error))
        return Status(self.group.folder.path, os.getpid(), self.group.states())


class Supervisor:
    """A loop that looks after the engines; a thread for each connection."""

    def __init__(self, folder: StateFolder) -> None:
        self.folder = folder
        self.shared = Group(folder)
        self.lock = threading.Lock()
        self.leases: list[Lease] = []
        self.stays_until = 0.0
        self.leaving = False
        self.told_to_end = threading.Event()
        self.listener = Listener((HOST, 0), backlog=MAX_CALLERS)
        self.token, self.proof = secrets.token_hex(20), secrets.token_hex(20)

    def run(self, first: Connection) -> None:
        """Serve until told to end, or until no client is left.

        Args:
            first: a connection to the client that started the supervisor.

        """
        signal.signal(signal.SIGTERM, lambda *_: self.told_to_end.set())
        address = {"port": self.listener.address[1], "token": self.token, "proof": self.proof}
        self.folder.write(self.folder.address_file, address)
        request = first.recv()
        _run(self._serve, self._new_lease(first, request), request)
        _run(self._accept)
        while not self._leaves():
            for group in self._groups():
                group.mend()
            self.told_to_end.wait(LOOK_S)
        remove(self.folder.address_file)
        for lease in self.leases:
            with contextlib.suppress(OSError):
                lease.connection.send(None)  # else clients believe that it was killed, and reopen
        for group in self._groups():
            group.end()  # they are its children: PID 1 does not reap them in every container

    def _leaves(self) -> bool:
        with self.lock:
            unused = not self.leases and time.monotonic() > self.stays_until
            self.leaving = self.told_to_end.is_set() or unused
            return self.leaving

    def _groups(self) -> set[Group]:
        with self.lock:
            return {self.shared, *(lease.group for lease in self.leases)}

    def _accept(self) -> None:
        while True:
            # A full disk, no more processes or threads: better luck next time.
            with contextlib.suppress(OSError, RuntimeError):
                _run(self._greet, self.listener.accept())

    def _greet(self, connection: Connection) -> None:
        """Serve a client that knows the token."""
        with connection, contextlib.suppress(OSError, EOFError):
            if not hmac.compare_digest(connection.recv_bytes(MAX_WORD), self.token.encode()):
                return
            connection.send_bytes(self.proof.encode())
            request = connection.recv()
            if request.do == "status":
                connection.send(self._status())
                return
            try:
                lease = self._new_lease(connection, request)
            except EngineError as error:
                connection.send(error)
            else:
                self._serve(lease, request)

    def _new_lease(self, connection: Connection, request: Request) -> Lease:
        """Note who is there from now on.

        Raises:
            EngineError: a sandbox's folder cannot be made.
            EOFError: this process is about to leave; the client turns to the next one.

        """
        with self.lock, self.folder.usable():
            if self.leaving:
                raise EOFError
            group = self.shared
            if request.do == "sandbox":
                group = Group(self.folder.new_sandbox())
            self.leases.append(Lease(connection, request.user, request.idle_s, group))
            return self.leases[-1]

    def _serve(self, lease: Lease, request: Request) -> None:
        """Answer a client's requests for as long as it is there."""
        with lease.connection as connection, contextlib.suppress(OSError, EOFError):
            try:
                while request.do != "release":
                    answers: list[Status | EngineError] = []
                    work = _run(lambda: answers.append(lease.do(request)))  # noqa: B023 -- waited for
                    while work.is_alive():
                        connection.send(None)  # this process is not stuck
                        work.join(ALIVE_S)
                    connection.send(answers[0])
                    request = connection.recv()
            finally:
                self._end(lease)

    def _end(self, lease: Lease) -> None:
        if lease.group is not self.shared:
            lease.group.end()
            lease.group.folder.delete_sandbox()
        with self.lock:
            self.leases.remove(lease)
            # A user who asks for less does not shorten what another one has asked for.
            self.stays_until = max(self.stays_until, time.monotonic() + lease.idle_s)

    def _status(self) -> Status:
        with self.lock:
            leases = list(self.leases)
        return Status(
            self.folder.path,
            os.getpid(),
            self.shared.states(),
            tuple(one.user for one in leases if one.group is self.shared),
            tuple((one.user, one.group.states()) for one in leases if one.group is not self.shared),
            max(0.0, self.stays_until - time.monotonic()),
        )


def _run(function: Callable[..., object], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def main() -> None:
    """Supervise the engines of the folder, and end them also if the supervisor is killed.

    The command line names the folder, and the descriptor of the connection to the first client.
    """
    os.umask(0o077)
    folder, first = StateFolder(Path(sys.argv[1])), Connection(int(sys.argv[2]))
    if supervisor := os.fork():
        # The watchdog: it waits for the supervisor's end, however it comes.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        first.close()
        os.waitpid(supervisor, 0)
    else:
        Supervisor(folder).run(first)
    folder.clear()


if __name__ == "__main__":
    main()
