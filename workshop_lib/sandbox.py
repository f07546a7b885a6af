"""A notebook's own cache and database, to reconfigure, fill, stop and freeze."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, TypeVar

import redis

from workshop_lib import dataset, forks
from workshop_lib.cache.query_cache import clear_namespace
from workshop_lib.database import Database
from workshop_lib.dataset import Loaded, Sizes
from workshop_lib.errors import WorkshopError
from workshop_lib.results import describe_service
from workshop_lib.services.endpoints import (
    CacheEndpoint,
    DatabaseEndpoint,
    embedded_cache,
    embedded_database,
)
from workshop_lib.services.local import attach
from workshop_lib.services.state_folder import state_folder
from workshop_lib.settings import Settings

T = TypeVar("T", DatabaseEndpoint, CacheEndpoint)

Service = Literal["cache", "database"]
ENGINE_OF = {"cache": "valkey", "database": "postgres"}


class Sandbox:
    """A notebook's own local engines, even if the workshop runs on AWS.

    A service on AWS cannot be stopped or reconfigured to see what happens. Caches take
    a sandbox in place of a workshop: `QueryCache(box)`. Made by `Workshop.sandbox`.

    Attributes:
        valkey: its cache, a redis.Redis; the first of `valkeys`.
        valkeys: all of its caches.
        cache_arguments: what redis.Redis needs to reach each of them, passwords included.
        namespace: names the schema, and begins every cache key.
        default_ttl: time to live of cached entries where none is given, seconds.

    """

    def __init__(
        self,
        settings: Settings,
        *,
        database: bool = True,
        caches: int = 1,
        cache_timeout_s: float = 1.0,
    ) -> None:
        self.namespace = settings.workshop_namespace
        self.default_ttl = settings.valkey_ttl
        names = ["valkey" if n == 0 else f"valkey-{n + 1}" for n in range(caches)]
        self._engines = attach(
            state_folder(settings.workshop_state_dir),
            [*(["postgres"] if database else []), *names],
            settings,
            sandbox=True,
        )
        endpoints = [_own(embedded_cache(self._engines, name)) for name in names]
        self._cache = endpoints[0]
        timeouts = {"socket_timeout": cache_timeout_s, "socket_connect_timeout": cache_timeout_s}
        self.cache_arguments = [{**one.arguments, **timeouts} for one in endpoints]
        self.valkeys = tuple(redis.Redis(**arguments) for arguments in self.cache_arguments)
        self.valkey = self.valkeys[0]
        forks.tell_child(self)
        self._database = None
        if database:
            endpoint = _own(embedded_database(self._engines, settings.dsql_rules))
            self._database = Database(endpoint, self.namespace, **settings.pool)
            try:
                self._database.create_schema()
            except BaseException:
                self.close()
                raise

    @property
    def database(self) -> Database:
        """Its database.

        Raises:
            WorkshopError: the sandbox was opened without one.

        """
        if self._database is None:
            raise WorkshopError(
                "This sandbox has no database. Open it with ws.sandbox(database=True)."
            )
        return self._database

    def describe(self) -> dict[str, dict[str, Any]]:
        """Its services as a result file keeps them, by kind."""
        server: Any = self.valkey.info("server")
        cache = describe_service(self._cache)
        found = {"sandbox cache": {**cache, "version": f"Valkey {server['valkey_version']}"}}
        if self._database is not None:
            ((version,),) = self._database.query("SHOW server_version")
            database = describe_service(self._database.endpoint)
            found["sandbox database"] = {**database, "version": f"PostgreSQL {version}"}
        return {kind: {**service, "embedded": True} for kind, service in found.items()}

    def load_table(self, name: str, sizes: Sizes | None = None) -> Loaded:
        """Bring one of the workshop's tables to exactly these rows, in this database."""
        return dataset.load_table(self.database, name, sizes)

    def clear(self) -> int:
        """Delete the keys of all its caches and begin their statistics anew.

        Returns:
            How many keys there were.

        """
        gone = sum(clear_namespace(valkey, self.namespace) for valkey in self.valkeys)
        for valkey in self.valkeys:
            valkey.config_resetstat()
        return gone

    def stop(self, service: Service) -> None:
        """End the cache or the database: connections break, new ones are refused.

        Raises:
            WorkshopError: there is no such service here, or it could not be ended.

        """
        self._engines.tell("stop", self._engine(service))

    def start(self, service: Service) -> None:
        """Start what was stopped, at the same address.

        A cache is empty then, and configured as at first; a database has what was committed.

        Raises:
            WorkshopError: there is no such service here, or it did not come up.

        """
        self._engines.tell("start", self._engine(service))

    def freeze_cache(self) -> None:
        """Halt the cache: connections stay open, and nothing is answered."""
        self._engines.tell("freeze", "valkey")

    def thaw_cache(self) -> None:
        """Let a halted cache go on."""
        self._engines.tell("thaw", "valkey")

    def _after_fork(self) -> None:
        """In a forked process: connect anew. The engines stay the parent's, and end with it."""
        for valkey in self.valkeys:
            forks.renew_cache_client(valkey)

    def close(self) -> None:
        """End the engines and delete what they wrote. Doing it twice is harmless."""
        if self._database is not None:
            self._database.close()
        for valkey in self.valkeys:
            valkey.close()
        self._engines.release()

    def _engine(self, service: str) -> str:
        if service not in ENGINE_OF:
            raise WorkshopError(
                f"A sandbox has no service {service!r}. What can be stopped and started is "
                f"{' or '.join(map(repr, ENGINE_OF))}."
            )
        if service == "database":
            _ = self.database
        return ENGINE_OF[service]


def _own(endpoint: T) -> T:
    """The same, labelled. Nothing restarts it by itself, so no client waits for that."""
    label = f"{endpoint.label}, this notebook's own"
    return replace(endpoint, label=label, embedded=False, sandbox=True)
