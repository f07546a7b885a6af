"""Where the servers are: embedded engines, servers of one's own, or AWS; all end as Endpoints."""

from workshop_lib.services.endpoints import (
    CacheEndpoint,
    DatabaseEndpoint,
    Endpoint,
    Endpoints,
    MessagingEndpoint,
    StoreEndpoint,
)
from workshop_lib.services.messaging import resolve_messaging, running_messaging
from workshop_lib.services.resolve import exports, resolve, session

__all__ = [
    "CacheEndpoint",
    "DatabaseEndpoint",
    "Endpoint",
    "Endpoints",
    "MessagingEndpoint",
    "StoreEndpoint",
    "exports",
    "resolve",
    "resolve_messaging",
    "running_messaging",
    "session",
]
