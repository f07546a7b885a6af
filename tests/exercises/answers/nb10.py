"""Answers to the exercises of notebook 10: right ones, and wrong ones with what they are told."""

import math


def by_rank(values, q):
    return sorted(values)[math.ceil(q * len(values) / 100) - 1]


def by_whole_numbers(values, q):
    return sorted(values)[-(-q * len(values) // 100) - 1]


def by_counting(values, q):
    for value in sorted(values):
        if sum(other <= value for other in values) * 100 >= q * len(values):
            return value
    return None


def one_too_far(values, q):
    return sorted(values)[min(int(q / 100 * len(values)), len(values) - 1)]


def between(values, q):
    ordered = sorted(values)
    place = q / 100 * (len(values) - 1)
    low = int(place)
    return ordered[low] + (ordered[min(low + 1, len(values) - 1)] - ordered[low]) * (place - low)


def in_disorder(values, q):
    return values[math.ceil(q * len(values) / 100) - 1]


def in_place(values, q):
    values.sort()
    return values[math.ceil(q / 100 * len(values)) - 1]


def too_far_and_out(values, q):
    return sorted(values)[int(q / 100 * len(values)) + 1]


def greedy(sizes, most_rows, most_bytes):
    batches, batch = [], []
    for size in sizes:
        if batch and (len(batch) == most_rows or sum(batch) + size > most_bytes):
            batches.append(batch)
            batch = []
        batch.append(size)
    if batch:
        batches.append(batch)
    return batches


def lazily(sizes, most_rows, most_bytes):
    yield from map(tuple, greedy(sizes, most_rows, most_bytes))


def rows_only(sizes, most_rows, most_bytes):
    return [sizes[at : at + most_rows] for at in range(0, len(sizes), most_rows)]


def bytes_only(sizes, most_rows, most_bytes):
    return greedy(sizes, 10**9, most_bytes)


def one_each(sizes, most_rows, most_bytes):
    return [[size] for size in sizes]


def last_one_lost(sizes, most_rows, most_bytes):
    return greedy(sizes, most_rows, most_bytes)[:-1]


def empty_at_the_end(sizes, most_rows, most_bytes):
    return [*greedy(sizes, most_rows, most_bytes), []]


def count(sizes, most_rows, most_bytes):
    return len(greedy(sizes, most_rows, most_bytes))


RIGHT = {"10.1": [by_rank, by_whole_numbers, by_counting], "10.2": [greedy, lazily]}
WRONG = {
    "10.1": [
        (one_too_far, "one place too far"),
        (between, "between two measured ones"),
        (in_disorder, "not in order as they come"),
        (in_place, "changed the list"),
        (too_far_and_out, "IndexError"),
    ],
    "10.2": [
        (rows_only, "bytes; 100 may be"),
        (bytes_only, "rows; 4 may be"),
        (one_each, "are enough"),
        (last_one_lost, "not all rows, each once"),
        (empty_at_the_end, "without rows"),
        (count, "a list of lists"),
    ],
}
