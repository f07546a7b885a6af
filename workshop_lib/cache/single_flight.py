"""Single-flight within a process: threads that miss the same key at one moment share one load.

A reader may only be given what was read from the source, or found in the cache, after the reader
came. So a flight takes threads along only until its leader asks; who comes later waits for the next
flight, whose leader finds in the cache what this one has stored, if it was not invalidated.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any


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
