"""The state folder of the local engines: where it is, its passwords, its processes, its end.

Everything in it is the workshop's: below a folder that the user names it is one of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
import psutil
from filelock import FileLock

from workshop_lib.errors import EngineError
from workshop_lib.paths import APPLICATION, HOME, replace_file
from workshop_lib.services.processes import end_processes, is_alive

NAME = f"{APPLICATION}-engines"
"""The state folder's name in a folder that the user has named."""
ROOT_BASE = Path("/var/lib") / APPLICATION
"""Where root keeps state: its home is closed to the user that PostgreSQL has to run as."""
SUPERVISOR = "workshop_lib.services.supervisor"
PROGRAMS = ("postgres", "initdb", "valkey-server", "rclone", "python")
"""How the names of processes begin that may be ours; only those are looked at more closely."""
LOCK = "lock"
LOCK_WAIT_S = 60.0
SECRETS = ("owner", "admin", "valkey", "s3_key", "s3_secret", "identity")
"""The last one opens nothing: it names these engines in cache keys."""


class Found(NamedTuple):
    """The processes of a state folder. Each supervisor is two: itself, and its watchdog."""

    supervisors: list[psutil.Process]
    engines: list[psutil.Process]


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Paths below one state folder, and the only readers and writers of the files in it."""

    path: Path

    @property
    def address_file(self) -> Path:
        """The supervisor's port, and the key by which it and its clients know each other."""
        return self.path / "supervisor.json"

    @property
    def ports_file(self) -> Path:
        """The engines' ports: at the same ones, open connection pools recover by themselves."""
        return self.path / "ports.json"

    @property
    def logs(self) -> Path:
        """The engines' output, and the supervisor's."""
        return self.path / "logs"

    @property
    def supervisor_log(self) -> Path:
        """The supervisor's output."""
        return self.logs / "supervisor.log"

    @property
    def certificate(self) -> Path:
        """The local DSQL's certificate authority, for clients; key.pem is in the same folder."""
        return self.path / "dsql" / "ca.pem"

    @property
    def postgres_data(self) -> Path:
        """PostgreSQL's data directory. Root's is where the unprivileged user can enter."""
        if os.geteuid() == 0:
            return ROOT_BASE / "postgres" / _short_hash(self.path)
        return self.path / "postgres"

    @property
    def sandboxes(self) -> list[StateFolder]:
        """The state folders of sandboxes, inside this one."""
        base = self.path / "sandboxes"
        if base.is_symlink() or not base.is_dir():
            return []
        return [StateFolder(path) for path in base.iterdir() if path.is_dir()]

    @property
    def ours(self) -> bool:
        """Whether it is there, and this user's: only then is anything in it changed or deleted."""
        try:
            found = self.path.lstat()
        except OSError:
            return False
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()

    def prepare(self) -> None:
        """Create the folder, closed to others.

        Raises:
            EngineError: the disk refuses it, or it is another user's.

        """
        with self.usable():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.ours:
                raise EngineError(
                    f"The state folder {self.path} belongs to another user. "
                    "Name a folder of your own in WORKSHOP_STATE_DIR."
                )
            self.path.chmod(0o700)
            if not any(self.path.iterdir()):
                self.delete_data()  # root's, of a state folder that was deleted by hand
            self.logs.mkdir(mode=0o700, exist_ok=True)

    def new_sandbox(self) -> StateFolder:
        """A state folder for a sandbox, with its own passwords."""
        base = self.path / "sandboxes"
        base.mkdir(mode=0o700, exist_ok=True)
        sandbox = StateFolder(Path(tempfile.mkdtemp(dir=base)))
        sandbox.logs.mkdir(mode=0o700)
        return sandbox

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock; the system releases it if this process dies.

        Raises:
            EngineError: another process held it for too long, or the disk refuses something.

        """
        file = self.path / LOCK
        with self.usable():
            if file.is_dir() or file.is_symlink():
                remove(file)
            with FileLock(file, timeout=LOCK_WAIT_S):
                yield

    @contextmanager
    def usable(self) -> Iterator[None]:
        """Turn what the disk refuses into a sentence.

        Raises:
            EngineError: in place of an OSError.

        """
        try:
            yield
        except OSError as error:
            raise EngineError(
                f"The state folder {self.path} cannot be used: {error}. If another process is "
                "starting or stopping the engines, wait for it. If the folder is damaged, "
                "`workshop reset` starts afresh; if it cannot be written, free the disk, or name "
                "another one in WORKSHOP_STATE_DIR."
            ) from None

    def read(self, file: Path) -> dict[str, Any]:
        """The content of one of the folder's JSON files; empty if it is missing or damaged."""
        try:
            content = json.loads(file.read_text()) if file.is_file() else {}
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, file: Path, content: dict[str, Any]) -> None:
        """Replace a file in one step, readable by its owner only."""
        replace_file(file, json.dumps(content), 0o600)

    def secrets(self) -> dict[str, str]:
        """The passwords of this folder's engines, made on first use; never shown or logged."""
        file = self.path / "secrets.json"
        found = self.read(file)
        # Valid ones are kept: PostgreSQL's data was made with its owner's.
        known = {
            name: found[name] if isinstance(found.get(name), str) else secrets.token_hex(20)
            for name in SECRETS
        }
        if known != found:
            self.write(file, known)
        return known

    def processes(self, *, with_sandboxes: bool = True) -> Found:
        """What runs in this folder, whatever its files say: they may be damaged, or stale."""
        folders = (self, *self.sandboxes) if with_sandboxes else (self,)
        homes = {str(folder.path) for folder in folders}
        # PostgreSQL's helpers overwrite their environment, so their working directory tells.
        data = {str(folder.postgres_data) for folder in folders}
        found = Found([], [])
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                name = process.name().lower()
                if not name.startswith(PROGRAMS) or not is_alive(process):
                    continue
                if process.cmdline()[2:4] == [SUPERVISOR, str(self.path)]:
                    found.supervisors.append(process)
                elif process.environ().get("HOME") in homes or (
                    name == "postgres" and process.cwd() in data
                ):
                    found.engines.append(process)
        return found

    def clear(self) -> None:
        """End all engines of this folder, and delete what those of sandboxes wrote.

        This is how engines end, whether their supervisor was told to end or was killed.
        """
        end_processes(self.processes().engines)
        for sandbox in self.sandboxes:
            sandbox.delete_sandbox()

    def delete_sandbox(self) -> None:
        """Delete what this sandbox wrote. What cannot be deleted now is tried again later."""
        with contextlib.suppress(OSError):
            self.delete()

    def delete_data(self) -> None:
        """Delete PostgreSQL's data, and what a first start that was killed has left beside it."""
        data = self.postgres_data
        remove(data)
        remove(data.with_name(f"{data.name}.new"))

    def delete(self) -> None:
        """Remove everything that this folder's engines ever wrote.

        Raises:
            OSError: something cannot be removed.

        """
        self.delete_data()
        for path in self.path.iterdir():
            if path.name != LOCK:
                remove(path)
        with contextlib.suppress(OSError):  # another process may be about to take the lock
            remove(self.path)


def state_folder(chosen: Path | None) -> StateFolder:
    """The state folder of this checkout, or the one in the chosen folder. Nothing is created.

    Raises:
        EngineError: the chosen one cannot be a folder.

    """
    if chosen is None:
        # The parent of the state folders of this user's checkouts.
        base = ROOT_BASE if os.geteuid() == 0 else platformdirs.user_state_path(APPLICATION)
        return StateFolder(base / _short_hash(HOME))
    try:
        # Not Path.expanduser, which refuses the name of a user who does not exist.
        folder = StateFolder(Path(os.path.expanduser(chosen)).resolve() / NAME)  # noqa: PTH111
        folder.path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a byte 0
        raise EngineError(
            f"WORKSHOP_STATE_DIR cannot be {str(chosen)[:100]!r}: {error}. Name another folder."
        ) from None
    return folder


def remove(path: Path) -> None:
    """Delete a file, a folder with all that is in it, or a link, but not what it leads to.

    Raises:
        OSError: it cannot be deleted.

    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def log_tail(file: Path, lines: int = 12) -> str:
    """The last lines of a log, for an error message."""
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])


def _short_hash(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
