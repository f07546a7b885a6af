"""Notebook 02: questions whose keys must differ, and a cache in a dict."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeAlias

from workshop_lib.exercises.check import Check, Recorder, say_error

Question: TypeAlias = tuple[str, Any]
SEPARATORS = ("", ":", ",", "|", "-", "/", " ", ", ", "', '")


def cache_key(check: Check) -> None:
    """Same question, same key; different questions, different keys."""
    names, bounds = check.value("NAMES"), check.value("RANGE")
    pairs = [(check.value(one), check.value(other), why) for one, other, why in check.table.cases]
    for question in [question for one, other, _ in pairs for question in (one, other)]:
        check.judge("repeated", got=_key(check, question), again=_key(check, question))
    ada = (names, ("Ada", "Eve"))
    check.judge("elsewhere", got=_key(check, ada), again=_key_elsewhere(check, ada))
    # The worst that can be between two values is what the key itself has there.
    between = _key(check, (names, ("<one>", "<two>"))).partition("<one>")[2].partition("<two>")[0]
    for separator in (*SEPARATORS, between):
        one, other = (names, (f"a{separator}b", "c")), (names, ("a", f"b{separator}c"))
        pairs.append((one, other, check.say("where_values_end")))
    for one, other, why in pairs:
        _compare(check, "apart", one, other, why)
    _compare(check, "equal", (bounds, {"low": 1, "high": 2}), (bounds, {"high": 2, "low": 1}))


def _compare(check: Check, stage: str, one: Question, other: Question, why: str = "") -> None:
    check.facts |= {"one": _shown(one), "other": _shown(other), "why": why}
    check.judge(stage, got=_key(check, one), again=_key(check, other))


def _shown(question: Question) -> str:
    sql, params = question
    return f"`cache_key({sql!r}, {params!r})`"


def _key(check: Check, question: Question) -> str:
    sql, params = question
    got = check.call(sql, deepcopy(params), shown=_shown(question))
    check.judge("key", got=got)
    return str(got)


def _key_elsewhere(check: Check, question: Question) -> str:
    """The key with a `hash` that is seeded differently, as in every new Python process."""
    names = getattr(check.answer, "__globals__", {})
    before = {"hash": names["hash"]} if "hash" in names else {}
    names["hash"] = lambda value: hash(("another process", value))
    try:
        return _key(check, question)
    finally:
        del names["hash"]
        names |= before


ROWS: list[list[object]] = [[1, "Ada", 4.5, None], [2, "Zoë", 3.0, True]]
OTHER_ROWS = [[3, "Eve", 0.5, False]]
KEY, OTHER_KEY = "planets", "moons"
UNREADABLE = (b"not JSON", b"\xff\xfe\x00", b"[1, 2", b"")


class FakeCache:
    """A cache in a dict that notes each time to live. As a client does, it returns bytes.

    Attributes:
        broken: "get" or "set", if that raises an error.

    """

    broken = ""

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
            raise ConnectionError("no answer from the cache")


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
    for part in ("get", "set"):
        cache = FakeCache()
        cache.broken = part
        when = f"With a cache whose `{part}` raises `ConnectionError`"
        _ask_twice(check, "rows", cache, ROWS, when, when)


def _ask_twice(check: Check, stage: str, cache: FakeCache, rows: object, *when: str) -> None:
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
