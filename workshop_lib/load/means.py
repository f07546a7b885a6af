"""What a worker has to work with: connections, kept from job to job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import redis

from workshop_lib.database import Database
from workshop_lib.load.watch import Watch
from workshop_lib.messaging import messaging_client
from workshop_lib.services import DatabaseEndpoint, MessagingEndpoint

STATEMENT_LIMIT_S = 30.0
MOST_CONNECTIONS = 64
"""Of one worker: as many as it may have requests under way."""


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
        if "valkey" in self.__dict__:
            self.valkey.close()


def _open(endpoint: DatabaseEndpoint, namespace: str) -> Database:
    # One that broke is replaced before the pool has seen its end, so a worker needs one more.
    return Database(endpoint, namespace, pool_min=1, pool_max=MOST_CONNECTIONS + 1)
