"""The exercises of notebook 10: percentiles that are right, and batches that are legal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from workshop_lib.exercises.engine import Exercise, Wrong, call, function_of, show

SAMPLES: tuple[tuple[list[float], float], ...] = (
    ([5.0], 50),
    ([1.0, 2.0, 3.0, 4.0], 50),
    ([float(n) for n in range(1, 101)], 95),
    ([float(n) for n in range(1, 101)], 99),
    ([9.0, 1.0, 5.0], 50),
    ([float(n) for n in range(10, 0, -1)], 100),
    ([1.0, 1.0, 1.0, 40.0], 75),
    ([float(n) for n in range(20)], 1),
    ([float(n) for n in range(1, 101)], 7),
)
MOST_ROWS, MOST_BYTES = 4, 100
SIZES: tuple[list[int], ...] = (
    [],
    [10, 10, 10],
    [10] * 9,
    [10] * 4,
    [60, 60, 60],
    [50, 50, 1],
    [90, 20, 90],
    [1, 2, 3, 4, 5, 6, 97, 3, 1],
    [100],
    [50, 50],
    [100, 100],
)


def _nearest(values: Sequence[float], q: float) -> float:
    return sorted(values)[math.ceil(q * len(values) / 100) - 1]


def _inexact(values: Sequence[float], q: float) -> float:
    return sorted(values)[math.ceil(q / 100 * len(values)) - 1]


def _beside(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(q / 100 * len(values)), len(values) - 1)]


def _between(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    place = q / 100 * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _unsorted(values: Sequence[float], q: float) -> float:
    return values[math.ceil(q * len(values) / 100) - 1]


def _unsorted_inexact(values: Sequence[float], q: float) -> float:
    return values[math.ceil(q / 100 * len(values)) - 1]


SUSPECTS: dict[Callable[[Sequence[float], float], float], str] = {
    _beside: "That is one place too far: of 100 values, the 95th is at index 94.",
    _between: (
        "That is a value between two measured ones: no request took that long. Take one of them."
    ),
    _unsorted: "The values are not in order as they come.",
    _unsorted_inexact: "The values are not in order as they come.",
    _inexact: (
        "The rule is right, and the arithmetic is not: in floating point `7 / 100 * 100` is "
        "7.000000000000001, and rounded up that is 8. Divide last: `q * n / 100`."
    ),
}


def check_p(answer: object, _: object) -> None:
    """Nearest rank, on few and many values, in order and not."""
    function = function_of(answer, "p", "values", "q")
    tried: list[tuple[list[float], float, object]] = []
    for values, q in SAMPLES:
        given = list(values)
        got = call(f"`p({show(values)}, {q})`", function, given, q)
        if given != values:
            raise Wrong("`p` changed the list that it was given: others still need it. `sorted`?")
        tried.append((values, q, got))
    for values, q, got in tried:
        if not _same(got, _nearest(values, q)):
            words = next(
                (said for rule, said in SUSPECTS.items()
                 if all(_same(g, rule(v, r)) for v, r, g in tried)),
                "Count by hand: how many of the values may be larger?",
            )  # fmt: skip
            raise Wrong(
                f"`p({show(values)}, {q})` returned `{show(got)}`; expected: {_nearest(values, q)}."
                f" {words}"
            )


def check_cut(answer: object, _: object) -> None:
    """Batches in order, none too large, and no more of them than needed."""
    function = function_of(answer, "cut", "sizes", "most_rows", "most_bytes")
    for sizes in SIZES:
        shown = f"`cut({sizes}, most_rows={MOST_ROWS}, most_bytes={MOST_BYTES})`"
        got = _batches(call(shown, function, list(sizes), MOST_ROWS, MOST_BYTES), shown)
        if [size for batch in got for size in batch] != sizes:
            raise Wrong(f"{shown} returned `{show(got)}`: not all rows, each once, in their order.")
        if [] in got:
            raise Wrong(f"{shown} returned `{show(got)}`: a batch without rows is no transaction.")
        for batch in got:
            if len(batch) > MOST_ROWS:
                raise Wrong(f"{shown} has a batch of {len(batch)} rows; {MOST_ROWS} may be.")
            if sum(batch) > MOST_BYTES:
                raise Wrong(f"{shown} has a batch of {sum(batch)} bytes; {MOST_BYTES} may be.")
        needed = len(_greedy(sizes))
        if len(got) > needed:
            raise Wrong(
                f"{shown} makes {len(got)} batches; {needed} are enough. Begin a new one only when "
                "the next row does not fit any more."
            )


def _batches(got: Any, shown: str) -> list[list[int]]:
    try:
        return [list(batch) for batch in got]
    except TypeError:
        raise Wrong(f"{shown} returned `{show(got)}`; expected: a list of lists.") from None


def _greedy(sizes: Sequence[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for size in sizes:
        last = found[-1] if found else None
        if last is None or len(last) == MOST_ROWS or sum(last) + size > MOST_BYTES:
            found.append([])
        found[-1].append(size)
    return found


def _same(got: object, expected: float) -> bool:
    if isinstance(got, bool) or not isinstance(got, int | float):
        return False
    return math.isclose(got, expected, rel_tol=1e-9)


EXERCISES = (
    Exercise(
        id="10.1",
        title="A percentile that is right",
        answer_name="p",
        judge=check_p,
        hints=(
            "Put the values in order. Which place in that order is the answer's?",
            "Of n values, the one at place q × n / 100, rounded up, counted from 1.",
            "`math.ceil(q * len(values) / 100)` is that place; Python counts from 0. Divide last.",
        ),
        solution_source="""import math


def p(values, q):
    return sorted(values)[math.ceil(q * len(values) / 100) - 1]
""",
        praise=(
            "Nearest rank: always one of the waits. `int(q / 100 * n)` as an index is one "
            "place too far, and with 100 values turns p99 into the maximum."
        ),
    ),
    Exercise(
        id="10.2",
        title="Batches that Aurora DSQL takes",
        answer_name="cut",
        judge=check_cut,
        hints=(
            "Keep an open batch. When does the next row not fit any more?",
            "Two reasons: it has `most_rows` already, or its bytes and the row's are too many.",
            "Then begin a new batch; and do not begin one before there is a row for it.",
        ),
        solution_source="""def cut(sizes, most_rows, most_bytes):
    batches = []
    for size in sizes:
        full = not batches or len(batches[-1]) == most_rows
        if full or sum(batches[-1]) + size > most_bytes:
            batches.append([])
        batches[-1].append(size)
    return batches
""",
        praise=(
            "As few transactions as the order allows. On Aurora DSQL the limits are 3,000 rows and "
            "10 MiB: with rows of 5 KB it is the bytes that end a batch."
        ),
    ),
)
