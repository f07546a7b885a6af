"""Attach to this checkout's local engines, starting them if need be; list, stop and delete them."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from workshop_lib.errors import EngineError
from workshop_lib.services.engines import EngineState, make_engine
from workshop_lib.services.state import (
    StateFolder,
    find_process,
    log_tail,
    wait_until,
)
from workshop_lib.settings import CHECKOUT, Settings

ATTACH_S = 75.0
KEEPER_S = 20.0
FROZEN_S = 8.0


@dataclass(frozen=True, slots=True)
class Attachment:
    """This process's hold on the local engines.

    Attributes:
        engines: the engines that were asked for, by name, all of them up.
        secrets: their passwords.

    """

    folder: StateFolder
    lease: Path
    engines: dict[str, EngineState]
    secrets: dict[str, str] = field(repr=False)
    _pid: int = field(default_factory=os.getpid, repr=False)

    def release(self) -> None:
        """Let go. The keeper ends the engines when nobody holds them any more.

        In a process that was forked since then it does nothing: the hold is the parent's.
        """
        if self._pid == os.getpid():
            self.lease.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What `workshop status` shows; in `private` the same of sandboxes."""

    folder: Path
    keeper_pid: int | None
    engines: list[EngineState]
    users: list[str]
    private: list[EngineStatus]


def attach(folder: StateFolder, names: Iterable[str], settings: Settings) -> Attachment:
    """Have these engines running and keep them so until `release`.

    Args:
        folder: whose engines.
        names: of "postgres", "valkey", "s3", "aws".
        settings: for the cache's memory and the linger time.

    Raises:
        EngineError: an engine did not come up, or the state folder cannot be used.

    """
    names = list(names)
    folder.prepare()
    with folder.locked():
        secrets = folder.secrets()
        lease = folder.take_lease(_command(), settings.workshop_linger_seconds)
        try:
            engines = _bring_up(folder, names, settings.workshop_cache_mb)
        except BaseException:
            lease.unlink(missing_ok=True)
            raise
    attachment = Attachment(folder, lease, engines, secrets)
    atexit.register(attachment.release)
    return attachment


def set_wanted(folder: StateFolder, **changes: Any) -> int:
    """Tell the keeper what should run. Returns the number of this request.

    Args:
        folder: whose engines.
        changes: engine names with True or False, and `cache_mb`.

    """
    wanted = {**folder.read(folder.wanted_file), **changes}
    wanted["attempt"] = int(wanted.get("attempt", 0)) + 1
    folder.write(folder.wanted_file, wanted)
    return int(wanted["attempt"])


def reports(folder: StateFolder) -> dict[str, EngineState]:
    """What the keeper last said of each engine, by name."""
    found = folder.read(folder.state_file).get("engines", {})
    return {name: EngineState(**report) for name, report in found.items()}


def status(folder: StateFolder) -> EngineStatus:
    """What runs now and who uses it. Starts nothing."""
    keeper = folder.keeper()
    return EngineStatus(
        folder=folder.path,
        keeper_pid=keeper.pid if keeper else None,
        engines=list(reports(folder).values()) if keeper else [],
        users=[f"{lease['command']} (pid {lease['pid']})" for lease in folder.live_leases()],
        private=[one for folder in folder.private_folders if (one := status(folder)).keeper_pid],
    )


def stop(folder: StateFolder) -> bool:
    """End the engines now, whoever uses them. Returns whether any were running.

    Raises:
        EngineError: they could not be stopped.

    """
    if not folder.ours:
        return False
    stopped = [stop(private) for private in folder.private_folders]
    with folder.locked():
        return (not _vanished(folder) and _end_keeper(folder)) or any(stopped)


def reset(folder: StateFolder) -> bool:
    """Stop the engines and delete their data, passwords and logs.

    Returns:
        Whether there were any; a folder that the workshop did not make is left alone.

    """
    if not folder.ours:
        return False
    for private in folder.private_folders:
        reset(private)
    with folder.locked():
        if not _vanished(folder):
            _end_keeper(folder)
            folder.delete()
    return True


def wait_gone(folder: StateFolder, seconds: float = 20.0) -> bool:
    """Wait for the keeper to leave once nobody uses the engines.

    Returns:
        True if it has left; False, at once, while somebody else still uses them.

    """
    for private in folder.private_folders:
        wait_gone(private, seconds)
    keeper = folder.keeper()
    if keeper is not None:
        # The process, not what its file says: it deletes a temporary folder last of all.
        created = keeper.create_time()
        wait_until(
            lambda: find_process(keeper.pid, created) is None or bool(folder.live_leases()), seconds
        )
    return folder.keeper() is None


class _KeeperGoneError(EngineError):
    """The keeper was there a moment ago and is not any more."""


def _bring_up(folder: StateFolder, names: list[str], cache_mb: int) -> dict[str, EngineState]:
    """Have a keeper bring the engines up; a second one if the first was dying when we came."""
    for last_try in (False, True):
        if folder.keeper() is None:
            _clear_remains(folder)
            _start_keeper(folder)
        try:
            return _wait_for(folder, names, cache_mb)
        except _KeeperGoneError:
            if last_try:
                raise
    raise AssertionError("unreachable")


def _vanished(folder: StateFolder) -> bool:
    """Whether a temporary folder went with its keeper before we got its lock."""
    if folder.ours:
        return False
    folder.let_go()
    return True


def _end_keeper(folder: StateFolder) -> bool:
    keeper = folder.keeper()
    if keeper is not None:
        created = keeper.create_time()
        keeper.terminate()
        # Not keeper.wait(): its parent may not have reaped it, and a zombie has ended, too.
        if not wait_until(lambda: find_process(keeper.pid, created) is None, 30):
            keeper.kill()
    found = _clear_remains(folder)
    return keeper is not None or found


def _wait_for(folder: StateFolder, names: list[str], cache_mb: int) -> dict[str, EngineState]:
    attempt = set_wanted(folder, **dict.fromkeys(names, True), cache_mb=cache_mb)
    end = time.monotonic() + ATTACH_S
    up_since: dict[str, float] = {}
    while time.monotonic() < end:
        found = reports(folder)
        asked = {name: found.get(name, EngineState(name, "down")) for name in names}
        if folder.read(folder.state_file).get("attempt", 0) >= attempt:
            for report in asked.values():
                if report.status == "failed":
                    raise EngineError(report.message)
            silent = [r for r in asked.values() if r.status != "up" or not _answers(folder, r)]
            if not silent:
                return asked
            _refuse_frozen(silent, up_since)
        if folder.keeper() is None:
            raise _KeeperGoneError(
                "The local engines' keeper ended while they were starting. The end of its log "
                f"({folder.logs / 'keeper.log'}):\n{log_tail(folder.logs / 'keeper.log')}"
            )
        time.sleep(0.02)
    raise EngineError(
        f"The local engines did not come up within {ATTACH_S:.0f} s. `workshop status` shows "
        f"them; their logs are in {folder.logs}."
    )


def _refuse_frozen(silent: list[EngineState], up_since: dict[str, float]) -> None:
    """Give up on an engine that runs and does not answer."""
    now = time.monotonic()
    for report in silent:
        if report.status == "up" and now - up_since.setdefault(report.name, now) > FROZEN_S:
            raise EngineError(
                f"{report.name} runs (pid {report.pid}) but has not answered for {FROZEN_S:.0f} s. "
                "`workshop stop` ends it; the next opening starts it again."
            )


def _answers(folder: StateFolder, report: EngineState) -> bool:
    """Ask the engine itself: the keeper may not have noticed yet that it was killed."""
    engine = make_engine(report.name, folder)
    engine.port = report.port
    return engine.answers()


def _start_keeper(folder: StateFolder) -> None:
    folder.wanted_file.unlink(missing_ok=True)
    folder.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder.logs / "keeper.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "workshop_lib.services.keeper", str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=CHECKOUT,
        )
    started = wait_until(lambda: process.poll() is not None or folder.keeper(), KEEPER_S)
    if not started or process.poll() is not None:
        raise EngineError(
            "The local engines' keeper did not start. Its log "
            f"({folder.logs / 'keeper.log'}):\n{log_tail(folder.logs / 'keeper.log')}"
        )
    # The keeper may outlive this process; if it does not, somebody has to take note of its end.
    threading.Thread(target=process.wait, name="keeper", daemon=True).start()


def _clear_remains(folder: StateFolder) -> bool:
    """Stop what a killed keeper and a killed guard left behind. Returns whether there was any."""
    remains = [find_process(report.pid, report.created) for report in reports(folder).values()]
    living = [process for process in remains if process]
    for process in living:
        process.terminate()
    _, stubborn = psutil.wait_procs(living, timeout=10)
    for process in stubborn:
        process.kill()
    psutil.wait_procs(stubborn, timeout=5)
    folder.state_file.unlink(missing_ok=True)
    return bool(living)


def _command() -> str:
    """What to call this process in `workshop status`."""
    if "ipykernel" in sys.modules:
        return "a notebook"
    program, *words = sys.argv or ["python"]
    name = "workshop" if "workshop" in program else Path(program).name or "python"
    return " ".join([name, *words[:1]])[:60]
