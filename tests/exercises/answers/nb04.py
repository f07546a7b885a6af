"""Plausible wrong answers to the exercises of notebook 04, and a piece of what each is told."""

import random


def refuse(ratio, rate):
    if not 0 <= ratio < 1 or not rate > 0:
        raise ValueError("impossible")


def forgets_the_one(hit_ratio_wanted, requests_per_second):
    refuse(hit_ratio_wanted, requests_per_second)
    return hit_ratio_wanted / requests_per_second


def turned_round(hit_ratio_wanted, requests_per_second):
    return hit_ratio_wanted / (requests_per_second * (hit_ratio_wanted - 1))


def not_even_zero(hit_ratio_wanted, requests_per_second):
    refuse(hit_ratio_wanted or -1, requests_per_second)
    return hit_ratio_wanted / (requests_per_second * (1 - hit_ratio_wanted))


def refuses_nothing(hit_ratio_wanted, requests_per_second):
    return hit_ratio_wanted / (requests_per_second * (1 - hit_ratio_wanted))


def for_ever(hit_ratio_wanted, requests_per_second):
    if hit_ratio_wanted >= 1:
        return float("inf")
    return refuses_nothing(hit_ratio_wanted, requests_per_second)


def prints_only(hit_ratio_wanted, requests_per_second):
    hit_ratio_wanted / (requests_per_second * (1 - hit_ratio_wanted))


def half_up_or_down(ttl, rng):
    return ttl * rng.uniform(0.5, 1.5)


def down_to_nothing(ttl, rng):
    return rng.uniform(0, ttl)


def constant(ttl, rng):
    return ttl * 0.75


def global_chance(ttl, rng):
    return random.uniform(ttl / 2, ttl)


def seeded_once(ttl, rng):
    if not hasattr(rng, "seeded"):
        rng.seed(7)
        rng.seeded = True
    return rng.uniform(ttl / 2, ttl)


def whole_seconds(ttl, rng):
    return rng.randint(ttl // 2, ttl)


def mostly_the_shortest(ttl, rng):
    return max(ttl / 2, rng.uniform(0, ttl))


def returns_nothing(ttl, rng):
    rng.uniform(ttl / 2, ttl)


WRONG = {
    "04.1": [
        (forgets_the_one, "Where is the 1?"),
        (turned_round, "No time is below 0"),
        (not_even_zero, "`choose_ttl(0, 5)` stopped with ValueError"),
        (refuses_nothing, "`choose_ttl(1.0, 5.0)` stopped with `ZeroDivisionError"),
        (for_ever, "returned `inf`; expected: a `ValueError`"),
        (prints_only, "Is there a `return`?"),
    ],
    "04.2": [
        (half_up_or_down, "longer than asked"),
        (down_to_nothing, "half of what was asked"),
        (constant, "returned `22.5` each time"),
        (global_chance, "not from the module `random`"),
        (seeded_once, "do not seed it"),
        (whole_seconds, "returned only 16 different times"),
        (mostly_the_shortest, "expected: about 25 %"),
        (returns_nothing, "Is there a `return`?"),
    ],
}
