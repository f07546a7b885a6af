"""An Interrupt ends the statement that the main thread waits for, in the database as well.

psycopg2 waits in C, where Python handles no signal. The signal's number does arrive at a file
descriptor (signal.set_wakeup_fd), and a thread that listens there has the server cancel the
statement. It is listened to only while the main thread waits for a connection of the workshop's.

psycopg2 loses an Interrupt that comes in the moment in which it decodes a notice of the server,
such as that a table is there already. What the workshop itself creates it therefore asks for first.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from itertools import count
from types import FrameType
from typing import Any, TypeVar

import psycopg2

from workshop_lib import forks

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CONNECT_S = 2
AGAIN_S = 0.1
GIVE_UP_S = 2.0
"""After so long without an end, seconds, the connection is broken off: the server is silent."""
_raised = 0
"""How many interrupts `one_interrupt` has heard."""


def interruptible(connection: Any, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Do something that waits for a database, and have an Interrupt end it.

    Args:
        connection: the one that is waited for; its `arguments` say how to open another.
        call: what to do, with the arguments that follow.

    """
    if threading.get_ident() != threading.main_thread().ident:
        return call(*args, **kwargs)
    watch = _watch()
    try:  # the Interrupt may come at any line of this
        before = signal.set_wakeup_fd(watch.fileno, warn_on_full_buffer=False)
        watch.before = before if before != watch.fileno else watch.before
        watch.waiting, so_far = [connection], _raised
        answer = call(*args, **kwargs)
        if _raised != so_far:  # lost (see above), and a command hears no second one
            raise KeyboardInterrupt
        return answer
    finally:
        watch.waiting = None
        signal.set_wakeup_fd(watch.before)


@cache
def _watch() -> _Watch:
    watch = _Watch()
    forks.tell_child(watch)
    return watch


class _Watch:
    """The thread that is told of signals."""

    def __init__(self) -> None:
        self.before = -1
        self.waiting: list[Any] | None = None
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self.fileno = self._sender.fileno()
        threading.Thread(target=self._listen, name="interrupts", daemon=True).start()

    def _after_fork(self) -> None:
        """Signals to the child do not concern the parent's thread."""
        if self.waiting is not None:
            signal.set_wakeup_fd(self.before)
        self._receiver.close()
        self._sender.close()
        _watch.cache_clear()

    def _listen(self) -> None:
        while numbers := self._receiver.recv(64):
            waiting = self.waiting
            if self.before >= 0:
                with suppress(OSError):
                    os.write(self.before, numbers)
            # Another handler may not want what runs to end.
            ends = signal.getsignal(signal.SIGINT) is signal.default_int_handler
            if waiting is not None and ends and signal.SIGINT in numbers:
                self._end(waiting)

    def _end(self, waiting: list[Any]) -> None:
        """Cancel the statement; again, as the first time may be before it has begun.

        Not by psycopg2's cancel(): it stops all of Python until the server answers. If it does not
        answer, the connection is broken off.
        """
        (connection,) = waiting
        end = time.monotonic() + GIVE_UP_S
        place = {**connection.arguments, "connect_timeout": CONNECT_S}
        with (
            suppress(psycopg2.Error),
            closing(psycopg2.connect(**place)) as other,
            other.cursor() as cursor,
        ):
            other.autocommit = True
            while self.waiting is waiting and time.monotonic() < end:
                cursor.execute("SELECT pg_cancel_backend(%s)", (connection.info.backend_pid,))
                time.sleep(AGAIN_S)
        if self.waiting is waiting:
            with suppress(psycopg2.Error, OSError):
                line = socket.socket(fileno=os.dup(connection.fileno()))
                with line:
                    line.shutdown(socket.SHUT_RDWR)


@contextmanager
def one_interrupt(*, times: int = 1, last: bool = True) -> Iterator[None]:
    """Hear one Ctrl-C (or `kill`, or closed terminal) in this block, and no other.

    An impatient second one would lose what the first lets finish: a report, a clean-up.

    Args:
        times: how many are heard; 0 for what must be finished.
        last: the process ends after this, which is said, and after an interrupt it hears none even
            then.

    """
    numbers = count(1)  # of the interrupts; the next may come while one is answered
    before: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def hear(number: int, frame: FrameType | None) -> None:
        global _raised  # noqa: PLW0603 -- a signal's handler has no other way to tell
        heard = next(numbers)
        if heard == times and last:
            with suppress(OSError):
                os.write(2, b"Interrupted. Clearing up, which can take a while ...\n")
        if heard <= times:
            _raised += 1
            before[number](number, frame)

    for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
        old = signal.getsignal(number)
        if callable(old):  # else Python does not answer it
            before[number] = old
            signal.signal(number, hear)
    try:
        yield
    finally:
        any_heard = next(numbers) > 1
        for changed, old in before.items():
            # Ignored, and not by a function of ours: Python takes those away before it ends.
            signal.signal(changed, signal.SIG_IGN if last and any_heard else old)
