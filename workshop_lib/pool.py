"""A pool: connections are kept for their next user, and only so many are open at once."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from workshop_lib.errors import PoolTimeoutError
from workshop_lib.measure import readable

C = TypeVar("C", bound=Any)

SURPLUS_S = 60.0
"""How long more connections than `keep` stay after a surge, seconds: the next surge needs them
again, and a server takes only so many new ones."""
MAX_HOLDERS = 5
"""How many of the threads that hold connections a time-out names."""


@dataclass(slots=True, weakref_slot=True, eq=False)
class Lease:
    """One use of a connection. It counts while it exists, however its user ends."""

    connection: Any = None
    thread: threading.Thread = field(default_factory=threading.current_thread)
    since: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class Pool(Generic[C]):
    """Connections for many threads; the one that was used last is lent first.

    Attributes:
        connect: opens a connection.
        is_usable: whether one that was kept still is; if not, another one takes its place.
        keep: how many stay open when nobody uses them.
        limit: how many are open at most.
        timeout_s: the longest wait for one of them, seconds.

    """

    connect: Callable[[], C]
    is_usable: Callable[[C], bool]
    keep: int
    limit: int
    timeout_s: float

    def __post_init__(self) -> None:
        self._idle: deque[tuple[C, float]] = deque()
        self._leases = WeakSet[Lease]()
        self._closed = False
        self._lock = threading.Lock()
        self._returned = threading.Condition(self._lock)

    def take(self) -> Lease:
        """Borrow a connection.

        Raises:
            PoolTimeoutError: all were in use for the whole wait.
            Exception: as `connect`.

        """
        lease = Lease()
        # The lock itself: an Interrupt may come between a Condition's own lines.
        with self._lock:
            while not self._idle and len(self._leases) >= self.limit:
                left = lease.since + self.timeout_s - time.monotonic()
                if left <= 0:
                    raise PoolTimeoutError(self._used_up())
                self._returned.wait(left)
            self._leases.add(lease)
            if self._idle:
                lease.connection = self._idle.pop()[0]
        try:
            while lease.connection is not None and not self.is_usable(lease.connection):
                lease.connection.close()
                with self._lock:
                    lease.connection = self._idle.pop()[0] if self._idle else None
            if lease.connection is None:
                lease.connection = self.connect()
        except BaseException:
            self._end(lease)
            raise
        return lease

    def give(self, lease: Lease, *, fit: bool) -> None:
        """Return a connection; it is closed unless it is fit for its next user."""
        now = time.monotonic()
        surplus = [] if fit and not self._closed else [lease.connection]
        with self._lock:
            if not surplus:
                self._idle.append((lease.connection, now))
            while len(self._idle) > self.keep and now - self._idle[0][1] > SURPLUS_S:
                surplus.append(self._idle.popleft()[0])
        self._end(lease)
        for connection in surplus:
            connection.close()

    def close(self) -> None:
        """Close the idle connections now, and the borrowed ones on their return."""
        self._closed = True
        with self._lock:
            idle = list(self._idle)
            self._idle.clear()
        for connection, _ in idle:
            connection.close()

    def _end(self, lease: Lease) -> None:
        with self._lock:
            self._leases.discard(lease)
            self._returned.notify()

    def _used_up(self) -> str:
        """What happened, who has the connections and since when, and what to do."""
        now = time.monotonic()
        leases = sorted(self._leases, key=lambda lease: lease.since)
        holders = [
            f"{one.thread.name if one.thread.is_alive() else 'a thread that ended'} for "
            f"{readable(now - one.since)}"
            for one in leases[:MAX_HOLDERS]
        ]
        if len(leases) > MAX_HOLDERS:
            holders.append(f"and {len(leases) - MAX_HOLDERS} more")
        which = "The only connection" if self.limit == 1 else f"All {self.limit} connections"
        return (
            f"{which} of the pool stayed in use for {self.timeout_s:g} s. Return connections "
            "sooner (keep transactions short), or raise DSQL_POOL_MAX or DSQL_POOL_TIMEOUT. "
            f"Held by {'; '.join(holders)}."
        )
