"""A first question to a cache: whether it answers, and what it is."""

from __future__ import annotations

from typing import Any

import redis

from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.services.endpoints import CacheEndpoint
from workshop_lib.services.explain import explain, sentence


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
            f"{about} at {endpoint.address} ({endpoint.label}): {sentence(error)} "
            f"{explain(error, endpoint)}"
        ) from None
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis-compatible {info.get('redis_version', '?')}"
