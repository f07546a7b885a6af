"""Ctrl-C and `kill`: the first one interrupts, and what it began is finished undisturbed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def one_interrupt(*, times: int = 1, last: bool = True) -> Iterator[None]:
    """Hear one Ctrl-C (or `kill`) in this block, and no other.

    An impatient second one would lose the report, and leave rows behind.

    Args:
        times: how many are heard; 0 for what must be finished.
        last: the process ends after this, and after an interrupt it hears none even then.

    """
    heard = 0
    before: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard += 1
        if heard <= times:
            before[number](number, frame)

    for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
        old = signal.getsignal(number)
        if callable(old):  # else Python does not answer it
            before[number] = old
            signal.signal(number, hear)
    try:
        yield
    finally:
        for changed, old in before.items():
            if not (last and heard):
                signal.signal(changed, old)
