"""Notebook 05: times to live that are spread out, by the generator that was handed in."""

from __future__ import annotations

import random

from workshop_lib.exercises.check import Check

TTLS = (30, 0.3, 3600.0)
DRAWS = 1000


def jittered_ttl(check: Check) -> None:
    """Never longer than asked, never below half of it, spread out, and by the generator given."""
    for ttl in TTLS:
        half = ttl / 2
        drawn, again, other = (_draw(check, ttl, seed) for seed in (4, 4, 5))
        different = len(set(drawn))
        check.facts |= {"drawn": drawn, "again": again, "other": other, "different": different}
        check.judge("drawn", ttl=ttl, half=half, draws=DRAWS)
        for quarter in range(4):
            low, high = (half + part * ttl / 8 for part in (quarter, quarter + 1))
            share = sum(low <= drawn_ttl <= high for drawn_ttl in drawn) / DRAWS
            check.judge("quarter", low=low, high=high, share=share)


def _draw(check: Check, ttl: float, seed: int) -> list[float]:
    rng, drawn = random.Random(seed), []
    for _ in range(DRAWS):
        got = check.call(ttl, rng, shown=f"`jittered_ttl({ttl!r}, rng)`")
        check.judge("time", got=got)
        drawn.append(got)
    return drawn


JUDGES = {"05.2": jittered_ttl}
