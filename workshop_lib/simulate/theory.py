"""What hit ratio and what staleness to expect, by formula, when requests are independent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def che_lru_hit_ratio(probabilities: Sequence[float], capacity: int) -> float:
    """The hit ratio of a warm LRU cache, by the approximation of Che, Tung and Wang (2002).

    An entry is taken to stay for the same time t (counted in requests) after its last use, whatever
    its key: then key k is in the cache with probability 1 - exp(-p_k · t). The right t is the one
    with which the expected number of entries is the capacity; it is found by bisection. Why this is
    so accurate: Fricker, Robert and Roberts 2012.

    Args:
        probabilities: how likely a request is for each key; together 1.
        capacity: in entries.

    Raises:
        ValueError: probabilities that are negative or do not add up to 1, or a capacity below 1.

    >>> round(che_lru_hit_ratio([0.25] * 4, capacity=2), 3)
    0.5
    """
    p = np.asarray(probabilities, dtype=float)
    if capacity < 1:
        raise ValueError(f"a cache holds at least 1 entry; a capacity of {capacity} is too small")
    if not (np.all(p >= 0) and math.isclose(p.sum(), 1, abs_tol=1e-6)):
        raise ValueError(f"probabilities are not negative and add up to 1, not to {p.sum():.6g}")
    if capacity >= np.count_nonzero(p):
        return 1.0

    def held(t: float) -> float:
        return float(-np.expm1(-p * t).sum())

    low, high = 0.0, float(capacity)
    while held(high) < capacity:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if held(middle) < capacity else (low, middle)
    return float(-(p * np.expm1(-p * high)).sum())


def ttl_hit_ratio(rate_per_s: float, ttl_s: float) -> float:
    """The hit ratio of one key: λT / (1 + λT) for λ Poisson requests a second, T seconds of TTL.

    The TTL counts from the fill, and a hit does not renew it. Each fill is one miss, followed by
    the hits of the next T seconds, λT on average; then the entry is gone until the next request
    fills it again (Jung, Berger and Balakrishnan 2003). Nothing is evicted.

    Raises:
        ValueError: a rate or a TTL below 0.

    >>> ttl_hit_ratio(rate_per_s=0.3, ttl_s=30)
    0.9
    """
    _not_negative(rate_per_s=rate_per_s, ttl_s=ttl_s)
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

    Raises:
        ValueError: a rate or the TTL below 0.

    >>> round(stale_share(update_rate_per_s=1 / 60, ttl_s=30, request_rate_per_s=1.0), 3)
    0.206
    """
    _not_negative(update_rate_per_s=update_rate_per_s, request_rate_per_s=request_rate_per_s)
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

    Raises:
        ValueError: a time is negative.

    >>> break_even(hit=1, fill=1, database=9)
    0.2
    """
    _not_negative(hit=hit, fill=fill, database=database)
    return None if hit >= database else (hit + fill) / (database + fill)


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} is 0 or more; {value} is not")
