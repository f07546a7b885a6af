"""After every drill: no process, session, key, schema or file that was not there before."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from workshop_lib import Workshop
from workshop_lib.services.processes import wait_until

SOON_S = 30.0
"""What is ending may take so long."""


@dataclass(frozen=True)
class Around:
    """What there is beside this process: how many of each, or which."""

    processes: Counter[str]
    sessions: set[int]
    schemas: set[str]
    keys: set[bytes]
    files: set[str]

    def beyond(self, before: Around) -> dict[str, object]:
        """What has come since."""
        found: dict[str, object] = {
            "processes": dict(self.processes - before.processes),
            "sessions of other processes": self.sessions - before.sessions,
            "schemas": self.schemas - before.schemas,
            "keys": self.keys - before.keys,
            "temporary files": self.files - before.files,
        }
        return {what: more for what, more in found.items() if more}


def look_around(workshop: Workshop, folder: Path) -> Around:
    """By name, as what is killed is replaced; an engine's own helpers are its own affair."""
    processes: Counter[str] = Counter()
    for process in psutil.Process().children(recursive=True):
        try:
            parent = process.parent()
            if process.status() == psutil.STATUS_ZOMBIE or (
                process.name() == "postgres" and parent and parent.name() == "postgres"
            ):
                continue
            words = process.cmdline()
            if any("resource_tracker" in word for word in words):
                continue  # Python's own; it ends with this process
            processes[" ".join([process.name(), *words[1:3]])[:60]] += 1
        except psutil.Error:
            continue
    mine = {c.laddr.port for c in psutil.Process().net_connections("tcp") if c.laddr}
    ask = "SELECT pid, client_port FROM pg_stat_activity WHERE client_port IS NOT NULL"
    return Around(
        processes,
        {pid for pid, port in workshop.database.query(ask) if port not in mine},
        {name for (name,) in workshop.database.query("SELECT nspname FROM pg_namespace")},
        set(workshop.valkey.scan_iter()),
        {path.name for path in folder.iterdir()},
    )


@pytest.fixture(scope="session")
def temporary() -> Iterator[Path]:
    """A folder that all drills, and what they start, take for the temporary one.

    Its name is short: the path of a socket may have 100 characters.
    """
    folder = Path(tempfile.mkdtemp(prefix="drill-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def drill(
    shared: Workshop, temporary: Path
) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """For a with block after which nothing is left."""

    @contextlib.contextmanager
    def leaving_nothing() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", str(temporary))
            patch.setattr(tempfile, "tempdir", str(temporary))
            before = look_around(shared, temporary)
            yield
            wait_until(lambda: not look_around(shared, temporary).beyond(before), SOON_S)
            assert look_around(shared, temporary).beyond(before) == {}

    return leaving_nothing


@pytest.fixture(autouse=True)
def nothing_left(drill: Callable[[], contextlib.AbstractContextManager[None]]) -> Iterator[None]:
    """Compare what is there before and after each."""
    with drill():
        yield
