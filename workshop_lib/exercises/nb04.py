"""The exercises of notebook 04: a TTL for a hit ratio, and TTLs that do not end together."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from workshop_lib.exercises.engine import Exercise, Wrong, call, function_of, show
from workshop_lib.simulate import ttl_hit_ratio

WANTED = ((0.9, 0.3), (0.5, 1.0), (0.99, 400.0), (0.75, 0.01), (0, 5))
IMPOSSIBLE = (
    (1.0, 5.0, "Each fill is a miss: no time to live gives a hit ratio of 1."),
    (1.5, 5.0, "No hit ratio is above 1."),
    (-0.1, 5.0, "No hit ratio is below 0."),
    (0.9, 0.0, "A key that is never read has no hits, however long it lives."),
    (0.9, -2.0, "There cannot be fewer than no requests."),
)


def check_choose_ttl(answer: object, _: object) -> None:
    """The TTL gives the hit ratio; what none can give is a ValueError."""
    function = function_of(answer, "choose_ttl", "hit_ratio_wanted", "requests_per_second")
    for ratio, rate in WANTED:
        _check_ratio(function, ratio, rate)
    for ratio, rate, why in IMPOSSIBLE:
        _check_refused(function, ratio, rate, why)


def _check_ratio(function: Callable[..., Any], ratio: float, rate: float) -> None:
    shown = f"`choose_ttl({ratio!r}, {rate!r})`"
    ttl = _seconds(shown, call(shown, function, ratio, rate))
    right = ratio / (rate * (1 - ratio))
    if math.isclose(ttl, right, rel_tol=1e-6, abs_tol=1e-12):
        return
    if ttl < 0:
        raise Wrong(f"{shown} returned `{ttl!r}`; expected: {right:.6g}. No time is below 0.")
    advice = "Solve h = λT / (1 + λT) for T: multiply by (1 + λT), then collect what has a T."
    if math.isclose(ttl, ratio / rate, rel_tol=1e-3):
        advice = "Where is the 1? To the λT hits of each fill comes the one miss that filled it."
    elif math.isclose(ttl, right, rel_tol=1e-2, abs_tol=1e-2):
        advice = "Do you round? A time to live may have any number of digits."
    raise Wrong(
        f"{shown} returned `{show(ttl)}`. With {rate:g} requests a second, that gives a hit ratio "
        f"of {ttl_hit_ratio(rate, ttl):.3g}; expected: {ratio:g}, with {right:.6g} s. "
        f"{advice}"
    )


def _check_refused(function: Callable[..., Any], ratio: float, rate: float, why: str) -> None:
    shown = f"`choose_ttl({ratio!r}, {rate!r})`"
    try:
        got = function(ratio, rate)
    except ValueError:
        return
    except Exception as error:
        raise Wrong(
            f"{shown} stopped with `{type(error).__name__}: {error}`. Expected: a `ValueError` "
            f"that says what is wrong with the arguments. {why}"
        ) from error
    raise Wrong(f"{shown} returned `{show(got)}`; expected: a `ValueError`. {why}")


def _seconds(shown: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        hint = " Is there a `return`?" if value is None else ""
        raise Wrong(f"{shown} returned `{show(value)}`. Expected: a number of seconds.{hint}")
    return value


TTLS = (30, 0.3, 3600.0)
DRAWS = 1000
FEWEST_DIFFERENT = 100
LEAST_IN_A_QUARTER = 0.15


def check_jittered_ttl(answer: object, _: object) -> None:
    """Never longer than asked, never below half of it, spread out, and by the generator given."""
    function = function_of(answer, "jittered_ttl", "ttl", "rng")
    for ttl in TTLS:
        drawn = _draw(function, ttl, seed=4)
        _check_bounds(ttl, drawn)
        _check_different(ttl, drawn)
        _check_generator(ttl, drawn, _draw(function, ttl, seed=4), _draw(function, ttl, seed=5))
        _check_spread(ttl, drawn)


def _draw(function: Callable[..., Any], ttl: float, seed: int) -> list[float]:
    shown, rng = f"`jittered_ttl({ttl!r}, rng)`", random.Random(seed)
    return [_seconds(shown, call(shown, function, ttl, rng)) for _ in range(DRAWS)]


def _check_bounds(ttl: float, drawn: list[float]) -> None:
    if max(drawn) > ttl:
        raise Wrong(
            f"`jittered_ttl({ttl!r}, rng)` returned `{max(drawn)!r}`, longer than asked. Expected: "
            f"at most {ttl:g}. A time to live is a promise of how old an answer may be; jitter "
            "only shortens it."
        )
    if min(drawn) < ttl / 2:
        raise Wrong(
            f"`jittered_ttl({ttl!r}, rng)` returned `{min(drawn)!r}`; expected: at least "
            f"{ttl / 2:g}, half of what was asked. An entry that hardly lives is hardly of use."
        )


def _check_different(ttl: float, drawn: list[float]) -> None:
    different = len(set(drawn))
    if different == 1:
        raise Wrong(
            f"`jittered_ttl({ttl!r}, rng)` was called {DRAWS} times with one `rng`, and returned "
            f"`{drawn[0]!r}` each time. Entries that were filled together would still expire "
            "together: draw anew at each call."
        )
    if different < FEWEST_DIFFERENT:
        raise Wrong(
            f"{DRAWS} calls of `jittered_ttl({ttl!r}, rng)` returned only {different} different "
            f"times. Expected: at least {FEWEST_DIFFERENT}. All entries with the same time still "
            "expire together: do not round, and do not choose from a few."
        )


def _check_generator(
    ttl: float, drawn: list[float], again: list[float], other: list[float]
) -> None:
    if drawn != again:
        raise Wrong(
            f"`jittered_ttl({ttl!r}, rng)` with two generators of the same seed, "
            f"`random.Random(4)`, returned `{drawn[0]!r}` and `{again[0]!r}`. Expected: the same. "
            "All chance is to come from `rng`, as in `rng.random()`, not from the module "
            "`random`: only so can a test foretell it."
        )
    if drawn == other:
        raise Wrong(
            f"`jittered_ttl({ttl!r}, rng)` returned the same times for `random.Random(4)` and "
            "`random.Random(5)`. Expected: others. Draw from `rng` as it is; do not seed it."
        )


def _check_spread(ttl: float, drawn: list[float]) -> None:
    width = ttl / 8
    for quarter in range(4):
        low = ttl / 2 + quarter * width
        share = sum(low <= drawn_ttl <= low + width for drawn_ttl in drawn) / DRAWS
        if share < LEAST_IN_A_QUARTER:
            raise Wrong(
                f"Of {DRAWS} calls of `jittered_ttl({ttl!r}, rng)`, {share:.0%} returned something "
                f"from {low:g} to {low + width:g}; expected: about 25 %, as that is a quarter of "
                f"the way from {ttl / 2:g} to {ttl:g}. Where times crowd, entries still expire "
                "together."
            )


EXERCISES = (
    Exercise(
        id="04.1",
        title="A TTL for a hit ratio",
        answer_name="choose_ttl",
        judge=check_choose_ttl,
        hints=(
            (
                "Try it with numbers first. Of ten requests, nine are to be hits: how many hits "
                "is that for each fill? How long must an entry live, at λ requests a second, to "
                "get so many?"
            ),
            (
                "From h = λT / (1 + λT) follows h + h·λT = λT. Bring what has a T to one side: "
                "h = λT · (1 - h)."
            ),
            (
                "So T = h / (λ · (1 - h)). Before that, `raise ValueError(…)` unless "
                "`0 <= hit_ratio_wanted < 1` and `requests_per_second > 0`."
            ),
        ),
        solution_source="""\
def choose_ttl(hit_ratio_wanted, requests_per_second):
    if not 0 <= hit_ratio_wanted < 1:
        raise ValueError(f"no TTL gives a hit ratio of {hit_ratio_wanted}")
    if not requests_per_second > 0:
        raise ValueError(f"{requests_per_second} requests a second give no hits at all")
    return hit_ratio_wanted / (requests_per_second * (1 - hit_ratio_wanted))
""",
        praise=(
            "From 0.9 to 0.99 the entry has to live eleven times as long: the last hits are the "
            "dearest, and are paid for with older answers."
        ),
    ),
    Exercise(
        id="04.2",
        title="Times to live that do not end together",
        answer_name="jittered_ttl",
        judge=check_jittered_ttl,
        hints=(
            (
                "Which is the shortest time that may come out, and which the longest? Each one "
                "between these two is to be as likely as any other."
            ),
            (
                "`rng.random()` gives a number from 0 to 1, another one at each call; the module's "
                "own `random.random()` would not listen to the seed of `rng`."
            ),
            "`rng.uniform(low, high)` gives a number between two others, each as likely.",
        ),
        solution_source="""\
def jittered_ttl(ttl, rng):
    return rng.uniform(ttl / 2, ttl)
""",
        praise=(
            "What was filled together now expires over half a TTL, and nothing outlives the "
            "promise. `QueryCache(ws, ttl=30, jitter=0.5)` does the same for each entry."
        ),
    ),
)
