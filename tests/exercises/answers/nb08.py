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


def a_float(requests_per_second, busy_ms, threads, most):
    return float(exactly(requests_per_second, busy_ms, threads, most))


RIGHT = {"08.1": [by_search, saved_and_spent], "08.2": [exactly, counted_up]}
WRONG = {
    "08.1": [
        (forgets_the_look, "A miss costs a look into the cache as well"),
        (forgets_to_fill, "Filling the cache after a miss takes time"),
        (miss_ratio, "This is the miss ratio"),
        (by_zero, "ZeroDivisionError"),
    ],
    "08.2": [
        (not_seconds, "is `busy_ms` turned into seconds?"),
        (rounds_down, "This rounds down"),
        (rounds, "This rounds to the nearest"),
        (a_float, "a float"),
    ],
}
