"""After every drill: no process, key, schema or file that was not there before."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result

from workshop_lib import Workshop
from workshop_lib.cli import main
from workshop_lib.services.processes import is_alive, wait_until

SOON_S = 30.0
"""What is ending may take so long."""


Around = dict[str, Counter[str]]


def look_around(workshop: Workshop, folder: Path) -> Around:
    """What there is beside this process: how many of each.

    Processes by name, as what is killed is replaced; an engine's own helpers do not count.
    """
    processes: Counter[str] = Counter()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            parent, words = process.parent(), process.cmdline()
            helper = parent and parent.name() == process.name() == "postgres"
            # Python's own tracker of resources ends with this process.
            if is_alive(process) and not helper and "resource_tracker" not in " ".join(words):
                processes[" ".join([process.name(), *words[1:3]])[:60]] += 1
    schemas = workshop.database.query("SELECT nspname FROM pg_namespace")
    return {
        "processes": processes,
        "schemas": Counter(name for (name,) in schemas),
        "keys": Counter(workshop.valkey.scan_iter()),
        "temporary files": Counter(path.name for path in folder.iterdir()),
    }


@pytest.fixture(scope="session")
def command() -> Callable[..., Result]:
    """Runs the command in this process: it never ends in a traceback."""

    def run(*words: str) -> Result:
        before = signal.getsignal(signal.SIGTERM)
        done = CliRunner().invoke(main, list(words), prog_name="workshop")
        signal.signal(signal.SIGTERM, before)
        assert isinstance(done.exception, SystemExit | None), done.exception
        assert "Traceback" not in done.output
        return done

    return run


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

    def come_since(before: Around) -> Around:
        now = look_around(shared, temporary)
        return {kind: now[kind] - before[kind] for kind in now if now[kind] - before[kind]}

    @contextlib.contextmanager
    def leaving_nothing() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", str(temporary))
            patch.setattr(tempfile, "tempdir", str(temporary))
            before = look_around(shared, temporary)
            yield
            wait_until(lambda: not come_since(before), SOON_S)
            assert come_since(before) == {}

    return leaving_nothing


@pytest.fixture(autouse=True)
def nothing_left(drill: Callable[[], contextlib.AbstractContextManager[None]]) -> Iterator[None]:
    """Compare what is there before and after each."""
    with drill():
        yield
