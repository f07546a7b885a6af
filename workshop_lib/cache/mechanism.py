"""The one mechanism behind every cache: look up, lock, load, store, and go on without the cache.

On a miss one request loads and the others wait for it (single-flight): the threads of a process
for each other, the processes by a lock in Valkey. The lock is also what makes invalidation safe.
A loader may store only while the lock is still its own; invalidating takes the lock away. So a
slow reader cannot put an old value back, as with the leases of Nishtala and others, "Scaling
Memcache at Facebook", 2013, section 3.2.1.
"""

from __future__ import annotations

import copy
import random
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as LostConnection, RedisError, TimeoutError as Slow

from workshop_lib.cache.breaker import Breaker
from workshop_lib.cache.codec import CorruptEntry, Entry, Uncacheable
from workshop_lib.cache.policy import Policy
from workshop_lib.cache.single_flight import Flight, Flights, Renewals
from workshop_lib.cache.stats import Counters
from workshop_lib.cache.storage import Packed, Storage
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.forks import tell_child
from workshop_lib.simulate.expiry import should_refresh_early

T = TypeVar("T")
Load = Callable[[], Entry]
"""Asks the source; the entry's `cost_seconds` says what that took. Its times are set here."""
LoadMany = Callable[[Collection[str]], Mapping[str, Entry]]
"""The same for several keys, with an entry for each."""
Tags = Collection[str]
"""The keys of tags."""
Tokens = Mapping[str, str]
"""Of locks, by the keys of entries."""
Versions = Mapping[str, str] | None
"""Of tags, by their keys; None if they could not be asked for."""

POLL_S = 0.003
"""How soon a request that waits for another process asks again; later ones come more slowly."""
POLL_MAX_S = 0.05
FLIGHTS = 3
"""How many loads of other threads a request waits for, one after another, before it loads alone."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer.

    Attributes:
        entry: what was asked for.
        source: "cache", "database" (loaded just now), "renewed" (the same as before, says the
            source) or "stale" (loading failed).
        seconds: response time, waiting and storing included.

    """

    entry: Entry
    source: str
    seconds: float


class Mechanism:
    """Answers from storage, or from a loader.

    Args:
        storage: where entries are kept.
        policy: how to behave.

    """

    def __init__(self, storage: Storage, policy: Policy) -> None:
        self.storage, self.policy = storage, policy
        self._after_fork()
        tell_child(self)

    def _after_fork(self) -> None:
        """In a forked child: the loads under way, and the locks that threads held, are not here."""
        self.counters, self._flights, self._breaker = Counters(), Flights(), Breaker()
        every_s, at_most_s = self.policy.lock_seconds / 3, self.policy.load_seconds
        self._renewals = Renewals(self._renew, every_s, at_most_s)

    def fetch(
        self, key: str, load: Load, tags: Tags = (), renew: Callable[[Entry], Entry] | None = None
    ) -> Fetched:
        """The entry under the key, loaded if need be.

        Args:
            key: where it is kept.
            load: asks the source.
            tags: keys of the tags under which it can be invalidated if it is loaded now.
            renew: asked in the place of `load` where there is an entry beyond its TTL: returns
                that entry if it is still right, and its successor if not.

        Raises:
            Exception: whatever `load` raised, unless a stale entry could be served.

        """
        started = time.perf_counter()
        found = self._look_up(key, tags)
        if found is not None:
            if _is_fresh(found):
                entry = self._refresh_if_due(key, found, load, tags)
                self.counters.add(hits=1, bytes_read=found.size)
                return Fetched(entry, "cache", time.perf_counter() - started)
            self.counters.add(bytes_read=found.size)
            load = partial(renew, found) if renew else load
        try:
            fill = self._join_flight if self.policy.single_flight else self._lock_and_load
            entry = fill(key, load, tags)
        except self.policy.stale_on:
            if found is None or not _is_fresh(found, self.policy.stale_if_error):
                raise
            self.counters.add(stale=1)
            return Fetched(found, "stale", time.perf_counter() - started)
        self.counters.add(misses=1)
        renewed = found is not None and entry.rows is found.rows
        source = "renewed" if renewed else "database"
        return Fetched(entry, source, time.perf_counter() - started)

    def fetch_kept(self, read: Callable[..., Entry | None], *args: Any) -> Entry | None:
        """What `read` finds in the cache, counted as a hit; None if that cannot be served."""
        entry = self.attempt(read, *args)
        if entry is None or not _is_fresh(entry):
            return None
        self.counters.add(hits=1, bytes_read=entry.size)
        return entry

    def fetch_many(self, keys: Iterable[str], load: LoadMany | None = None) -> dict[str, Entry]:
        """The entries under many keys; those that are not there are loaded at once, and stored.

        What another request is loading is left out, and so is one that is missing alone.

        Args:
            keys: where they are kept.
            load: asks the source for some of them. None: what is not there is left out.

        """
        keys = list(keys)
        entries = self.attempt(self.storage.get_many, keys) or [None] * len(keys)
        found = {key: entry for key, entry in zip(keys, entries, strict=True) if entry}
        hits = {key: entry for key, entry in found.items() if _is_fresh(entry)}
        self.counters.add(hits=len(hits), bytes_read=sum(entry.size for entry in hits.values()))
        missing = [key for key in keys if key not in hits]
        if load is None or len(missing) < 2:
            return hits
        try:
            tokens, quicker = self._take_locks(missing) or (None, {})
            # None: the cache is down. None of them: others are loading all that is missing.
            unlocked = load(missing) if tokens is None else {}
            loaded = self._load_and_store(tokens, load) if tokens else unlocked
        except self.policy.stale_on:
            grace_s = self.policy.stale_if_error
            stale = {key: found[key] for key in missing if key in found}
            if len(stale) < len(missing) or not all(_is_fresh(e, grace_s) for e in stale.values()):
                raise
            self.counters.add(stale=len(stale))
            return hits | stale
        answers = {**loaded, **quicker}
        self.counters.add(misses=len(answers), coalesced=len(quicker))
        return hits | answers

    def put(self, key: str, entry: Entry) -> None:
        """Write through: store what has just been written to the source.

        A load that is under way is kept from storing its older value. What cannot be stored takes
        the older entry away.

        Raises:
            ServiceUnreachableError: as `invalidate`.

        """
        if not self._store({key: ""}, {key: entry}, {}):
            self.invalidate(key)

    def invalidate(self, key: str) -> bool:
        """Remove an entry, and keep loads that are under way from storing. Call it after COMMIT.

        Once it has returned, no reader that starts later sees the older value.

        Returns:
            Whether there was an entry.

        Raises:
            ServiceUnreachableError: the cache did not answer: readers may see the old value until
                its TTL ends. Try again.

        """
        return bool(self._insist(self.storage.delete, key))

    def invalidate_tag(self, tag: str) -> None:
        """Invalidate all entries that were filed under a tag, as `invalidate`."""
        self._insist(self.storage.forget_tag, tag)

    # --- look up

    def _look_up(self, key: str, tags: Tags) -> Entry | None:
        if not self._breaker.allows():
            self.counters.add(errors=1)
            return None
        return _filed_under(tags, self._ask(self.storage.get, key, tags))

    def _refresh_if_due(self, key: str, entry: Entry, load: Load, tags: Tags) -> Entry:
        """The entry, or its successor if this request was chosen to refresh it before its time."""
        beta = self.policy.early_refresh
        if not beta or not should_refresh_early(
            time.time(), entry.fresh_until, entry.cost_seconds, beta, 1 - random.random()
        ):
            return entry
        tokens, quicker = self._take_locks([key], tags, entry) or ({}, {})
        if not tokens:
            return quicker.get(key, entry)  # another request is at it, or was quicker
        try:
            newer = self._load_and_store(tokens, lambda _: {key: load()}, tags)[key]
        except Exception:  # noqa: BLE001 -- whatever it was: the entry at hand is still in force
            return entry
        self.counters.add(early=1)
        return newer

    # --- one thread of this process

    def _join_flight(self, key: str, load: Load, tags: Tags) -> Entry:
        """Load for all threads of this process that ask now, or wait for the thread that does."""
        for _ in range(FLIGHTS):
            flight, leads = self._flights.join(key)
            if flight is None:  # a load that asks for its own key
                break
            if leads:
                return self._lead_flight(key, flight, load, tags)
            if not flight.done.wait(self.policy.wait_seconds):
                self._flights.abandon(key, flight)
                continue
            if flight.error is not None:
                raise _copy_of(flight.error)
            if flight.unshareable:
                break
            if flight.packed is not None:
                self.counters.add(coalesced=1)
                return self.storage.unpack(flight.packed)
        return load()

    def _lead_flight(self, key: str, flight: Flight, load: Load, tags: Tags) -> Entry:
        """Load for all threads that join the flight."""
        try:
            if previous := flight.previous:
                previous.done.wait(self.policy.wait_seconds)
                if previous.error is not None:
                    raise _copy_of(previous.error)
            self._flights.close(flight)
            entry = self._lock_and_load(key, load, tags)
            if flight.joined:
                flight.packed = self._packed(entry)
                flight.unshareable = flight.packed is None
        except Exception as error:
            flight.error = error
            raise
        finally:  # an Interrupt meant this thread alone: the others find nothing, and try again
            self._flights.land(key, flight)
        return entry

    # --- one process of all

    def _lock_and_load(self, key: str, load: Load, tags: Tags) -> Entry:
        """Load with the lock, or wait for the process that has it."""
        pause, deadline = POLL_S, time.monotonic() + self.policy.wait_seconds
        while (locked := self._take_locks([key], tags)) is not None:
            tokens, quicker = locked
            if quicker:
                self.counters.add(coalesced=1, bytes_read=quicker[key].size)
                return quicker[key]
            if tokens:
                return self._load_and_store(tokens, lambda _: {key: load()}, tags)[key]
            if time.monotonic() > deadline:
                break
            time.sleep(pause)
            pause = min(pause * 1.2, POLL_MAX_S)
        # Without the lock an invalidation meanwhile goes unnoticed: nothing is stored.
        return load()

    def _take_locks(
        self, keys: Collection[str], tags: Tags = (), known: Entry | None = None
    ) -> tuple[dict[str, str], dict[str, Entry]] | None:
        """Take the locks that are free; None if the cache is down.

        Without single-flight there are no locks, and each request may store.

        Returns:
            The tokens of those that were taken, by key, and the entries that other requests have
            stored since `known`.

        """
        if not self.policy.single_flight:
            return dict.fromkeys(keys, ""), {}
        tokens = {key: secrets.token_hex(8) for key in keys}
        answers = self.attempt(self.storage.acquire, tokens, self.policy.lock_ms)
        if answers is None:
            return None
        quicker: dict[str, Entry] = {}
        for key, (locked, found) in answers.items():
            entry = _filed_under(tags, found)
            is_newer = known is None or (entry and entry.created_at != known.created_at)
            if entry is not None and _is_fresh(entry) and is_newer:
                quicker[key] = entry
                self._release({key: tokens[key]} if locked else {})
            if not locked or key in quicker:
                del tokens[key]
        return tokens, quicker

    def _load_and_store(
        self, tokens: Tokens, load: LoadMany, tags: Tags = ()
    ) -> Mapping[str, Entry]:
        """Load while holding the locks, and store each entry whose lock is held to the end."""
        try:
            versions: Versions = {}
            if tags:  # before the load: it may be of an entry that is invalidated meanwhile
                ttl_ms = self.policy.max_ttl_ms
                versions = self.attempt(self.storage.tag_versions, tags, ttl_ms)
            with self._renewals.held(tokens):
                loaded = load(tokens)
        except BaseException:
            self._release(tokens)
            raise
        self._store(tokens, loaded, versions)
        return loaded

    # --- store

    def _store(self, tokens: Tokens, entries: Mapping[str, Entry], versions: Versions) -> bool:
        """Store what may be stored, each under its lock; an empty token is any lock's.

        An older entry of what may not be stored is removed: it is no answer any more.

        Returns:
            Whether all is stored.

        """
        writes: dict[str, tuple[str, Packed, int]] = {}
        for key, entry in entries.items():
            dated, ttl_ms = self._dated(entry, versions)
            packed = self._packed(dated, count=True)
            if packed is not None and versions is not None:
                writes[key] = (tokens[key], packed, ttl_ms)
        refused = entries.keys() - writes.keys()
        if refused:
            self.attempt(self.storage.delete, *refused)
        stored = self.attempt(self.storage.complete, writes) if writes else []
        if stored is None:
            self._release(tokens)
            return False
        sizes = [sum(map(len, packed)) for _, packed, _ in writes.values()]
        written = sum(size for size, done in zip(sizes, stored, strict=True) if done)
        self.counters.add(bytes_written=written, discarded=stored.count(False))
        return not refused and all(stored)

    def _dated(self, entry: Entry, versions: Versions) -> tuple[Entry, int]:
        """The entry with its times and tags, and how long the server should keep it, milliseconds.

        Where nothing depends on when its TTL ends, the entry does not say so, and the server's
        own TTL decides alone: clocks of two machines may differ.
        """
        policy, now = self.policy, time.time()
        empty = not entry.rows and policy.empty_ttl is not None
        ttl = (policy.empty_ttl or policy.ttl) if empty else policy.ttl
        ttl *= 1 - policy.jitter * random.random()
        kept = max(1, round((ttl + policy.kept_beyond) * 1000))
        until = now + ttl if policy.kept_beyond or policy.early_refresh else inf
        return replace(entry, created_at=now, fresh_until=until, tags=versions or {}), kept

    def _packed(self, entry: Entry, *, count: bool = False) -> Packed | None:
        """The stored form of an entry; None if it has none, or, where counted, is too large."""
        try:
            packed = self.storage.pack(entry)
        except Uncacheable:
            self.counters.add(uncacheable=count)
            return None
        too_large = count and sum(map(len, packed)) > self.policy.max_bytes
        self.counters.add(too_large=too_large)
        return None if too_large else packed

    def _renew(self, key: str, token: str) -> bool:
        """Prolong a lock. Returns whether to go on: also after a failure, which may be brief."""
        return self.attempt(self.storage.renew, key, token, self.policy.lock_ms) is not False

    def _release(self, tokens: Tokens) -> None:
        for key, token in tokens.items():
            if token:
                self.attempt(self.storage.release, key, token)

    # --- go on without the cache

    def attempt(self, work: Callable[..., T], *args: Any) -> T | None:
        """Ask the cache server, or go without it where it failed a moment ago: None."""
        return self._ask(work, *args) if self._breaker.allows() else None

    def _ask(self, work: Callable[..., T], *args: Any) -> T | None:
        """What the cache server answers; None if it does not."""
        answer = None
        try:
            answer = work(*args)
        except (LostConnection, Slow):
            self._breaker.failed()
            self.counters.add(errors=1)
            return None
        except CorruptEntry:
            self.counters.add(corrupt=1)
        except RedisError:  # for example no memory left: the server is up, this request failed
            self.counters.add(errors=1)
        self._breaker.worked()
        return answer

    @staticmethod
    def _insist(work: Callable[..., T], *args: Any) -> T:
        try:
            return work(*args)
        except RedisError as error:
            raise ServiceUnreachableError(
                f"The cache could not be told that an entry is out of date: {error}. Readers may "
                "see the old value until its TTL ends; try again when the cache answers."
            ) from None


def _is_fresh(entry: Entry, beyond_s: float = 0.0) -> bool:
    """Whether its TTL has not ended, or not longer ago than that."""
    return time.time() < entry.fresh_until + beyond_s


def _filed_under(tags: Tags, entry: Entry | None) -> Entry | None:
    """The same, without an entry that `invalidate_tag` of one of these would not have found."""
    return entry if entry is not None and entry.tags.keys() >= set(tags) else None


def _copy_of(error: Exception) -> Exception:
    """An exception of the same type and content for another thread.

    Raised in many threads, one object would gather the tracebacks of all of them. The original is
    its cause; where a class cannot be copied, the original is all there is.
    """
    try:
        twin = copy.copy(error)
    except Exception:  # noqa: BLE001 -- its class can refuse in any way
        return error
    if type(twin) is not type(error):
        return error
    twin.__cause__ = error
    return twin
