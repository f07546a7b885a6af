"""redis-py, the client of the cache: its arguments, the server's version, a change of address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from workshop_lib import forks
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.services.error_help import error_help

if TYPE_CHECKING:
    from workshop_lib.services.endpoints import CacheEndpoint

CACHE_TIMEOUT_S = 1.0
"""A cache that takes longer than this to answer is worse than none."""
OPTIONS = {
    *("host", "port", "ssl", "db", "username", "password", "client_name", "socket_timeout"),
    *("socket_connect_timeout", "socket_keepalive", "health_check_interval", "max_connections"),
    *("ssl_cert_reqs", "ssl_check_hostname", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"),
    "ssl_password",
}
"""What an address may say: redis-py's names, but for those that change what its client returns."""


def cache_config(**place: Any) -> dict[str, Any]:
    """Arguments of redis.Redis: where the cache is, and bounded waits unless they say otherwise.

    One more try, for a connection that the server closed while it was idle. Not after silence: the
    second try would double the wait. A connection begins with one command, HELLO, and not with the
    three more of the client's defaults, as each is a round trip. With none (RESP2, no password) the
    session ticket of TLS 1.3 would stay unread, and redis-py takes it for the rest of an earlier
    answer: "Connection not ready".
    """
    return {
        "socket_connect_timeout": CACHE_TIMEOUT_S,
        "socket_timeout": CACHE_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        "protocol": 3,
        "driver_info": None,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        **place,
    }


def parse_cache_url(url: str) -> dict[str, Any]:
    """What an address says: "host", "port", "ssl", and whatever else it names.

    Raises:
        ValueError: it is malformed; the text may hold the password.

    """
    place, options = urlsplit(url), redis.connection.parse_url(url)
    # An @ after the host's place: the end of a password that was not escaped.
    unescaped = "@" in place.path + place.query or place.fragment
    if place.scheme not in {"redis", "rediss"} or unescaped:
        raise ValueError("not the address of a server")
    int(place.path.strip("/") or 0)  # redis-py passes over what is not a database's number
    options.pop("connection_class", None)
    return {"host": "localhost", "port": 6379, **options, "ssl": place.scheme == "rediss"}


def greet_cache(valkey: redis.Redis, endpoint: CacheEndpoint) -> str:
    """Ask the cache for its version.

    Raises:
        ServiceUnreachableError: it does not answer or refuses us.

    """
    try:
        info: Any = valkey.info("server")
    except redis.RedisError as error:
        raise ServiceUnreachableError(
            f"The cache at {endpoint.address} ({endpoint.label}) cannot be used: "
            f"{error_help(error, endpoint)}"
        ) from None
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis-compatible {info.get('redis_version', '?')}"


def reroute_cache(valkey: redis.Redis, host: str, port: int) -> None:
    """Have a client connect to the same cache by this address, from its next command on."""
    old = valkey.connection_pool
    forks.renew_cache_client(valkey)
    valkey.connection_pool.connection_kwargs |= {"host": host, "port": port}
    old.update_active_connections_for_reconnect()  # when they are given back
    old.disconnect(inuse_connections=False)
