"""Notebook 02: questions whose keys must differ, and a cache in a dict."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from datetime import date
from itertools import product
from string import ascii_lowercase
from typing import Any, TypeAlias

from workshop_lib.exercises.check import Check, Recorder, copy, say_error

Question: TypeAlias = tuple[str, Any]
SEPARATORS = ("", ":", ",", "|", "-", "/", " ", ", ", "', '")
VALUES = ("<one>", "<two>")
MAX_SHOWN = 200
MANY = 5_000
"""So many keys are alike by chance where a key has only five hexadecimal digits."""


def cache_key(check: Check) -> None:
    """Same question, same key; different questions, different keys."""
    check.facts["asked"] = []
    orders, names, bounds = map(check.value, ("ORDERS", "NAMES", "RANGE"))
    pairs = [(check.value(one), check.value(other), why) for one, other, why in check.table.cases]
    for question in [question for one, other, _ in pairs for question in (one, other)]:
        check.judge("repeated", got=_key(check, question), again=_key(check, question))
    ada = (names, ("Ada", "Eve"))
    check.judge("elsewhere", got=_key(check, ada), again=check.attempt_elsewhere(*ada).value)
    for separator in (*SEPARATORS, *_between(check, (names, VALUES), (bounds, _named(VALUES)))):
        one, other = (names, (f"a{separator}b", "c")), (names, ("a", f"b{separator}c"))
        pairs.append((one, other, check.say("where_values_end")))
    for one, other, why in pairs:
        _compare(check, "apart", one, other, why)
        if one[0] == other[0] and all(isinstance(params, tuple) for _, params in (one, other)):
            _compare(check, "apart", (bounds, _named(one[1])), (bounds, _named(other[1])), why)
    _compare(check, "equal", (bounds, {"low": 1, "high": 2}), (bounds, {"high": 2, "low": 1}))
    for count in range(2, len(ascii_lowercase)):  # a set has an order, too, but by chance
        letters = dict(zip(ascii_lowercase[:count], range(count), strict=False))
        _compare(check, "equal", (bounds, letters), (bounds, dict(reversed(letters.items()))))
    known: dict[str, Question] = {}
    for number in range(MANY):
        asked: Question = (orders, (number,))
        other = known.setdefault(check.attempt(*asked).value, asked)
        if other is not asked:
            _compare(check, "apart", other, asked, check.say("few_digits"))


def _named(values: tuple[object, ...]) -> dict[str, object]:
    """The values of a tuple in a dict; its names are in their order."""
    return dict(zip(("high", "low"), values, strict=False))


def _between(check: Check, *questions: Question) -> Iterator[str]:
    """The worst that can be between two values is what the key itself has there."""
    for question in questions:
        yield _key(check, question).partition(VALUES[0])[2].partition(VALUES[1])[0]


def _compare(check: Check, stage: str, one: Question, other: Question, why: str = "") -> None:
    check.facts |= {"one": _shown(one), "other": _shown(other), "why": why}
    check.judge(stage, got=_key(check, one), again=_key(check, other))


def _shown(question: Question) -> str:
    sql, params = question
    text = f"cache_key({sql!r}, {params!r})"
    cut = len(text) > MAX_SHOWN
    return f"`{text[:90]} … {text[-90:]}`" if cut else f"`{text}`"


def _key(check: Check, question: Question) -> str:
    copied = copy(question)
    check.facts["asked"].append(copied)  # kept, as the next copy might have the same `id`
    got = check.call(*copied, shown=_shown(question))
    check.judge("key", got=got)
    return str(got)


ROWS: list[list[object]] = [[1, "Ada", 4.5, None], [2, "Zoë", 3.0, True]]
DATED_ROWS: list[list[object]] = [[4, date(2026, 6, 30)]]
OTHER_ROWS = [[3, "Eve", 0.5, False]]
KEY, OTHER_KEY = "planets", "moons"


class CacheTimeoutError(Exception):
    """A client's own error, as redis-py's are: none of Python's kinds."""


CACHE_ERRORS: tuple[Exception, ...] = (
    ConnectionError("no answer from the cache"),
    CacheTimeoutError("Timeout reading from socket"),
    ValueError("no such entry"),
)
UNREADABLE = (b"not JSON", b"\xff\xfe\x00", b"[1, 2", b"")


class FakeCache:
    """A cache in a dict that notes each time to live. As a client does, it returns bytes.

    Attributes:
        broken: "get" or "set", if that raises `error`.

    """

    broken = ""
    error: BaseException

    def __init__(self, **entries: bytes) -> None:
        self.entries = entries
        self.ttls: list[object] = []

    def get(self, key: str) -> bytes | None:
        """The entry's bytes, or None if there is none."""
        self._fail_if_broken("get")
        return self.entries.get(key)

    def set(self, key: str, value: object, seconds: object = None) -> None:
        """Keep bytes, or a string as its bytes."""
        self._fail_if_broken("set")
        if not isinstance(value, bytes | str):
            kind = type(value).__name__
            raise TypeError(f"a cache keeps bytes or a string, not a {kind}; try json.dumps")
        self.ttls.append(seconds)
        self.entries[key] = value.encode() if isinstance(value, str) else value

    def _fail_if_broken(self, part: str) -> None:
        if part == self.broken:
            raise self.error


def get_or_load(check: Check) -> None:
    """Hits and misses give the same, errors pass, what cannot be read is a miss."""
    check.facts |= {"key": KEY, "other": OTHER_KEY}
    for rows in (ROWS, []):
        _ask_twice(check, "request", FakeCache(), rows, "On a miss", "On a hit")
    cache = FakeCache()
    check.attempt(cache, KEY, lambda: deepcopy(ROWS))
    got = check.attempt(cache, OTHER_KEY, lambda: deepcopy(OTHER_ROWS)).value
    check.judge("another_key", got=got, rows=OTHER_ROWS)
    for error in (ConnectionError("the database is down"), ValueError("no such user")):
        _meet(check, error)
    for data in UNREADABLE:
        when = f"With `{data!r}` under the key, which cannot be read"
        _ask_twice(check, "unreadable", FakeCache(**{KEY: data}), ROWS, when, when)
    for part, fault in product(("get", "set"), CACHE_ERRORS):
        cache = _broken_cache(part, fault)
        when = f"With a cache whose `{part}` raises `{say_error(fault)}`"
        _ask_twice(check, "rows", cache, ROWS, when, when)
    for part in ("get", "set"):
        _interrupt(check, part)
    when = f"With rows that JSON cannot write, `{DATED_ROWS}`"
    _ask_twice(check, "rows", FakeCache(), DATED_ROWS, when, when)


def _broken_cache(part: str, error: BaseException) -> FakeCache:
    cache = FakeCache()
    cache.broken, cache.error = part, error
    return cache


def _interrupt(check: Check, part: str) -> None:
    """An Interrupt while the answer waits for the cache has to end it."""
    try:
        check.attempt(_broken_cache(part, KeyboardInterrupt()), KEY, lambda: deepcopy(ROWS))
    except KeyboardInterrupt:
        return
    check.judge("interrupted", part=part)


def _ask_twice(check: Check, stage: str, cache: FakeCache, rows: object, *when: str) -> None:
    """Make a request for each of these cases in words, and judge what each returned."""
    load = Recorder(lambda: deepcopy(rows))
    for number, words in enumerate(when):
        check.facts |= {"call": f"{words}, `get_or_load`", "first": number == 0, "rows": rows}
        outcome = check.attempt(cache, KEY, load)
        if outcome.error is not None:
            check.stop(outcome.error)
        check.judge("rows", got=outcome.value)
        check.judge(stage, cache=cache, loads=len(load.calls))


def _meet(check: Check, error: Exception) -> None:
    def fail() -> None:
        raise error

    cache, load = FakeCache(), Recorder(fail)
    outcome = check.attempt(cache, KEY, load)
    came = "" if outcome.error is error else say_error(outcome.error)
    check.facts |= {"error": say_error(error), "came": came, "got": outcome.value}
    check.judge("error", outcome.error, loads=len(load.calls), ttls=cache.ttls)


JUDGES = {"02.1": cache_key, "02.2": get_or_load}
