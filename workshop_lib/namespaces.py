"""What a workshop has in the services under its namespace: counted, deleted, found when left."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

from workshop_lib import dataset
from workshop_lib.cache.keys import match_all
from workshop_lib.database import Database
from workshop_lib.services import local, resolve
from workshop_lib.services.state_folder import state_folder
from workshop_lib.settings import load_settings

if TYPE_CHECKING:
    from workshop_lib.workshop import Workshop


def inventory(ws: Workshop) -> dict[str, int]:
    """How many tables, cache keys and objects of a workshop there are now."""
    keys = ws.valkey.scan_iter(match=match_all(ws.namespace), count=500)
    return {
        "tables": len(dataset.list_tables(ws.database)),
        "keys": sum(1 for _ in keys),
        "objects": sum(1 for _ in dataset.list_objects(ws.s3, ws.bucket, ws.object_prefix)),
    }


def wipe(ws: Workshop, *, of_others: bool = False) -> dict[str, int]:
    """Delete a workshop's tables, keys, objects and queues; as `Workshop.wipe`.

    Raises:
        WorkshopError: a service does not answer.

    """
    return _wipe(ws, ws.namespace, dataset.drop_everything(ws.database, of_others=of_others))


def wipe_namespace(*namespaces: str) -> dict[str, int]:
    """Delete runs' namespaces: tables, keys and objects. Returns how many of each there were.

    A run has one to itself, so whatever table is there goes, also one that a changed cell made.

    Raises:
        WorkshopError: a service does not answer.

    """
    from workshop_lib.workshop import open_workshop  # noqa: PLC0415 -- it imports this module

    first, found = namespaces[0], Counter[str]()
    ws = open_workshop(f"wipe {first}", workshop_namespace=first, workshop_linger_seconds=0.0)
    with closing(ws):
        for namespace in namespaces:
            with closing(Database(ws.endpoints.database, namespace, pool_min=1)) as database:
                tables = dataset.drop_everything(database, of_others=True)
            found.update(_wipe(ws, namespace, tables))
    return dict(found)


def _wipe(ws: Workshop, namespace: str, tables: list[str]) -> dict[str, int]:
    """Delete the rest of a namespace whose tables are gone."""
    from workshop_lib.cache.query_cache import clear_namespace  # noqa: PLC0415 -- as queues
    from workshop_lib.queues import delete_own_queues  # noqa: PLC0415 -- few have any

    objects = list(dataset.list_objects(ws.s3, ws.bucket, f"{namespace}/"))
    for name in objects:
        ws.s3.delete_object(Bucket=ws.bucket, Key=name)
    delete_own_queues(ws.settings.model_copy(update={"workshop_namespace": namespace}))
    keys = clear_namespace(ws.valkey, namespace)
    return {"tables": len(tables), "keys": keys, "objects": len(objects)}


def abandoned_namespaces() -> list[str]:
    """The namespaces of runs that were killed; none while another process may still run one.

    Raises:
        WorkshopError: a service does not answer.

    """
    settings = load_settings(workshop_linger_seconds=0.0).values
    endpoints = resolve(settings)
    try:
        users = local.status(state_folder(settings.workshop_state_dir)).users
        if {user.pid for user in users} - {os.getpid()} or not endpoints.database.embedded:
            return []
        with closing(Database(endpoints.database, pool_min=1)) as database:
            found = database.query(
                "SELECT nspname FROM pg_namespace WHERE nspname ~ %s", ("^run_[0-9a-f]{8}_",)
            )
            return [str(name) for (name,) in found]
    finally:
        endpoints.release()
