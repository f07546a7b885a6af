"""What a workshop has in the services under its namespace: counted, deleted, found when left."""

from __future__ import annotations

import os
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
    from workshop_lib.queues import delete_own_queues  # noqa: PLC0415 -- few have any

    tables = dataset.drop_everything(ws.database, of_others=of_others)
    objects = list(dataset.list_objects(ws.s3, ws.bucket, ws.object_prefix))
    for name in objects:
        ws.s3.delete_object(Bucket=ws.bucket, Key=name)
    delete_own_queues(ws.settings)
    return {"tables": len(tables), "keys": ws.clear_cache(), "objects": len(objects)}


def wipe_namespace(namespace: str) -> dict[str, int]:
    """Delete a run's namespace: tables, keys and objects. Returns how many of each there were.

    A run has it to itself, so whatever table is there goes, also one that a changed cell made.

    Raises:
        WorkshopError: a service does not answer.

    """
    from workshop_lib.workshop import open_workshop  # noqa: PLC0415 -- it imports this module

    ws = open_workshop(
        f"wipe {namespace}", workshop_namespace=namespace, workshop_linger_seconds=0.0
    )
    try:
        return wipe(ws, of_others=True)
    finally:
        ws.close()


def abandoned_namespaces() -> list[str]:
    """The namespaces of runs that were killed; none while another process may still run one.

    Raises:
        WorkshopError: a service does not answer.

    """
    loaded = load_settings(workshop_linger_seconds=0.0)
    folder = state_folder(loaded.values.workshop_state_dir)
    endpoints = resolve(loaded.values)
    database = Database(endpoints.database, pool_min=1)
    try:
        others = {user.pid for user in local.status(folder).users} - {os.getpid()}
        if others or not endpoints.database.embedded:
            return []
        found = database.query(
            "SELECT nspname FROM pg_namespace WHERE nspname ~ %s", ("^run_[0-9a-f]{8}_",)
        )
        return [str(name) for (name,) in found]
    finally:
        database.close()
        endpoints.release()
