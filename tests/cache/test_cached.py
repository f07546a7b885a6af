"""A cached function answers as it would have, once for each set of arguments."""

from __future__ import annotations

import functools
import pickle
import types
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from workshop_lib.cache.cached import CachedFunction, cached
from workshop_lib.errors import ServiceUnreachableError, WorkshopError


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


def test_an_argument_that_no_key_can_stand_for_is_an_error_that_says_so(price, calls):
    with pytest.raises(TypeError, match=r"holds a value of type object .*Turn it into one of"):
        price(object())
    assert calls == []


def test_a_parameter_may_have_any_name(source):
    @cached(source)
    def function(self: int, cls: int = 0) -> int:
        return self + cls

    assert [function(self=3), function(3, cls=0)] == [3, 3]
    assert function.stats().hits == 1
    assert function.key(self=3) == function.key(3)
    assert function.invalidate(self=3)


class Scale:
    """Can be called, and has a method."""

    def __call__(self, x: int) -> int:
        return 2 * x

    def scaled(self, x: int) -> int:
        return 2 * x


def adding(n: object) -> Callable[[int], Any]:
    def price(x: int) -> Any:
        return [x, n]

    return price


def cell(text: str, **names: Any) -> Callable[..., Any]:
    """A function `price` as a cell of a notebook defines it."""
    exec(text, names := {"__name__": "__main__", **names})  # noqa: S102 -- as a notebook does
    return names["price"]


RATE = "def price(x): return x * RATE"
TWINS = {
    "lambdas": (lambda x: x + 1, lambda x: x + 2),
    "closures": (adding(1), adding(2)),
    "partials": (functools.partial(pow, 2), functools.partial(pow, 3)),
    "edited cells": (cell("def price(x): return 1"), cell("def price(x): return 2")),
    "two notebooks": (cell(RATE, RATE=2), cell(RATE, RATE=3)),
}


@pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS)
def test_two_functions_never_share_a_result(source, twins):
    one, other = map(cached(source), twins)
    for _ in range(2):
        assert (repr(one(1)), repr(other(1))) == (repr(twins[0](1)), repr(twins[1](1)))
    assert [(f.stats().misses, f.stats().hits) for f in (one, other)] == [(1, 1), (1, 1)]


def test_functions_of_one_name_share_results_and_of_another_name_do_not(source):
    one, other = (cached(source, name="prices-2")(adding(n)) for n in (1, 2))
    assert "call:prices-2:" in one.key(5)
    assert one(5) == other(5) == [5, 1]
    assert cached(source, name="prices-3")(adding(2))(5) == [5, 2]
    with pytest.raises(ValueError, match="name is ''"):
        cached(source, name="")


def test_a_cached_function_is_pickled_by_its_name(source, monkeypatch):
    monkeypatch.setitem(globals(), "adding", cached(source)(adding))
    assert pickle.loads(pickle.dumps(adding)) is adding  # noqa: S301 -- it is our own


def test_results_belong_to_their_database_and_to_none_while_that_is_not_known(source, parts):
    class Away:
        @property
        def identity(self) -> str:
            raise ServiceUnreachableError("not there")

    class WithoutDatabase(type(source)):
        @property
        def database(self) -> object:
            raise WorkshopError("no database")

        @database.setter
        def database(self, _: object) -> None: ...

    here, away, none = (
        cached(made(database, source.valkey, source.namespace), name="rate")(adding(n))
        for n, (made, database) in enumerate([
            (parts, source.database), (parts, Away()), (WithoutDatabase, None),
        ])
    )  # fmt: skip
    assert [here(1), none(1), here(1), none(1)] == [[1, 0], [1, 2]] * 2
    with pytest.raises(ServiceUnreachableError):
        away(1)


# --- what is no plain function


def test_a_method_is_refused_where_it_is_decorated(source):
    with pytest.raises(TypeError, match=r"part of a class.*call it from the method"):

        class A:
            @cached(source)
            def total(self, x: int) -> int:
                return x


async def waiting() -> int:
    return 1


def counting() -> Iterator[int]:
    yield 1


async def both() -> AsyncIterator[int]:
    yield 1


REFUSED = {
    "method": (Scale().scaled, "Scale.scaled is part of a class"),
    "built-in method": ({}.get, "dict.get is part of a class"),
    "made method": (types.MethodType(adding(1), 2), "part of a class"),
    "cached already": (functools.cache(adding(1)), "not a function"),
    "no parameters known": (max, "no signature"),
    "partial of a method": (functools.partial(Scale().scaled, 1), "part of a class"),
    "static method": (staticmethod(Scale.scaled), "not a function"),
    "property": (property(Scale.scaled), "not a function"),
    "object": (Scale(), "not a function"),
    "class": (Scale, "returns plain values"),
    "number": (3, "returns plain values"),
    "async": (waiting, "asyncio.to_thread"),
    "async generator": (both, "asyncio.to_thread"),
    "generator": (counting, "as a list"),
    "partial of a generator": (functools.partial(counting), "as a list"),
}


@pytest.mark.parametrize(("function", "advice"), REFUSED.values(), ids=REFUSED)
def test_what_gives_no_result_to_store_is_refused_where_it_is_decorated(source, function, advice):
    with pytest.raises((TypeError, ValueError), match=advice):
        cached(source)(function)


def test_a_decorator_without_parentheses_is_refused_with_advice():
    with pytest.raises(TypeError, match=r"Write @cached\(ws\)"):
        cached(adding)


def test_a_function_that_becomes_a_method_later_does_not_take_the_argument_for_the_object(source):
    class A:
        total = cached(source)(adding(1))

    with pytest.raises(TypeError, match="part of a class"):
        A().total(5)
    assert A.total(5) == [5, 1]


def test_a_function_that_calls_itself_is_cached_at_every_step(source, calls):
    @cached(source, lock_seconds=30)
    def fibonacci(n: int) -> int:
        calls.append(n)
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(20) == 6765
    assert sorted(calls) == list(range(21))
