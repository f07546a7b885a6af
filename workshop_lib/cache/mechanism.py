"""The one mechanism behind every cache: look up, lock, load, store.

On a miss one request loads and the others wait for it (single-flight): the threads of a process
for each other, the processes by a lock in Valkey. The lock is also what makes invalidation safe.
A loader may store only while the lock is still its own; invalidating takes the lock away. So a
slow reader cannot put an old value back, as with the leases of Nishtala and others, "Scaling
Memcache at Facebook", 2013, section 3.2.1.

A cache that fails costs time, never an answer: each step goes through `attempt`, which gives None
instead of an error, and a load without a lock is answered but not stored.
"""

from __future__ import annotations

import inspect
import random
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, TypeVar

from msgspec.structs import replace
from redis.exceptions import ConnectionError as LostConnection, RedisError, TimeoutError as Slow

from workshop_lib.cache.breaker import Breaker
from workshop_lib.cache.codec import Entry, Uncacheable
from workshop_lib.cache.policy import Policy
from workshop_lib.cache.single_flight import Flight, Flights, Renewals
from workshop_lib.cache.stats import Counters
from workshop_lib.cache.storage import Packed, Storage
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.forks import tell_child
from workshop_lib.simulate.theory import should_refresh_early

T = TypeVar("T")
Load = Callable[[], Entry]
"""Asks the source; the entry's `cost_seconds` says what that took. Its times are set here."""
LoadMany = Callable[[Collection[str]], Mapping[str, Entry]]
"""The same for several keys, with an entry for each."""
Tags = Collection[str]
"""The keys of tags."""
Tokens = Mapping[str, str]
"""Of locks, by the keys of entries. An empty token stands for any lock, or none."""

POLL_S = 0.003
"""How soon a request that waits for another process asks again; later ones come more slowly."""
POLL_MAX_S = 0.05
MAX_FLIGHTS = 3
"""How many loads of other threads a request waits for, one after another, before it loads alone."""


class Fetched(NamedTuple):
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
        self._lock_ms = max(1, round(policy.lock_seconds * 1000))
        self._after_fork()
        tell_child(self)

    def _after_fork(self) -> None:
        """In a forked child: the loads under way, and the locks that threads held, are not here."""
        self.counters, self._breaker = Counters(), Breaker()
        self._flights: Flights[Entry] = Flights()
        every_s, at_most_s = self.policy.lock_seconds / 3, self.policy.load_seconds
        self._renewals = Renewals(self._renew, every_s, at_most_s)

    # --- readers

    def fetch(
        self, key: str, load: Load, tags: Tags = (), renew: Callable[[Entry], Entry] | None = None
    ) -> Fetched:
        """The entry under the key, loaded if need be.

        Args:
            key: where it is kept.
            load: asks the source.
            tags: keys of the tags under which it can be invalidated if it is loaded now.
            renew: asked instead of `load` if there is an entry beyond its TTL: returns that entry
                if it is still right, and its successor if not.

        Raises:
            Exception: whatever `load` raised, unless a stale entry could be served.

        """
        started = time.perf_counter()
        (found,) = self._look_up([key], tags)
        if found is not None:
            if is_fresh(found):
                entry = self._refresh_if_due(key, found, load, tags)
                self.counters.add(hits=1, bytes_read=found.size)
                return Fetched(entry, "cache", time.perf_counter() - started)
            self.counters.add(bytes_read=found.size)
            load = partial(renew, found) if renew else load
        try:
            share = self._load_for_threads if self.policy.single_flight else self._load_for_all
            entry = share(key, load, tags)
        except self.policy.stale_on:
            if found is None or not is_fresh(found, self.policy.stale_if_error):
                raise
            self.counters.add(stale=1)
            return Fetched(found, "stale", time.perf_counter() - started)
        self.counters.add(misses=1)
        is_renewed = found is not None and entry.rows is found.rows
        source = "renewed" if is_renewed else "database"
        return Fetched(entry, source, time.perf_counter() - started)

    def fetch_many(self, keys: Collection[str], load: LoadMany) -> dict[str, Entry]:
        """The entries under many keys; those that are not there are loaded at once, and stored.

        What another request is loading is left out.

        Args:
            keys: where they are kept.
            load: asks the source for some of them.

        """
        found = dict(zip(keys, self._look_up(keys), strict=True))
        hits = {key: entry for key, entry in found.items() if entry and is_fresh(entry)}
        self.counters.add(hits=len(hits), bytes_read=sum(entry.size for entry in hits.values()))
        missing = [key for key in keys if key not in hits]
        if not missing:
            return hits
        try:
            loaded = self._fill(missing, load)
        except self.policy.stale_on:
            grace_s, kept = self.policy.stale_if_error, [found[key] for key in missing]
            stale = [entry for entry in kept if entry and is_fresh(entry, grace_s)]
            if len(stale) < len(missing):
                raise
            self.counters.add(stale=len(stale))
            return {**hits, **dict(zip(missing, stale, strict=True))}
        self.counters.add(misses=len(loaded))
        if left_out := [key for key in missing if key not in loaded]:
            self._limit_locks(left_out)
        return {**hits, **loaded}

    # --- writers

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
        self._insist(self.storage.delete_tag, tag)

    # --- look up

    def _look_up(self, keys: Collection[str], tags: Tags = ()) -> list[Entry | None]:
        """The valid entries under some keys, fresh or not."""
        answer = self.attempt(self.storage.read, keys, tags, count_bypass=True)
        entries, corrupt = answer or ([None] * len(keys), 0)
        if corrupt:
            self.counters.add(corrupt=corrupt)
        return entries

    def _refresh_if_due(self, key: str, entry: Entry, load: Load, tags: Tags) -> Entry:
        """The entry, or its successor if this request was chosen to refresh it before its time."""
        beta, until = self.policy.early_refresh, entry.fresh_until
        if not beta or until is None:
            return entry
        draw = 1 - random.random()
        if not should_refresh_early(time.time(), until, entry.cost_seconds, beta, draw):
            return entry
        try:
            filled = self._fill([key], lambda _: {key: load()}, tags, over_fresh=True)
        except Exception:  # noqa: BLE001 -- whatever it was: the entry at hand is still in force
            return entry
        self.counters.add(early=len(filled))
        return filled.get(key, entry)  # unless another request is refreshing it

    # --- lock

    def _load_for_threads(self, key: str, load: Load, tags: Tags) -> Entry:
        """Load for all threads of this process that ask now, or wait for the one that does."""
        for _ in range(MAX_FLIGHTS):
            flight, leads = self._flights.join(key)
            if flight is None:  # a load that asks for its own key
                break
            if leads:
                return self._lead(flight, key, load, tags)
            if not flight.done.wait(self.policy.wait_seconds):
                self._flights.abandon(key, flight)
            elif flight.answer is not None:
                return flight.answer(load)
        return load()

    def _lead(self, flight: Flight[Entry], key: str, load: Load, tags: Tags) -> Entry:
        """Load for all threads that join the flight."""
        try:
            if flight.previous is not None:
                flight.previous.done.wait(self.policy.wait_seconds)
            self._flights.close(flight)
            entry = self._load_for_all(key, load, tags)
            if flight.joined:
                flight.answer = partial(self._shared, self._packed(entry))
        except Exception as error:
            flight.answer = partial(_raise_twin, error, error.__traceback__)
            raise
        finally:  # an Interrupt meant this thread alone: the others find no answer, and try again
            self._flights.land(key, flight)
        return entry

    def _shared(self, packed: Packed | None, load: Load) -> Entry:
        """A copy of what another thread loaded; where it has no stored form, a load."""
        if packed is None:
            return load()
        self.counters.add(coalesced=1)
        return self.storage.unpack(packed)

    def _load_for_all(self, key: str, load: Load, tags: Tags) -> Entry:
        """Load for all processes, or wait for the one that does."""
        pause, deadline = POLL_S, time.monotonic() + self.policy.wait_seconds
        while not (filled := self._fill([key], lambda _: {key: load()}, tags)):
            if time.monotonic() > deadline:
                # Without the lock an invalidation meanwhile goes unnoticed: nothing is stored.
                return load()
            if pause == POLL_S:  # the first time
                self._limit_locks([key])
            time.sleep(pause)
            pause = min(pause * 1.2, POLL_MAX_S)
        return filled[key]

    def _fill(
        self, keys: Collection[str], load: LoadMany, tags: Tags = (), *, over_fresh: bool = False
    ) -> Mapping[str, Entry]:
        """Load and store what no other request is loading; add what others stored meanwhile.

        Without single-flight there are no locks, and each request may store.

        Args:
            keys: of what is missing.
            load: asks the source for some of them.
            tags: keys of the tags under which they can be invalidated.
            over_fresh: load even if there is an entry.

        """
        is_single = self.policy.single_flight
        wanted = {key: secrets.token_hex(8) for key in keys} if is_single else {}
        # The tags' versions are from before the load, as they may be invalidated during it.
        acquired = self.attempt(self.storage.acquire, wanted, self._lock_ms, tags)
        if acquired is None:
            return {} if over_fresh else load(keys)
        held, found, versions = acquired
        held = held if is_single else dict.fromkeys(keys, "")
        stored = {} if over_fresh else {key: one for key, one in found.items() if is_fresh(one)}
        self._release({key: held.pop(key) for key in stored.keys() & held.keys()})
        size = sum(entry.size for entry in stored.values())
        self.counters.add(coalesced=len(stored), bytes_read=size)
        if not held:
            return stored
        try:
            with self._renewals.held(held):
                loaded = load(held)
        except BaseException:
            self._release(held)
            raise
        self._store(held, loaded, versions)
        return {**loaded, **stored}

    def _renew(self, key: str, token: str) -> bool:
        """Prolong a lock. Returns whether to go on: also after a failure, which may be brief."""
        return self.attempt(self.storage.renew, key, token, self._lock_ms) is not False

    def _limit_locks(self, keys: Collection[str]) -> None:
        """See to it that locks that are waited for end: they may be none that anybody releases."""
        most_ms = max(self._lock_ms, round(self.policy.load_seconds * 1000))
        self.attempt(self.storage.limit_locks, keys, most_ms)

    def _release(self, tokens: Tokens) -> None:
        for key, token in tokens.items():
            if token:
                self.attempt(self.storage.release, key, token)

    # --- store

    def _store(
        self, tokens: Tokens, entries: Mapping[str, Entry], versions: Mapping[str, str]
    ) -> bool:
        """Store what may be stored, each under its lock.

        An older entry of what may not be stored is removed: it is no answer any more.

        Returns:
            Whether all is stored.

        """
        writes: dict[str, tuple[str, Packed, int]] = {}
        for key, entry in entries.items():
            dated, ttl_ms = self._dated(entry, versions)
            packed = self._packed(dated, to_store=True)
            if packed is not None:
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

    def _dated(self, entry: Entry, versions: Mapping[str, str]) -> tuple[Entry, int]:
        """The entry with its times and tags, and how long the server should keep it, milliseconds.

        Where nothing depends on when its TTL ends, the entry does not say so, and the server's
        own TTL decides alone: clocks of two machines may differ.
        """
        policy, now = self.policy, time.time()
        is_empty = not entry.rows and policy.empty_ttl is not None
        ttl = (policy.empty_ttl or policy.ttl) if is_empty else policy.ttl
        ttl *= 1 - policy.jitter * random.random()
        kept_ms = max(1, round((ttl + policy.kept_beyond) * 1000))
        until = now + ttl if policy.kept_beyond or policy.early_refresh else None
        return replace(entry, created_at=now, fresh_until=until, tags=versions), kept_ms

    def _packed(self, entry: Entry, *, to_store: bool = False) -> Packed | None:
        """The stored form of an entry; None if it has none or, to be stored, is too large."""
        try:
            packed = self.storage.pack(entry)
        except Uncacheable:
            self.counters.add(uncacheable=to_store)
            return None
        is_too_large = to_store and sum(map(len, packed)) > self.policy.max_bytes
        self.counters.add(too_large=is_too_large)
        return None if is_too_large else packed

    # --- go on without the cache

    def attempt(self, work: Callable[..., T], *args: Any, count_bypass: bool = False) -> T | None:
        """Ask the cache server; None if it does not answer, or did not a moment ago."""
        if not self._breaker.allows():
            self.counters.add(errors=count_bypass)
            return None
        answer = None
        try:
            answer = work(*args)
        except (LostConnection, Slow):
            self._breaker.failed()
            self.counters.add(errors=1)
            return None
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


def is_fresh(entry: Entry, beyond_s: float = 0.0) -> bool:
    """Whether its TTL has not ended, or not longer ago than that."""
    return entry.fresh_until is None or time.time() < entry.fresh_until + beyond_s


def _raise_twin(error: Exception, trace: TracebackType | None, _: Load) -> NoReturn:
    """Raise an exception of the same type and content in another thread.

    Raised in many threads, one object would gather the tracebacks of all of them. The original is
    its twin's cause. Where a class allows no twin with all details, as psycopg2's do not, the
    original itself is raised, each time with the traceback that it had.
    """
    try:
        twin = _twin(error)
    except Exception:  # noqa: BLE001 -- its class can refuse in any way
        raise error.with_traceback(trace)  # noqa: B904 -- its cause stays as it was
    raise twin from error


def _twin(error: Exception) -> Exception:
    """A copy made without `__init__`, which may make another text of the same arguments.

    Raises whatever its class raises, as where it has a part that cannot be written.
    """
    kind = type(error)
    twin = kind.__new__(kind, *error.args)
    vars(twin).update(vars(error))
    if hasattr(error, "__notes__"):
        twin.__notes__ = [*error.__notes__]
    for name, part in inspect.getmembers_static(kind, inspect.isdatadescriptor):
        is_slot = inspect.ismemberdescriptor(part) or inspect.isgetsetdescriptor(part)
        if is_slot and not name.startswith("__"):  # such as OSError's filename, or psycopg2's diag
            value = getattr(error, name, None)
            if getattr(twin, name, None) is not value:
                setattr(twin, name, value)
    if (type(twin), str(twin)) != (kind, str(error)):
        raise TypeError
    return twin
