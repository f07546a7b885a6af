"""Workers for load tests on the services of an open workshop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.load.clients import ClientConfig
from workshop_lib.load.drivers import LambdaWorkers, LocalWorkers
from workshop_lib.services.functions import LambdaClients

if TYPE_CHECKING:
    from workshop_lib.workshop import Workshop


def open_workers(
    ws: Workshop,
    at_once: int,
    *,
    cache: Mapping[str, Any] | None,
    route: tuple[str, int],
    metrics: bool,
) -> LocalWorkers | LambdaWorkers:
    """Processes, or executions of the function that LOAD_FUNCTION names; `Workshop.load_workers`.

    Raises:
        WorkshopError: the number is out of range, or they did not all start.

    """
    if ws.settings.load_function and cache is None:
        return _wake(ws, ws.settings.load_function, at_once)
    host, port = route
    own = {**ws.endpoints.cache.arguments, "host": host, "port": port}
    config = ClientConfig(
        ws.database.endpoint,
        ws.namespace,
        reader=ws.endpoints.reader,
        cache=cache or own,
        messaging=ws.messaging if metrics else None,
    )
    return LocalWorkers(config, at_once)


def _wake(ws: Workshop, function: str, at_once: int) -> LambdaWorkers:
    clients = LambdaClients(ws.endpoints.aws_region, at_once)
    workers = LambdaWorkers(clients, function, at_once, ws.namespace)
    try:
        workers.wake()
    except WorkshopError as error:
        workers.close()
        raise WorkshopError(
            f"{error} LOAD_FUNCTION (or the stack) names this function; "
            'open_workshop(…, load_function="") has processes on this machine do the work.'
        ) from None
    except BaseException:
        workers.close()
        raise
    return workers
