"""Ctrl-C and `kill`: the first one interrupts, and what it began is finished undisturbed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def one_interrupt() -> Iterator[None]:
    """Hear one Ctrl-C (or `kill`) in a command, and no other until the command has ended.

    An impatient second one would lose the report, and leave rows behind.
    """
    before = _heard()

    def hear(number: int, frame: FrameType | None) -> NoReturn:
        del number, frame
        for one in before:
            signal.signal(one, signal.SIG_IGN)
        before.clear()
        raise KeyboardInterrupt

    for number in before:
        signal.signal(number, hear)
    try:
        yield
    finally:
        _restore(before)  # nothing, if one came: what follows is the end of the command


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Hear no Ctrl-C meanwhile: for what must be finished."""
    before = _heard()
    for number in before:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        _restore(before)


@contextlib.contextmanager
def out_of_hearing() -> Iterator[None]:
    """Threads and processes begun meanwhile never get a Ctrl-C, which a terminal sends to all."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heard() -> dict[signal.Signals, Any]:
    """Who answers those signals that Python answers; nobody, outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in SIGNALS}
    return {number: handler for number, handler in found.items() if callable(handler)}


def _restore(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
