"""What was opened before a fork, told to the child: it opens its own, or refuses.

Sockets, locks and threads do not survive a fork in a usable form. A socket would be shared: two
processes read each other's answers. A lock that another thread held stays locked for ever.
"""

from __future__ import annotations

import os
from typing import Any, Protocol
from weakref import WeakValueDictionary


class Forkable(Protocol):
    """What has to know that it was copied into a new process."""

    def _after_fork(self) -> None:
        """Drop what belongs to the parent, and send nothing to its servers."""


_known: WeakValueDictionary[int, Forkable] = WeakValueDictionary()


def tell_child(one: Forkable) -> None:
    """Have `_after_fork` called in each process that is forked from now on."""
    _known[id(one)] = one


def renew_cache_client(valkey: Any) -> None:
    """Give a redis.Redis a pool of its own: the one it has shares sockets and locks."""
    old = valkey.connection_pool
    valkey.connection_pool = type(old)(
        connection_class=old.connection_class,
        max_connections=old.max_connections,
        **old.connection_kwargs,
    )


def _in_child() -> None:
    for one in list(_known.values()):
        one._after_fork()


# Forks that Python knows of; subprocess starts a new program and needs none of this.
os.register_at_fork(after_in_child=_in_child)
