"""Attach to this checkout's local engines, starting them if need be; list, stop and delete them."""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil

from workshop_lib.errors import EngineError
from workshop_lib.paths import CHECKOUT
from workshop_lib.services.engines import EngineState, make_engine
from workshop_lib.services.state import (
    KEEPER,
    StateFolder,
    birth,
    end_processes,
    log_tail,
    number,
    remove,
    wait_until,
)
from workshop_lib.settings import Settings

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
        """Release the engines. The keeper stops them when no process uses them.

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
    with folder.locked(), folder.usable():
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
    attempt = max(_attempt(folder, folder.wanted_file), _attempt(folder, folder.state_file)) + 1
    folder.write(folder.wanted_file, {**wanted, "attempt": attempt})
    return attempt


def acknowledged(folder: StateFolder, attempt: int) -> bool:
    """Whether the keeper has heard of a request."""
    return _attempt(folder, folder.state_file) >= attempt


def _attempt(folder: StateFolder, file: Path) -> int:
    return int(number(folder.read(file).get("attempt")))


def reports(folder: StateFolder) -> dict[str, EngineState]:
    """What the keeper last said of each engine, by name; nothing where its file is damaged."""
    found = folder.read(folder.state_file).get("engines")
    with contextlib.suppress(msgspec.ValidationError):
        return msgspec.convert(found, dict[str, EngineState])
    return {}


def status(folder: StateFolder) -> EngineStatus:
    """What runs now and who uses it. Starts nothing."""
    keeper = folder.keeper()
    return EngineStatus(
        folder=folder.path,
        keeper_pid=keeper.pid if keeper else None,
        engines=list(reports(folder).values()) if keeper else [],
        users=[f"{lease.get('command')} (pid {lease['pid']})" for lease in folder.live_leases()],
        private=[one for folder in folder.private_folders if (one := status(folder)).keeper_pid],
    )


def stop(folder: StateFolder) -> bool:
    """Stop the engines now, even while they are in use. Returns whether any were running.

    Raises:
        EngineError: they could not be stopped.

    """
    if not folder.ours:
        return False
    stopped, made = [stop(private) for private in folder.private_folders], folder.folders_made
    with folder.locked(), folder.usable():
        return (not _vanished(folder, made) and _end_keeper(folder)) or any(stopped)


def reset(folder: StateFolder) -> bool:
    """Stop the engines and delete their data, passwords and logs.

    Returns:
        Whether there were any; what the workshop did not make is left alone.

    Raises:
        EngineError: they could not be stopped or deleted.

    """
    if not folder.ours:
        return False
    for private in folder.private_folders:
        reset(private)
    made = folder.folders_made
    with folder.locked(), folder.usable():
        if not _vanished(folder, made):
            _end_keeper(folder)
            folder.delete()
    return True


def wait_gone(folder: StateFolder, seconds: float = 20.0) -> bool:
    """Wait for the keeper to leave once the engines have no users.

    Returns:
        True if it has left; False, at once, while others use them or they stay idle for a time.

    """
    for private in folder.private_folders:
        wait_gone(private, seconds)
    keeper = folder.keeper()
    if keeper is not None:
        # The process, not what its file says: it deletes a temporary folder last of all.
        born = birth(keeper.pid)
        wait_until(lambda: birth(keeper.pid) != born or _stays(folder), seconds)
    return folder.keeper() is None


def _stays(folder: StateFolder) -> bool:
    """Whether the keeper has reason to: a user, or an idle time that has not passed."""
    until = number(folder.read(folder.state_file).get("stays_until"))
    return bool(folder.live_leases()) or until > time.monotonic()


class _KeeperGoneError(EngineError):
    """The keeper was there a moment ago and is not any more."""


def _bring_up(folder: StateFolder, names: list[str], cache_mb: int) -> dict[str, EngineState]:
    """Have a keeper bring the engines up; a second one if the first was dying when we came."""
    for last_try in (False, True):
        # A keeper whose state file was damaged writes it anew.
        if not folder.keeper() and not (folder.processes() and wait_until(folder.keeper, 1.0)):
            _end_keeper(folder)
            _start_keeper(folder)
        try:
            return _wait_for(folder, names, cache_mb)
        except _KeeperGoneError:
            if last_try:
                raise
    raise AssertionError("unreachable")


def _vanished(folder: StateFolder, made: int) -> bool:
    """Whether a temporary folder went with its keeper before we got its lock."""
    if folder.ours:
        return False
    folder.let_go(made)
    return True


def _end_keeper(folder: StateFolder) -> bool:
    found = folder.processes()
    for keeper in (process for process in found if KEEPER in _words(process)):
        born = birth(keeper.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            keeper.terminate()
            keeper.resume()  # it may have been frozen
            # Not keeper.wait(): its parent may not have reaped it, and a zombie has ended, too.
            if not wait_until(lambda k=keeper, b=born: birth(k.pid) != b, 30):
                keeper.kill()
    # What a killed keeper and a killed guard have left behind.
    end_processes(folder.processes())
    remove(folder.state_file)
    return bool(found)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _wait_for(folder: StateFolder, names: list[str], cache_mb: int) -> dict[str, EngineState]:
    attempt = set_wanted(folder, **dict.fromkeys(names, True), cache_mb=cache_mb)
    if keeper := folder.keeper():
        with contextlib.suppress(psutil.Error):
            keeper.resume()  # it may have been frozen
    end = time.monotonic() + ATTACH_S
    up_since: dict[str, float] = {}
    while time.monotonic() < end:
        found = reports(folder)
        asked = {name: found.get(name, EngineState(name, "down")) for name in names}
        if acknowledged(folder, attempt):
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
    return engine.admits()


def _start_keeper(folder: StateFolder) -> None:
    remove(folder.wanted_file)
    folder.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder.logs / "keeper.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", KEEPER, str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=CHECKOUT,
            # It outlives the shell that it was started from, so it takes little from it.
            env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        )
    started = wait_until(lambda: process.poll() is not None or folder.keeper(), KEEPER_S)
    if not started or process.poll() is not None:
        raise EngineError(
            "The local engines' keeper did not start. Its log "
            f"({folder.logs / 'keeper.log'}):\n{log_tail(folder.logs / 'keeper.log')}"
        )
    # The keeper may outlive this process; if it does not, somebody has to take note of its end.
    threading.Thread(target=process.wait, name="keeper", daemon=True).start()


def _command() -> str:
    """What to call this process in `workshop status`."""
    if "ipykernel" in sys.modules:
        return "a notebook"
    program, *words = sys.argv or ["python"]
    name = "workshop" if "workshop" in program else Path(program).name or "python"
    return " ".join([name, *words[:1]])[:60]
