"""Ctrl-C and `kill`: the first one interrupts, and what it began is finished undisturbed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def one_interrupt() -> Iterator[None]:
    """Hear one Ctrl-C (or `kill`) in a command, and no other until the command has ended.

    An impatient second one would lose the report, and leave rows behind.
    """

    def hear(_number: int, _frame: FrameType | None) -> NoReturn:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    with _handlers(lambda _: hear):
        yield


@contextlib.contextmanager
def interrupt_event() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets meanwhile, in place of raising KeyboardInterrupt."""
    event = threading.Event()

    def instead(before: Callable[..., Any]) -> Callable[..., None]:
        def hear(number: int, frame: FrameType | None) -> None:
            with contextlib.suppress(KeyboardInterrupt):
                before(number, frame)
            event.set()

        return hear

    with _handlers(instead):
        yield event


def ignore_signals() -> contextlib.AbstractContextManager[None]:
    """Hear no Ctrl-C meanwhile: for what must be finished."""
    return _handlers(lambda _: signal.SIG_IGN)


@contextlib.contextmanager
def _handlers(instead: Callable[[Callable[..., Any]], Any]) -> Iterator[None]:
    """Other handlers of those signals that Python answers, if this is the main thread.

    One that another has replaced meanwhile is left: a command that is at its end hears nothing.
    """
    changed = {}
    for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
        old = signal.getsignal(number)
        if callable(old):
            changed[number] = old, instead(old)
            signal.signal(number, changed[number][1])
    try:
        yield
    finally:
        for number, (old, new) in changed.items():
            if signal.getsignal(number) is new:
                signal.signal(number, old)
