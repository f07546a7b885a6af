"""Keep to a rate that allows bursts: Aurora DSQL takes only so many new connections a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

ROUNDING_S = 1e-6
"""Sums of many small numbers are off by less than this."""


class Rate:
    """A token bucket, kept as one number (the generic cell rate algorithm, ITU-T I.371, 1996).

    Args:
        per_second: events in the long run.
        burst: events at once, after a time without.
        clock: seconds.

    """

    def __init__(
        self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic
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
