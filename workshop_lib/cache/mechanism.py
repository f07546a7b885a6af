"""The one mechanism behind every cache of the workshop: look, lock, load, keep, and stay up.

On a miss one request loads and the others wait for it (single-flight): the threads of a process
for each other, the processes by a lock in Valkey. The lock is also what makes invalidation safe.
Whoever loads may store only while the lock is still its own; invalidating takes the lock away. So a
slow reader cannot put an old value back, as with the leases of Nishtala and others, "Scaling
Memcache at Facebook", 2013, section 3.2.1.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as LostConnection, RedisError, TimeoutError as Slow

from workshop_lib.cache.breaker import Breaker
from workshop_lib.cache.codec import Entry, Uncacheable
from workshop_lib.cache.single_flight import Flight, Flights
from workshop_lib.cache.stats import CacheStats, Counters
from workshop_lib.cache.storage import NOTHING, Found, Storage
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.simulate.expiry import should_refresh_early

T = TypeVar("T")

POLL_S = 0.003
"""How soon a request that waits for another process asks again; later ones come more slowly."""
POLL_MAX_S = 0.05
MOST_S = 1e9
LIMITS = {
    "jitter": 1.0,
    "early_refresh": 1e3,
    "stale_if_error": MOST_S,
    "keep_seconds": MOST_S,
    "max_bytes": 1e12,
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
        keep_seconds: how long beyond its TTL an entry is kept to be renewed, where the source can
            say that it has not changed, seconds.
        single_flight: let one request load what several ask for at the same moment.
        lock_seconds: how long one loader keeps others waiting at most; it may be dead. What takes
            longer to load is answered but not stored: choose it well above any load.
        max_bytes: larger entries are not stored.

    Raises:
        ValueError: a value out of its range; the text names it.

    """

    ttl: float
    jitter: float = 0.0
    empty_ttl: float | None = None
    early_refresh: float = 0.0
    stale_if_error: float = 0.0
    keep_seconds: float = 0.0
    single_flight: bool = True
    lock_seconds: float = 2.0
    max_bytes: int = 1_000_000

    def __post_init__(self) -> None:
        for name in ("ttl", "empty_ttl", "lock_seconds"):
            value = getattr(self, name)
            if value is None and name == "empty_ttl":
                continue
            if not _is_number(value) or not 0.001 <= value <= MOST_S:
                raise ValueError(
                    f"{name} is {value!r}; it must be a number of seconds, at least 0.001 and at "
                    f"most {MOST_S:g}"
                )
        for name, most in LIMITS.items():
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= most:
                raise ValueError(f"{name} is {value!r}; it must be a number from 0 to {most:g}")

    @property
    def kept_beyond(self) -> float:
        """How long beyond its TTL the server keeps an entry, seconds."""
        return max(self.stale_if_error, self.keep_seconds)


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer.

    Attributes:
        entry: what was asked for.
        source: "cache", "database" (loaded just now) or "stale" (loading failed).
        seconds: from asking until the answer was here, waiting and storing included.

    """

    entry: Entry
    source: str
    seconds: float


class Mechanism:
    """Answers from storage, or from a loader.

    Args:
        storage: where entries are kept.
        policy: how to behave.
        stale_on: the errors of a loader after which a stale answer is better than none.

    """

    def __init__(
        self,
        storage: Storage,
        policy: Policy,
        stale_on: tuple[type[Exception], ...] = (ConnectionError, TimeoutError),
    ) -> None:
        self.storage = storage
        self.policy = policy
        self.counters = Counters()
        self._stale_on = stale_on
        self._flights = Flights()
        self._breaker = Breaker()

    def fetch(
        self,
        key: str,
        load: Callable[[], Entry],
        tags: Collection[str] = (),
        renew: Callable[[Entry], Entry] | None = None,
    ) -> Fetched:
        """The entry under the key, loaded if need be.

        Args:
            key: where it is kept.
            load: asks the source; its `cost_seconds` says what that took. Its times are set here.
            tags: keys of the tags under which it can be invalidated if it is loaded now.
            renew: asked in the place of `load` where there is an entry beyond its TTL: returns
                that entry if it is still right, and its successor if not.

        Raises:
            Exception: whatever `load` raised, unless a stale entry could be served.

        """
        started = time.perf_counter()
        found = self._look(key)
        entry = found.fresh
        if entry is not None:
            entry = self._refresh_if_due(key, entry, load, tags)
            seconds = time.perf_counter() - started
            self.counters.add(hits=1, bytes_read=found.size, saved=entry.cost_seconds - seconds)
            return Fetched(entry, "cache", seconds)
        if found.entry is not None:  # read, but too old
            self.counters.add(bytes_read=found.size)
            load = partial(renew, found.entry) if renew else load
        fill = self._load_together if self.policy.single_flight else self._load_and_store
        try:
            entry = fill(key, load, tags)
        except self._stale_on:
            if found.entry is None or time.time() > self._stale_until(found.entry):
                raise
            self.counters.add(stale=1)
            return Fetched(found.entry, "stale", time.perf_counter() - started)
        self.counters.add(misses=1)
        return Fetched(entry, "database", time.perf_counter() - started)

    def put(self, key: str, entry: Entry) -> None:
        """Write through: store what has just been written to the source.

        A load that is under way is kept from storing its older value. What cannot be stored takes
        the older entry away.

        Raises:
            ServiceUnreachableError: as `invalidate`.

        """
        if not self._store(key, entry):
            self.invalidate(key)

    def invalidate(self, key: str) -> bool:
        """Remove an entry, and keep loads that are under way from storing. Call it after COMMIT.

        Returns:
            Whether there was an entry.

        Raises:
            ServiceUnreachableError: the cache did not answer: readers may see the old value until
                its TTL ends. Try again.

        """
        return bool(self._insist(lambda: self.storage.delete([key])))

    def invalidate_tag(self, tag: str) -> int:
        """Remove all entries listed under a tag, as `invalidate`. Returns how many there were."""

        def work() -> int:
            listed = self.storage.tagged(tag)
            gone = self.storage.delete(listed)
            # Deleted before they are unlisted: if this fails half-way, the next try finds them.
            # And deleted after: an entry stored in between would stay, listed nowhere.
            self.storage.untag(tag, listed)
            self.storage.delete(listed)
            return gone

        return self._insist(work)

    def stats(self) -> CacheStats:
        """The counters so far."""
        return self.counters.snapshot()

    def _stale_until(self, entry: Entry) -> float:
        return entry.fresh_until + self.policy.stale_if_error

    # --- looking

    def _look(self, key: str) -> Found:
        if not self._breaker.allows():
            self.counters.add(errors=1)
            return NOTHING
        found = self._ask(lambda: self.storage.get(key), NOTHING)
        if found.corrupt:
            self.counters.add(corrupt=1)
        return found

    def _refresh_if_due(
        self, key: str, entry: Entry, load: Callable[[], Entry], tags: Collection[str]
    ) -> Entry:
        """The entry, or its successor if this request was chosen to refresh it before its time."""
        beta = self.policy.early_refresh
        if not beta or not should_refresh_early(
            time.time(), entry.fresh_until, entry.cost_seconds, beta, 1 - random.random()
        ):
            return entry
        token = secrets.token_hex(8)
        locked, found = self.attempt(lambda: self._acquire(key, token), (False, NOTHING))
        if not locked:
            return entry  # somebody is at it
        if found.entry is not None and found.entry.created_at != entry.created_at:
            self._release(key, token)
            return found.entry  # somebody was quicker
        try:
            newer = self._load_with(key, token, load, tags).entry
        except Exception:  # noqa: BLE001 -- whatever it was: the entry at hand is still in force
            return entry
        self.counters.add(early=1)
        return newer

    # --- loading

    def _load_together(self, key: str, load: Callable[[], Entry], tags: Collection[str]) -> Entry:
        """Load, or wait for the thread of this process that does; bounded either way."""
        # One lock's time for its waiting for another process, one for its own loading.
        patience = 2 * self.policy.lock_seconds
        deadline = time.monotonic() + patience
        while (left := deadline - time.monotonic()) > 0:
            flight, leading = self._flights.join(key, patience)
            if leading:
                return self._lead(key, flight, load, tags)
            flight.done.wait(left)
            if flight.error is not None:
                raise flight.error
            if flight.incommunicable:
                break
            if flight.packed is not None:
                self.counters.add(coalesced=1)
                return self.storage.unpack(flight.packed)
            found = self._look(key)
            if found.fresh is not None:
                self.counters.add(coalesced=1, bytes_read=found.size)
                return found.fresh
        return self._timed(load())[0]

    def _lead(
        self, key: str, flight: Flight, load: Callable[[], Entry], tags: Collection[str]
    ) -> Entry:
        """Load for all threads that have joined the flight."""
        try:
            loaded = self._load_once(key, load, tags)
            flight.packed, flight.incommunicable = loaded.packed, loaded.incommunicable
            return loaded.entry
        except Exception as error:
            flight.error = error
            raise
        finally:  # an Interrupt meant this thread alone: the others find nothing, and try again
            self._flights.land(key, flight)

    def _load_once(self, key: str, load: Callable[[], Entry], tags: Collection[str]) -> _Loaded:
        """Load with the lock, or wait for the process that has it; bounded either way."""
        token, pause = secrets.token_hex(8), POLL_S
        # A moment longer than a lock lives: who waits for a dead process is there when it ends.
        deadline = time.monotonic() + self.policy.lock_seconds + POLL_MAX_S
        while True:
            answer = self.attempt(lambda: self._acquire(key, token), None)
            if answer is None:  # the cache is down: each process for itself
                return self._loaded(self._timed(load())[0])
            locked, found = answer
            entry = found.fresh
            if entry is not None:
                if locked:
                    self._release(key, token)
                self.counters.add(coalesced=1, bytes_read=found.size)
                return _Loaded(entry)
            if locked:
                return self._load_with(key, token, load, tags)
            if time.monotonic() > deadline:
                return _Loaded(self._timed(load())[0])
            time.sleep(pause)
            pause = min(pause * 1.2, POLL_MAX_S)

    def _load_with(
        self, key: str, token: str, load: Callable[[], Entry], tags: Collection[str]
    ) -> _Loaded:
        """Load while holding the lock, and store if it is still held afterwards."""
        try:
            # Before loading: an invalidation by tag that comes meanwhile must find this key.
            registered = self._registered(key, tags)
            entry, ttl_ms = self._timed(load())
            loaded = self._loaded(entry)
        except BaseException:
            self._release(key, token)
            raise
        stored = None
        if loaded.storable and registered:
            stored = self.attempt(
                lambda: self.storage.complete(key, token, loaded.packed, ttl_ms), None
            )
        if stored:
            self.counters.add(bytes_written=loaded.size)
        elif stored is False:
            self.counters.add(discarded=1)
        ours = self._release(key, token) if stored is None else stored
        if not loaded.storable:  # an older entry, kept in case of need, is no answer any more
            self.attempt(lambda: self.storage.delete([key]), 0)
        # What was invalidated meanwhile is no answer for requests that came after that.
        return replace(loaded, packed=None) if ours is False else loaded

    def _load_and_store(self, key: str, load: Callable[[], Entry], tags: Collection[str]) -> Entry:
        """Load and store with no lock: the plain pattern, with its stampedes and its race."""
        entry = load()
        self._store(key, entry, tags)
        return entry

    # --- storing

    def _store(self, key: str, entry: Entry, tags: Collection[str] = ()) -> bool:
        """Store, whoever holds the lock. Returns whether that worked."""
        entry, ttl_ms = self._timed(entry)
        loaded = self._loaded(entry)

        def work() -> bool:
            self.storage.put(key, loaded.packed, ttl_ms)
            return True

        stored = (
            loaded.storable and self._registered(key, tags) and self.attempt(work, otherwise=False)
        )
        self.counters.add(bytes_written=loaded.size if stored else 0)
        return stored

    def _timed(self, entry: Entry) -> tuple[Entry, int]:
        """The entry with its times, and the milliseconds for which the server should keep it.

        Where nobody needs to know when its TTL ends, the entry does not say so, and the server's
        own TTL decides alone: clocks of two machines may differ.
        """
        policy, now = self.policy, time.time()
        empty = not entry.rows and policy.empty_ttl is not None
        ttl = (policy.empty_ttl or policy.ttl) if empty else policy.ttl
        ttl *= 1 - policy.jitter * random.random()
        kept = max(1, round((ttl + policy.kept_beyond) * 1000))
        needed = policy.kept_beyond or policy.early_refresh
        until = now + ttl if needed else inf
        return Entry(entry.columns, entry.rows, entry.cost_seconds, now, until), kept

    def _loaded(self, entry: Entry) -> _Loaded:
        try:
            packed, size = self.storage.pack(entry)
        except Uncacheable:
            self.counters.add(uncacheable=1)
            return _Loaded(entry, incommunicable=True)
        storable = size <= self.policy.max_bytes
        if not storable:
            self.counters.add(too_large=1)
        return _Loaded(entry, packed, size, storable)

    def _registered(self, key: str, tags: Collection[str]) -> bool:
        """List the key under its tags. Returns whether that worked: if not, do not store."""
        policy = self.policy
        kept = max(policy.ttl, policy.empty_ttl or 0) + policy.kept_beyond + policy.lock_seconds

        def work() -> bool:
            for tag in tags:
                self.storage.tag(tag, key, round(kept * 1000))
            return True

        return not tags or self.attempt(work, otherwise=False)

    def _acquire(self, key: str, token: str) -> tuple[bool, Found]:
        return self.storage.acquire(key, token, round(self.policy.lock_seconds * 1000))

    def _release(self, key: str, token: str) -> bool | None:
        """Give the lock back. Returns whether it was still ours, None if the cache is down."""
        return self.attempt(lambda: self.storage.release(key, token), None)

    # --- staying up

    def attempt(self, work: Callable[[], T], otherwise: T) -> T:
        """Ask the cache server, or go without it where it failed a moment ago."""
        return self._ask(work, otherwise) if self._breaker.allows() else otherwise

    def _ask(self, work: Callable[[], T], otherwise: T) -> T:
        """What the cache server answers; something else if it does not."""
        try:
            answer = work()
        except (LostConnection, Slow):
            self._breaker.failed()
            self.counters.add(errors=1)
            return otherwise
        except RedisError:  # for example no memory left: the server is up, this request failed
            self.counters.add(errors=1)
            answer = otherwise
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


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a load brought.

    Attributes:
        entry: for the request that loaded.
        packed: its stored form, of which every thread that waited unpacks an entry of its own;
            None if they should rather look again.
        size: of that, bytes.
        storable: the stored form is there and not too large.
        incommunicable: it has no stored form, so that every thread has to load for itself.

    """

    entry: Entry
    packed: Any = None
    size: int = 0
    storable: bool = False
    incommunicable: bool = False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
