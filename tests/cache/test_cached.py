"""A cached function answers as it would have, once for each set of arguments."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from datetime import date
from decimal import Decimal
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


def test_a_second_call_with_the_same_arguments_is_answered_from_the_cache(price, calls):
    assert price(1) == price(1) == [1, "EUR", [], {}, Decimal("12.50")]
    assert calls == [1]
    stats = price.stats()
    assert (stats.misses, stats.hits, stats.hit_ratio) == (1, 1, 0.5)


def test_arguments_by_place_by_name_and_by_default_are_the_same(price, calls):
    price(1)
    price(item=1)
    price(1, "EUR")
    price(currency="EUR", item=1)
    assert calls == [1]


def test_the_order_of_named_arguments_makes_no_difference(price, calls):
    price(1, a=1, b=2)
    price(1, b=2, a=1)
    assert calls == [1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (((1,), {}), ((2,), {})),
        (((1,), {}), ((True,), {})),
        (((1,), {}), ((1.0,), {})),
        (((1,), {}), (("1",), {})),
        (((1,), {}), ((1, "USD"), {})),
        (((1, "EUR", 2), {}), ((1, "EUR"), {})),
        (((1,), {"a": 1}), ((1,), {"b": 1})),
        ((([1],), {}), (((1,),), {})),
        (((Decimal("1.0"),), {}), ((Decimal("1.00"),), {})),
    ],
    ids=repr,
)
def test_other_arguments_have_a_result_of_their_own(price, calls, first, second):
    one, other = price(*first[0], **first[1]), price(*second[0], **second[1])
    assert len(calls) == 2
    assert price(*first[0], **first[1]) == one
    assert price(*second[0], **second[1]) == other
    assert len(calls) == 2


@pytest.mark.parametrize(
    "result",
    [None, False, 0, "", [], {}, (), b"", (1, [2]), {"a": {1: date(2026, 6, 30)}}, Decimal("1.0")],
    ids=repr,
)
def test_any_result_is_kept_with_its_type_nothing_included(source, calls, result):
    @cached(source)
    def function() -> object:
        calls.append(1)
        return result

    answers = [function() for _ in range(3)]
    assert [(type(a), repr(a)) for a in answers] == [(type(result), repr(result))] * 3
    assert calls == [1]


def test_what_a_caller_does_to_a_result_shows_to_nobody_else(price):
    price(1)
    price(1).append("changed")
    assert price(1) == [1, "EUR", [], {}, Decimal("12.50")]


def test_threads_that_call_at_once_get_results_of_their_own(source, at_once):
    started = threading.Event()

    @cached(source)
    def function() -> list[int]:
        assert not started.is_set()
        started.set()
        threading.Event().wait(0.2)
        return [1]

    answers = at_once(2, function)
    answers[0].append(2)
    assert answers[1] == [1]
    assert function() == [1]


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


def test_invalidating_forgets_one_set_of_arguments(price, calls):
    price(1)
    price(2)
    assert [price.invalidate(item=1), price.invalidate(1)] == [True, False]
    price(1)
    price(2)
    assert calls == [1, 2, 1]


def test_wrong_arguments_are_the_function_s_own_error(price, calls):
    with pytest.raises(TypeError, match="missing a required argument: 'item'"):
        price()
    assert calls == []


def test_an_argument_that_no_key_can_stand_for_is_an_error_that_says_so(price, calls):
    with pytest.raises(TypeError, match=r"A part of the key holds a .*object.*Turn it into"):
        price(object())
    assert calls == []


@pytest.mark.parametrize("argument", [[1, 2], {"a": [1]}, ([],)], ids=repr)
def test_an_argument_need_not_be_hashable(price, calls, argument):
    assert price(argument) == price(argument)
    assert len(calls) == 1


def test_a_result_that_would_not_come_back_equal_is_returned_but_not_kept(source, calls):
    @cached(source)
    def function() -> set[int]:
        calls.append(1)
        return {1, 2}

    assert [function(), function()] == [{1, 2}, {1, 2}]
    assert calls == [1, 1]
    assert (function.stats().uncacheable, function.stats().bytes_written) == (2, 0)


def test_it_keeps_the_function_s_name_text_and_signature(price):
    assert price.__name__ == "price_of"
    assert price.__doc__ == "What an item costs."
    assert price.__module__ == __name__
    assert price.__wrapped__(5)[0] == 5


class One:
    """Two classes with a function of one name."""

    @staticmethod
    def get(n: int) -> str:
        return f"one {n}"


class Other:
    """The second one."""

    @staticmethod
    def get(n: int) -> str:
        return f"other {n}"


def test_functions_of_one_name_in_two_places_have_results_of_their_own(source):
    one, other = cached(source)(One.get), cached(source)(Other.get)
    for _ in range(2):
        assert (one(1), other(1)) == ("one 1", "other 1")
    assert (one.stats().misses, other.stats().misses) == (1, 1)


def test_a_key_says_whose_it_is(ws, source):
    assert ":v2:call:" in cached(source)(One.get).key(1)
    assert "one-get" in cached(source)(One.get).key(1)
    assert cached(source)(One.get).key(1).startswith(f"{ws.namespace}:")


def test_two_wrappers_of_one_function_share_results(source):
    cached(source)(One.get)(1)
    again = cached(source)(One.get)
    assert again(1) == "one 1"
    assert again.stats().hits == 1


def test_a_function_that_calls_itself_is_cached_at_every_step(source, calls):
    @cached(source, lock_seconds=30)
    def fibonacci(n: int) -> int:
        calls.append(n)
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(20) == 6765
    assert sorted(calls) == list(range(21))


def test_the_time_to_live_is_the_source_s_unless_given(ws, source):
    short, default = cached(source, ttl=5)(One.get), cached(source)(Other.get)
    short(1)
    default(1)
    assert 0 < ws.valkey.pttl(short.key(1)) <= 5_000
    assert 20_000 < ws.valkey.pttl(default.key(1)) <= 30_000


def test_a_behaviour_that_is_none_is_refused_where_it_is_written(source):
    with pytest.raises(ValueError, match="jitter is 2; it must be a number from 0 to 1"):
        cached(source, jitter=2)
    with pytest.raises(TypeError, match="colour"):
        cached(source, colour="red")


def test_nothing_in_the_cache_can_run_code(ws, price, calls):
    price(1)
    ws.valkey.set(price.key(1), pickle.dumps(Bomb()), px=5_000)
    assert price(1)[0] == 1
    assert calls == [1, 1]
    assert price.stats().corrupt == 1


class Bomb:
    """What an attacker would put into a cache that unpickles."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return pytest.fail, ("code from the cache was run",)
