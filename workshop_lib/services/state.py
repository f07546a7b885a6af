"""The state folder of the local engines: who runs, who uses them, what is wanted, the passwords."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
import psutil
from filelock import FileLock, Timeout

from workshop_lib.errors import EngineError
from workshop_lib.paths import CHECKOUT

APPLICATION = "cache-aside-workshop"
MARK = ".made-by-cache-aside-workshop"
"""The file that tells a state folder from any other folder. It holds how many folders the workshop
made for it: 0 where it was given an empty one, 2 if it made the parent, too."""
MADE = re.compile(
    r"lock|leases|logs|postgres(\.new|\.password)?|valkey(-\d+)?|objects|rclone|private|\.temporary"
    r"|\.(config|cache|local|aws|moto)"  # an engine's home is here
    r"|(state|wanted|ports|secrets|\d+-\d+)\.json\w{0,8}"
)
"""The names of what the workshop writes into a state folder; whatever else is there is not its."""
KEEPER = "workshop_lib.services.keeper"
PROGRAMS = ("postgres", "initdb", "valkey-server", "rclone")
EMULATIONS = ("moto.server", "cloud_emulation.py")
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
        """Whether the workshop made what is in it: only then is it ever changed or deleted.

        The mark says so; should that have been deleted, the rest does.
        """
        try:
            names = {entry.name for entry in self.path.iterdir()}
        except OSError:
            return False
        return MARK in names or {"leases", "logs", "secrets.json"} <= names

    @property
    def folders_made(self) -> int:
        """How many folders the workshop made for it: from this one upwards."""
        made = 0
        with contextlib.suppress(OSError, ValueError):
            made = int((self.path / MARK).read_text())
        standard = self.path.parent in (ROOT_BASE, platformdirs.user_state_path(APPLICATION))
        return max(made, 2) if standard else made

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
            missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.path.stat().st_uid != os.geteuid():
                raise EngineError(
                    f"The state folder {self.path} belongs to another user. "
                    "Name one of your own in WORKSHOP_STATE_DIR."
                )
            self.path.chmod(0o700)
            if not os.path.lexists(self.path / MARK):
                (self.path / MARK).write_text(str(1 if temporary else len(missing)))
            for folder in (self.leases, self.logs):
                if not folder.is_dir():
                    remove(folder)
                    folder.mkdir(mode=0o700)
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
        lock = FileLock(self.lock_file, timeout=patience)
        with self.usable():
            if self.lock_file.is_dir() or self.lock_file.is_symlink():
                remove(self.lock_file)
            try:
                lock.acquire()
            except Timeout:
                raise EngineError(
                    f"Another process has been starting or stopping the engines for {patience:.0f} "
                    f"seconds (lock {self.lock_file}). `workshop status` shows what runs."
                ) from None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def usable(self) -> Iterator[None]:
        """Say in a sentence what the disk refuses.

        Raises:
            EngineError: in place of an OSError.

        """
        try:
            yield
        except OSError as error:
            raise EngineError(
                f"The state folder {self.path} cannot be used: {error}. If it is damaged, "
                "`workshop reset` starts afresh; if it cannot be written, free the disk, or name "
                "another folder in WORKSHOP_STATE_DIR."
            ) from None

    def read(self, file: Path) -> dict[str, Any]:
        """The content of one of the folder's JSON files; empty where it is missing or damaged."""
        try:
            content = json.loads(file.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, file: Path, content: dict[str, Any]) -> None:
        """Replace a file in one step, readable by its owner only."""
        handle, name = tempfile.mkstemp(dir=self.path, prefix=file.name)
        try:
            with os.fdopen(handle, "w") as stream:
                json.dump(content, stream)
            if file.is_dir():
                remove(file)
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def secrets(self) -> dict[str, str]:
        """The passwords of this folder's engines, made on first use; never shown or logged."""
        file = self.path / "secrets.json"
        known = self.read(file)
        names = ("owner", "admin", "valkey", "s3_key", "s3_secret")
        if not all(_is_secret(known.get(name)) for name in names):
            # Those that are there stay: PostgreSQL's data knows its owner's.
            known = {
                name: known[name] if _is_secret(known.get(name)) else secrets.token_hex(20)
                for name in names
            }
            self.write(file, known)
        return known

    def keeper(self) -> psutil.Process | None:
        """The process that keeps this folder's engines, if it is alive."""
        state = self.read(self.state_file)
        return find_process(state.get("pid"), state.get("created"))

    def take_lease(self, command: str, linger_s: float) -> Path:
        """Record that this process uses the engines, and for how long they should outlive it."""
        pid = os.getpid()
        # One process may hold several: a check and an open workshop, for example.
        lease = self.leases / f"{pid}-{next(_lease_numbers)}.json"
        self.write(
            lease,
            {"pid": pid, "created": birth(pid), "command": command, "linger_s": linger_s},
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

    def processes(self, *programs: str) -> list[psutil.Process]:
        """The keeper and the engines of this folder, as the system knows them.

        Its files may be damaged, or from before a kill.

        Args:
            programs: only these of PROGRAMS.

        """
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self._is_ours(process, programs) and birth(process.pid):
                    found.append(process)
        return found

    def _is_ours(self, process: psutil.Process, programs: tuple[str, ...]) -> bool:
        if process.name() in (programs or PROGRAMS):
            # A server's own helpers write over their environment; they work in its data.
            home = process.environ().get("HOME")
            return home == str(self.path) or process.cwd() == str(self.postgres_data)
        words = [] if programs else process.cmdline()
        if KEEPER in words:
            return words[-1] == str(self.path)
        return any(word.endswith(EMULATIONS) for word in words) and (
            process.environ().get("HOME") == str(self.path)
        )

    def delete(self) -> None:
        """Remove everything that this folder's engines ever wrote, and nothing else.

        Raises:
            OSError: something cannot be removed.

        """
        if not self.ours:
            return
        made = self.folders_made
        data = self.postgres_data
        # Beside the data lie the drafts of a first start that was killed.
        for path in (
            data,
            data.with_name(f"{data.name}.new"),
            data.with_name(f"{data.name}.password"),
        ):
            remove(path)
        for path in self.path.iterdir():
            if MADE.fullmatch(path.name):
                remove(path)
        # A stranger's file keeps the folder, which stays marked: it can be used again.
        if [path.name for path in self.path.iterdir()] in ([MARK], []):
            remove(self.path / MARK)
            self._remove_empty(made)

    def let_go(self, made: int) -> None:
        """Remove the empty folder that locking a vanished one has made again.

        Args:
            made: what `folders_made` said before it vanished.

        """
        with contextlib.suppress(OSError):
            self.lock_file.unlink()
        self._remove_empty(made)

    def _remove_empty(self, made: int) -> None:
        for folder in (self.path, *self.path.parents)[:made]:
            try:
                folder.rmdir()
            except OSError:  # other checkouts may have theirs there
                return


def state_folder(chosen: Path | None) -> StateFolder:
    """The state folder of this checkout, or the chosen one. Nothing is created."""
    if chosen is not None:
        # Not Path.expanduser, which refuses the name of a user who does not exist.
        return StateFolder(Path(os.path.expanduser(chosen)).resolve())  # noqa: PTH111
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
    """The living process with this number and `birth`, or None."""
    if not isinstance(pid, int) or not created or birth(pid) != created:
        return None
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def birth(pid: int) -> str:
    """What tells a living process from all others that ever had its number; empty if there is none.

    On Linux that is the boot and the time since it: the time of day can be set meanwhile. A process
    that has ended and that nobody has reaped is not alive.
    """
    try:
        if sys.platform == "linux":
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
            state, *fields = stat.rpartition(")")[2].split()
            return "" if state in "ZX" else f"{_boot()}/{fields[18]}"
        else:  # noqa: RET505 -- mypy follows one platform
            process = psutil.Process(pid)
            zombie = process.status() == psutil.STATUS_ZOMBIE
            return "" if zombie else str(process.create_time())
    except (OSError, psutil.Error):
        return ""


@cache
def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def end_processes(processes: Iterable[psutil.Process], patience_s: float = 3.0) -> None:
    """End engines politely, then firmly; return when none is alive."""
    living = {process: birth(process.pid) for process in processes}
    # SIGINT is PostgreSQL's fast shutdown; Valkey and the stores end on it as well.
    for number in (signal.SIGINT, signal.SIGKILL):
        for process in living:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
                process.resume()  # it may have been frozen
        if wait_until(
            lambda: not any(birth(p.pid) == born for p, born in living.items()), patience_s
        ):
            return


def remove(path: Path) -> None:
    """Delete a file, a folder with all that is in it, or a link, but not what that leads to.

    Raises:
        OSError: it cannot be deleted.

    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    path.chmod(0o700)
    for place, folders, _ in os.walk(path):
        for folder in (Path(place, name) for name in folders):
            if not folder.is_symlink():
                folder.chmod(0o700)
    shutil.rmtree(path)


def number(value: object, default: float = 0.0) -> float:
    """A number of a file that may be damaged; the default where it is none, or out of reason."""
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 else default


def _is_secret(value: object) -> bool:
    return isinstance(value, str) and bool(value)


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
