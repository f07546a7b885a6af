"""The drill: random rounds of opening, killing and freezing; then all that was committed is there.

In each round one or more processes are killed or frozen while others open the engines, and then an
opening must work, at once and with every row and object. Run with a number of rounds:
`python scripts/drill.py --rounds 100 --seed 1`. `make soak` ends with a hundred.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import boto3
import psutil
import psycopg2

from workshop_lib.errors import WorkshopError
from workshop_lib.services import Endpoints, local, resolve
from workshop_lib.services.processes import wait_until
from workshop_lib.services.state_folder import StateFolder, state_folder
from workshop_lib.settings import load_settings

CLIENT = """
import sys, time
from workshop_lib.services import local, resolve
from workshop_lib.services.state_folder import state_folder
from workshop_lib.settings import load_settings
settings = load_settings().values
print("opening", flush=True)
if sys.argv[1] == "sandbox":
    folder = state_folder(settings.workshop_state_dir)
    held = local.attach(folder, ["postgres", "valkey"], settings, sandbox=True)
else:
    held = resolve(settings)
print("open", flush=True)
time.sleep(600)
"""
GONE_S = 30.0
LONG_S = 5.0
"""Openings that take longer are named."""


class Drill:
    """The engines of one state folder, and what has been committed to them."""

    def __init__(self, folder: StateFolder, rng: random.Random) -> None:
        self.folder = folder
        self.rng = rng
        self.clients: list[subprocess.Popen[str]] = []
        self.done: Counter[str] = Counter()
        self.openings: list[float] = []
        self.committed: list[int] = []
        self.faults: dict[str, Callable[[], None]] = {
            "an engine": lambda: self.end(self.folder.processes().engines),
            "all engines": lambda: self.end(self.folder.processes().engines, everyone=True),
            "a backend": self.end_backend,
            "the supervisor or its watchdog": lambda: self.end(self.folder.processes().supervisors),
            "the supervisor and its watchdog": lambda: self.end(
                self.folder.processes().supervisors, everyone=True
            ),
            "all of them": lambda: self.end(
                [p for kind in self.folder.processes() for p in kind], everyone=True
            ),
            "the supervisor, frozen": self.freeze_supervisor,
            "a client": self.end_client,
            "a client that opens": lambda: self.start_client("shared", wait=False),
            "a sandbox that opens": lambda: self.start_client("sandbox", wait=False),
            "a sandbox": lambda: self.start_client("sandbox", wait=True),
            "half started": self.end_half_started,
        }

    def round(self, number: int) -> None:
        """Let one to three things go wrong, and open."""
        faults = self.rng.choices(list(self.faults), k=self.rng.randint(1, 3))
        for name in faults:
            self.done[name] += 1
            with contextlib.suppress(psutil.NoSuchProcess):
                self.faults[name]()
            time.sleep(self.rng.choice((0.0, 0.0, 0.05, 0.5)))
        began = time.monotonic()
        endpoints = resolve(load_settings().values)
        self.openings.append(time.monotonic() - began)
        if self.openings[-1] > LONG_S:
            sys.stdout.write(f"{self.openings[-1]:.1f} s after {' and '.join(faults)}\n")
        try:
            self.check(endpoints)
            self.commit(endpoints, number)
        finally:
            endpoints.release()

    def check(self, endpoints: Endpoints) -> None:
        """See that every row and object is there."""
        rows = self.sql(endpoints, "SELECT n FROM drill ORDER BY n") if self.committed else []
        expect(self.committed, [n for (n,) in rows])
        store = boto3.client("s3", **endpoints.store.arguments)
        for number in self.committed[-3:]:
            body = store.get_object(Bucket="drill", Key=str(number))["Body"].read()
            expect(str(number).encode(), body)

    def commit(self, endpoints: Endpoints, number: int) -> None:
        """Store one more row and object."""
        store = boto3.client("s3", **endpoints.store.arguments)
        if not self.committed:
            self.sql(endpoints, "CREATE TABLE IF NOT EXISTS drill (n int)")
            store.create_bucket(Bucket="drill")
        store.put_object(Bucket="drill", Key=str(number), Body=str(number).encode())
        self.sql(endpoints, f"INSERT INTO drill VALUES ({number})")  # noqa: S608 -- a number
        self.committed.append(number)

    @staticmethod
    def sql(endpoints: Endpoints, statement: str) -> list[tuple[int, ...]]:
        """Run a statement on a connection of its own."""
        with contextlib.closing(psycopg2.connect(**endpoints.database.arguments)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []

    def end(self, processes: list[psutil.Process], *, everyone: bool = False) -> None:
        """Kill one of them, or all in any order."""
        victims = self.rng.sample(processes, len(processes) if everyone else min(1, len(processes)))
        for process in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def end_backend(self) -> None:
        """Kill a PostgreSQL helper, a session or the writer of its log, in mid-work."""
        servers = [p for p in self.folder.processes().engines if p.name() == "postgres"]
        self.end([child for server in servers for child in server.children()])

    def freeze_supervisor(self) -> None:
        """Halt the supervisor: the next opening finds it silent."""
        for process in self.folder.processes().supervisors:
            process.suspend()

    def end_client(self) -> None:
        """Kill one that holds the engines."""
        if self.clients:
            self.bury(self.clients.pop())
        else:
            self.start_client("shared", wait=True)

    def end_half_started(self) -> None:
        """Kill everything, begin to open, and kill again whatever is there by then."""
        self.end([p for kind in self.folder.processes() for p in kind], everyone=True)
        self.start_client("shared", wait=False)
        time.sleep(self.rng.random() * 2)
        self.end([p for kind in self.folder.processes() for p in kind], everyone=True)

    def start_client(self, kind: str, *, wait: bool) -> None:
        """Have another process open; killed while it does, unless it is waited for."""
        words = [sys.executable, "-c", CLIENT, kind]
        client = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        said = iter(client.stdout or ())
        next(said, None)
        if wait:
            next(said, None)  # nothing, if it failed: openings of ours are what is judged
            self.clients.append(client)
        else:
            time.sleep(self.rng.random() * 2)
            self.bury(client)

    @staticmethod
    def bury(client: subprocess.Popen[str]) -> None:
        """Kill a client, and take note of its end."""
        with client:
            client.send_signal(signal.SIGKILL)

    def left(self) -> list[str]:
        """What is there after the end: nothing, once all clients are killed."""
        while self.clients:
            self.bury(self.clients.pop())
        wait_until(lambda: not any(self.folder.processes()), GONE_S, step_s=0.2)
        found = [str(process) for kind in self.folder.processes() for process in kind]
        return found + [str(box.path) for box in self.folder.sandboxes]


def expect(what: object, found: object) -> None:
    """See that this was found."""
    if what != found:
        raise WorkshopError(f"{what} was expected, and {found} was found.")


def run(rounds: int, seed: int, folder: StateFolder) -> None:
    """Go through so many rounds, and say how long the openings took.

    Raises:
        WorkshopError: an opening failed, something was lost, or is left.

    """
    drill = Drill(folder, random.Random(seed))
    try:
        for number in range(rounds):
            drill.round(number)
        expect([], drill.left())
    finally:
        drill.left()
        sys.stdout.write(f"{dict(drill.done)}\n")
    openings = sorted(drill.openings)
    sys.stdout.write(
        f"{rounds} rounds: no row, object or process was lost or left; openings took "
        f"{openings[rounds // 2]:.1f} s (median), {openings[-1]:.1f} s (longest)\n"
    )


def main() -> None:
    """Drill in a state folder of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="drill-") as place:
        folder = state_folder(Path(place))
        os.environ |= {"WORKSHOP_STATE_DIR": place, "WORKSHOP_LINGER_SECONDS": "0"}
        try:
            run(given.rounds, given.seed, folder)
        finally:
            local.reset(folder)


if __name__ == "__main__":
    main()
