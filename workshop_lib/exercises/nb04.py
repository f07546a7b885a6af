"""Notebook 04: records and lists of names on the real cache, in one step and one round trip."""

from __future__ import annotations

import math
from collections.abc import Iterable

from redis.exceptions import ResponseError

from workshop_lib.exercises.check import Check, Wrong
from workshop_lib.exercises.round_trips import Trips, remove_keys, watched

OLDER = {"name": "Marz", "type": "rocky", "moons": "2", "visited_by": "Mariner 4"}
OLDER_S = 60


def write_record(check: Check) -> None:
    """The fields and the TTL are right, nothing old is left, and no cut leaves half of it."""
    key = f"{check.ws.namespace}:exercise-04-1:planet:4"
    try:
        for before in ({}, OLDER):
            for [call] in check.table.cases:
                _try_write(check, key, call, before)
    finally:
        remove_keys(check.ws, key)


def _try_write(check: Check, key: str, call: str, before: dict[str, str]) -> None:
    *_, record, seconds = check.arguments(call, valkey=None, key=key)
    expected = {name: value for name, value in record.items() if value is not None}
    commands = _run(check, key, call, before)
    found, ttl_ms = _state(check, key)
    check.facts |= {"older": OLDER, "before": before, "found": found, "expected": expected}
    old = {name: found[name] for name in before if name in found.keys() - record}
    kept = [name for name in record if name in found and name not in expected]
    lost = [name for name, value in record.items() if value == "" and name not in found]
    check.facts |= {"old": old, "kept": kept, "lost": lost, "commands": commands}
    check.judge("written", ttl=ttl_ms / 1000, seconds=seconds)
    for most in range(1, len(commands)):
        _run(check, key, call, before, most)
        for beside in list(check.ws.valkey.scan_iter(match=f"{key}?*", count=500)):
            ttl = check.ws.valkey.ttl(beside)
            check.ws.valkey.delete(beside)
            check.judge("beside", beside=beside.decode(), ttl=ttl)
        found, ttl_ms = _state(check, key)
        check.judge("cut", most=most, found=found, ttl=ttl_ms)


def _run(
    check: Check, key: str, call: str, before: dict[str, str], most: float = math.inf
) -> list[str]:
    """Let the answer write; with `most`, the connection breaks. The names of its commands."""
    with check.ws.valkey.pipeline() as step:
        step.delete(key)
        if before:
            step.hset(key, mapping=before)
            step.expire(key, OLDER_S)
        step.execute()
    trips: Trips = []
    with watched(check.ws, trips, most) as valkey:
        arguments = check.arguments(call, valkey=valkey, key=key)
        if most == math.inf:
            check.call(*arguments, shown=f"`{call}`")
        else:  # that the connection broke, it may say as it likes
            check.attempt(*arguments)
    return [name for trip in trips for name in trip]


def _state(check: Check, key: str) -> tuple[dict[str, str], int]:
    """The hash, and its time to live in milliseconds, -1 if it never expires."""
    valkey = check.ws.valkey
    try:
        fields = valkey.hgetall(key)
    except ResponseError:
        kind = valkey.type(key).decode()
        raise Wrong(check.say("no_hash", kind=kind)) from None
    text = {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
    return text, valkey.pttl(key)


def get_planets(check: Check) -> None:
    """One round trip, one load of what is missing, and the answers in the order of the keys."""
    prefix = f"{check.ws.namespace}:exercise-04-2:planet:"
    try:
        for asked, cached in check.table.cases:
            remove_keys(check.ws, prefix)
            _try_batch(check, prefix, check.value(asked), check.value(cached))
    finally:
        remove_keys(check.ws, prefix)


def _try_batch(check: Check, prefix: str, asked: list[int], cached: list[int]) -> None:
    names, valkey = check.value("NAMES"), check.ws.valkey
    loads: list[list[str]] = []

    def load(missing: Iterable[str]) -> dict[str, str]:
        keys = [missing] if isinstance(missing, str) else list(missing)
        loads.append([str(key).removeprefix(prefix) for key in keys])
        found = {f"{prefix}{n}": name for n, name in names.items() if f"{prefix}{n}" in keys}
        for key, name in found.items():
            valkey.set(key, name, ex=OLDER_S)
        return found

    for number in cached:
        valkey.set(f"{prefix}{number}", names[number], ex=OLDER_S)
    trips: Trips = []
    with watched(check.ws, trips) as client:
        shown = check.say("batch" if asked else "no_keys", asked=asked, cached=cached)
        got = check.call(client, [f"{prefix}{number}" for number in asked], load, shown=shown)
    missing = [str(number) for number in dict.fromkeys(asked) if number not in cached]
    expected = [names.get(number) for number in asked]
    check.facts |= {"trips": trips, "loads": loads, "missing": missing}
    check.judge("batch", got=got, expected=expected)


def sent(trips: Trips) -> str:
    """The commands of each round trip, in words."""
    return ", ".join(f"`{'` `'.join(dict.fromkeys(trip))}`" for trip in trips)


def called(loads: list[list[str]]) -> str:
    """The calls of `load`, in words."""
    return " and ".join(f"`load` of [{', '.join(keys)}]" for keys in loads)


JUDGES = {"04.1": write_record, "04.2": get_planets}
