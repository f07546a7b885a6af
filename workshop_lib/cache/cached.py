"""A decorator that keeps what any function returns, by its arguments."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from workshop_lib.cache import keys
from workshop_lib.cache.codec import Entry
from workshop_lib.cache.mechanism import Mechanism, Policy
from workshop_lib.cache.query_cache import Source
from workshop_lib.cache.stats import CacheStats
from workshop_lib.cache.storage import StringStorage

P = ParamSpec("P")
R = TypeVar("R")


class CachedFunction(Generic[P, R]):
    """A function whose results are kept. Call it as before.

    Raises:
        TypeError: an argument whose type cannot be part of a key; convert it first.

    """

    def __init__(self, function: Callable[P, R], source: Source, policy: Policy) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._signature = inspect.signature(function)
        self._name = f"{function.__module__}.{function.__qualname__}"
        self._namespace = source.namespace
        self._mechanism = Mechanism(
            StringStorage(source.valkey, max_bytes=int(policy.max_bytes)), policy
        )

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result, from the cache if it is there."""

        def load() -> Entry:
            started = time.perf_counter()
            value = self._function(*args, **kwargs)
            return Entry(("value",), [(value,)], time.perf_counter() - started, time.time())

        entry = self._mechanism.fetch(self.key(*args, **kwargs), load).entry
        value: Any = entry.rows[0][0]
        return value  # type: ignore[no-any-return]  # the codec returns what it was given

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key for these arguments; f(1) and f(x=1) have the same."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return keys.call_key(self._namespace, self._name, dict(bound.arguments))

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Forget the result for these arguments. Returns whether there was one."""
        return self._mechanism.invalidate(self.key(*args, **kwargs))

    def stats(self) -> CacheStats:
        """The counters so far."""
        return self._mechanism.stats()


def cached(
    source: Source, ttl: float | None = None, **behaviour: Any
) -> Callable[[Callable[P, R]], CachedFunction[P, R]]:
    """Keep what a function returns: `@cached(ws, ttl=30)`.

    Functions are told apart by their module and name alone, so that all processes share entries:
    after changing what a function does, clear the cache.

    Args:
        source: an open workshop.
        ttl: time to live of a result, seconds; VALKEY_TTL if left out.
        behaviour: the other attributes of Policy by name, for example stale_if_error=60.

    """
    policy = Policy(ttl=source.default_ttl if ttl is None else ttl, **behaviour)
    return lambda function: CachedFunction(function, source, policy)
