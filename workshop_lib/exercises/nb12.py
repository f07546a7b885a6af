"""The exercise of notebook 12: what a cache costs in a month."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from workshop_lib.exercises.engine import Exercise, Wrong, call, function_of, show

CENTS = 0.005 + 1e-9
"""An answer may be rounded to cents."""
PARAMETERS = ("gb", "reads_per_s", "hit_ratio", "kb", "gb_hour", "million_ecpu")
INPUTS: tuple[tuple[float, ...], ...] = (
    (2, 0, 0.9, 1, 0.084, 0.0023),
    (0.01, 0, 0.9, 1, 0.084, 0.0023),
    (1, 1_000, 1, 1, 0.084, 1.0),
    (1, 1_000, 1, 3.5, 0.084, 1.0),
    (1, 1_000, 0, 3.5, 0.084, 1.0),
    (1, 1_000, 0.8, 0.2, 0.084, 1.0),
    (0.1, 250, 0.5, 20, 0.1, 0.5),
)


def _month(
    *,
    least_gb: float = 0.1,
    hours: float = 730,
    seconds: float = 3600,
    least_ecpu: float = 1,
    item_of: Callable[[float], float] = float,
    look: float = 1,
    fill: float = 1,
    misses: float = 1,
    million: float = 1e6,
) -> Callable[..., float]:
    """The rule of the exercise, or with one thing changed a wrong one."""

    def month(  # noqa: PLR0917 -- as the exercise has it
        gb: float, rate: float, ratio: float, kb: float, gb_hour: float, price: float
    ) -> float:
        reads, item = rate * hours * seconds, max(least_ecpu, item_of(kb))
        ecpu = reads * (ratio * item + misses * (1 - ratio) * (look + fill * item))
        return max(least_gb, gb) * hours * gb_hour + ecpu / million * price

    return month


SUSPECTS = {
    "ElastiCache charges for at least 0.1 GB.": _month(least_gb=0),
    "A month has 730 hours here, not 720.": _month(hours=720),
    "An hour has 3,600 seconds: reads are counted by the second.": _month(seconds=1),
    "A command takes one ECPU at least, however small the item.": _month(least_ecpu=0),
    "Parts of a KB count as parts: 3.5 KB are 3.5 ECPU, not 4.": _month(item_of=math.ceil),
    "A miss looks first, and finds nothing: that is one ECPU as well.": _month(look=0),
    "After a miss the cache is filled, which takes as much as a hit.": _month(fill=0),
    "Misses cost the cache something, too: the look and the filling.": _month(misses=0),
    "The price is for a million ECPU.": _month(million=1),
}


def check_cache_month(answer: object, _: object) -> None:
    """Memory and requests, for small and large items, many hits and few."""
    function = function_of(answer, "cache_month", *PARAMETERS)
    tried = [(given, _ask(function, given)) for given in INPUTS]
    for given, got in tried:
        if isinstance(got, bool) or not isinstance(got, int | float):
            hint = " Is there a `return`?" if got is None else ""
            raise Wrong(f"{_shown(given)} returned `{show(got)}`; expected a number.{hint}")
        expected = _month()(*given)
        if not _same(got, expected):
            words = next(
                (said for said, rule in SUSPECTS.items()
                 if all(_same(value, rule(*numbers)) for numbers, value in tried)),
                "Work this one out by hand, memory and requests apart.",
            )  # fmt: skip
            raise Wrong(
                f"{_shown(given)} returned `{show(got)}`; expected: {expected:.4f}. {words}"
            )


def _ask(function: Callable[..., Any], given: tuple[float, ...]) -> Any:
    return call(_shown(given), function, *given)


def _shown(given: tuple[float, ...]) -> str:
    named = zip(PARAMETERS, given, strict=True)
    return f"`cache_month({', '.join(f'{name}={value:g}' for name, value in named)})`"


def _same(got: object, expected: float) -> bool:
    number = isinstance(got, int | float) and not isinstance(got, bool)
    return number and abs(got - expected) <= max(CENTS, 1e-6 * expected)  # type: ignore[operator]


EXERCISES = (
    Exercise(
        id="12.1",
        title="A month of a cache",
        answer_name="cache_month",
        judge=check_cache_month,
        hints=(
            (
                "Two parts that do not meet: memory (GB × hours × price) and requests (ECPU by "
                "the million × price). How many reads are there in a month, and how many of them "
                "hit?"
            ),
            (
                "An item takes `max(1, kb)` ECPU. A hit takes that; a miss takes 1 for the look "
                "and that for the filling."
            ),
            (
                "`reads = reads_per_s * 730 * 3600`, `ecpu = reads * (hit_ratio * item + "
                "(1 - hit_ratio) * (1 + item))`, and `max(0.1, gb) * 730 * gb_hour`."
            ),
        ),
        solution_source="""\
def cache_month(gb, reads_per_s, hit_ratio, kb, gb_hour, million_ecpu):
    memory = max(0.1, gb) * 730 * gb_hour
    reads = reads_per_s * 730 * 3600
    item = max(1, kb)
    ecpu = reads * (hit_ratio * item + (1 - hit_ratio) * (1 + item))
    return memory + ecpu / 1e6 * million_ecpu
""",
        praise=(
            "Put in a small cache with few reads: memory is nearly all of it, and it is there "
            "whether anybody asks or not. A miss costs the cache more than a hit does."
        ),
    ),
)
