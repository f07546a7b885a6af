"""The keeper: one background process per checkout that starts, watches and ends the local engines.

Its users write what they want into the state folder; it compares wanted with running, twenty times
a second, and acts on the difference. It leaves when nobody has the workshop open any more and all
idle times have passed: each user asks for one, and it begins when that user ends.
Run as a program: `python -m workshop_lib.services.keeper STATE_FOLDER`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from workshop_lib.errors import EngineError
from workshop_lib.services import guard
from workshop_lib.services.engines import ENGINES, Engine, EngineState, Valkey, make_engine
from workshop_lib.services.state import StateFolder, birth, number, remove

STEP_S = 0.05
LEASES_EVERY_S = 0.2
RESTARTS, RESTARTS_WITHIN_S = 5, 60.0
"""An engine that dies more often than this is reported as failed instead of restarted."""


class Keeper:
    """The loop, and the little it has to remember."""

    def __init__(self, folder: StateFolder) -> None:
        self.folder = folder
        self.engines: dict[str, Engine] = {}
        self.reports: dict[str, EngineState] = {}
        self.restarts: dict[str, deque[float]] = {}
        if not folder.temporary:
            self._know(name for name, kind in ENGINES.items() if not kind.on_demand)
        self.guard = Guard()
        self.ending = False
        self.used = True
        self.stays_until = 0.0
        self.published = False
        self.next_lease_check = 0.0
        self.attempt = 0

    def run(self) -> None:
        """Follow what is wanted until told to end, or until nobody is left."""
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._publish()
        try:
            while not self.ending:
                self._follow()
                self.guard.replace_if_dead()
                if self._abandoned() and self._leave():
                    return
                time.sleep(STEP_S)
            self._stop_all()
        finally:
            self.guard.close()

    def _end(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.ending = True

    def _follow(self) -> None:
        wanted = self.folder.read(self.folder.wanted_file)
        Valkey.megabytes = int(number(wanted.get("cache_mb"), Valkey.megabytes))
        attempt = int(number(wanted.get("attempt")))
        if attempt > self.attempt:
            self.attempt = attempt
            self._know(name for name in wanted if name.partition("-")[0] in ENGINES)
            # Before the answer: whoever asked may end before the next look.
            self._look_for_users()
            self._forgive()
        for name, engine in self.engines.items():
            before = self.reports[name]
            self.reports[name] = self._one(engine, bool(wanted.get(name)), before)
            if self.reports[name] != before:
                self._publish()

    def _know(self, names: Iterable[str]) -> None:
        """Be ready for these engines, of which some may be the second or third of their kind."""
        for name in names:
            if name not in self.engines:
                self.engines[name] = make_engine(name, self.folder)
                self.reports[name] = EngineState(name, "down")
                self.restarts[name] = deque()

    def _forgive(self) -> None:
        """Somebody asks anew: what failed before deserves another try."""
        for name, report in self.reports.items():
            if report.status == "failed":
                self.reports[name] = EngineState(name, "down")
                self.restarts[name].clear()
        self._publish()

    def _one(self, engine: Engine, wanted: bool, before: EngineState) -> EngineState:
        """Bring one engine to what is wanted of it."""
        if engine.running:
            if wanted:
                return before
            self._stop(engine)
            return EngineState(engine.name, "down")
        if not wanted:
            return EngineState(engine.name, "down")
        if before.status == "failed":
            return before
        if before.status == "up" and not self._may_restart(engine.name):
            why = f"It died {RESTARTS} times within {RESTARTS_WITHIN_S:.0f} s; see {engine.log}."
            return EngineState(engine.name, "failed", message=why)
        if engine.process is not None:
            self.guard.forget(engine.process.pid)
        return self._start(engine)

    def _start(self, engine: Engine) -> EngineState:
        ports = self.folder.read(self.folder.path / "ports.json")
        spawned: list[int] = []

        def watch(pid: int) -> None:
            """Tell the guard at once: the keeper may be killed while the engine starts."""
            spawned.append(pid)
            self.guard.watch(pid)

        try:
            engine.start(_port(ports.get(engine.name)), on_spawn=watch)
            pid = engine.process.pid if engine.process else 0
            # The same port again after a restart lets open connections pools recover by themselves.
            self.folder.write(self.folder.path / "ports.json", {**ports, engine.name: engine.port})
        except Exception as error:  # noqa: BLE001 -- whatever it is, the other engines go on
            engine.stop()
            message = str(error)
            if not isinstance(error, EngineError):
                message = (
                    f"{engine.name} did not start: {message}. If the disk is full, free it; if "
                    f"{self.folder.path} is damaged, `workshop reset` starts afresh."
                )
            return EngineState(engine.name, "failed", message=message)
        finally:
            for ended in spawned:
                if engine.process is None or engine.process.pid != ended:
                    self.guard.forget(ended)
        return EngineState(engine.name, "up", engine.port, pid, birth(pid), engine.emulated)

    def _stop(self, engine: Engine) -> None:
        pid = engine.process.pid if engine.process else 0
        engine.stop()
        self.guard.forget(pid)

    def _may_restart(self, name: str) -> bool:
        times, now = self.restarts[name], time.monotonic()
        times.append(now)
        while times and now - times[0] > RESTARTS_WITHIN_S:
            times.popleft()
        return len(times) <= RESTARTS

    def _abandoned(self) -> bool:
        if time.monotonic() >= self.next_lease_check:
            self._look_for_users()
            if not self.published or self.folder.keeper() is None:  # a full disk, a damaged file
                self._publish()
        return not self.used and time.monotonic() > self.stays_until

    def _look_for_users(self) -> None:
        """Note who is there, and until when the engines stay if that was all."""
        now = time.monotonic()
        self.next_lease_check = now + LEASES_EVERY_S
        lingers = [number(lease.get("linger_s")) for lease in self.folder.live_leases()]
        before, self.used = self.used, bool(lingers)
        # A user who asks for less does not shorten what another one has asked for.
        self.stays_until = max(self.stays_until, now + max(lingers, default=0.0) if lingers else 0)
        if before and not self.used:
            self._publish()

    def _leave(self) -> bool:
        """Stop everything unless somebody came in at the last moment. Returns whether it did."""
        try:
            # No waiting: whoever holds the lock may be waiting for this process to end.
            with self.folder.locked(wait_s=0):
                if self.folder.live_leases():
                    return False
                self._stop_all()
        except EngineError:  # the lock is taken: somebody is coming in
            return False
        return True

    def _stop_all(self) -> None:
        for engine in self.engines.values():
            self._stop(engine)
        remove(self.folder.state_file)
        remove(self.folder.wanted_file)

    def _publish(self) -> None:
        state = {
            "pid": os.getpid(),
            "created": birth(os.getpid()),
            "attempt": self.attempt,
            "stays_until": self.stays_until,
            "engines": {name: asdict(report) for name, report in self.reports.items()},
        }
        self.published = False
        with contextlib.suppress(OSError):
            self.folder.write(self.folder.state_file, state)
            self.published = True


def _port(value: object) -> int:
    """A port of a file that may be damaged; 0, for any, where it is none."""
    return int(port) if (port := number(value)) < 65_536 else 0


class Guard:
    """The process that stops the engines should the keeper be killed; restarted if it is killed."""

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self.process = self._spawn()

    def watch(self, pid: int) -> None:
        """Have this engine stopped if the keeper dies."""
        self.pids.add(pid)
        self._tell(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        """The engine has ended; its number may soon belong to a stranger."""
        self.pids.discard(pid)
        self._tell(f"-{pid}\n")

    def replace_if_dead(self) -> None:
        """Have a guard again after the first was killed; what it was told last may be lost."""
        if self.process.poll() is not None:
            self._tell("")

    def close(self) -> None:
        """Let the guard end: it stops whatever is still on its list."""
        with contextlib.suppress(OSError):
            if self.process.stdin:
                self.process.stdin.close()
        self.process.wait()

    def _tell(self, line: str) -> None:
        try:
            if self.process.poll() is not None:
                raise BrokenPipeError
            self._write(line)
        except OSError:
            self.process.wait()
            self.process = self._spawn()
            for pid in self.pids:
                self._write(f"+{pid}\n")

    def _write(self, line: str) -> None:
        if self.process.stdin:
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()

    @staticmethod
    def _spawn() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(guard.__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )


def main() -> None:
    """Keep the folder named on the command line."""
    os.umask(0o077)
    folder = StateFolder(Path(sys.argv[1]))
    Keeper(folder).run()
    if folder.temporary:
        folder.delete()


if __name__ == "__main__":
    main()
