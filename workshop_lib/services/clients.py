"""Clients of the cache and the store, which go by a latency proxy where one is in the way."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import redis

from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.services.endpoints import CacheEndpoint
from workshop_lib.services.error_help import error_help
from workshop_lib.services.latency_proxy import LatencyProxy


def cache_client(endpoint: CacheEndpoint, proxy: LatencyProxy) -> redis.Redis:
    """A client of the cache; of a local one, by the proxy's present route."""
    client = redis.Redis(**endpoint.arguments)
    if endpoint.embedded:
        given = client.connection_pool
        client.connection_pool = redis.ConnectionPool(
            connection_class=_RoutedConnection,
            max_connections=given.max_connections,
            proxy=proxy,
            **given.connection_kwargs,
        )
    return client


def steer(proxy: LatencyProxy, request: Any, **_: Any) -> None:
    """Send a request by the proxy's route. Before it is signed: the address is in the signature."""
    host, port = proxy.route
    request.url = urlsplit(request.url)._replace(netloc=f"{host}:{port}").geturl()


def greet_cache(valkey: redis.Redis, endpoint: CacheEndpoint) -> str:
    """Ask the cache for its version.

    Raises:
        ServiceUnreachableError: it does not answer or refuses us.

    """
    try:
        info: Any = valkey.info("server")
    except redis.RedisError as error:
        about = "No answer from the cache"
        if isinstance(error, redis.AuthenticationError):
            about = "Refused by the cache"
        raise ServiceUnreachableError(
            f"{about} at {endpoint.address} ({endpoint.label}): {error_help(error, endpoint)}"
        ) from None
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis-compatible {info.get('redis_version', '?')}"


class _RoutedConnection(redis.Connection):
    """A connection that goes by a proxy's present route, from its next borrower on."""

    def __init__(self, *, proxy: LatencyProxy, **arguments: Any) -> None:
        self._proxy = proxy
        super().__init__(**arguments)  # type: ignore[no-untyped-call]  # here and below: redis-py's

    def connect(self) -> None:
        """Connect if need be; the pool asks for it whenever it lends the connection."""
        route = self._proxy.route
        if (self.host, self.port) != route:
            self.disconnect()  # type: ignore[no-untyped-call]
            self.host, self.port = route
        if not self.is_connected:
            super().connect()  # type: ignore[no-untyped-call]
