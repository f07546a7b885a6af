"""The supervisor: one process per state folder that starts, watches and ends the local engines.

A client connects to it, says which engines it needs, and gets their ports. The connection is the
lease: it ends with the client, however that ends. A sandbox is a group of engines that ends with
the connection that opened it. The supervisor leaves when no client is connected and all idle times
have passed. Run as a program: `python -m workshop_lib.services.supervisor STATE_FOLDER SOCKET`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import answer_challenge, deliver_challenge
from pathlib import Path

from workshop_lib.errors import EngineError
from workshop_lib.services.engines import Engine, make_engine
from workshop_lib.services.local import EngineState, Request, Status, User, greet
from workshop_lib.services.processes import wait_until
from workshop_lib.services.state_folder import StateFolder, remove

LOOK_S = 0.1
"""How often the supervisor looks after its engines."""
FIRST_S = 1.0
"""How long it stays for its first client, which was there before it, and may have been killed."""
SILENT_S = 6.0
"""How long an engine that runs may take to answer."""
SIGNALS = {"freeze": signal.SIGSTOP, "thaw": signal.SIGCONT}
RESTARTS = 5
"""An engine that dies more often than this is reported as failed instead of restarted."""


class Group:
    """Engines that share a state folder: those of all clients, or of a sandbox."""

    def __init__(self, folder: StateFolder) -> None:
        self.folder = folder
        self.engines: dict[str, Engine] = {}
        self.lock = threading.Lock()

    def start(self, names: tuple[str, ...], cache_mb: int) -> None:
        """Have these engines run and answer.

        Raises:
            EngineError: one did not come up, or runs and is silent.

        """
        with self.lock:
            for name in names:
                engine = self.engines.setdefault(name, make_engine(name, self.folder))
                engine.cache_mb, engine.deaths = cache_mb or engine.cache_mb, 0
                self._start(engine)
        for engine in map(self.engines.__getitem__, names):
            if not wait_until(lambda e=engine: e.pid and e.admits(), SILENT_S):  # type: ignore[misc]
                silent = f"{engine.name} runs (pid {engine.pid}) but has not answered for "
                again = "`workshop stop` ends it; the next opening starts it again."
                raise EngineError(engine.failure or f"{silent}{SILENT_S:.0f} s. {again}")

    def stop(self, name: str) -> None:
        """Stop an engine; it stays stopped."""
        with self.lock:
            self.engines[name].stop()

    def mend(self) -> None:
        """Start again what has died, unless something is being started or stopped just now."""
        if self.lock.acquire(blocking=False):
            try:
                for engine in filter(lambda one: one.died, self.engines.values()):
                    engine.deaths += 1
                    with contextlib.suppress(EngineError):  # the engine knows why
                        self._start(engine)
            finally:
                self.lock.release()

    def end(self) -> None:
        """Stop all engines."""
        with self.lock:
            for engine in self.engines.values():
                engine.stop()

    def states(self) -> tuple[EngineState, ...]:
        """The state of each engine."""
        return tuple(engine.state() for engine in list(self.engines.values()))

    def _start(self, engine: Engine) -> None:
        """Start an engine that does not run: at the port it had before, if that is free."""
        if engine.pid:
            return
        ports = self.folder.read(self.folder.ports_file)
        try:
            if engine.deaths > RESTARTS:
                raise EngineError(f"it died {RESTARTS} times; see {engine.log}")
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

    user: User
    idle_s: float
    group: Group

    def do(self, request: Request) -> Status | EngineError:
        """Do what the client asks. Returns how the engines are then, or what went wrong."""
        group, name = self.group, request.engines[0]
        try:
            match request.do:
                case "stop":
                    group.stop(name)
                case "freeze" | "thaw" as what:
                    if pid := group.engines[name].pid:
                        os.kill(pid, SIGNALS[what])
                case "sandbox":
                    with group.folder.usable():
                        group = self.group = Group(group.folder.new_sandbox())
                    group.start(request.engines, request.cache_mb)
                case _:
                    group.start(request.engines, request.cache_mb)
        except EngineError as error:
            self.idle_s = 0.0  # no reason to stay for what did not come up
            return error
        return Status(group.folder.path, os.getpid(), group.states())


class Supervisor:
    """A loop that looks after the engines; a thread for each connection.

    Args:
        folder: whose engines.
        listener: where clients connect.

    """

    def __init__(self, folder: StateFolder, listener: socket.socket) -> None:
        self.folder = folder
        self.listener = listener
        self.key = folder.read(folder.address_file)["key"]
        self.shared = Group(folder)
        self.lock = threading.Lock()
        self.leases: list[Lease] = []
        self.stays_until = 0.0
        self.leaving = False
        self.told_to_end = threading.Event()

    def run(self) -> None:
        """Serve until told to end, or until no client is left."""
        signal.signal(signal.SIGTERM, lambda *_: self.told_to_end.set())
        threading.Thread(target=self._accept, daemon=True).start()
        self.told_to_end.wait(FIRST_S)
        while not self._leaves():
            for group in self._groups():
                group.mend()
            self.told_to_end.wait(LOOK_S)
        for group in self._groups():
            group.end()  # they are its children: PID 1 does not reap them in every container

    def _leaves(self) -> bool:
        with self.lock:
            unused = not self.leases and time.monotonic() > self.stays_until
            self.leaving = self.told_to_end.is_set() or unused
            if self.leaving:
                remove(self.folder.address_file)  # else clients believe that it was killed
            return self.leaving

    def _groups(self) -> set[Group]:
        with self.lock:
            return {self.shared, *(lease.group for lease in self.leases)}

    def _accept(self) -> None:
        while True:
            # A full disk, no more processes or threads: better luck next time.
            with contextlib.suppress(OSError, RuntimeError):
                accepted, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=[accepted], daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        """Answer a client that knows the key, for as long as it is there."""
        steps = (deliver_challenge, answer_challenge)
        with (
            contextlib.suppress(OSError, EOFError, AuthenticationError),
            greet(accepted, self.key, SILENT_S, steps) as connection,
        ):
            request = connection.recv()
            if request.do == "status":
                connection.send(self._status())
                return
            lease = self._new_lease(request)
            try:
                while request.do != "release":
                    connection.send(lease.do(request))
                    request = connection.recv()
            finally:
                self._end(lease)

    def _new_lease(self, request: Request) -> Lease:
        """Note who is there from now on.

        Raises:
            EOFError: this process is about to leave; the client turns to the next one.

        """
        with self.lock:
            if self.leaving:
                raise EOFError
            self.leases.append(Lease(request.user, request.idle_s, self.shared))
            return self.leases[-1]

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


def main() -> None:
    """Supervise the engines of the folder, and end them also if the supervisor is killed.

    The command line names the folder, and the descriptor of the socket at which clients connect.
    """
    os.umask(0o077)
    folder, listener = StateFolder(Path(sys.argv[1])), socket.socket(fileno=int(sys.argv[2]))
    if supervisor := os.fork():
        # The watchdog: it waits for the supervisor's end, however it comes.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        listener.close()
        os.waitpid(supervisor, 0)
    else:
        Supervisor(folder, listener).run()
    folder.clear()


if __name__ == "__main__":
    main()
