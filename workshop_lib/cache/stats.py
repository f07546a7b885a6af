"""What a cache counts: plain numbers since the cache object was made."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counters since the cache object was made. Every answer is a hit, a stale answer or a miss.

    Attributes:
        hits: answers from the cache.
        misses: answers that were loaded from the source, by this request or, at the same moment,
            by another one that this request waited for (those are in `coalesced`, too).
        stale: answers older than their TTL, given because loading failed.
        coalesced: misses that did not load because another request was loading already.
        early: entries refreshed before their time, so that no reader had to wait for it later.
        errors: requests that had to do without the cache server, and entries that it did not take.
        corrupt: entries that could not be read; treated as misses and overwritten.
        uncacheable: results or parameters of a type that would not come back equal; not stored.
        too_large: results above the size limit; not stored.
        discarded: results that were not stored because the entry was invalidated meanwhile, or
            because its lock was lost.
        bytes_read, bytes_written: sizes of entries.

    """

    hits: int = 0
    misses: int = 0
    stale: int = 0
    coalesced: int = 0
    early: int = 0
    errors: int = 0
    corrupt: int = 0
    uncacheable: int = 0
    too_large: int = 0
    discarded: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    @property
    def hit_ratio(self) -> float:
        """Hits among all answers, 0 to 1; 0 before the first answer."""
        answers = self.hits + self.misses + self.stale
        return self.hits / answers if answers else 0.0


class Counters:
    """The mutable side of CacheStats, safe to use from several threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, **more: int) -> None:
        """Raise counters by name."""
        with self._lock:
            for name, n in more.items():
                self._counts[name] += n

    def snapshot(self) -> CacheStats:
        """The counters so far."""
        with self._lock:
            return CacheStats(**self._counts)
