"""Notebook 06: what each policy evicts."""

from __future__ import annotations

from typing import Any, TypeAlias

from workshop_lib.exercises.check import Case, Check

Entry: TypeAlias = dict[str, Any]
POLICIES = (
    *(f"allkeys-{rule}" for rule in ("lru", "lfu", "random")),
    *(f"volatile-{rule}" for rule in ("lru", "lfu", "ttl", "random")),
    "noeviction",
)
RANK = {"lru": ("idle", -1), "lfu": ("uses", 1), "ttl": ("ttl", 1)}
"""By rule: the field, and the sign with which the least of it goes first."""


def key_to_evict(check: Check) -> None:
    """For each cache and each policy, a key that it evicts, or None."""
    caches = [check.value(entries) for [entries] in check.table.cases]
    check.try_cases(
        [
            Case(
                shown=f"`key_to_evict(entries, {policy!r})`",
                arguments=(entries, policy),
                draws=30 if policy.endswith("random") else 1,
            )
            for entries in caches
            for policy in POLICIES
        ]
    )


def entry(key: str, ttl: float | None, idle: float, uses: int) -> Entry:
    """A key in a cache, as the exercise describes it."""
    return {"key": key, "ttl": ttl, "idle": idle, "uses": uses}


def keys(entries: list[Entry]) -> list[str]:
    """The key of each entry."""
    return [one["key"] for one in entries]


def listed(entries: list[Entry]) -> str:
    """The entries, each on a line of its own."""
    return "".join(f"\n`{one}`" for one in entries) or " none."


def candidates(entries: list[Entry], policy: str) -> list[Entry]:
    """The entries that the policy may evict, the first to go first."""
    if policy == "noeviction":
        return []
    found = [one for one in entries if one["ttl"] is not None or policy.startswith("allkeys")]
    field, sign = RANK.get(policy.partition("-")[2], ("key", 0))
    return sorted(found, key=lambda one: sign * one[field]) if sign else found


def evicted(entries: list[Entry], policy: str) -> list[str]:
    """The keys of which the policy evicts any."""
    found = keys(candidates(entries, policy))
    return found if policy.endswith("random") else found[:1]


def others(entries: list[Entry], key: str) -> list[str]:
    """The policies that evict this key and no other."""
    return [policy for policy in POLICIES if evicted(entries, policy) == [key]]


JUDGES = {"06.2": key_to_evict}
