"""Every kind of cache as a reader and a writer of one value see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from workshop_lib.cache.cached import cached
from workshop_lib.cache.object_cache import ObjectCache
from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.cache.record_cache import RecordCache

ASK = "SELECT v"


@dataclass
class Door:
    """One of the caches."""

    cache: Any
    read: Callable[[], Any]
    key: str
    changes: dict[str, Callable[[Any], object]]
    """How a writer tells the cache, after its commit, of the value it wrote."""

    def stats(self) -> Any:
        return self.cache.stats()


def query_door(source: Any, n: int = 3, **behaviour: Any) -> Door:
    cache, tag = QueryCache(source, **behaviour), f"things-{n}"
    changes = {
        "invalidate": lambda _: cache.invalidate(ASK, (n,)),
        "invalidate_tag": lambda _: cache.invalidate_tag(tag),
    }
    read = lambda: cache.fetch(ASK, (n,), tags=[tag]).rows[0][1]  # noqa: E731
    return Door(cache, read, cache.key(ASK, (n,)), changes)


def record_door(source: Any, n: int = 3, **behaviour: Any) -> Door:
    cache = RecordCache(source, "thing", **behaviour)
    changes = {
        "invalidate": lambda _: cache.invalidate(n),
        "put": lambda value: cache.put(n, {"id": n, "v": value}),
        "update": lambda value: cache.update(n, v=value),
    }
    return Door(cache, lambda: cache.fetch(n).record["v"], cache.key(n), changes)


def many_door(source: Any, n: int = 3, **behaviour: Any) -> Door:
    door = record_door(source, n, **behaviour)
    return Door(door.cache, lambda: door.cache.get_many([n])[n]["v"], door.key, door.changes)


def fields_door(source: Any, n: int = 3, **behaviour: Any) -> Door:
    door = record_door(source, n, **behaviour)
    return Door(door.cache, lambda: door.cache.get_fields(n, ["v"])["v"], door.key, door.changes)


def object_door(source: Any, n: int = 3, **behaviour: Any) -> Door:
    cache, name = ObjectCache(source, **behaviour), f"thing-{n}"
    changes = {
        "invalidate": lambda _: cache.invalidate(name),
        "put": lambda value: cache.put(name, value.encode()),
        "delete": lambda _: cache.delete(name),
    }
    return Door(cache, lambda: cache.get(name).decode(), cache.key(name), changes)


def function_door(source: Any, n: int = 3, **behaviour: Any) -> Door:
    function = cached(source, name="v", **behaviour)(
        lambda _: source.database.query(ASK).rows[0][1]
    )
    changes = {"invalidate": lambda _: function.invalidate(n)}
    return Door(function, lambda: function(n), function.key(n), changes)


DOORS = {
    "query": query_door,
    "record": record_door,
    "many": many_door,
    "object": object_door,
    "function": function_door,
}
WAYS = [("query", "invalidate"), ("query", "invalidate_tag"), ("record", "invalidate"),
        ("record", "put"), ("record", "update"), ("many", "put"), ("object", "put"),
        ("object", "delete"), ("function", "invalidate")]  # fmt: skip
every_door = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
every_way = pytest.mark.parametrize(("door", "way"), WAYS, ids=lambda part: part)
