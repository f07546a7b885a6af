"""The namespaces of runs: named, deleted, and found where a killed run left them."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta

from workshop_lib import dataset
from workshop_lib.database import Database
from workshop_lib.objects import greet_store, store_client
from workshop_lib.services import local, resolve
from workshop_lib.services.state_folder import state_folder
from workshop_lib.settings import load_settings
from workshop_lib.workshop import open_workshop

OLD = timedelta(days=1)


def wipe_namespace(*namespaces: str) -> dict[str, int]:
    """Delete runs' namespaces: tables, keys and objects. Returns how many of each there were.

    A run has one to itself, so whatever table is there goes, also one that a changed cell made.

    Raises:
        WorkshopError: a service does not answer.

    """
    found = Counter[str]()
    for namespace in namespaces:
        ws = open_workshop(
            f"wipe {namespace}", workshop_namespace=namespace, workshop_linger_seconds=0.0
        )
        with closing(ws):
            found.update(tables=len(dataset.drop_everything(ws.database, of_others=True)))
            found.update(ws.wipe())
    return dict(found)


def new_run() -> str:
    """What the namespaces of a run begin with: when it began, UTC, and what tells it from others.

    >>> len(new_run())
    25
    """
    return f"run_{datetime.now(UTC):%Y%m%d%H%M}_{secrets.token_hex(4)}"


def abandoned_namespaces() -> list[str]:
    """The namespaces of runs that were killed, found by their schemas and objects.

    In local engines without another user, those of all runs; elsewhere, where another person's run
    may be under way, those of runs that began more than a day ago.

    Raises:
        WorkshopError: a service does not answer.

    """
    settings = load_settings(workshop_linger_seconds=0.0).values
    endpoints = resolve(settings)
    try:
        users = local.status(state_folder(settings.workshop_state_dir)).users
        others = {user.pid for user in users} - {os.getpid()}
        if endpoints.database.embedded and others:
            return []
        with closing(Database(endpoints.database, pool_min=1)) as database:
            named = "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, 'run_')"
            schemas = database.query(named)
        with closing(store_client(endpoints.store)) as s3:
            greet_store(s3, endpoints.store)
            place = {"Bucket": endpoints.store.bucket, "Prefix": "run_", "Delimiter": "/"}
            folders = s3.list_objects_v2(**place).get("CommonPrefixes", ())
        found = {str(name) for (name,) in schemas} | {one["Prefix"][:-1] for one in folders}
        before = datetime.now(UTC) - (timedelta() if endpoints.database.embedded else OLD)
        return sorted(name for name in found if _is_of_a_run(name, before))
    finally:
        endpoints.release()


def _is_of_a_run(namespace: str, before: datetime) -> bool:
    """Whether a run that began before this has made it: `new_run`."""
    with suppress(ValueError):
        return datetime.strptime(namespace[:16], "run_%Y%m%d%H%M").replace(tzinfo=UTC) < before
    return False
