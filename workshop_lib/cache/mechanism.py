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
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as LostConnection, RedisError, TimeoutError as Slow

from workshop_lib.cache.breaker import Breaker
from workshop_lib.cache.codec import CorruptEntry, Entry, Uncacheable
from workshop_lib.cache.renewal import Renewals
from workshop_lib.cache.single_flight import Flight, Flights, Role
from workshop_lib.cache.stats import CacheStats, Counters
from workshop_lib.cache.storage import Storage
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.forks import tell_child
from workshop_lib.simulate.expiry import should_refresh_early

T = TypeVar("T")
K = TypeVar("K")
Load = Callable[[], Entry]
"""Asks the source; the entry's `cost_seconds` says what that took. Its times are set here."""

POLL_S = 0.003
"""How soon a request that waits for another process asks again; later ones come more slowly."""
POLL_MAX_S = 0.05
FLIGHTS = 3
"""How many loads of other threads a request waits for, one after another, before it loads alone."""
MAX_S = 1e9
SECONDS = (0.001, MAX_S, "a number of seconds, at least 0.001 and at most 1e+09")
LIMITS = {
    **dict.fromkeys(("ttl", "empty_ttl", "lock_seconds", "wait_seconds", "load_seconds"), SECONDS),
    **{
        name: (0, most, f"a number from 0 to {most:g}")
        for name, most in {
            "jitter": 1.0,
            "early_refresh": 1e3,
            "stale_if_error": MAX_S,
            "keep_seconds": MAX_S,
            "max_bytes": 1e12,
        }.items()
    },
}


@dataclass(frozen=True, slots=True)
class Policy:
    """How a cache behaves.

    Attributes:
        ttl: time to live of an entry, seconds.
        jitter: share of the TTL that is taken off at random, 0 to 1, so that entries made together
            do not expire together.
        empty_ttl: time to live of an answer that says "there is nothing"; the TTL if None.
        early_refresh: how eagerly an entry is refreshed before it expires; 0 never, 1 as in the
            paper by Vattani, Chierichetti and Lowenstein (2015), more is earlier.
        stale_if_error: how long beyond its TTL an entry may be served if loading fails, seconds.
        stale_on: the errors of a load that count as its failing: any, unless these are narrowed.
        keep_seconds: how long beyond its TTL an entry is kept to be renewed, where the source can
            say that it has not changed, seconds.
        single_flight: let one request load what several ask for at the same moment. False is the
            plain pattern: each request loads and stores, stampedes included, and a slow reader can
            put back an old value that was invalidated meanwhile.
        lock_seconds: how soon a loader that was killed is replaced, seconds. It is the life of the
            lock, which is renewed while loading.
        wait_seconds: how long a request waits for another one's load, seconds. After that its
            process loads for itself, and does not store what it loaded.
        load_seconds: how long a load may take and still be stored, seconds. After that the lock is
            not renewed any more, and another request may load.
        max_bytes: larger entries are not stored.

    Raises:
        ValueError: a value out of its range; the text names it.

    """

    ttl: float
    jitter: float = 0.0
    empty_ttl: float | None = None
    early_refresh: float = 0.0
    stale_if_error: float = 0.0
    stale_on: tuple[type[Exception], ...] = (Exception,)
    keep_seconds: float = 0.0
    single_flight: bool = True
    lock_seconds: float = 2.0
    wait_seconds: float = 30.0
    load_seconds: float = 60.0
    max_bytes: int = 1_000_000

    def __post_init__(self) -> None:
        for name, (least, most, wanted) in LIMITS.items():
            value = getattr(self, name)
            if value is None and name == "empty_ttl":
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not least <= value <= most:
                raise ValueError(f"{name} is {value!r}; it must be {wanted}")
        try:
            issubclass(Exception, self.stale_on)
        except TypeError:
            raise ValueError(
                f"stale_on is {self.stale_on!r}; it must be a tuple of exception classes"
            ) from None

    @property
    def kept_beyond(self) -> float:
        """How long beyond its TTL the server keeps an entry, seconds."""
        return max(self.stale_if_error, self.keep_seconds)

    @property
    def max_ttl_ms(self) -> int:
        """How long an entry may lie in the server at most, milliseconds."""
        return round((max(self.ttl, self.empty_ttl or 0) + self.kept_beyond) * 1000)

    @property
    def lock_ms(self) -> int:
        """The life of a lock that is not renewed, milliseconds."""
        return max(1, round(self.lock_seconds * 1000))


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer.

    Attributes:
        entry: what was asked for.
        source: "cache", "database" (loaded just now) or "stale" (loading failed).
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
        self.storage = storage
        self.policy = policy
        self.counters = Counters()
        self._flights = Flights()
        self._breaker = Breaker()
        self._renewals = Renewals(self._renew, policy.lock_seconds / 3, policy.load_seconds)
        tell_child(self)

    def _after_fork(self) -> None:
        """In a forked child: the loads under way, and the locks that threads held, are not here."""
        self.counters = Counters()
        self._flights = Flights()
        self._breaker = Breaker()
        self._renewals.reset()

    def fetch(
        self,
        key: str,
        load: Load,
        tags: Collection[str] = (),
        renew: Callable[[Entry], Entry] | None = None,
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
            self.counters.add(bytes_read=found.size)
            if _is_fresh(found):
                entry = self._refresh_if_due(key, found, load, tags)
                self.counters.add(hits=1)
                return Fetched(entry, "cache", time.perf_counter() - started)
            load = partial(renew, found) if renew else load
        fill = self._fill_single_flight if self.policy.single_flight else self._fill_plainly
        try:
            entry = fill(key, load, tags)
        except self.policy.stale_on:
            if found is None or not self.may_be_served(found):
                raise
            self.counters.add(stale=1)
            return Fetched(found, "stale", time.perf_counter() - started)
        self.counters.add(misses=1)
        return Fetched(entry, "database", time.perf_counter() - started)

    def fetch_kept(self, read: Callable[[], Entry | None]) -> Entry | None:
        """What `read` finds in the cache, counted as a hit; None if that cannot be served."""
        entry = self.attempt(read)
        if entry is None or not _is_fresh(entry):
            return None
        self.counters.add(hits=1, bytes_read=entry.size)
        return entry

    def fetch_many(
        self,
        places: Mapping[K, str],
        load: Callable[[Sequence[K]], Mapping[K, Entry]] | None = None,
    ) -> dict[K, Entry]:
        """The entries under many keys; those that are not there are loaded at once, and stored.

        What another request is loading is left out, and so is one that is missing alone.

        Args:
            places: the keys under which they are kept.
            load: asks the source for some of them, and has to bring an entry for each. None: what
                is not there is left out.

        """
        kept = self.attempt(lambda: self.storage.get_many(list(places.values())))
        entries = kept or [None] * len(places)
        found = {one: entry for one, entry in zip(places, entries, strict=True) if entry}
        hits = {one: entry for one, entry in found.items() if _is_fresh(entry)}
        self.counters.add(hits=len(hits), bytes_read=sum(entry.size for entry in hits.values()))
        missing = {one: key for one, key in places.items() if one not in hits}
        if load is None or len(missing) < 2:
            return hits
        try:
            return hits | self._load_many(missing, load)
        except self.policy.stale_on:
            stale = {one: found[one] for one in missing
                     if one in found and self.may_be_served(found[one])}  # fmt: skip
            if len(stale) < len(missing):
                raise
            self.counters.add(stale=len(stale))
            return hits | stale

    def may_be_served(self, entry: Entry) -> bool:
        """Whether an entry beyond its TTL is still good enough if loading fails."""
        return time.time() <= entry.fresh_until + self.policy.stale_if_error

    def put(
        self,
        key: str,
        entry: Entry,
        tags: Collection[str] = (),
        *,
        forget: Collection[str] = (),
    ) -> None:
        """Write through: store what has just been written to the source, filed under the tags.

        A load that is under way is kept from storing its older value. What cannot be stored takes
        the older entry away. What is filed under the tags in `forget` is invalidated.

        Raises:
            ServiceUnreachableError: as `invalidate`.

        """
        if not self._store(key, entry, self._versions(tags), forget):
            self.invalidate(key, forget)

    def invalidate(self, key: str, forget: Collection[str] = ()) -> bool:
        """Remove an entry, and keep loads that are under way from storing. Call it after COMMIT.

        Once it has returned, no reader that starts later sees the older value.

        Returns:
            Whether there was an entry.

        Raises:
            ServiceUnreachableError: the cache did not answer: readers may see the old value until
                its TTL ends. Try again.

        """
        return bool(self._insist(lambda: self.storage.delete([key], forget)))

    def invalidate_tag(self, tag: str) -> None:
        """Invalidate all entries that were filed under a tag, as `invalidate`."""
        self._insist(lambda: self.storage.forget_tag(tag))

    def stats(self) -> CacheStats:
        """The counters so far."""
        return self.counters.snapshot()

    # --- looking up

    def _look_up(self, key: str, tags: Collection[str]) -> Entry | None:
        if not self._breaker.allows():
            self.counters.add(errors=1)
            return None
        return _filed_under(tags, self._ask(lambda: self.storage.get(key, tags)))

    def _refresh_if_due(self, key: str, entry: Entry, load: Load, tags: Collection[str]) -> Entry:
        """The entry, or its successor if this request was chosen to refresh it before its time."""
        beta = self.policy.early_refresh
        if not beta or not should_refresh_early(
            time.time(), entry.fresh_until, entry.cost_seconds, beta, 1 - random.random()
        ):
            return entry
        token = secrets.token_hex(8)
        locked, found = self.attempt(lambda: self._acquire(key, token)) or (False, None)
        if not locked:
            return entry  # another request is at it
        if found is not None and found.created_at != entry.created_at:
            self._release(key, token)
            return found  # another request was quicker
        try:
            newer = self._load_locked(key, token, Flight(), load, tags)
        except Exception:  # noqa: BLE001 -- whatever it was: the entry at hand is still in force
            return entry
        self.counters.add(early=1)
        return newer

    # --- loading

    def _fill_plainly(self, key: str, load: Load, tags: Collection[str]) -> Entry:
        """Load and store with no lock: the plain pattern, with its stampedes and its race."""
        versions = self._versions(tags)
        entry = load()
        self._store(key, entry, versions)
        return entry

    def _fill_single_flight(self, key: str, load: Load, tags: Collection[str]) -> Entry:
        """Load for all threads of this process that ask now, or wait for the thread that does."""
        for _ in range(FLIGHTS):
            flight, role = self._flights.join(key)
            if role is Role.LEADER:
                return self._lead(key, flight, load, tags)
            if flight.leader == threading.get_ident():  # a load that asks for its own key
                break
            if not flight.done.wait(self.policy.wait_seconds):
                self._flights.abandon(key, flight)
                continue
            if flight.error is not None:
                raise _copy_of(flight.error)
            if flight.unshareable:
                break
            if flight.packed is not None and (role is Role.EARLY or (flight.for_late and not tags)):
                self.counters.add(coalesced=1)
                return self.storage.unpack(flight.packed)
            found = self._look_up(key, tags)
            if found is not None and _is_fresh(found):
                self.counters.add(coalesced=1, bytes_read=found.size)
                return found
        return load()

    def _lead(self, key: str, flight: Flight, load: Load, tags: Collection[str]) -> Entry:
        """Load for all threads that join the flight."""
        try:
            if flight.previous is not None:
                flight.previous.done.wait(self.policy.wait_seconds)
            return self._load_or_wait(key, flight, load, tags)
        except Exception as error:
            flight.error = error
            raise
        finally:  # an Interrupt meant this thread alone: the others find nothing, and try again
            self._flights.land(key, flight)

    def _load_or_wait(self, key: str, flight: Flight, load: Load, tags: Collection[str]) -> Entry:
        """Load with the lock, or wait for the process that has it."""
        token, pause = secrets.token_hex(8), POLL_S
        deadline = time.monotonic() + self.policy.wait_seconds
        while True:
            answer = self.attempt(lambda: self._acquire(key, token))
            if answer is None:  # the cache is down
                return self._load_unlocked(flight, load)
            locked, found = answer
            entry = _filed_under(tags, found)
            if entry is not None and _is_fresh(entry):
                if locked:
                    self._release(key, token)
                self.counters.add(coalesced=1, bytes_read=entry.size)
                return entry
            if locked:
                return self._load_locked(key, token, flight, load, tags)
            if time.monotonic() > deadline:
                return self._load_unlocked(flight, load)
            time.sleep(pause)
            pause = min(pause * 1.2, POLL_MAX_S)

    def _load_unlocked(self, flight: Flight, load: Load) -> Entry:
        """Load, and store nothing: without the lock an invalidation meanwhile goes unnoticed.

        So the threads that come from now on do not share it, either.
        """
        self._flights.close(flight)
        entry = load()
        if flight.joined:
            try:
                flight.packed = self.storage.encode(entry)
            except Uncacheable:
                flight.unshareable = True
        return entry

    def _load_locked(
        self, key: str, token: str, flight: Flight, load: Load, tags: Collection[str]
    ) -> Entry:
        """Load while holding the lock, and store if it is still held afterwards."""
        try:
            self._flights.begin(flight)
            versions = self._versions(tags)
            with self._renewals.held(key, token):
                entry, ttl_ms = self._dated(load(), versions)
            packed, size, storable = self._packed(entry)
        except BaseException:
            self._release(key, token)
            raise
        # Who comes later has to see what is stored, or that it was invalidated.
        self._flights.close(flight)
        stored = None
        if storable and versions is not None:
            stored = self.attempt(lambda: self.storage.complete(key, token, packed, ttl_ms))
        if stored:
            self.counters.add(bytes_written=size)
        elif stored is False:
            self.counters.add(discarded=1)
        ours = self._release(key, token) if stored is None else stored
        if not storable:  # an older entry, kept in case of need, is no answer any more
            self.attempt(lambda: self.storage.delete([key]))
        flight.packed, flight.unshareable = packed, packed is None
        # If the lock was ours to the end, nothing was invalidated; of tags it knows nothing.
        flight.for_late = bool(ours) and not tags
        return entry

    def _load_many(
        self, places: Mapping[K, str], load: Callable[[Sequence[K]], Mapping[K, Entry]]
    ) -> dict[K, Entry]:
        """Load many entries at once, without those that another request is loading."""
        tokens = {key: secrets.token_hex(8) for key in places.values()}
        locked: dict[str, str] = {}
        available = True
        if self.policy.single_flight:
            acquired = self.attempt(lambda: self.storage.acquire_many(tokens, self.policy.lock_ms))
            available = acquired is not None
            for (key, token), (got, found) in zip(tokens.items(), acquired or (), strict=False):
                if got and found is not None and _is_fresh(found):  # another request was quicker
                    self._release(key, token)
                elif got:
                    locked[key] = token
            if available:
                places = {one: key for one, key in places.items() if key in locked}
        if not places:
            return {}
        try:
            with ExitStack() as held:
                for key, token in locked.items():
                    held.enter_context(self._renewals.held(key, token))
                loaded = {one: self._dated(entry, {}) for one, entry in load(list(places)).items()}
        except BaseException:
            for key, token in locked.items():
                self._release(key, token)
            raise
        self.counters.add(misses=len(loaded))
        if available:
            self._store_many(
                [
                    (places[one], locked.get(places[one], ""), entry, ttl_ms)
                    for one, (entry, ttl_ms) in loaded.items()
                ]
            )
        return {one: entry for one, (entry, _) in loaded.items()}

    # --- storing

    def _store(
        self,
        key: str,
        entry: Entry,
        versions: Mapping[str, str] | None,
        forget: Collection[str] = (),
    ) -> bool:
        """Store, whoever holds the lock. Returns whether that worked."""
        entry, ttl_ms = self._dated(entry, versions)
        packed, size, storable = self._packed(entry)

        def work() -> bool:
            self.storage.complete(key, "", packed, ttl_ms)
            for tag in forget:
                self.storage.forget_tag(tag)
            return True

        stored = storable and versions is not None and bool(self.attempt(work))
        self.counters.add(bytes_written=size if stored else 0)
        return stored

    def _store_many(self, entries: Sequence[tuple[str, str, Entry, int]]) -> None:
        writes, sizes, refused = [], [], []
        for key, token, entry, ttl_ms in entries:
            packed, size, storable = self._packed(entry)
            if storable:
                writes.append((key, token, packed, ttl_ms))
                sizes.append(size)
            else:
                refused.append(key)
        stored = self.attempt(lambda: self.storage.complete_many(writes)) or []
        written = sum(size for size, done in zip(sizes, stored, strict=False) if done)
        self.counters.add(bytes_written=written, discarded=stored.count(False))
        if refused:  # an older entry is no answer any more, and the lock is not needed
            self.attempt(lambda: self.storage.delete(refused))

    def _dated(self, entry: Entry, versions: Mapping[str, str] | None) -> tuple[Entry, int]:
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

    def _packed(self, entry: Entry) -> tuple[Any, int, bool]:
        """The stored form of an entry, None if it has none; its size; whether it may be stored."""
        try:
            packed = self.storage.encode(entry)
        except Uncacheable:
            self.counters.add(uncacheable=1)
            return None, 0, False
        size = self.storage.size(packed)
        storable = size <= self.policy.max_bytes
        self.counters.add(too_large=not storable)
        return packed, size, storable

    def _versions(self, tags: Collection[str]) -> Mapping[str, str] | None:
        """The versions of tags, to be asked for before a load; None if the cache is down."""
        if not tags:
            return {}
        return self.attempt(lambda: self.storage.tag_versions(tags, self.policy.max_ttl_ms))

    def _acquire(self, key: str, token: str) -> tuple[bool, Entry | None]:
        return self.storage.acquire(key, token, self.policy.lock_ms)

    def _renew(self, key: str, token: str) -> bool:
        """Prolong a lock. Returns whether to go on: also after a failure, which may be brief."""
        renewed = self.attempt(lambda: self.storage.renew(key, token, self.policy.lock_ms))
        return renewed is not False

    def _release(self, key: str, token: str) -> bool | None:
        """Give the lock back. Returns whether it was still ours, None if the cache is down."""
        return self.attempt(lambda: self.storage.release(key, token))

    # --- going on without the cache

    def attempt(self, work: Callable[[], T]) -> T | None:
        """Ask the cache server, or go without it where it failed a moment ago: None."""
        return self._ask(work) if self._breaker.allows() else None

    def _ask(self, work: Callable[[], T]) -> T | None:
        """What the cache server answers; None if it does not."""
        answer = None
        try:
            answer = work()
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
    def _insist(work: Callable[[], T]) -> T:
        try:
            return work()
        except RedisError as error:
            raise ServiceUnreachableError(
                f"The cache could not be told that an entry is out of date: {error}. Readers may "
                "see the old value until its TTL ends; try again when the cache answers."
            ) from None


def _is_fresh(entry: Entry) -> bool:
    """Whether it is not merely kept in case loading fails."""
    return time.time() < entry.fresh_until


def _filed_under(tags: Collection[str], entry: Entry | None) -> Entry | None:
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
