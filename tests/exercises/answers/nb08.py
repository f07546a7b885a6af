"""Answers to the exercises of notebook 08: right ones, and wrong ones with what they are told."""

import math
from fractions import Fraction


def by_search(hit_ms, fill_ms, database_ms):
    for step in range(10_001):
        h = step / 10_000
        mean = h * hit_ms + (1 - h) * (hit_ms + database_ms + fill_ms)
        if mean < database_ms or (mean == database_ms and hit_ms < database_ms):
            return h
    return None


def saved_and_spent(hit_ms, fill_ms, database_ms):
    saved, spent = database_ms - hit_ms, hit_ms + fill_ms
    return spent / (saved + spent) if saved > 0 else None


def forgets_the_look(hit_ms, fill_ms, database_ms):
    return None if hit_ms >= database_ms else fill_ms / (database_ms + fill_ms - hit_ms)


def forgets_to_fill(hit_ms, fill_ms, database_ms):
    return None if hit_ms >= database_ms else hit_ms / database_ms


def miss_ratio(hit_ms, fill_ms, database_ms):
    ratio = saved_and_spent(hit_ms, fill_ms, database_ms)
    return None if ratio is None else 1 - ratio


def per_cent(hit_ms, fill_ms, database_ms):
    ratio = saved_and_spent(hit_ms, fill_ms, database_ms)
    return None if ratio is None else 100 * ratio


def never_says_never(hit_ms, fill_ms, database_ms):
    return (hit_ms + fill_ms) / (database_ms + fill_ms)


def equal_is_enough(hit_ms, fill_ms, database_ms):
    return None if hit_ms > database_ms else never_says_never(hit_ms, fill_ms, database_ms)


def forgets_to_fill_and_none(hit_ms, fill_ms, database_ms):
    return hit_ms / database_ms


def per_cent_without_none(hit_ms, fill_ms, database_ms):
    return 100 * never_says_never(hit_ms, fill_ms, database_ms)


def one_for_never(hit_ms, fill_ms, database_ms):
    ratio = saved_and_spent(hit_ms, fill_ms, database_ms)
    return 1 if ratio is None else ratio


def forgets_to_return(hit_ms, fill_ms, database_ms):
    saved_and_spent(hit_ms, fill_ms, database_ms)


def too_coarse(hit_ms, fill_ms, database_ms):
    ratio = saved_and_spent(hit_ms, fill_ms, database_ms)
    return None if ratio is None else math.ceil(ratio * 10) / 10


def a_text(hit_ms, fill_ms, database_ms):
    return str(saved_and_spent(hit_ms, fill_ms, database_ms))


def by_zero(hit_ms, fill_ms, database_ms):
    return (hit_ms + fill_ms) / (fill_ms + hit_ms - hit_ms)


def exactly(requests_per_second, busy_ms, threads, most):
    needed = Fraction(requests_per_second) * Fraction(busy_ms) / 700
    return max(1, min(threads, most, math.ceil(needed)))


def counted_up(requests_per_second, busy_ms, threads, most):
    size = 1
    while size < min(threads, most) and requests_per_second * busy_ms > 700 * size:
        size += 1
    return size


def size(rate, busy, *limits, share=0.7, each=1000, way=math.ceil, least=1):
    return min(max(least, way(rate * busy / each / share)), *limits)


def not_seconds(requests_per_second, busy_ms, threads, most):
    return size(requests_per_second, busy_ms, threads, most, each=1)


def rounds_down(requests_per_second, busy_ms, threads, most):
    return size(requests_per_second, busy_ms, threads, most, way=math.floor)


def rounds(requests_per_second, busy_ms, threads, most):
    return size(requests_per_second, busy_ms, threads, most, way=round)


def no_room(requests_per_second, busy_ms, threads, most):
    return size(requests_per_second, busy_ms, threads, most, share=1)


def less_room(requests_per_second, busy_ms, threads, most):
    return size(requests_per_second, busy_ms, threads, most, share=1 / 0.7)


def thirty_more(requests_per_second, busy_ms, threads, most):
    needed = math.ceil(requests_per_second * busy_ms / 1000 * 1.3)
    return min(max(1, needed), threads, most)


def returns_nothing(requests_per_second, busy_ms, threads, most):
    exactly(requests_per_second, busy_ms, threads, most)


def ignores_most(requests_per_second, busy_ms, threads, most):
    return size(requests_per_second, busy_ms, threads)


def ignores_threads(requests_per_second, busy_ms, threads, most):
    return size(requests_per_second, busy_ms, most)


def none_at_night(requests_per_second, busy_ms, threads, most):
    return size(requests_per_second, busy_ms, threads, most, least=0)


def a_float(requests_per_second, busy_ms, threads, most):
    return float(exactly(requests_per_second, busy_ms, threads, most))


def one_each(requests_per_second, busy_ms, threads, most):
    return min(threads, most)


RIGHT = {"08.1": [by_search, saved_and_spent], "08.2": [exactly, counted_up]}
WRONG = {
    "08.1": [
        (forgets_the_look, "A miss costs a look into the cache as well"),
        (forgets_to_fill, "Filling the cache after a miss takes time"),
        (miss_ratio, "This is the miss ratio"),
        (per_cent, "This is per cent"),
        (never_says_never, "never pays, whatever the ratio"),
        (equal_is_enough, "at equality as well"),
        (forgets_to_fill_and_none, "Filling the cache after a miss takes time"),
        (per_cent_without_none, "This is per cent"),
        (one_for_never, "never pays, whatever the ratio"),
        (forgets_to_return, "returned `None`; expected: 0.2. Is there a `return`?"),
        (too_coarse, "returned `0.1`; expected: 0.02985"),
        (a_text, "returned `'0.2'`; expected: 0.2"),
        (by_zero, "ZeroDivisionError"),
    ],
    "08.2": [
        (not_seconds, "is `busy_ms` turned into seconds?"),
        (rounds_down, "This rounds down"),
        (rounds, "This rounds to the nearest"),
        (no_room, "Divide by 0.7"),
        (less_room, "head-room makes it larger"),
        (thirty_more, "This adds 30 %"),
        (returns_nothing, "returned `None`; expected: 2. Is there a `return`?"),
        (ignores_most, "`most`, is not kept"),
        (ignores_threads, "more than `threads` are never used"),
        (none_at_night, "Without traffic there is still one connection"),
        (a_float, "a float"),
        (one_each, "returned `16`; expected: 2"),
    ],
}
