"""Processes: whether they live, waiting for them, ending them."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterable

import psutil


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
