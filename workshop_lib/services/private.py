"""Engines that one notebook has to itself: to reconfigure, stop and freeze, disturbing nobody."""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import psutil

from workshop_lib.errors import EngineError
from workshop_lib.services import embedded
from workshop_lib.services.embedded import Attachment
from workshop_lib.services.endpoints import (
    CacheEndpoint,
    DatabaseEndpoint,
    embedded_cache,
    embedded_database,
)
from workshop_lib.services.engines import EngineState
from workshop_lib.services.state import (
    PRIVATE,
    StateFolder,
    find_process,
    remove,
    state_folder,
    wait_until,
)
from workshop_lib.settings import Settings

T = TypeVar("T", DatabaseEndpoint, CacheEndpoint)

CHANGE_S = 15.0
GONE_S = 4.0
"""How long closing waits; the keeper goes on by itself if it needs longer."""


@dataclass(frozen=True, slots=True)
class PrivateEngines:
    """Local engines in a temporary state folder with a keeper of its own.

    They end when `close` is called or the process that opened them ends, however it does; their
    keeper deletes the folder.

    Attributes:
        database: where PostgreSQL is, if it was asked for.
        caches: where each Valkey is.

    """

    attachment: Attachment
    database: DatabaseEndpoint | None
    caches: tuple[CacheEndpoint, ...]

    def stop(self, name: str) -> None:
        """End an engine; open connections to it break.

        Raises:
            EngineError: it could not be ended.

        """
        self._ask(name, wanted=False)
        if not wait_until(lambda: self._report(name).status == "down", CHANGE_S):
            raise EngineError(
                f"The private {name} could not be stopped within {CHANGE_S:.0f} s. Run the cell "
                "that opens the sandbox again."
            )

    def start(self, name: str) -> None:
        """Start an engine again, where it was.

        Raises:
            EngineError: it did not come up, or its port was taken meanwhile.

        """
        before = self.attachment.engines[name].port
        self._ask(name, wanted=True)
        wait_until(lambda: self._report(name).status in {"up", "failed"}, CHANGE_S)
        report = self._report(name)
        if report.status != "up" or report.port != before:
            reason = report.message or f"its port {before} is taken"
            raise EngineError(
                f"The private {name} did not come back: {reason}. Run the cell that opens the "
                "sandbox again."
            )

    def freeze(self, name: str) -> None:
        """Halt an engine's process: it keeps its connections and answers nothing."""
        self._signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let a halted engine go on. One that is not halted is left alone."""
        self._signal(name, signal.SIGCONT)

    def close(self) -> None:
        """End the engines and delete what they wrote. Doing it twice is harmless."""
        self.attachment.release()
        embedded.wait_gone(self.attachment.folder, GONE_S)

    def _ask(self, name: str, *, wanted: bool) -> None:
        """Tell the keeper, and wait until it has heard.

        Raises:
            EngineError: the sandbox is closed.

        """
        folder = self.attachment.folder
        if not folder.ours or folder.keeper() is None:
            raise EngineError(
                "This sandbox is closed, and its engines have ended. Run the cell that opens it "
                "again."
            )
        attempt = embedded.set_wanted(folder, **{name: wanted})
        wait_until(lambda: embedded.acknowledged(folder, attempt), CHANGE_S)

    def _report(self, name: str) -> EngineState:
        return embedded.reports(self.attachment.folder).get(name, EngineState(name, "down"))

    def _signal(self, name: str, number: signal.Signals) -> None:
        report = self._report(name)
        if process := find_process(report.pid, report.created):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def open_private(settings: Settings, *, database: bool, caches: int) -> PrivateEngines:
    """Start engines for this process alone, whatever services the workshop uses elsewhere.

    Args:
        settings: for the place of the state folder and the caches' memory.
        database: whether to start a PostgreSQL.
        caches: how many Valkeys.

    Raises:
        EngineError: they did not come up; nothing is left of them.

    """
    home = state_folder(settings.workshop_state_dir)
    home.prepare()
    valkeys = ["valkey" if n == 0 else f"valkey-{n + 1}" for n in range(caches)]
    names = [*(["postgres"] if database else []), *valkeys]
    # No lingering: whatever ends this process, the keeper ends the engines then.
    brief = settings.model_copy(update={"workshop_linger_seconds": 0.0})
    with _swept(home) as base:
        folder = StateFolder(Path(tempfile.mkdtemp(dir=base)))
        try:
            folder.prepare(temporary=True)
            held = embedded.attach(folder, names, brief)
        except BaseException:
            embedded.reset(folder)
            raise
    return PrivateEngines(
        attachment=held,
        database=_own(embedded_database(held, settings.dsql_rules)) if database else None,
        caches=tuple(_own(embedded_cache(held, name)) for name in valkeys),
    )


@contextmanager
def _swept(home: StateFolder) -> Iterator[Path]:
    """The folder for private state folders, locked, without those whose keeper was killed."""
    base = home.path / PRIVATE
    if not base.is_dir():
        with home.usable():
            remove(base)
            base.mkdir(mode=0o700, exist_ok=True)
    with StateFolder(base).locked():
        for old in home.private_folders:
            if old.keeper() is None and not old.live_leases():
                embedded.reset(old)
        yield base


def _own(endpoint: T) -> T:
    """Say whose it is; and that nobody restarts it, so that nobody waits for that."""
    return replace(endpoint, label=f"{endpoint.label}, this notebook's own", embedded=False)
