# What other modules use of this one; `__init__.py` imports each name on first use.

from . import (
    cache_client as cache_client,
    error_help as error_help,
    local as local,
    state_folder as state_folder,
)
from .endpoints import (
    CacheEndpoint as CacheEndpoint,
    DatabaseEndpoint as DatabaseEndpoint,
    Endpoint as Endpoint,
    Endpoints as Endpoints,
    MessagingEndpoint as MessagingEndpoint,
    StoreEndpoint as StoreEndpoint,
    aws_client as aws_client,
    database_url as database_url,
    exports as exports,
    messaging_runs as messaging_runs,
    resolve as resolve,
    resolve_cluster as resolve_cluster,
    resolve_messaging as resolve_messaging,
    session as session,
)
