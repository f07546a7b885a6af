"""The state folder of the local engines: who runs, who uses them, what is wanted, the passwords."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import itertools
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
import psutil
from filelock import FileLock, Timeout

from workshop_lib.errors import EngineError
from workshop_lib.settings import CHECKOUT

APPLICATION = "cache-aside-workshop"
MARK = ".made-by-cache-aside-workshop"
"""The file that tells a state folder from any other folder."""
ROOT_BASE = Path("/var/lib") / APPLICATION
"""Where root keeps state: its home is closed to the user that PostgreSQL has to run as."""
LOCK_WAIT_S = 90.0
PRIVATE = "private"
"""Below a checkout's state folder: one state folder for each notebook with engines of its own."""
TEMPORARY = ".temporary"
"""The file that marks such a folder."""
_lease_numbers = itertools.count()
NEEDED_BYTES = 300 * 1024 * 1024
"""A fresh PostgreSQL takes about 40 MB, its write-ahead log up to 200 MB more."""


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Paths below one state folder, and the only readers and writers of the files in it."""

    path: Path

    @property
    def lock_file(self) -> Path:
        """Held while engines are started, attached to or stopped."""
        return self.path / "lock"

    @property
    def state_file(self) -> Path:
        """What runs now; the keeper writes it, everybody reads it."""
        return self.path / "state.json"

    @property
    def wanted_file(self) -> Path:
        """What should run; users write it under the lock, the keeper follows it."""
        return self.path / "wanted.json"

    @property
    def leases(self) -> Path:
        """One file for each process that has the workshop open."""
        return self.path / "leases"

    @property
    def logs(self) -> Path:
        """The engines' and the keeper's output."""
        return self.path / "logs"

    @property
    def postgres_data(self) -> Path:
        """PostgreSQL's data directory. Root's lies where the unprivileged user can enter."""
        if os.geteuid() == 0:
            return ROOT_BASE / "postgres" / _short_hash(self.path)
        return self.path / "postgres"

    @property
    def temporary(self) -> bool:
        """Whether it belongs to one notebook, and goes when that notebook's engines end."""
        return (self.path / TEMPORARY).exists()

    @property
    def private_folders(self) -> list[StateFolder]:
        """The temporary state folders of notebooks that have, or had, engines of their own."""
        try:
            below = sorted((self.path / PRIVATE).iterdir())
        except OSError:
            return []
        return [folder for folder in map(StateFolder, below) if folder.ours]

    @property
    def ours(self) -> bool:
        """Whether it carries the workshop's mark: only then is it ever changed or deleted."""
        try:
            return (self.path / MARK).is_file()
        except OSError:
            return False

    def prepare(self, *, temporary: bool = False) -> None:
        """Create the folder, closed to others.

        Args:
            temporary: its keeper is to delete it when it leaves.

        Raises:
            EngineError: the place is read-only, full, in other use, or belongs to somebody else.

        """
        try:
            if self.path.exists() and not self.ours and any(self.path.iterdir()):
                raise EngineError(
                    f"The folder {self.path} is not empty and was not made by the workshop. "
                    "Name a new or an empty one in WORKSHOP_STATE_DIR."
                )
            for folder in (self.path, self.leases, self.logs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.path.stat().st_uid != os.geteuid():
                raise EngineError(
                    f"The state folder {self.path} belongs to another user. "
                    "Name one of your own in WORKSHOP_STATE_DIR."
                )
            self.path.chmod(0o700)
            (self.path / MARK).touch()
            if temporary:
                (self.path / TEMPORARY).touch()
            with tempfile.TemporaryFile(dir=self.path) as probe:
                probe.write(b"x")
        except OSError as error:
            raise EngineError(
                f"The state folder {self.path} cannot be written: {error}. "
                "Free the disk, or name another folder in WORKSHOP_STATE_DIR."
            ) from None
        free = shutil.disk_usage(self.path).free
        if free < NEEDED_BYTES:
            raise EngineError(
                f"Only {free / 1e6:.0f} MB are free where the local engines keep their state "
                f"({self.path}); they need {NEEDED_BYTES / 1e6:.0f} MB. "
                "Free the disk, or name another folder in WORKSHOP_STATE_DIR."
            )

    @contextmanager
    def locked(self, wait_s: float | None = None) -> Iterator[None]:
        """Hold the folder's lock; the system releases it if this process dies.

        Args:
            wait_s: how long to wait for it, seconds; LOCK_WAIT_S if left out.

        Raises:
            EngineError: another process held it for all that time.

        """
        patience = LOCK_WAIT_S if wait_s is None else wait_s
        try:
            with FileLock(self.lock_file, timeout=patience):
                yield
        except Timeout:
            raise EngineError(
                f"Another process has been starting or stopping the engines for {patience:.0f} "
                f"seconds (lock {self.lock_file}). `workshop status` shows what runs."
            ) from None

    def read(self, file: Path) -> dict[str, Any]:
        """The content of one of the folder's JSON files; empty where it is missing or damaged."""
        try:
            content = json.loads(file.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, file: Path, content: dict[str, Any]) -> None:
        """Replace a file in one step, readable by its owner only."""
        handle, name = tempfile.mkstemp(dir=self.path, prefix=file.name)
        with os.fdopen(handle, "w") as stream:
            json.dump(content, stream)
        Path(name).replace(file)

    def secrets(self) -> dict[str, str]:
        """The passwords of this folder's engines, made on first use; never shown or logged."""
        file = self.path / "secrets.json"
        known = self.read(file)
        names = ("owner", "admin", "valkey", "s3_key", "s3_secret")
        if not all(isinstance(known.get(name), str) for name in names):
            known = {name: secrets.token_hex(20) for name in names}
            self.write(file, known)
        return known

    def keeper(self) -> psutil.Process | None:
        """The process that keeps this folder's engines, if it is alive."""
        state = self.read(self.state_file)
        return find_process(state.get("pid"), state.get("created"))

    def take_lease(self, command: str, linger_s: float) -> Path:
        """Record that this process uses the engines, and for how long they should outlive it."""
        me = psutil.Process()
        # One process may hold several: a check and an open workshop, for example.
        lease = self.leases / f"{me.pid}-{next(_lease_numbers)}.json"
        self.write(
            lease,
            {
                "pid": me.pid,
                "created": me.create_time(),
                "command": command,
                "linger_s": linger_s,
            },
        )
        return lease

    def live_leases(self) -> list[dict[str, Any]]:
        """The leases whose process is alive. Those of dead processes are deleted on the way."""
        alive = []
        for file in self._lease_files():
            lease = self.read(file)
            if find_process(lease.get("pid"), lease.get("created")):
                alive.append(lease)
            elif lease:
                file.unlink(missing_ok=True)
        return alive

    def _lease_files(self) -> list[Path]:
        try:
            return sorted(self.leases.glob("*.json"))
        except OSError:  # somebody else's folder
            return []

    def delete(self) -> None:
        """Remove everything that this folder's engines ever wrote; a stranger's folder stays."""
        if not self.ours:
            return
        data = self.postgres_data
        # Beside the data lie the drafts of a first start that was killed.
        for path in (data, data.with_name(f"{data.name}.new")):
            shutil.rmtree(path, ignore_errors=True)
        data.with_name(f"{data.name}.password").unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):  # other checkouts may have theirs there
            self.path.parent.rmdir()

    def let_go(self) -> None:
        """Remove the empty folder that locking a vanished one has made again."""
        with contextlib.suppress(OSError):
            self.lock_file.unlink()
            self.path.rmdir()


def state_folder(chosen: Path | None) -> StateFolder:
    """The state folder of this checkout, or the chosen one. Nothing is created."""
    if chosen is not None:
        return StateFolder(chosen.expanduser().resolve())
    base = ROOT_BASE if os.geteuid() == 0 else platformdirs.user_state_path(APPLICATION)
    return StateFolder(base / _short_hash(CHECKOUT))


def cache_folder(name: str) -> Path:
    """A folder for files that only save time, shared by all checkouts of this user; made."""
    folder = platformdirs.user_cache_path(APPLICATION) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home, or a read-only one
        return _temporary_cache() / name
    return folder


@cache
def _temporary_cache() -> Path:
    """Below /tmp: under a name of its own, since anybody could have made a folder that is known."""
    folder = Path(tempfile.mkdtemp(prefix=f"{APPLICATION}-"))
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, owner: int) -> None:
    """Remove a folder at the end of the process that made it, not of one forked from it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def find_process(pid: object, created: object) -> psutil.Process | None:
    """The living process with this id and start time (Unix seconds), or None.

    The start time tells a process from a later one that was given the same number; two seconds
    are allowed for a clock that was corrected meanwhile.
    """
    if not isinstance(pid, int) or not isinstance(created, int | float):
        return None
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - created) < 2.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def log_tail(file: Path, lines: int = 12) -> str:
    """The last lines of a log, for an error message."""
    try:
        return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"


def wait_until(condition: Any, seconds: float, step_s: float = 0.02) -> bool:
    """Ask again and again until the condition holds. Returns whether it did in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(step_s)
    return True


def _short_hash(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
