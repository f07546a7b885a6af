"""The namespaces of runs: named, deleted, and found where a killed run left them."""

from __future__ import annotations

import os
import re
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
        return sorted(filter(_is_run if endpoints.database.embedded else _is_old_run, found))
    finally:
        endpoints.release()


def _is_run(namespace: str) -> bool:
    return re.fullmatch("run_[0-9a-f]{8,}_.*", namespace) is not None


def _is_old_run(namespace: str) -> bool:
    stamp = re.match(r"run_(\d{12})_", namespace)
    with suppress(ValueError):
        began = datetime.strptime(stamp[1] if stamp else "", "%Y%m%d%H%M").replace(tzinfo=UTC)
        return datetime.now(UTC) - began > OLD
    return False
