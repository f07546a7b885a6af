"""What all caches have in common: a source, a policy, and the mechanism that keeps to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from redis import Redis

from workshop_lib.cache.mechanism import Mechanism
from workshop_lib.cache.policy import Policy
from workshop_lib.cache.stats import CacheStats
from workshop_lib.cache.storage import Storage
from workshop_lib.rows import Params, Rows


class Database(Protocol):
    """What caches of queries, records and functions ask on a miss."""

    @property
    def identity(self) -> str:
        """Which database this is: part of every key, so that two never share an entry."""

    def query(self, statement: str, params: Params = None, *, read_only: bool = False) -> Rows:
        """The rows that the statement selects; if read_only, it is refused if it writes."""


class Source(Protocol):
    """Where a cache gets its parts from; a Workshop is one."""

    @property
    def database(self) -> Database:
        """What to ask on a miss."""

    @property
    def valkey(self) -> Redis:
        """The server where entries are kept."""

    @property
    def namespace(self) -> str:
        """The first part of every key."""

    @property
    def default_ttl(self) -> float:
        """Time to live where none is given, seconds."""


class Cache:
    """A cache of any kind.

    Args:
        source: an open workshop.
        ttl: time to live of an entry, seconds; VALKEY_TTL if left out.
        storage: how entries lie in the server, made from a client and the size of the largest.
        valkey: keep entries there, in the place of the source's own cache.
        behaviour: the other attributes of Policy by name.

    Raises:
        TypeError: the first argument is not an open workshop.
        ValueError: a number out of its range.

    """

    _EMPTY_TTL = "empty_ttl"  # this cache's own name for it

    def __init__(
        self,
        source: Any,
        ttl: float | None = None,
        storage: Callable[[Redis, int], Storage] = Storage,
        valkey: Redis | None = None,
        **behaviour: Any,
    ) -> None:
        require_workshop(source, f"{type(self).__name__}(ws, …)")
        try:
            self.policy = Policy(ttl=source.default_ttl if ttl is None else ttl, **behaviour)
        except ValueError as error:
            raise ValueError(str(error).replace("empty_ttl", self._EMPTY_TTL)) from None
        self._namespace = source.namespace
        self._storage = storage(valkey or source.valkey, int(self.policy.max_bytes))
        self._mechanism = Mechanism(self._storage, self.policy)

    def key(self, *args: Any, **kwargs: Any) -> str:
        """The key under which an entry is kept."""
        raise NotImplementedError

    def invalidate(self, *args: Any, **kwargs: Any) -> bool:
        """Remove one entry, and keep loads that are under way from storing. Call it after COMMIT.

        Args:
            args, kwargs: which one, as for `key`.

        Returns:
            Whether there was an entry.

        Raises:
            ServiceUnreachableError: the cache did not answer; try again.

        """
        return self._mechanism.invalidate(self.key(*args, **kwargs))

    def stats(self) -> CacheStats:
        """The counters so far."""
        return self._mechanism.counters.snapshot()


def require_workshop(source: object, example: str) -> None:
    """Refuse what is not an open workshop, saying how to write it."""
    if not hasattr(source, "namespace"):
        raise TypeError(
            f"The first argument must be the open workshop, and this is of type "
            f"{type(source).__name__}. Write {example}, after ws = open_workshop(…)."
        )
