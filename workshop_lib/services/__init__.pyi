# What other rooms use of this one; `__init__.py` imports each name on first use.

from .endpoints import (
    CacheEndpoint as CacheEndpoint,
    DatabaseEndpoint as DatabaseEndpoint,
    Endpoint as Endpoint,
    Endpoints as Endpoints,
    MessagingEndpoint as MessagingEndpoint,
    StoreEndpoint as StoreEndpoint,
)
from .messaging import (
    resolve_messaging as resolve_messaging,
    running_messaging as running_messaging,
)
from .resolver import exports as exports, resolve as resolve, session as session
