"""Which keys stay in a full cache: a stream of requests replayed with each eviction policy.

Every policy fills on every miss, as cache-aside does, and evicts one entry when the cache is full:

- `belady`: the entry whose next request is farthest away. That takes knowing the future, and no
  policy does better (Belady 1966). Among entries never asked for again, the lowest key number goes.
- `lru`: the least recently used.
- `lfu`: the least frequently used, counted since its fill (an evicted key's count is forgotten).
  Among equals, the one that reached its count first, which is the least recently used of them.
- `fifo`: the one filled first.
- `random`: any, each as likely.
- `sampled-lru`: what Valkey does for `allkeys-lru` (its documentation, "Key eviction", and
  `evict.c`): look at 5 entries at random, remember the 16 that had been idle longest when they were
  looked at, evict the most idle of these. Its clock has seconds; here it counts requests.
"""

from __future__ import annotations

import random
from bisect import insort
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Protocol

SAMPLES = 5
POOL = 16


def replay(stream: Sequence[int], capacity: int, policy: str, *, seed: int = 0) -> float:
    """The hit ratio of a stream of requests that is sent to a cache that begins empty.

    Args:
        stream: the key number of each request.
        capacity: entries that the cache holds.
        policy: one of `POLICIES`.
        seed: for the policies that choose at random.

    Raises:
        ValueError: a capacity below 1, or an unknown policy.

    >>> replay([1, 2, 1, 3, 1], capacity=2, policy="lru")
    0.4
    """
    return sum(hits(stream, capacity, policy, seed=seed)) / len(stream) if stream else 0.0


def hits(stream: Sequence[int], capacity: int, policy: str, *, seed: int = 0) -> Iterator[bool]:
    """The same as `replay`, one request at a time.

    Returns:
        Whether each request found its key in the cache.

    Raises:
        ValueError: a capacity below 1, or an unknown policy.

    >>> list(hits([1, 2, 1, 3, 1], capacity=2, policy="fifo"))
    [False, False, True, False, False]
    """
    if capacity < 1:
        raise ValueError(f"a cache holds at least 1 entry; a capacity of {capacity} is too small")
    if policy not in POLICIES:
        raise ValueError(f"no policy is called {policy!r}; there are {', '.join(POLICIES)}")
    order = POLICIES[policy](stream, random.Random(seed))
    held: set[int] = set()
    for key in stream:
        hit = key in held
        if hit:
            order.used(key)
        else:
            if len(held) == capacity:
                held.remove(order.evict())
            held.add(key)
            order.add(key)
        yield hit


class _Order(Protocol):
    """In which order a policy parts with its keys; told of each request once, by `used` or `add`.

    `evict` is only called when there are keys, and always followed by `add`.
    """

    def used(self, key: int) -> None: ...
    def add(self, key: int) -> None: ...
    def evict(self) -> int: ...


class _Belady:
    """A heap with the farthest next request on top.

    Each request leaves an entry that says when its key comes next. Once that moment has passed, the
    entry lies below those of all keys held, whose next request is still to come: it never surfaces.
    """

    def __init__(self, stream: Sequence[int]) -> None:
        never = len(stream)
        following: dict[int, int] = {}
        upcoming = []
        for now in range(len(stream) - 1, -1, -1):
            upcoming.append(following.get(stream[now], never))
            following[stream[now]] = now
        self._upcoming = reversed(upcoming)
        self._farthest: list[tuple[int, int]] = []

    def used(self, key: int) -> None:
        heappush(self._farthest, (-next(self._upcoming), key))

    add = used

    def evict(self) -> int:
        return heappop(self._farthest)[1]


class _Fifo:
    """A queue."""

    def __init__(self) -> None:
        self._queue: OrderedDict[int, None] = OrderedDict()

    def used(self, key: int) -> None:
        pass

    def add(self, key: int) -> None:
        self._queue[key] = None

    def evict(self) -> int:
        return self._queue.popitem(last=False)[0]


class _Lru(_Fifo):
    """A queue that a key joins anew whenever it is used."""

    def used(self, key: int) -> None:
        self._queue.move_to_end(key)


class _Lfu:
    """A queue for every number of uses, in constant time (Shah, Mitra and Matani 2010)."""

    def __init__(self) -> None:
        self._uses: dict[int, int] = {}
        self._queues: defaultdict[int, OrderedDict[int, None]] = defaultdict(OrderedDict)
        self._fewest = 1

    def used(self, key: int) -> None:
        uses = self._uses[key]
        del self._queues[uses][key]
        if not self._queues[uses]:
            del self._queues[uses]
            if uses == self._fewest:
                self._fewest += 1
        self._join(key, uses + 1)

    def add(self, key: int) -> None:
        self._fewest = 1
        self._join(key, 1)

    def evict(self) -> int:
        key = self._queues[self._fewest].popitem(last=False)[0]
        del self._uses[key]
        return key

    def _join(self, key: int, uses: int) -> None:
        self._uses[key] = uses
        self._queues[uses][key] = None


class _Random:
    """A list in which the last key takes the place of the one that goes."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._keys: list[int] = []
        self._place: dict[int, int] = {}

    def used(self, key: int) -> None:
        pass

    def add(self, key: int) -> None:
        self._place[key] = len(self._keys)
        self._keys.append(key)

    def evict(self) -> int:
        return self._remove(self._rng.choice(self._keys))

    def _remove(self, key: int) -> int:
        place, last = self._place.pop(key), self._keys.pop()
        if last != key:
            self._keys[place] = last
            self._place[last] = place
        return key


class _SampledLru(_Random):
    """Such a list, the time of each key's last use, and a pool of (idle when looked at, key)."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._now = 0
        self._last_use: dict[int, int] = {}
        self._pool: list[tuple[int, int]] = []

    def used(self, key: int) -> None:
        self._now += 1
        self._last_use[key] = self._now

    def add(self, key: int) -> None:
        self.used(key)
        super().add(key)

    def evict(self) -> int:
        while True:
            self._look_at_some()
            while self._pool:
                # As in Valkey, what was seen is not looked at again: the key may have been used
                # since, and only one that is gone is passed over.
                key = self._pool.pop()[1]
                if self._last_use.pop(key, None):
                    return self._remove(key)

    def _look_at_some(self) -> None:
        for key in self._rng.sample(self._keys, min(SAMPLES, len(self._keys))):
            insort(self._pool, (self._now - self._last_use[key], key))
            if len(self._pool) > POOL:
                del self._pool[0]


POLICIES: dict[str, Callable[[Sequence[int], random.Random], _Order]] = {
    "belady": lambda stream, _: _Belady(stream),
    "fifo": lambda *_: _Fifo(),
    "lfu": lambda *_: _Lfu(),
    "lru": lambda *_: _Lru(),
    "random": lambda _, rng: _Random(rng),
    "sampled-lru": lambda _, rng: _SampledLru(rng),
}
