"""Plausible wrong answers to the exercises of notebook 04, and a piece of what each is told."""

import random


def refuse(ratio, rate):
    if not 0 <= ratio < 1 or not rate > 0:
        raise ValueError("impossible")


def forgets_the_one(hit_ratio_wanted, requests_per_second):
    refuse(hit_ratio_wanted, requests_per_second)
    return hit_ratio_wanted / requests_per_second


def counts_the_miss_as_a_hit(hit_ratio_wanted, requests_per_second):
    refuse(hit_ratio_wanted, requests_per_second)
    return 1 / (requests_per_second * (1 - hit_ratio_wanted))


def forgets_the_rate(hit_ratio_wanted, requests_per_second):
    refuse(hit_ratio_wanted, requests_per_second)
    return hit_ratio_wanted / (1 - hit_ratio_wanted)


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


def refuses_one_alone(hit_ratio_wanted, requests_per_second):
    if hit_ratio_wanted == 1:
        raise ValueError("impossible")
    return refuses_nothing(hit_ratio_wanted, requests_per_second)


def below_zero_is_forgotten(hit_ratio_wanted, requests_per_second):
    if hit_ratio_wanted >= 1:
        raise ValueError("impossible")
    return refuses_nothing(hit_ratio_wanted, requests_per_second)


def no_requests_are_forgotten(hit_ratio_wanted, requests_per_second):
    refuse(hit_ratio_wanted, 1)
    return refuses_nothing(hit_ratio_wanted, requests_per_second)


def prints_only(hit_ratio_wanted, requests_per_second):
    hit_ratio_wanted / (requests_per_second * (1 - hit_ratio_wanted))


def text(hit_ratio_wanted, requests_per_second):
    return f"{hit_ratio_wanted / (requests_per_second * (1 - hit_ratio_wanted))} s"


def half_up_or_down(ttl, rng):
    return ttl * rng.uniform(0.5, 1.5)


def down_to_nothing(ttl, rng):
    return rng.uniform(0, ttl)


def constant(ttl, rng):
    return ttl * 0.75


def seeds_it_each_time(ttl, rng):
    rng.seed(7)
    return rng.uniform(ttl / 2, ttl)


def global_chance(ttl, rng):
    return random.uniform(ttl / 2, ttl)


def a_generator_of_its_own(ttl, rng, own=random.Random(1)):  # noqa: B008 - one for all calls
    return own.uniform(ttl / 2, ttl)


def seeded_once(ttl, rng):
    if not hasattr(rng, "seeded"):
        rng.seed(7)
        rng.seeded = True
    return rng.uniform(ttl / 2, ttl)


def whole_seconds(ttl, rng):
    return rng.randint(ttl // 2, ttl)


def a_choice_of_three(ttl, rng):
    return rng.choice([ttl / 2, ttl * 3 / 4, ttl])


def mostly_the_shortest(ttl, rng):
    return max(ttl / 2, rng.uniform(0, ttl))


def hardly_any(ttl, rng):
    return rng.uniform(ttl * 0.9, ttl)


def returns_nothing(ttl, rng):
    rng.uniform(ttl / 2, ttl)


WRONG = {
    "04.1": [
        (forgets_the_one, "Where is the 1?"),
        (counts_the_miss_as_a_hit, "gives a hit ratio of 0.909; expected: 0.9, with 30 s"),
        (forgets_the_rate, "Solve h = λT / (1 + λT) for T"),
        (turned_round, "No time is below 0"),
        (not_even_zero, "`choose_ttl(0, 5)` stopped with ValueError"),
        (refuses_nothing, "`choose_ttl(1.0, 5.0)` stopped with `ZeroDivisionError"),
        (for_ever, "returned `inf`; expected: a `ValueError`"),
        (refuses_one_alone, "No hit ratio is above 1"),
        (below_zero_is_forgotten, "No hit ratio is below 0"),
        (no_requests_are_forgotten, "A key that is never read has no hits"),
        (prints_only, "Is there a `return`?"),
        (text, "Expected: a number of seconds"),
    ],
    "04.2": [
        (half_up_or_down, "longer than asked"),
        (down_to_nothing, "half of what was asked"),
        (constant, "returned `22.5` each time"),
        (seeds_it_each_time, "draw anew at each call"),
        (global_chance, "not from the module `random`"),
        (a_generator_of_its_own, "All chance is to come from `rng`"),
        (seeded_once, "do not seed it"),
        (whole_seconds, "returned only 16 different times"),
        (a_choice_of_three, "do not choose from a few"),
        (mostly_the_shortest, "expected: about 25 %"),
        (hardly_any, "returned something from 15 to 18.75"),
        (returns_nothing, "Is there a `return`?"),
    ],
}
