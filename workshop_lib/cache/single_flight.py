"""Single-flight within a process: threads that miss the same key at one moment share one load.

A reader may only be given what was read from the source after the reader came, or what is known to
have been in force then. So it matters whether a thread joined before the load began (`EARLY`: what
the load brings is new enough in any case) or while it was under way (`LATE`: it may be used only
if the entry's lock shows that nothing was invalidated meanwhile).
"""

from __future__ import annotations

import enum
import threading
from dataclasses import dataclass, field
from typing import Any


class Role(enum.Enum):
    """What a thread does in a flight."""

    LEADER = enum.auto()
    """It loads, and has to call `land`."""
    EARLY = enum.auto()
    """It waits, and came before the load began."""
    LATE = enum.auto()
    """It waits, and came while the load was under way."""


@dataclass(slots=True, eq=False)
class Flight:
    """One load of this process, and how it ended.

    Attributes:
        leader: the thread that loads, by its `threading.get_ident()`.
        previous: the load of the same key that was under way when this one was begun.
        done: set when it has ended.
        loading: the source is being asked: threads that join from now on are late.
        closed: no thread may join any more.
        joined: how many threads wait for it.
        packed: what the load brought, in its stored form, of which every thread that waited
            unpacks an entry of its own; None if there is none.
        for_late: threads that came late may use it, too.
        unshareable: it has no stored form, so that every thread has to load for itself.
        error: what the load raised.

    """

    leader: int = field(default_factory=threading.get_ident)
    previous: Flight | None = None
    done: threading.Event = field(default_factory=threading.Event)
    loading: bool = False
    closed: bool = False
    joined: int = 0
    packed: Any = None
    for_late: bool = False
    unshareable: bool = False
    error: Exception | None = None


class Flights:
    """The loads under way in this process, at most one per key that can be joined."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: dict[str, Flight] = {}

    def join(self, key: str) -> tuple[Flight, Role]:
        """Take part in the load of a key: in the one under way if it can be joined, else a new one.

        Returns:
            The flight, and what the caller does in it.

        """
        with self._lock:
            latest = self._latest.get(key)
            if latest is not None and not latest.closed:
                latest.joined += 1
                return latest, Role.LATE if latest.loading else Role.EARLY
            flight = self._latest[key] = Flight(previous=latest)
            return flight, Role.LEADER

    def begin(self, flight: Flight) -> None:
        """The load begins: threads that join from now on are late."""
        with self._lock:
            flight.loading = True

    def close(self, flight: Flight) -> None:
        """Let no more threads join: the next one begins a flight of its own, after this one."""
        with self._lock:
            flight.closed = True

    def land(self, key: str, flight: Flight) -> None:
        """End a load, and wake all who wait for it."""
        with self._lock:
            flight.closed = True
            flight.previous = None
            if self._latest.get(key) is flight:
                del self._latest[key]
        flight.done.set()

    def abandon(self, key: str, flight: Flight) -> None:
        """Wait for this load no longer: the next thread begins another, without waiting for it."""
        with self._lock:
            flight.closed = True
            if self._latest.get(key) is flight:
                del self._latest[key]
