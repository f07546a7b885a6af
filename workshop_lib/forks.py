"""What was opened before a fork, told to the child: it opens its own, or refuses.

Sockets, locks and threads do not survive a fork in a usable form. A socket would be shared: two
processes read each other's answers. A lock that another thread held stays locked for ever.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Protocol
from weakref import WeakValueDictionary


class Forkable(Protocol):
    """What has to know that it was copied into a new process."""

    def _after_fork(self) -> None:
        """Let go of what is the parent's, without a word to whoever is at its other end."""


_known: WeakValueDictionary[int, Forkable] = WeakValueDictionary()


def tell_child(one: Forkable) -> None:
    """Have `_after_fork` called in each process that is forked from now on."""
    _known[id(one)] = one


def renew_cache_client(valkey: Any) -> None:
    """Give a redis.Redis no connections, and locks that nobody holds.

    redis-py does the first itself, as soon as it is used; but it asks for the old locks to do it.
    """
    pool = valkey.connection_pool
    pool._fork_lock, pool._lock = threading.RLock(), threading.RLock()
    pool.reset()


def renew_aws_client(client: Any) -> None:
    """Give a boto3 client no connections: its own it would share with the parent."""
    http = client._endpoint.http_session
    http._proxy_managers = {}
    http._manager = type(http._manager)(**http._get_pool_manager_kwargs())
    http._manager.pool_classes_by_scheme = http._pool_classes_by_scheme


def _in_child() -> None:
    for one in list(_known.values()):
        one._after_fork()


# Forks that Python knows of; subprocess starts a new program and needs none of this.
os.register_at_fork(after_in_child=_in_child)
