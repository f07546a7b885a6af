"""Keeping the locks of long loads alive, from one thread of each process.

A lock lives for a short time only, so that a loader that was killed is soon replaced; one that is
alive and slow prolongs its lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

IDLE_ROUNDS = 5
"""The thread ends after so many rounds without a lock, and comes back with the next one."""


class Renewals:
    """Renews the locks that this process holds.

    Args:
        renew: prolongs the lock on a key, held by a token; False once it is lost.
        every_s: how often, seconds.
        at_most_s: how long after it was taken a lock is renewed at most, seconds.

    """

    def __init__(self, renew: Callable[[str, str], bool], every_s: float, at_most_s: float) -> None:
        self._renew = renew
        self._every_s = every_s
        self._at_most_s = at_most_s
        self.reset()

    def reset(self) -> None:
        """Begin with no locks and no thread, as in a forked child: the locks are the parent's."""
        self._held: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def held(self, tokens: Mapping[str, str]) -> Iterator[None]:
        """Renew the locks on some keys, by their tokens, for the length of a with block."""
        with self._lock:
            self._held |= {token: (key, time.monotonic()) for key, token in tokens.items() if token}
            if self._thread is None:
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
