"""What all caches have in common: a policy, a storage, and the mechanism between them."""

from __future__ import annotations

from typing import Any

from workshop_lib.cache.mechanism import Mechanism
from workshop_lib.cache.policy import Policy
from workshop_lib.cache.stats import CacheStats
from workshop_lib.cache.storage import Storage


class Cache:
    """A cache of any kind.

    Args:
        source: an open workshop, or another object with a `valkey` (a redis.Redis), a `namespace`
            and a `default_ttl` (seconds), and what the cache asks on a miss.
        ttl: time to live of an entry, seconds; VALKEY_TTL if left out.
        storage: how entries are stored.
        behaviour: the other attributes of Policy by name.

    Raises:
        TypeError: the first argument is not an open workshop.
        ValueError: a number out of its range.

    """

    def __init__(
        self,
        source: Any,
        ttl: float | None = None,
        storage: type[Storage] = Storage,
        **behaviour: Any,
    ) -> None:
        require_workshop(source, f"{type(self).__name__}(ws, …)")
        self.policy = Policy(ttl=source.default_ttl if ttl is None else ttl, **behaviour)
        self._namespace = source.namespace
        self._storage = storage(source.valkey, int(self.policy.max_bytes))
        self._mechanism = Mechanism(self._storage, self.policy)

    def key(self, /, *args: Any, **kwargs: Any) -> str:
        """The key of an entry."""
        raise NotImplementedError

    def invalidate(self, /, *args: Any, **kwargs: Any) -> bool:
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
