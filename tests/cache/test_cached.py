"""A cached function answers as it would have, once for each set of arguments."""

from __future__ import annotations

import abc
import dataclasses
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import date
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from workshop_lib.cache.cached import CachedFunction, cached
from workshop_lib.cache.stats import CacheStats


@pytest.fixture
def calls() -> list[Any]:
    return []


@pytest.fixture
def price(source, calls) -> CachedFunction[..., Any]:
    @cached(source, ttl=30)
    def price_of(item: object, currency: str = "EUR", *extras: object, **more: object) -> object:
        """What an item costs."""
        calls.append(item)
        return [item, currency, list(extras), more, Decimal("12.50")]

    return price_of


def test_arguments_by_place_by_name_and_by_default_are_the_same(price, calls):
    price(1)
    price(item=1)
    price(1, "EUR")
    price(currency="EUR", item=1)
    assert calls == [1]


def test_the_order_of_dicts_and_of_further_keywords_counts_as_the_function_sees_it(source):
    price = cached(source)(lambda items, **more: [*items, *more])
    assert price({"a": 1, "b": 2}, c=3, d=4) == ["a", "b", "c", "d"]
    assert price({"b": 2, "a": 1}, d=4, c=3) == ["b", "a", "d", "c"]


OTHERS = [((2,), {}), ((True,), {}), ((1.0,), {}), (("1",), {}), ((1, "USD"), {}),
          ((1, "EUR", 2), {}), ((1,), {"a": 1}), ((1,), {"b": 1}), (([1],), {}), (((1,),), {}),
          ((Decimal("1.0"),), {}), ((Decimal("1.00"),), {}), (({"a": [1]},), {})]  # fmt: skip


def test_other_arguments_have_a_result_of_their_own(price, calls):
    first = [price(*args, **more) for args, more in OTHERS]
    assert [price(*args, **more) for args, more in OTHERS] == first
    assert len(calls) == len(OTHERS)


def test_any_result_is_kept_with_its_type_nothing_included(source, calls):
    results = [None, False, 0, "", [], {}, (), b"", {"a": {1: date(2026, 6, 30)}}, Decimal("1.0")]

    @cached(source)
    def function(n: int) -> object:
        calls.append(n)
        return results[n]

    for n, result in enumerate(results):
        answers = [function(n) for _ in range(2)]
        assert [(type(a), repr(a)) for a in answers] == [(type(result), repr(result))] * 2
    assert calls == list(range(len(results)))


def test_what_a_caller_does_to_a_result_shows_to_nobody_else(price):
    price(1)
    price(1).append("changed")
    assert price(1) == [1, "EUR", [], {}, Decimal("12.50")]


def test_an_exception_reaches_the_caller_and_is_not_kept(source, calls):
    @cached(source)
    def function(n: int) -> int:
        calls.append(n)
        return 1 // n

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            function(0)
    assert calls == [0, 0]
    assert function.stats() == CacheStats()


def test_an_argument_that_no_key_can_stand_for_is_an_error_that_says_so(price, calls):
    with pytest.raises(TypeError, match=r"holds a value of type object .*Turn it into one of"):
        price(object())
    assert calls == []


class One:
    """Has a static method."""

    @staticmethod
    def get(n: int) -> str:
        return f"one {n}"


def named_price(source_text: str, **names: Any) -> Callable[..., Any]:
    """A function `price` as a cell of a notebook defines it."""
    modules = {"abc": abc, "dataclasses": dataclasses, "functools": functools}
    cell = {"__name__": "__main__", **modules, **names}
    exec(source_text, cell)  # noqa: S102 -- as a notebook does
    return cell["price"]


def adding(n: object) -> Callable[[int], Any]:
    def price(x: int) -> Any:
        return [x, n]

    return price


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: int) -> int:
        return x * self.factor

    def scaled(self, x: int) -> int:
        return x * self.factor


RATE = "def price(x): return x * RATE"
LISTED = "def price(x): return sorted(RATES)"
HELPER = "def helper(x): return x + {}\ndef price(x): return helper(x)"
CLASS = "class A:\n    RATE = {}\n    def of(self, x): return x * self.RATE\n"
CLASS += "def price(x): return A().of(x)"
LRU = "@functools.lru_cache\ndef helper(x): return x + {}\ndef price(x): return helper(x)"
ATTRIBUTE = "def helper(x): return helper.n\nhelper.n = {}\ndef price(x): return helper(x)"
METACLASS = "class M(type):\n    def __call__(cls): return {}\n"
METACLASS += "class A(metaclass=M): pass\ndef price(x): return A()"
SETTER = "class A:\n    def put(self, x): self.y = {}\n    y_too = property(fset=put)\n"
SETTER += "def price(x):\n    a = A()\n    a.y_too = x\n    return a.y"
KINDS = "@dataclasses.dataclass\nclass D:\n    n: int = {}\nclass A(abc.ABC): pass\n"
KINDS += "def price(x): return D().n if A else 0"
TWINS = {
    "lambdas": (lambda x: x + 1, lambda x: x + 2),
    "comprehensions": (lambda x: [y + 1 for y in (x,)], lambda x: [y + 2 for y in (x,)]),
    "constants of two types": (lambda x: [x, 1], lambda x: [x, True]),
    "closures": (adding(1), adding(2)),
    "closures of two types": (adding(1), adding(1.0)),
    "closures over objects": (adding(Scale(1)), adding(Scale(2))),
    "partials": (functools.partial(pow, 2), functools.partial(pow, 3)),
    "wrappers": (logged(adding(1)), logged(adding(2))),
    "callables": (Scale(2), Scale(3)),
    "edited cells": (named_price("def price(x): return 1"), named_price("def price(x): return 2")),
    "globals": (named_price(RATE, RATE=2), named_price(RATE, RATE=3)),
    "sets": (named_price(LISTED, RATES={1, 2}), named_price(LISTED, RATES={1, 3})),
    "helpers": (named_price(HELPER.format(1)), named_price(HELPER.format(2))),
    "classes": (named_price(CLASS.format(1)), named_price(CLASS.format(2))),
    "memoized helpers": (named_price(LRU.format(1)), named_price(LRU.format(2))),
    "attributes of functions": (named_price(ATTRIBUTE.format(1)), named_price(ATTRIBUTE.format(2))),
    "metaclasses": (named_price(METACLASS.format(1)), named_price(METACLASS.format(2))),
    "setters": (named_price(SETTER.format(1)), named_price(SETTER.format(2))),
    "dataclasses": (named_price(KINDS.format(1)), named_price(KINDS.format(2))),
    "defaults": (
        named_price("def price(x, y=1): return x + y"),
        named_price("def price(x, y=2): return x + y"),
    ),
    "keyword defaults": (
        named_price("def price(x, *, y=1): return x + y"),
        named_price("def price(x, *, y=2): return x + y"),
    ),
}


@pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS)
def test_two_functions_never_share_a_result(source, twins):
    one, other = map(cached(source), twins)
    assert one.key(1) != other.key(1)
    assert (one.stats().hits, repr(one(1))) == (0, repr(twins[0](1)))
    assert repr(other(1)) == repr(twins[1](1))
    assert other.stats().hits == 0


SAME = {
    "another line": (named_price(RATE, RATE=2), named_price("\n\n" + RATE, RATE=2)),
    "a set in another order": (
        named_price(LISTED, RATES=frozenset({1, 9})),
        named_price(LISTED, RATES=frozenset({9, 1})),
    ),
    "a helper": (named_price(HELPER.format(1)), named_price(HELPER.format(1))),
    "a memoized helper": (named_price(LRU.format(1)), named_price(LRU.format(1))),
    "wrappers": (logged(adding(1)), logged(adding(1))),
    "closures over one value": (adding((1, "a", None)), adding((1, "a", None))),
    "partials": (functools.partial(pow, 2), functools.partial(pow, 2)),
}


@pytest.mark.parametrize("twins", SAME.values(), ids=SAME)
def test_a_function_defined_again_finds_its_results(source, twins):
    one, other = map(cached(source), twins)
    assert one.key(1) == other.key(1)


def test_a_variable_that_is_bound_anew_makes_another_function_until_it_is_put_back(source):
    def make() -> tuple[CachedFunction[..., int], Callable[[int], None]]:
        rate = 2

        @cached(source)
        def price(x: int) -> int:
            return x * rate

        def bind(value: int) -> None:
            nonlocal rate
            rate = value

        return price, bind

    price, bind = make()
    answers = []
    for rate in (2, 3, 2, 3):
        bind(rate)
        answers.append(price(5))
    assert answers == [10, 15, 10, 15]
    assert (price.stats().misses, price.stats().hits) == (2, 2)


def test_what_the_function_itself_assigns_makes_no_other_function_of_it_but_of_its_twin(source):
    def counting_from(count: int) -> Callable[[int], int]:
        def price(x: int) -> int:
            nonlocal count
            count += 1
            return count

        return price

    one, other = (cached(source)(counting_from(start)) for start in (0, 10))
    assert [one(1), one(1), other(1), other(1)] == [1, 1, 11, 11]


@pytest.mark.parametrize("used", [threading.Lock(), [1], {1}, Scale(2), SimpleNamespace(n=1), One])
def test_a_function_that_uses_what_can_change_is_like_no_other(source, used):
    def show(x: int) -> str:
        return repr(used) + str(x)

    one, other = cached(source)(show), cached(source)(show)
    assert one.key(1) == one.key(1) != other.key(1)
    assert (one(1), one(1), one.stats().hits) == (show(1), show(1), 1)


def test_another_object_in_a_variable_makes_another_function_and_never_the_first_one(source):
    used = [0]
    price = cached(source)(lambda x: [x, *used])
    seen = []
    for n in range(1, 50):  # an object that is gone leaves its address to the next one
        used = [n]
        seen.append(price(7)[1])
    assert seen == [*range(1, 50)]


def test_a_name_stands_for_the_function(source):
    one, other = (cached(source, name="prices-2")(adding(n)) for n in (1, 2))
    assert "call:prices-2:" in one.key(5)
    assert one(5) == other(5) == [5, 1]
    assert cached(source, name="prices-3")(adding(2))(5) == [5, 2]
    with pytest.raises(ValueError, match="name is ''"):
        cached(source, name="")


# --- what is no plain function


def test_a_method_is_refused_where_it_is_decorated(source):
    with pytest.raises(TypeError, match=r"part of a class.*call it from the method"):

        class A:
            @cached(source)
            def total(self, x: int) -> int:
                return x


@pytest.mark.parametrize("kind", [classmethod, staticmethod, property])
def test_a_method_of_another_kind_is_refused(source, kind):
    with pytest.raises(TypeError, match="part of a class"):
        cached(source)(kind(One.get))


@pytest.mark.parametrize("bound", [Scale(2).scaled, {}.get, functools.partial(Scale(2).scaled, 1)])
def test_a_method_of_an_object_which_may_change_is_refused(source, bound):
    with pytest.raises(TypeError, match=r"(Scale.scaled|dict.get) is part of a class"):
        cached(source)(bound)


def test_a_default_that_no_key_can_stand_for_is_refused_where_it_is_decorated(source):
    with pytest.raises(TypeError, match=r"The default of 'scale' holds a value of type .*Scale"):

        @cached(source)
        def scaled(x: int, scale: Scale = Scale(2)) -> int:  # noqa: B008 -- what is refused
            return scale.scaled(x)


def test_a_decorator_without_parentheses_is_refused_with_advice():
    with pytest.raises(TypeError, match=r"Write @cached\(ws\)"):

        @cached
        def function(x: int) -> int:
            return x


def test_a_function_that_becomes_a_method_later_does_not_take_the_argument_for_the_object(source):
    class A:
        """Has no method yet."""

    A.total = cached(source)(adding(1))
    with pytest.raises(TypeError, match="part of a class"):
        A().total(5)
    assert A.total(5) == [5, 1]


async def waiting() -> int:
    return 1


def counting() -> Iterator[int]:
    yield 1


async def both() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "advice"),
    [
        (waiting, "asyncio.to_thread"),
        (both, "asyncio.to_thread"),
        (counting, "Return a list"),
        (functools.partial(counting), "Return a list"),
        (Scale, "returns plain values"),
        (3, "returns plain values"),
    ],
    ids=["async", "async generator", "generator", "partial", "class", "number"],
)
def test_what_gives_no_result_to_keep_is_refused_where_it_is_decorated(source, function, advice):
    with pytest.raises(TypeError, match=advice):
        cached(source)(function)


def test_a_function_that_calls_itself_is_cached_at_every_step(source, calls):
    @cached(source, lock_seconds=30)
    def fibonacci(n: int) -> int:
        calls.append(n)
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(20) == 6765
    assert sorted(calls) == list(range(21))
