"""The limits of Aurora DSQL that the workshop keeps to everywhere, and how it keeps to its rate.

Source: Aurora DSQL User Guide, "Cluster quotas and database limits", as of autumn 2026.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

MAX_ROWS_PER_TRANSACTION = 3_000
"""Rows that one transaction may insert, update and delete together."""

CONNECTION_LIFE_S = 3_600
"""A connection is closed by the service after this long; recycle earlier."""

CONNECTIONS_PER_SECOND = 100
"""New connections that a cluster takes, in the long run."""

CONNECTION_BURST = 1_000
"""New connections that it takes at once, after a time without."""

ROUNDING_S = 1e-6
"""Sums of many small numbers are off by less than this."""


class Rate:
    """A token bucket, kept as one number (the generic cell rate algorithm, ITU-T I.371, 1996).

    Args:
        per_second: events in the long run; the default is a cluster's for new connections.
        burst: events at once, after a time without.
        clock: seconds.

    """

    def __init__(
        self,
        per_second: float = CONNECTIONS_PER_SECOND,
        burst: int = CONNECTION_BURST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._each_s = 1 / per_second
        self._ahead_s = burst / per_second
        self._clock = clock
        self._paid_until = clock()
        self._lock = threading.Lock()

    def reserve(self, patience_s: float) -> tuple[bool, float]:
        """Ask for one event.

        Args:
            patience_s: the longest wait that is of use, seconds.

        Returns:
            Whether it is reserved, and the wait until it may happen, seconds. What would have to
            wait longer than the patience is not reserved, and takes nothing from others.

        """
        with self._lock:
            now = self._clock()
            paid_until = max(self._paid_until, now) + self._each_s
            wait = paid_until - now - self._ahead_s
            wait = 0.0 if wait < ROUNDING_S else wait
            if wait > patience_s:
                return False, wait
            self._paid_until = paid_until
            return True, wait
