"""When to load an entry again before it expires (pure)."""

from __future__ import annotations

import math


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
