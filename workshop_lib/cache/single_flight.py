"""Single-flight: threads of a process that miss a key at one moment share one load of it.

A reader may only be given what was read from the source, or found in the cache, after the reader
came. So a flight takes threads along only until its leader asks; who comes later waits for the next
flight, whose leader finds in the cache what this one has stored, if it was not invalidated.

Among processes a lock in the cache decides who loads. It lives for a short time only, so that a
loader that was killed is soon replaced; one that is alive and slow prolongs it, from one thread of
each process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

IDLE_ROUNDS = 5
"""The thread ends after so many rounds without a lock, and comes back with the next one."""


@dataclass(slots=True, eq=False)
class Flight:
    """One load of this process, and how it ended.

    Attributes:
        leader: the thread that loads, by its `threading.get_ident()`.
        previous: the load of the same key that was under way when this one was begun.
        done: set when it has ended.
        closed: no thread may join any more.
        joined: how many threads wait for it.
        packed: what the load brought, in its stored form, of which every thread that waited
            unpacks an entry of its own; None if there is none.
        unshareable: it has no stored form, so that every thread has to load for itself.
        error: what the load raised.

    """

    leader: int = field(default_factory=threading.get_ident)
    previous: Flight | None = None
    done: threading.Event = field(default_factory=threading.Event)
    closed: bool = False
    joined: int = 0
    packed: Any = None
    unshareable: bool = False
    error: Exception | None = None


class Flights:
    """The loads under way in this process, at most one per key that can be joined."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: dict[str, Flight] = {}

    def join(self, key: str) -> tuple[Flight | None, bool]:
        """Take part in the load of a key: in the one under way if it can be joined, else a new one.

        Returns:
            The flight, None where this very thread is loading the key already; and whether the
            caller leads it: it loads, and has to call `land`.

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
            flight = self._latest[key] = Flight(previous=latest)
            return flight, True

    def close(self, flight: Flight) -> None:
        """Let no more threads join: the next one begins a flight of its own, after this one."""
        with self._lock:
            flight.closed = True

    def land(self, key: str, flight: Flight) -> None:
        """End a load, and wake all who wait for it."""
        self.abandon(key, flight)
        flight.previous = None
        flight.done.set()

    def abandon(self, key: str, flight: Flight) -> None:
        """Wait for this load no longer: the next thread begins another, without waiting for it."""
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
                self._thread = threading.Thread(target=self._work, name="lock renewal", daemon=True)
                with suppress(RuntimeError):  # the interpreter is ending
                    self._thread.start()
        try:
            yield
        finally:
            for token in tokens.values():
                self._held.pop(token, None)

    def _work(self) -> None:
        idle = 0
        while idle <= IDLE_ROUNDS:
            time.sleep(self._every_s)
            with self._lock:
                held = list(self._held.items())
                idle = 0 if held else idle + 1
                if idle > IDLE_ROUNDS:
                    self._thread = None
            for token, (key, since) in held:
                held_s = time.monotonic() - since
                if self._every_s / 2 < held_s < self._at_most_s and not self._renew(key, token):
                    self._held.pop(token, None)
