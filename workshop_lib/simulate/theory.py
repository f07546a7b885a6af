"""Formulas for hit ratio, staleness, break-even and early refresh (pure)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def che_lru_hit_ratio(probabilities: Sequence[float], capacity: int) -> float:
    """The hit ratio of a warm LRU cache, by the approximation of Che, Tung and Wang (2002).

    An entry is taken to stay for the same time t (counted in requests) after its last use, whatever
    its key: then key k is in the cache with probability 1 - exp(-p_k · t). The right t is the one
    with which the expected number of entries is the capacity; it is found by bisection. Why this is
    so accurate: Fricker, Robert and Roberts 2012.

    Args:
        probabilities: how likely a request is for each key; together 1.
        capacity: in entries, 1 at least.

    >>> round(che_lru_hit_ratio([0.25] * 4, capacity=2), 3)
    0.5
    """
    if capacity >= sum(p > 0 for p in probabilities):
        return 1.0

    def held(t: float) -> float:
        return -sum(math.expm1(-p * t) for p in probabilities)

    low, high = 0.0, float(capacity)
    while held(high) < capacity:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if held(middle) < capacity else (low, middle)
    return -sum(p * math.expm1(-p * high) for p in probabilities)


def ttl_hit_ratio(rate_per_s: float, ttl_s: float) -> float:
    """The hit ratio of one key: λT / (1 + λT) for λ Poisson requests a second, T seconds of TTL.

    The TTL counts from the fill, and a hit does not renew it. Each fill is one miss, followed by
    the hits of the next T seconds, λT on average; then the entry is gone until the next request
    fills it again (Jung, Berger and Balakrishnan 2003). Nothing is evicted.

    >>> ttl_hit_ratio(rate_per_s=0.3, ttl_s=30)
    0.9
    """
    return rate_per_s * ttl_s / (1 + rate_per_s * ttl_s)


def stale_share(update_rate_per_s: float, ttl_s: float, request_rate_per_s: float) -> float:
    """The share of all answers that are older than the last update of the row.

    One key; μ Poisson updates a second of which the cache is not told, λ Poisson requests a
    second independent of them, and T seconds of TTL counted from the fill. A load takes no time.

    Call the time from one fill to the next a cycle. Its first answer is a miss and fresh. For the
    next T seconds answers come from the cache at λ a second, and the one of age a is stale if an
    update came in those a seconds, which has probability 1 - exp(-μa). After that no request
    comes until the next fill. So a cycle has on average 1 + λT answers, of which

        λ · ∫₀ᵀ (1 - exp(-μa)) da  =  λ · (T - (1 - exp(-μT)) / μ)

    are stale. Cycles are independent and alike, and the share is the quotient (renewal-reward
    theorem, Ross, "Stochastic Processes", 1996, section 3.6). With rare updates it is about
    μT/2 · λT/(1 + λT), because an answer from the cache is T/2 seconds old on average.

    >>> round(stale_share(update_rate_per_s=1 / 60, ttl_s=30, request_rate_per_s=1.0), 3)
    0.206
    """
    x = update_rate_per_s * ttl_s
    # Of the answers from the cache; the first terms of the series where the formula would lose
    # its digits to 1 - 1.
    stale_hits = x / 2 - x**2 / 6 if x < 1e-4 else 1 + math.expm1(-x) / x
    return ttl_hit_ratio(request_rate_per_s, ttl_s) * stale_hits


def break_even(hit: float, fill: float, database: float) -> float | None:
    """The hit ratio above which cache-aside is faster on average than the database alone.

    A hit costs a look into the cache; a miss the look, the database and the filling. With hit
    ratio h the mean is hit + (1 - h) · (database + fill), to be less than database.

    Args:
        hit: time of a look into the cache; any unit, the same for all three.
        fill: time to put an answer into the cache.
        database: time of the database's answer.

    Returns:
        The ratio; None if a hit is no faster than the database, so that no ratio is enough.

    >>> break_even(hit=1, fill=1, database=9)
    0.2
    """
    return None if hit >= database else (hit + fill) / (database + fill)


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

    >>> should_refresh_early(now=98, expires_at=100, cost_s=1, beta=1, rng_uniform=0.5)
    False
    >>> should_refresh_early(now=98, expires_at=100, cost_s=1, beta=1, rng_uniform=0.1)
    True
    """
    return now - cost_s * beta * math.log(rng_uniform) >= expires_at
