"""The exercises of notebook 08: the break-even hit ratio, and the size of a pool."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workshop_lib.exercises.engine import Exercise, Wrong, call, function_of, show
from workshop_lib.simulate import break_even

Numbers = tuple[float, ...]
ROUNDED = 0.002
BUSY_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Task:
    """A function of numbers, the inputs to try it with, and what wrong formulas would give.

    Attributes:
        right: the value for an input.
        same: whether a value is as good as another.
        suspects: by what is to be said, another formula.

    """

    name: str
    parameters: tuple[str, ...]
    inputs: Sequence[Numbers]
    right: Callable[..., Any]
    same: Callable[[object, object], bool]
    suspects: Mapping[str, Callable[..., Any]]

    def judge(self, answer: object) -> None:
        """Try the answer with all inputs.

        Raises:
            Wrong: for the first input with another value; says which wrong formula fits them all.

        """
        function = function_of(answer, self.name, *self.parameters)
        tried = [(numbers, self._ask(function, numbers)) for numbers in self.inputs]
        for numbers, got in tried:
            expected = self.right(*numbers)
            if not self.same(got, expected):
                shown = expected if expected is None else f"{expected:.4g}"
                hint = " Is there a `return`?" if got is None else self._suspicion(tried)
                raise Wrong(
                    f"{self._shown(numbers)} returned `{show(got)}`; expected: {shown}.{hint}"
                )

    def _ask(self, function: Callable[..., Any], numbers: Numbers) -> Any:
        return call(self._shown(numbers), function, *numbers)

    def _shown(self, numbers: Numbers) -> str:
        named = zip(self.parameters, numbers, strict=True)
        return f"`{self.name}({', '.join(f'{name}={value:g}' for name, value in named)})`"

    def _suspicion(self, tried: Sequence[tuple[Numbers, object]]) -> str:
        # A wrong formula is found as well where None has been forgotten besides.
        numeric = [(numbers, got) for numbers, got in tried if self.right(*numbers) is not None]
        for some in (tried, numeric):
            for words, formula in self.suspects.items():
                if all(self.same(got, formula(*numbers)) for numbers, got in some):
                    return f" {words}"
        return ""


def _ratio(hit: float, fill: float, database: float) -> float | None:
    return break_even(hit, fill, database)


def _when_faster(formula: Callable[..., float]) -> Callable[..., float | None]:
    return lambda hit, fill, database: None if hit >= database else formula(hit, fill, database)


def _same_ratio(got: object, expected: object) -> bool:
    if got is None or expected is None:
        return got is expected
    number = isinstance(got, int | float) and not isinstance(got, bool)
    return number and abs(got - expected) <= ROUNDED  # type: ignore[operator]


BREAK_EVEN = Task(
    "break_even",
    ("hit_ms", "fill_ms", "database_ms"),
    ((1, 1, 9), (0.5, 0.1, 20), (0.08, 0.08, 0.3), (2, 0, 5), (0, 0, 3), (1, 50, 10), (5, 1, 5),
     (6, 0, 5), (4.9, 0.1, 5)),
    _ratio,
    _same_ratio,
    {
        "A miss costs a look into the cache as well: it is in both, hit and miss.": _when_faster(
            lambda hit, fill, database: fill / (database + fill - hit)
        ),
        "Filling the cache after a miss takes time, too.": _when_faster(
            lambda hit, _, database: hit / database
        ),
        "This is the miss ratio at the break-even; the hit ratio is the rest.": _when_faster(
            lambda hit, fill, database: 1 - (hit + fill) / (database + fill)
        ),
        "This is per cent. A ratio lies between 0 and 1.": _when_faster(
            lambda hit, fill, database: 100 * (hit + fill) / (database + fill)
        ),
        (
            "A hit that is no faster than the database never pays, whatever the ratio: the answer "
            "is None."
        ): lambda hit, fill, database: (hit + fill) / (database + fill),
        (
            "With a hit as fast as the database, no ratio makes it *faster*: the answer is None, "
            "at equality as well."
        ): lambda hit, fill, database: (
            None if hit > database else (hit + fill) / (database + fill)
        ),
    },
)  # fmt: skip


def _size(
    *,
    way: Callable[[float], int] = math.ceil,
    second: float = 1000,
    share: float = BUSY_SHARE,
    times: float = 1,
    least: int = 1,
    limits: slice = slice(None),
) -> Callable[..., int]:
    """The rule of the exercise, or with one thing changed a wrong one."""

    def size(rate: float, busy: float, *most: int) -> int:
        return min(max(least, way(rate * busy / second / share * times)), *most[limits])

    return size


def _same_size(got: object, expected: object) -> bool:
    return isinstance(got, int) and not isinstance(got, bool) and got == expected


POOL_SIZE = Task(
    "pool_size",
    ("requests_per_second", "busy_ms", "threads", "most"),
    # No quotient is near a whole number: how a computer rounds decides nothing.
    ((200, 5, 16, 20), (400, 5, 16, 20), (1000, 10, 64, 100), (50, 2, 8, 10), (0, 10, 8, 10),
     (2000, 20, 16, 100),
     (2000, 20, 200, 30), (300, 8, 64, 64), (40, 30, 1, 10), (900, 25, 100, 100)),
    _size(),
    _same_size,
    {
        "A second has 1,000 ms: is `busy_ms` turned into seconds?": _size(second=1),
        "This rounds down: a part of a connection too few is a queue.": _size(way=math.floor),
        "This rounds to the nearest: a part of a connection too few is a queue.": _size(way=round),
        "This plans for connections that are busy all the time. Divide by 0.7.": _size(share=1),
        "This multiplies by 0.7 and makes the pool smaller; head-room makes it larger.": _size(
            share=1 / BUSY_SHARE
        ),
        "This adds 30 %. For 70 % of the pool to be in use, divide by 0.7: that is more.": _size(
            share=1, times=1.3
        ),
        "What the database allows, `most`, is not kept.": _size(limits=slice(1)),
        "A thread holds one connection at a time: more than `threads` are never used.": _size(
            limits=slice(1, None)
        ),
        "Without traffic there is still one connection, for the first request.": _size(least=0),
    },
)  # fmt: skip


def check_break_even(answer: object, _: object) -> None:
    """The ratio for quick and slow caches and databases, None where there is none."""
    BREAK_EVEN.judge(answer)


def check_pool_size(answer: object, _: object) -> None:
    """A whole number by the rule, for light and heavy traffic and each of the two limits."""
    function = function_of(answer, "pool_size", *POOL_SIZE.parameters)
    got = call("`pool_size(200, 5, 16, 20)`", function, 200, 5, 16, 20)
    if isinstance(got, float):
        raise Wrong(
            f"`pool_size(200, 5, 16, 20)` returned `{show(got)}`, a float. Expected: a whole "
            "number, an int; `math.ceil` gives one."
        )
    POOL_SIZE.judge(answer)


EXERCISES = (
    Exercise(
        id="08.1",
        title="From which hit ratio on does a cache pay?",
        answer_name="break_even",
        judge=check_break_even,
        hints=(
            (
                "Write down what a read costs on average with hit ratio h: h times the cost of a "
                "hit, plus (1 - h) times the cost of a miss. What is in a miss?"
            ),
            (
                "h · hit + (1 - h) · (hit + database + fill) is the same as "
                "hit + (1 - h) · (database + fill). Set it equal to database, and solve for h."
            ),
            (
                "`(hit_ms + fill_ms) / (database_ms + fill_ms)`, if `hit_ms < database_ms`; "
                "otherwise None."
            ),
        ),
        solution_source="""\
def break_even(hit_ms, fill_ms, database_ms):
    if hit_ms >= database_ms:
        return None
    return (hit_ms + fill_ms) / (database_ms + fill_ms)
""",
        praise=(
            "Every miss pays for a look and a filling that were in vain, and hits have to earn "
            "that. Put in your own figures from above: on one machine the ratio is high, a few "
            "milliseconds of latency make it small."
        ),
    ),
    Exercise(
        id="08.2",
        title="How many connections?",
        answer_name="pool_size",
        judge=check_pool_size,
        hints=(
            (
                "Little's law: requests a second × seconds each holds a connection = connections "
                "in use on average. At 70 % use, how many have to be there?"
            ),
            (
                "`requests_per_second * busy_ms / 1000 / 0.7`, rounded up with `math.ceil`. Then "
                "the limits: at least 1, at most `threads`, at most `most`."
            ),
            "`min(max(1, needed), threads, most)`.",
        ),
        solution_source="""\
import math


def pool_size(requests_per_second, busy_ms, threads, most):
    in_use = requests_per_second * busy_ms / 1000
    needed = math.ceil(in_use / 0.7)
    return min(max(1, needed), threads, most)
""",
        praise=(
            "Enough for the traffic with some room, no more than can be used, no more than is "
            "allowed. If a limit cut it down, callers will wait: hold each connection for less "
            "long before you ask for more of them."
        ),
    ),
)
