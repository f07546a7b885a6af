"""Single-flight within a process: threads that miss the same key at one moment share one load."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Flight:
    """One load under way in this process, and how it ended.

    Attributes:
        done: set when it has ended.
        started: on the monotonic clock, seconds.
        packed: what came of it, in its stored form, of which every thread that waited unpacks an
            entry of its own; None if they should rather look again.
        incommunicable: it has no stored form, so that every thread has to load for itself.
        error: what it raised.

    """

    done: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.monotonic)
    packed: Any = None
    incommunicable: bool = False
    error: Exception | None = None


class Flights:
    """Lets the threads of one process share a load (single-flight)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[str, Flight] = {}

    def join(self, key: str, patience_s: float) -> tuple[Flight, bool]:
        """The load under way, and whether the caller is the one to do it, and to call `land`.

        A load that has taken longer than `patience_s` is given up, and the caller begins another.
        """
        with self._lock:
            flight = self._under_way.get(key)
            if flight is not None and time.monotonic() - flight.started <= patience_s:
                return flight, False
            flight = self._under_way[key] = Flight()
            return flight, True

    def land(self, key: str, flight: Flight) -> None:
        """End a load: whoever comes now looks into the cache again."""
        with self._lock:
            if self._under_way.get(key) is flight:
                del self._under_way[key]
        flight.done.set()
