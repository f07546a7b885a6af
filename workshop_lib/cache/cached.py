"""A decorator that stores what a function returns, by its arguments."""

from __future__ import annotations

import functools
import inspect
import secrets
import time
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from workshop_lib.cache import keys
from workshop_lib.cache.base import Cache, require_workshop
from workshop_lib.cache.codec import Entry
from workshop_lib.errors import WorkshopError

P = ParamSpec("P")
R = TypeVar("R")


class CachedFunction(Cache, Generic[P, R]):
    """A function whose results are stored. Call it as before.

    Raises:
        TypeError: an argument whose type cannot be part of a key; convert it first.
        ServiceUnreachableError: a server of your own, asked once which it is, did not answer.

    """

    def __init__(
        self,
        function: Callable[P, R],
        source: Any,
        ttl: float | None,
        name: str | None,
        **behaviour: Any,
    ) -> None:
        inner: Any = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        _require_plain(inner)
        functools.update_wrapper(self, function, updated=())  # its attributes could hide ours
        super().__init__(source, ttl, **behaviour)
        self._source = source
        self._function = function
        # A wrapper's own: what it makes of its arguments only it knows.
        self._signature = inspect.signature(function, follow_wrapped=False)
        self._name = name or f"{inner.__module__}.{inner.__qualname__}".removeprefix("None.")
        # Whether two functions do the same cannot be told from outside, so none shares results
        # with another of the same module and name: not a closure, not a cell that was run again.
        self._salt = "" if name else secrets.token_hex(16)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result, from the cache if it is there."""

        def load() -> Entry:
            started = time.perf_counter()
            value = self._function(*args, **kwargs)
            return Entry(("value",), [(value,)], time.perf_counter() - started, time.time())

        entry = self._mechanism.fetch(self.key(*args, **kwargs), load).entry
        return entry.rows[0][0]  # type: ignore[return-value]  # the codec returns what it was given

    def __get__(self, instance: object, owner: type | None = None) -> CachedFunction[P, R]:
        if instance is not None:
            raise TypeError(_no_method(self._name))
        return self

    def __reduce__(self) -> str:  # as functions do: copied as itself, pickled by its name
        return str(getattr(self, "__qualname__", self._name))

    def key(self, /, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key for these arguments; f(1) and f(x=1) have the same."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        try:
            database = self._source.database
        except WorkshopError:  # there is none, as in some sandboxes
            place = ""
        else:
            place = database.identity
        scope = (place, self._salt)
        return keys.call_key(self._namespace, self._name, dict(bound.arguments), scope=scope)


def cached(
    source: Any, ttl: float | None = None, *, name: str | None = None, **behaviour: Any
) -> Callable[[Callable[P, R]], CachedFunction[P, R]]:
    """Store what a function returns: `@cached(ws, ttl=30)`.

    Stored are None, bool, int, float, str, bytes, Decimal, date, time or datetime without a named
    zone, timedelta, UUID, and lists, tuples and dicts of these. Arguments have to be of these
    types, too, and the order of a dict's keys and of further keywords (`**more`) counts. A result
    that is or holds anything else (Rows, a set, a DataFrame, a numpy number, a dataclass) is
    computed at each call, and `stats().uncacheable` counts it: return `.rows`, `sorted(…)` and the
    like.

    Without `name`, the results belong to this decorated function alone, in this process and those
    forked from it: a closure, or a cell that was edited and run again, starts anew. With `name`,
    functions of that name share their results in all processes that use the same database and
    namespace, so change the name when the function changes. In either case a result depends on the
    arguments only: pass what else matters (a global variable, an attribute of an object) as one.

    Args:
        source: an open workshop.
        ttl: time to live of a result, seconds; VALKEY_TTL if left out.
        name: identifies the function, for example "prices-2".
        behaviour: the other attributes of Policy by name, for example stale_if_error=60.

    Raises:
        TypeError: on decorating a method (also of an object, as in `cached(ws)(thing.method)`), a
            class, an object that can be called, an async or generator function; on a call with an
            argument of another type.

    """
    require_workshop(source, "@cached(ws)")
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise ValueError(f"name is {name!r}; it must be a text, such as 'prices-2'")
    return lambda function: CachedFunction(function, source, ttl, name, **behaviour)


def _require_plain(function: Any) -> None:
    """Refuse what gives no result that could be stored when it is called."""
    plain = (inspect.isfunction, inspect.isbuiltin, inspect.ismethod)
    if not any(is_kind(function) for is_kind in plain):
        raise TypeError(f"{function!r} is not a function. Decorate one that returns plain values.")
    name = function.__qualname__
    if inspect.ismethod(function) or "." in name.rpartition("<locals>.")[2]:
        raise TypeError(_no_method(name))
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    if any(is_kind(function) for is_kind in kinds):
        raise TypeError(
            f"{name} is async or a generator, so what it returns is not its result. Decorate a "
            "plain function that returns the values, as a list, and call it from async code with "
            "asyncio.to_thread."
        )


def _no_method(name: str) -> str:
    return (
        f"{name} is part of a class, and what it reads from its object would not be in the key. "
        "Decorate a function outside of the class, with the values that matter as its arguments, "
        "and call it from the method."
    )
