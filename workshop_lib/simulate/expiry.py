"""What a TTL does over time: requests replayed on an axis of seconds, where entries expire.

An entry answers before the moment at which it expires, not at it. Of what happens at one moment, an
update of the row comes first, then a load, then a request.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class TtlReplay:
    """How requests to a cache fared whose entries only expire.

    Attributes:
        requests: how many there were.
        hits: how many the cache answered.
        stale: how many of these were older than the last update of their row.
        longest_stale_s: of the worst of these, the seconds since the update that it did not show.
        load_times: when the database was asked, seconds, ascending.

    """

    requests: int
    hits: int
    stale: int
    longest_stale_s: float
    load_times: tuple[float, ...]

    @property
    def misses(self) -> int:
        """Requests that had to ask the database."""
        return self.requests - self.hits

    @property
    def hit_ratio(self) -> float:
        """Hits by requests, 0 to 1; 0 without requests."""
        return self.hits / self.requests if self.requests else 0.0

    @property
    def stale_ratio(self) -> float:
        """Stale answers by requests, 0 to 1; 0 without requests."""
        return self.stale / self.requests if self.requests else 0.0


def replay_ttl(
    times: Sequence[float],
    keys: Sequence[int],
    ttl_s: float,
    *,
    jitter: float = 0.0,
    updates: Mapping[int, Sequence[float]] | None = None,
    seed: int = 0,
) -> TtlReplay:
    """Send requests to a cache that begins empty, has room for all, and loads in no time.

    Args:
        times: of the requests, seconds, ascending.
        keys: what each request asks for.
        ttl_s: counted from the fill; a hit does not renew it.
        jitter: each fill's own TTL is uniform between ttl_s · (1 - jitter) and ttl_s, so that it is
            never longer than asked for; 0 to 1.
        updates: by key, when its row changed without the cache being told; seconds, ascending.
        seed: of the jitter.

    Raises:
        ValueError: as many times as keys are needed; times must ascend; the TTL is above 0 and the
            jitter between 0 and 1.

    >>> replay_ttl([0, 9, 10, 12], [7, 7, 7, 7], ttl_s=10, updates={7: [6, 11]})
    TtlReplay(requests=4, hits=2, stale=2, longest_stale_s=3, load_times=(0, 10))
    """
    _require_ascending(times, "the times of requests")
    _require_ttl(ttl_s)
    if len(times) != len(keys):
        raise ValueError(f"each request has a time and a key: {len(times)} times, {len(keys)} keys")
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter is a share of the TTL between 0 and 1; {jitter} is not")
    changes = updates or {}
    for key, changed in changes.items():
        _require_ascending(changed, f"the updates of key {key}")
    rng = random.Random(seed)
    held: dict[int, tuple[float, float]] = {}
    stale: list[float] = []
    loads = []
    for now, key in zip(times, keys, strict=True):
        filled_at, expires_at = held.get(key, (-math.inf, -math.inf))
        if now < expires_at:
            behind_s = _behind_s(changes.get(key, ()), filled_at, now)
            if behind_s is not None:
                stale.append(behind_s)
        else:
            held[key] = now, now + ttl_s * (1 - jitter * rng.random())
            loads.append(now)
    hits = len(times) - len(loads)
    return TtlReplay(len(times), hits, len(stale), max(stale, default=0.0), tuple(loads))


def should_refresh_early(
    now: float, expires_at: float, cost_s: float, beta: float, rng_uniform: float
) -> bool:
    """Whether this reader should load again before the entry expires, so that others need not wait.

    XFetch (Vattani, Chierichetti and Lowenstein 2015): yes if

        now - cost_s · beta · ln(u) >= expires_at

    The subtracted term is an exponentially distributed head start of cost_s · beta on average. Each
    reader decides alone; the closer the end, the surer it is that one of them says yes.

    Args:
        now: seconds, on the clock of `expires_at`.
        expires_at: when the entry expires.
        cost_s: how long a load takes; the longer, the earlier.
        beta: 1 is the paper's choice; more is earlier, 0 is never before the end.
        rng_uniform: u, drawn anew for each request, uniform in (0, 1]: `1 - random.random()`.

    Raises:
        ValueError: a cost or a beta below 0, or u outside (0, 1].

    >>> should_refresh_early(now=98, expires_at=100, cost_s=1, beta=1, rng_uniform=0.5)
    False
    >>> should_refresh_early(now=98, expires_at=100, cost_s=1, beta=1, rng_uniform=0.1)
    True
    """
    if not (cost_s >= 0 and beta >= 0):
        raise ValueError(f"a load's cost and beta are 0 or more: cost {cost_s} s, beta {beta}")
    if not 0 < rng_uniform <= 1:
        raise ValueError(f"u lies in (0, 1], as 1 - random.random() does; {rng_uniform} does not")
    return now - cost_s * beta * math.log(rng_uniform) >= expires_at


def _behind_s(updates: Sequence[float], filled_at: float, now: float) -> float | None:
    """For how many seconds an entry has been out of date; None if it is not."""
    first_missed = bisect_right(updates, filled_at)
    if first_missed < len(updates) and updates[first_missed] <= now:
        return now - updates[first_missed]
    return None


def _require_ascending(values: Sequence[float], what: str) -> None:
    if not all(earlier <= later for earlier, later in pairwise(values)):
        raise ValueError(f"{what} must ascend: sort them first")


def _require_ttl(ttl_s: float) -> None:
    if not ttl_s > 0:
        raise ValueError(f"a TTL is longer than 0 seconds; {ttl_s} is not")
