"""Processes of the local engines: find them whatever files say, wait for them, end them."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import psutil

SUPERVISOR = "workshop_lib.services.supervisor"
NAMES = ("postgres", "initdb", "valkey-server", "rclone", "python")
"""How the names of processes begin that may be ours; only those are looked at more closely."""


class Found(NamedTuple):
    """The processes of a state folder. Each supervisor is two: itself, and its watchdog."""

    supervisors: list[psutil.Process]
    engines: list[psutil.Process]


def find_processes(folder: Path, homes: set[str], data: set[str]) -> Found:
    """Find the processes of a state folder, as the system knows them.

    Args:
        folder: named on the supervisor's command line.
        homes: the HOME of engines and of programs that prepare one.
        data: the working directories of PostgreSQL's helpers, which overwrite their environment.

    """
    found = Found([], [])
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            name = process.name().lower()
            if not name.startswith(NAMES) or not is_alive(process):
                continue
            if process.cmdline()[2:4] == [SUPERVISOR, str(folder)]:
                found.supervisors.append(process)
            elif process.environ().get("HOME") in homes or (
                name == "postgres" and process.cwd() in data
            ):
                found.engines.append(process)
    return found


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs. A process that has ended but was not reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def end_processes(
    processes: Iterable[psutil.Process],
    first: signal.Signals = signal.SIGINT,
    patience_s: float = 2.0,
) -> None:
    """End processes politely, then firmly; return when none is alive.

    Args:
        processes: which; they may be frozen.
        first: the polite signal. SIGINT is PostgreSQL's fast shutdown; the others end on it, too.
        patience_s: how long they have after each signal.

    """
    living = list(processes)
    for number in (first, signal.SIGKILL):
        for process in living:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
                process.resume()
        if wait_until(lambda: not any(map(is_alive, living)), patience_s):
            return


def wait_until(condition: Callable[[], object], seconds: float, step_s: float = 0.02) -> bool:
    """Check repeatedly until the condition holds. Returns whether it did in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(step_s)
    return True
