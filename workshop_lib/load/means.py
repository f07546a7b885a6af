"""What a worker has to work with: connections, kept from job to job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import redis

from workshop_lib.database import Database
from workshop_lib.load.watch import Watch
from workshop_lib.queues import messaging_client
from workshop_lib.services import DatabaseEndpoint, MessagingEndpoint

STATEMENT_LIMIT_S = 30.0
MOST_CONNECTIONS = 64
"""Of one worker: as many as it may have requests under way."""
MOST_NAMESPACES = 3
"""For which a worker keeps connections: a function outlives the runs that used it."""


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a worker process is given to work with; it travels through a pipe: it holds passwords.

    Attributes:
        database: where to write, and to read unless there is a `reader`.
        namespace: the schema, and the beginning of cache keys.
        reader: another endpoint of the same data, for reads.
        cache: arguments of redis.Redis; None if there is no cache.
        messaging: where metrics go; None if they go nowhere.
        statement_limit_s: after which a statement counts as lost, seconds.

    """

    database: DatabaseEndpoint
    namespace: str
    reader: DatabaseEndpoint | None = None
    cache: Mapping[str, Any] | None = field(default=None, repr=False)
    messaging: MessagingEndpoint | None = None
    statement_limit_s: float = STATEMENT_LIMIT_S


class Means:
    """The clients made of an `Equipment`; a cache takes them in the place of a workshop.

    Attributes:
        database, reader: for writes, and for reads.
        namespace: the schema, and the beginning of cache keys.
        default_ttl: where a job gives none, seconds.
        watch: hangs up on statements that take too long.

    """

    default_ttl = 30.0

    def __init__(self, equipment: Equipment) -> None:
        self.namespace = equipment.namespace
        self.database = _open(equipment.database, equipment.namespace)
        self.reader = self.database
        if equipment.reader is not None:
            self.reader = _open(equipment.reader, equipment.namespace)
        self.watch = Watch(equipment.statement_limit_s)
        self._equipment = equipment

    @cached_property
    def valkey(self) -> redis.Redis:
        """The cache.

        Raises:
            AttributeError: there is none.

        """
        if self._equipment.cache is None:
            raise AttributeError("these workers were given no cache")
        return redis.Redis(**self._equipment.cache)

    @cached_property
    def cloudwatch(self) -> Any:
        """The client for metrics; None if they go nowhere."""
        messaging = self._equipment.messaging
        return messaging_client(messaging, "cloudwatch") if messaging else None

    def close(self) -> None:
        """Let go of everything."""
        self.watch.close()
        self.database.close()
        self.reader.close()
        for client in ("valkey", "cloudwatch"):
            if opened := self.__dict__.get(client):
                opened.close()


class AllMeans:
    """The means of each namespace that was lately worked for."""

    def __init__(self, equipment: Equipment) -> None:
        self._equipment = equipment
        self._kept: dict[str, Means] = {}

    def of(self, namespace: str = "") -> Means:
        """Those of a namespace, opened if need be; of the worker's own if it is empty."""
        name = namespace or self._equipment.namespace
        # Put in anew each time, so that the first is the one that was not used for longest.
        found = self._kept.pop(name, None)
        if found is None:
            found = Means(replace(self._equipment, namespace=name))
            while len(self._kept) >= MOST_NAMESPACES:
                self._kept.pop(next(iter(self._kept))).close()
        self._kept[name] = found
        return found

    def close(self) -> None:
        """Let go of everything."""
        while self._kept:
            self._kept.popitem()[1].close()


def _open(endpoint: DatabaseEndpoint, namespace: str) -> Database:
    # One that broke is replaced before the pool has seen its end, so a worker needs one more.
    return Database(endpoint, namespace, pool_min=1, pool_max=MOST_CONNECTIONS + 1)
