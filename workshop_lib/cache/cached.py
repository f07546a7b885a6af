"""A decorator that keeps what a function returns, by its arguments."""

from __future__ import annotations

import functools
import inspect
import time
import types
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from workshop_lib.cache import keys
from workshop_lib.cache.base import Cache, Source, require_workshop
from workshop_lib.cache.codec import Entry, canonical
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
        for one in self._signature.parameters.values():
            if one.default is not one.empty:  # or the calls that leave it out would fail
                canonical(one.default, f"The default of {one.name!r}")
        self._fingerprint = None if name else Fingerprint(function, source, CachedFunction)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result, from the cache if it is there."""

        def load() -> Entry:
            started = time.perf_counter()
            value = self._function(*args, **kwargs)
            return Entry(("value",), [(value,)], time.perf_counter() - started, time.time())

        entry = self._mechanism.fetch(self.key(*args, **kwargs), load).entry
        return entry.rows[0][0]  # type: ignore[return-value]  # the codec returns what it was given

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
        scope = (_place(self._source), self._fingerprint and self._fingerprint.digest())
        return keys.call_key(self._namespace, self._name, dict(bound.arguments), scope=scope)


def cached(
    source: Source, ttl: float | None = None, *, name: str | None = None, **behaviour: Any
) -> Callable[[Callable[P, R]], CachedFunction[P, R]]:
    """Keep what a function returns: `@cached(ws, ttl=30)`.

    Kept are None, bool, int, float, str, bytes, Decimal, date, time or datetime without a named
    zone, timedelta, UUID, and lists, tuples and dicts of these. Arguments have to be of these
    types, too, and the order of a dict's keys and of further keywords (`**more`) counts. A result
    that is or holds anything else (Rows, a set, a DataFrame, a numpy number, a dataclass) is
    computed at each call, and `stats().uncacheable` counts it: return `.rows`, `sorted(…)` and the
    like.

    A result is found again by the arguments, the database, and what the function is: its code, its
    defaults, and the numbers, texts and functions from around it that it uses by their own names,
    and so on in those functions. Edit one of them, or bind it anew, and results are computed anew;
    put it back, and the old ones are found. Not followed is what it reaches through a dot or an
    index: `prices.RATE` or `prices.rate_of()` of a module of yours, an attribute of an object or
    class, what is in a list or dict. A change there goes unnoticed until the TTL ends, so pass it
    as an argument, import the name itself, or change `name` with it. A function that uses such
    a thing shares its results with no other function and no other process. Installed packages and
    the workshop itself may be used freely.

    Args:
        source: an open workshop.
        ttl: time to live of a result, seconds; VALKEY_TTL if left out.
        name: says what the function is, in the place of all that: functions of the same name share
            results. Change it when the function changes.
        behaviour: the other attributes of Policy by name, for example stale_if_error=60.

    Raises:
        TypeError: on decorating a method (also of an object, as in `cached(ws)(thing.method)`), a
            class, an async or generator function, or one with a default of another type; on a call
            with an argument of another type.

    """
    require_workshop(source, "@cached(ws)")
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
    name, call = _describe(inner), type(inner).__call__
    if isinstance(inner, CachedFunction):
        raise TypeError(f"{inner._name} is cached already. Leave one @cached out.")
    owner = getattr(inner, "__self__", None)  # a built-in function's is its module
    bound = owner is not None and not isinstance(owner, types.ModuleType)
    if bound or isinstance(inner, classmethod | staticmethod | property):
        raise TypeError(_no_method(name))
    if inspect.isclass(function) or not callable(inner):
        raise TypeError(f"{inner!r} is not a function. Decorate one that returns plain values.")
    if any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in (inner, call)):
        raise TypeError(
            f"{name} is async, and @cached does not await. Decorate a plain function that does the "
            "work, and call it with asyncio.to_thread."
        )
    if inspect.isgeneratorfunction(inner) or inspect.isgeneratorfunction(call):
        raise TypeError(f"{name} gives values that can be read only once. Return a list instead.")


def _no_method(name: str) -> str:
    return (
        f"{name} is part of a class, and what it reads from its object would not be in the key. "
        "Decorate a function outside of the class, with the values that matter as its arguments, "
        "and call it from the method."
    )


def _describe(function: Any) -> str:
    """Module and name, to be read."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}".removeprefix("None.")  # built in
