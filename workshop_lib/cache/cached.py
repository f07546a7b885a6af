"""A decorator that keeps what any function returns, by its arguments."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from workshop_lib.cache import keys
from workshop_lib.cache.base import Cache, Source
from workshop_lib.cache.codec import Entry
from workshop_lib.cache.fingerprint import Fingerprint
from workshop_lib.errors import WorkshopError

P = ParamSpec("P")
R = TypeVar("R")


class CachedFunction(Cache, Generic[P, R]):
    """A function whose results are kept. Call it as before.

    Raises:
        TypeError: an argument whose type cannot be part of a key; convert it first.

    """

    def __init__(
        self,
        function: Callable[P, R],
        source: Source,
        ttl: float | None,
        name: str | None,
        **behaviour: Any,
    ) -> None:
        _require_plain(function)
        functools.update_wrapper(self, function)
        super().__init__(source, ttl, **behaviour)
        self._source = source
        self._function = function
        # A wrapper's own: what it makes of its arguments only it knows.
        self._signature = inspect.signature(function, follow_wrapped=False)
        self._name = name or _describe(self._function)
        self._fingerprint = None if name else Fingerprint(function, source, CachedFunction)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result, from the cache if it is there."""

        def load() -> Entry:
            started = time.perf_counter()
            value = self._function(*args, **kwargs)
            return Entry(("value",), [(value,)], time.perf_counter() - started, time.time())

        entry = self._mechanism.fetch(self.key(*args, **kwargs), load).entry
        value: Any = entry.rows[0][0]
        return value  # type: ignore[no-any-return]  # the codec returns what it was given

    def __set_name__(self, owner: type, name: str) -> None:
        raise TypeError(_no_method(self._name))

    def __get__(self, instance: object, owner: type | None = None) -> CachedFunction[P, R]:
        if instance is not None:
            raise TypeError(_no_method(self._name))
        return self

    def __reduce__(self) -> str:  # as functions do: copied as itself, pickled by its name
        return str(getattr(self, "__qualname__", self._name))

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key for these arguments; f(1) and f(x=1) have the same."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        does = None if self._fingerprint is None else self._fingerprint.digest()
        scope = (_place(self._source), does)
        return keys.call_key(self._namespace, self._name, dict(bound.arguments), scope=scope)


def cached(
    source: Source, ttl: float | None = None, *, name: str | None = None, **behaviour: Any
) -> Callable[[Callable[P, R]], CachedFunction[P, R]]:
    """Keep what a function returns: `@cached(ws, ttl=30)`.

    A result is found again by the arguments, the database, and what the function is: its code, its
    defaults, and the numbers, texts and functions from around it that it uses. Edit one of them, or
    bind it anew, and results are computed anew; put it back, and the old ones are found. A function
    that uses more than that, such as a list, a client or a class of yours, shares its results with
    no other function and no other process; what changes inside such an object goes unnoticed, so
    pass it as an argument, or give the function a name. The workshop itself may be used freely.

    Args:
        source: an open workshop.
        ttl: time to live of a result, seconds; VALKEY_TTL if left out.
        name: says what the function is, in the place of all that: functions of the same name share
            results. Change it when the function changes.
        behaviour: the other attributes of Policy by name, for example stale_if_error=60.

    Raises:
        TypeError: on decorating a method, a class, or an async or generator function.

    """
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise ValueError(f"name is {name!r}; it must be a text, such as 'prices-2'")

    def decorate(function: Callable[P, R]) -> CachedFunction[P, R]:
        # Not in __set_name__ alone: Python 3.11 makes a RuntimeError of what that raises.
        here = inspect.currentframe()
        in_class = bool(here and here.f_back and "__qualname__" in here.f_back.f_locals)
        if in_class and inspect.isfunction(function):
            raise TypeError(_no_method(_describe(function)))
        return CachedFunction(function, source, ttl, name, **behaviour)

    return decorate


def _place(source: Source) -> str:
    """Which database is behind a source; empty where there is none, as in some sandboxes."""
    try:
        return source.database.identity
    except WorkshopError:
        return ""


def _require_plain(function: Any) -> None:
    """Refuse what gives no result that could be kept when it is called."""
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    if isinstance(inner, CachedFunction):
        raise TypeError(f"{inner._name} is cached already. Leave one @cached out.")
    if isinstance(inner, classmethod | staticmethod | property):
        raise TypeError(_no_method(_describe(inner)))
    if inspect.isclass(function) or not callable(inner):
        raise TypeError(
            f"@cached is for functions, and {inner!r} is none. Decorate a function that returns "
            "plain values."
        )
    for code in (inner, type(inner).__call__):
        if inspect.iscoroutinefunction(code) or inspect.isasyncgenfunction(code):
            raise TypeError(
                f"{_describe(inner)} is async, and @cached does not await. Decorate a plain "
                "function that does the work, and call it with asyncio.to_thread."
            )
        if inspect.isgeneratorfunction(code):
            raise TypeError(
                f"{_describe(inner)} is a generator, whose result can be read only once: nothing "
                "would be left for the cache. Return a list, as in list(…)."
            )


def _no_method(name: str) -> str:
    return (
        f"{name} is part of a class, and a cached function does not know of which object. Decorate "
        "a function outside of the class, with the values that matter as its arguments, and call "
        "it from the method."
    )


def _describe(function: Any) -> str:
    """Module and name, to be read."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
