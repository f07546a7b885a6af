"""Single-flight: threads of a process that miss a key at the same moment share one load of it.

A reader may only be given what was read from the source, or found in the cache, after the reader
came. So threads can join a flight only until its leader asks the source. Those who come later wait
for the next flight; its leader finds in the cache what this one stored, if that is still valid.

Among processes a lock in the cache decides who loads. It is short-lived, so that a loader that was
killed is soon replaced; a thread of each process renews the locks of slow loads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Flight(Generic[T]):
    """One load of this process, and how it ended.

    Attributes:
        previous: the load of the same key that was under way when this one was opened.
        leader: the thread that loads, by its `threading.get_ident()`.
        done: set when it has ended.
        closed: no thread may join any more.
        joined: how many threads wait for it.
        answer: gives each of them the result, or raises an error. It is handed their own way to
            load, for what cannot be shared. None: the load was interrupted.

    """

    previous: Flight[T] | None = None
    leader: int = field(default_factory=threading.get_ident)
    done: threading.Event = field(default_factory=threading.Event)
    closed: bool = False
    joined: int = 0
    answer: Callable[[Callable[[], T]], T] | None = None


class Flights(Generic[T]):
    """The loads under way in this process, at most one per key that can be joined."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: dict[str, Flight[T]] = {}

    def join(self, key: str) -> tuple[Flight[T] | None, bool]:
        """Join the load of a key that is about to begin, or open a new one.

        Returns:
            The flight, None if this very thread is loading the key already; and whether the caller
            leads it: it has to call `close` before it asks the source, and `land` at the end.

        """
        with self._lock:
            latest = flight = self._latest.get(key)
            while flight is not None:
                if flight.leader == threading.get_ident():
                    return None, False
                flight = flight.previous
            if latest is not None and not latest.closed:
                latest.joined += 1
                return latest, False
            flight = self._latest[key] = Flight(latest)
            return flight, True

    def close(self, flight: Flight[T]) -> None:
        """Let no more threads join: the next one opens a flight of its own, after this one."""
        with self._lock:
            flight.closed = True

    def land(self, key: str, flight: Flight[T]) -> None:
        """End a load, and wake all who wait for it."""
        self.abandon(key, flight)
        flight.previous = None
        flight.done.set()

    def abandon(self, key: str, flight: Flight[T]) -> None:
        """Stop waiting for this load: the next thread opens another without waiting for it."""
        with self._lock:
            flight.closed = True
            if self._latest.get(key) is flight:
                del self._latest[key]


class Renewals:
    """Renews the locks that this process holds.

    Args:
        renew: prolongs the lock on a key, held by a token; False once it is lost.
        every_s: how often, seconds.
        at_most_s: how long after it was taken a lock is renewed at most, seconds.

    """

    def __init__(self, renew: Callable[[str, str], bool], every_s: float, at_most_s: float) -> None:
        self._renew, self._every_s, self._at_most_s = renew, every_s, at_most_s
        self._held: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def held(self, tokens: Mapping[str, str]) -> Iterator[None]:
        """Renew the locks on some keys, by their tokens, for the length of a with block."""
        with self._lock:
            self._held |= {token: (key, time.monotonic()) for key, token in tokens.items() if token}
            if self._held and self._thread is None:
                thread = threading.Thread(target=self._work, name="lock renewal", daemon=True)
                with suppress(RuntimeError):  # too many threads, or the interpreter is ending
                    thread.start()
                    self._thread = thread
        try:
            yield
        finally:
            for token in tokens.values():
                self._held.pop(token, None)

    def _work(self) -> None:
        """Renew for as long as a lock is held; `held` starts the next thread."""
        while True:
            time.sleep(self._every_s)
            with self._lock:
                held = list(self._held.items())
                if not held:
                    self._thread = None
                    return
            for token, (key, since) in held:
                held_s = time.monotonic() - since
                if self._every_s / 2 < held_s < self._at_most_s and not self._renew(key, token):
                    self._held.pop(token, None)
