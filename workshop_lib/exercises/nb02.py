"""The exercises of notebook 02: a key for a query, and cache-aside that keeps an empty answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from datetime import date
from decimal import Decimal
from types import FunctionType
from typing import Any, TypeAlias

from workshop_lib.exercises.engine import Exercise, Wrong, call, function_of, show

Question: TypeAlias = tuple[str, object]

ORDERS = "SELECT * FROM orders WHERE id = %s"
USERS = "SELECT * FROM users WHERE id = %s"
NAMES = "SELECT * FROM users WHERE name IN (%s, %s)"
RANGE = "SELECT * FROM orders WHERE id >= %(low)s AND id < %(high)s"
SEPARATORS = ("", ":", ",", "|", "-", "/", " ", ", ", "', '")

DIFFERENT: tuple[tuple[Question, Question, str], ...] = (
    ((ORDERS, (7,)), (ORDERS, (8,)), "The parameters belong in the key, not the SQL alone."),
    ((ORDERS, (7,)), (USERS, (7,)), "The SQL belongs into the key, not the parameters alone."),
    ((NAMES, ("Ada", "Eve")), (NAMES, ("Eve", "Ada")), "In a tuple, the order counts."),
    (
        (RANGE, {"low": 1, "high": 2}),
        (RANGE, {"low": 2, "high": 1}),
        "Each value of a dict belongs to its name: both go into the key.",
    ),
    (
        (ORDERS, (7,)),
        (ORDERS, ("7",)),
        "A number is not a text. `str` makes them the same; compare `repr(7)` and `repr('7')`.",
    ),
    (
        (ORDERS, (date(2025, 1, 31),)),
        (ORDERS, ("2025-01-31",)),
        "A date is not a text: `str`, and JSON with `default=str`, make them the same.",
    ),
    (
        (ORDERS, (-1,)),
        (ORDERS, (-2,)),
        "Do you use `hash`? It may give two values the same number: `hash(-1) == hash(-2)`.",
    ),
    ((ORDERS, (1,)), (ORDERS, (True,)), "Values of different types are different questions."),
    ((ORDERS, (1.5,)), (ORDERS, (Decimal("1.5"),)), "A `float` is not a `Decimal`."),
    ((ORDERS, (None,)), (ORDERS, ("None",)), "`None`, SQL's NULL, is not a text."),
    ((ORDERS, None), (ORDERS, (None,)), "No parameters, and one that is NULL, are two things."),
    ((RANGE, {"low": 1}), (RANGE, {"low": 1, "high": None}), "NULL is not the same as absent."),
)


def check_cache_key(answer: object, _: object) -> None:
    """Same question, same key; different questions, different keys."""
    function = function_of(answer, "cache_key", "sql", "params")
    for one, other, _why in DIFFERENT:
        _check_repeatable(function, one)
        _check_repeatable(function, other)
    _check_other_process(function)
    for one, other, why in DIFFERENT:
        _check_apart(function, one, other, why)
    for separator in (*SEPARATORS, _between(function)):
        _check_apart(
            function,
            (NAMES, (f"a{separator}b", "c")),
            (NAMES, ("a", f"b{separator}c")),
            "One cannot see in the key where a value ends and the next begins.",
        )
    _check_order_of_names(function)


def _key(function: Callable[..., Any], question: Question) -> str:
    sql, params = question
    key = call(f"`{_shown(question)}`", function, sql, deepcopy(params))
    if not isinstance(key, str):
        hint = " Is there a `return`?" if key is None else ""
        raise Wrong(
            f"`{_shown(question)}` returned `{show(key)}`, of type `{type(key).__name__}`. "
            f"Expected: a text, `str`.{hint}"
        )
    return key


def _shown(question: Question) -> str:
    sql, params = question
    return f"cache_key({sql!r}, {params!r})"


def _check_repeatable(function: Callable[..., Any], question: Question) -> None:
    first, second = _key(function, question), _key(function, question)
    if first != second:
        raise Wrong(
            f"`{_shown(question)}` was called twice and returned `{show(first)}`, then "
            f"`{show(second)}`. With a new key at every call there is never a hit: build the key "
            "from the SQL and the values alone, without time, chance or `id`."
        )


def _check_other_process(function: Callable[..., Any]) -> None:
    """Call it with a `hash` that is seeded differently, as in every new Python process."""
    if not isinstance(function, FunctionType):
        return
    elsewhere = FunctionType(
        function.__code__,
        {**function.__globals__, "hash": lambda value: hash(("another process", value))},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    elsewhere.__kwdefaults__ = function.__kwdefaults__
    question = (NAMES, ("Ada", "Eve"))
    here, there = _key(function, question), _key(elsewhere, question)
    if here != there:
        raise Wrong(
            f"`{_shown(question)}` returned `{show(here)}` in this process; in another it would "
            f"be `{show(there)}`, say. `hash` of a text differs from process to process: nobody "
            "else would find your entries, nor would you after a restart."
        )


def _check_apart(function: Callable[..., Any], one: Question, other: Question, why: str) -> None:
    key = _key(function, one)
    if key == _key(function, other):
        raise Wrong(
            f"Two different questions share the key `{show(key)}`:\n`{_shown(one)}`\n"
            f"`{_shown(other)}`\nExpected: two keys. As it is, the second is answered with the "
            f"rows of the first. {why}"
        )


def _between(function: Callable[..., Any]) -> str:
    """What the key has between two values, if they can be read in it: the worst value to meet."""
    key = _key(function, (NAMES, ("<one>", "<two>")))
    return key.partition("<one>")[2].partition("<two>")[0]


def _check_order_of_names(function: Callable[..., Any]) -> None:
    one, other = (RANGE, {"low": 1, "high": 2}), (RANGE, {"high": 2, "low": 1})
    if _key(function, one) != _key(function, other):
        raise Wrong(
            "The same question has two keys, and is a miss twice:\n"
            f"`{_shown(one)}` returned `{show(_key(function, one))}`\n"
            f"`{_shown(other)}` returned `{show(_key(function, other))}`\n"
            "Expected: one key. The order in which a dict was filled must not count; look at "
            "`sorted`."
        )


ROWS: list[list[object]] = [[1, "Ada", 4.5, None], [2, "Zoë", 3.0, True]]
OTHER_ROWS: list[list[object]] = [[3, "Eve", 0.5, False]]
KEY, OTHER_KEY = "planets", "moons"
UNREADABLE = (b"not JSON", b"\xff\xfe\x00", b"[1, 2", b"")


class FakeCache:
    """A cache in a dict that notes each time to live: as a client does, it gives back bytes."""

    def __init__(self, **entries: bytes) -> None:
        self.entries = entries
        self.ttls: list[object] = []

    def get(self, key: str) -> bytes | None:
        """The entry's bytes, or None if there is none."""
        return self.entries.get(key)

    def set(self, key: str, value: object, seconds: object = None) -> None:
        """Keep bytes, or a text as its bytes."""
        if not isinstance(value, bytes | str):
            kind = type(value).__name__
            raise TypeError(f"a cache keeps bytes or text, not a {kind}; try json.dumps")
        self.ttls.append(seconds)
        self.entries[key] = value.encode() if isinstance(value, str) else value


class FakeDatabase:
    """A database that always gives the same answer, or always fails, and counts how often."""

    def __init__(self, answer: list[list[object]] | Exception) -> None:
        self.answer = answer
        self.loads = 0

    def load(self) -> list[list[object]]:
        """The rows."""
        self.loads += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return deepcopy(self.answer)


def check_get_or_load(answer: object, _: object) -> None:
    """Hits and misses give the same, errors pass, what cannot be read is a miss."""
    function = function_of(answer, "get_or_load", "cache", "key", "load")
    _check_miss_then_hit(function, ROWS)
    _check_miss_then_hit(function, [])
    _check_keys_apart(function)
    for error in (ConnectionError("the database is down"), ValueError("no such user")):
        _check_error_passes(function, error)
    for data in UNREADABLE:
        _check_unreadable(function, data)


def _check_miss_then_hit(function: Callable[..., Any], rows: list[list[object]]) -> None:
    cache, database = FakeCache(), FakeDatabase(rows)
    _check_rows(_get(function, cache, KEY, database, "On a miss"), rows, "On a miss")
    if database.loads != 1:
        raise Wrong(f"On a miss, `load()` was called {database.loads} times; once is enough.")
    if not cache.ttls:
        raise Wrong(
            f"On a miss, `load()` gave `{show(rows)}`, and `cache.set` was not called: nothing is "
            f"kept, and the next request asks the database again.{_about_empty(rows)}"
        )
    for seconds in cache.ttls:
        _check_ttl(seconds)
    _check_rows(_get(function, cache, KEY, database, "On a hit"), rows, "On a hit")
    if database.loads != 1:
        raise Wrong(
            f"`load()` gave `{show(rows)}`; the cache then held `{show(cache.entries)}`; and the "
            f"second request for `{KEY!r}` called `load()` again. Expected: one call for two "
            f"requests.{_about_empty(rows)}"
        )


def _about_empty(rows: list[list[object]]) -> str:
    if rows:
        return ""
    return (
        " An empty answer is an answer: ask whether an entry is there with `is None`, not whether "
        "the list is empty."
    )


def _check_ttl(seconds: object) -> None:
    if seconds is None:
        raise Wrong(
            "`cache.set` was called without a time to live. The entry would stay for ever, "
            "however the rows change: `cache.set(key, value, seconds)`."
        )
    if isinstance(seconds, bool) or not (
        isinstance(seconds, int | float) and 0 < seconds < math.inf
    ):
        raise Wrong(f"The time to live is `{show(seconds)}`; expected: seconds, more than 0.")


def _get(
    function: Callable[..., Any], cache: FakeCache, key: str, database: FakeDatabase, when: str
) -> Any:
    return call(f"{when}, `get_or_load`", function, cache, key, database.load)


def _check_rows(got: object, rows: list[list[object]], when: str) -> None:
    if got == rows:
        return
    kind = type(got).__name__
    advice = {
        "NoneType": "Is there a `return` on this way through the function?",
        "bytes": "These are the bytes of the entry: turn them into rows, as `json.loads` does.",
        "str": "This is the text of the entry: turn it into rows, as `json.loads` does.",
    }.get(kind, "A caller must not be able to tell a hit from a miss.")
    raise Wrong(
        f"{when}, expected `{show(rows)}`; came back `{show(got)}`, of type `{kind}`. {advice}"
    )


def _check_keys_apart(function: Callable[..., Any]) -> None:
    cache = FakeCache()
    _get(function, cache, KEY, FakeDatabase(ROWS), "On a miss")
    got = _get(function, cache, OTHER_KEY, FakeDatabase(OTHER_ROWS), "On a miss")
    if got != OTHER_ROWS:
        raise Wrong(
            f"With `{KEY!r}` in the cache, a request for `{OTHER_KEY!r}` was answered with "
            f"`{show(got)}`; expected: `{show(OTHER_ROWS)}`. Each `key` has an entry of its own."
        )


def _check_error_passes(function: Callable[..., Any], error: Exception) -> None:
    cache, database = FakeCache(), FakeDatabase(error)
    name = f"{type(error).__name__}: {error}"
    try:
        got = function(cache, KEY, database.load)
    except Exception as caught:
        if caught is not error:
            raise Wrong(
                f"`load()` raised `{name}`, and `{type(caught).__name__}: {caught}` came out of "
                "`get_or_load`. Expected: the error of `load()` itself."
            ) from caught
    else:
        raise Wrong(
            f"`load()` raised `{name}`, and `get_or_load` returned `{show(got)}`: a fault that "
            "looks like an answer. Let errors of `load()` pass: no `try` around it."
        )
    if database.loads != 1:
        raise Wrong(
            f"`load()` raised `{name}` and was called {database.loads} times. Only the decoding "
            "of an entry belongs into the `try`, not `load()`."
        )
    if cache.ttls:
        raise Wrong(f"`load()` raised `{name}`, and something was kept. Never keep a fault.")


def _check_unreadable(function: Callable[..., Any], data: bytes) -> None:
    cache, database = FakeCache(**{KEY: data}), FakeDatabase(ROWS)
    when = f"With `{data!r}` under the key, which cannot be read"
    try:
        got = function(cache, KEY, database.load)
    except Exception as error:
        raise Wrong(
            f"{when}, `get_or_load` stopped with `{type(error).__name__}: {error}`. Expected: the "
            "rows from `load()`. A fault of the cache may cost time, never the answer. (All that "
            "`json.loads` raises for bytes is a `ValueError`.)"
        ) from error
    _check_rows(got, ROWS, when)
    _check_rows(_get(function, cache, KEY, database, f"{when}, the second time"), ROWS, when)
    if database.loads != 1:
        raise Wrong(
            f"{when}, two requests called `load()` {database.loads} times. Expected: once, and "
            "the entry is written anew."
        )


EXERCISES = (
    Exercise(
        id="02.1",
        title="A key for a query",
        answer_name="cache_key",
        judge=check_cache_key,
        hints=(
            (
                "Print the keys of a few questions: `(sql, (7,))`, `(sql, ('7',))`, `(sql, None)`. "
                "Which two could be taken for one another?"
            ),
            (
                "`str(7)` and `str('7')` are the same text. `repr` keeps the quotes, and that "
                "of a whole tuple also shows where one value ends and the next begins."
            ),
            (
                "A dict remembers in which order it was filled; `sorted(params.items())` does not. "
                "After that, one `repr((sql, params))` is enough, for dicts, tuples and None."
            ),
        ),
        solution_source="""\
def cache_key(sql, params):
    if isinstance(params, dict):
        params = sorted(params.items())  # the order of filling does not count
    return repr((sql, params))  # with quotes, types and the ends of the values
""",
        praise=(
            "The same question has one key, and no two questions share one. `QueryCache` does "
            "the same, and then shortens the text with a digest: `cache.key(sql, params)`."
        ),
    ),
    Exercise(
        id="02.2",
        title="Cache-aside with an empty answer",
        answer_name="get_or_load",
        judge=check_get_or_load,
        hints=(
            (
                "There are four cases: a hit, a miss, an unreadable entry, a `load()` "
                "that raises. In which of them is `load()` called, and in which `cache.set`?"
            ),
            (
                "`cache.get` returns None if nothing is there. A decoded empty list is false, "
                "too, and yet it is there: ask `is None` before you decode."
            ),
            (
                "Put a `try` around `json.loads` and nothing else, with `except ValueError`; what "
                "follows it is the way of a miss: `load()`, `cache.set(key, json.dumps(rows), 30)`."
            ),
        ),
        solution_source="""\
import json


def get_or_load(cache, key, load):
    found = cache.get(key)
    if found is not None:
        try:
            return json.loads(found)
        except ValueError:
            pass  # nobody can read it: go on as on a miss
    rows = load()
    cache.set(key, json.dumps(rows), 30)
    return rows
""",
        praise=(
            "One question to the database for two requests, empty or not; errors pass, and an "
            "unreadable entry costs time, not the answer."
        ),
    ),
)
