"""Circuit breaker: after a failure requests bypass the cache, and one at a time probes it."""

from __future__ import annotations

import threading
import time

REST_S = 1.0
"""How long after a failure every request bypasses the cache; then one request probes it."""


class Breaker:
    """Keeps requests from waiting, one after another, for a server that does not answer.

    The pattern is Nygard's ("Release It!", 2007, "Circuit Breaker"). Closed, it lets all through;
    the first failure opens it.
    """

    def __init__(self) -> None:
        self._next_try = 0.0
        """When one request may try again, on the monotonic clock; 0 while closed."""
        self._lock = threading.Lock()

    def allows(self) -> bool:
        """Whether this request may ask the server. If so, it has to report how that went."""
        if not self._next_try:
            return True
        with self._lock:
            now = time.monotonic()
            if now < self._next_try:
                return False
            self._next_try = now + REST_S
            return True

    def failed(self) -> None:
        """The server did not answer."""
        self._next_try = time.monotonic() + REST_S

    def worked(self) -> None:
        """The server answered."""
        self._next_try = 0.0
