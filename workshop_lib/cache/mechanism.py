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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, Protocol, TypeVar

from redis.exceptions import ConnectionError as LostConnection, RedisError, TimeoutError as Slow

from workshop_lib.cache.breaker import Breaker
from workshop_lib.cache.codec import Entry, Uncacheable
from workshop_lib.cache.renewal import Renewals
from workshop_lib.cache.single_flight import Flight, Flights, Role
from workshop_lib.cache.stats import CacheStats, Counters
from workshop_lib.cache.storage import NOTHING, Found, Stamps, Storage
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.forks import tell_child
from workshop_lib.simulate.expiry import should_refresh_early

T = TypeVar("T")
K = TypeVar("K")

POLL_S = 0.003
"""How soon a request that waits for another process asks again; later ones come more slowly."""
POLL_MAX_S = 0.05
FLIGHTS = 3
"""How many loads of other threads a request waits for, one after another, before it loads alone."""
MAX_S = 1e9
LIMITS = {
    "jitter": 1.0,
    "early_refresh": 1e3,
    "stale_if_error": MAX_S,
    "keep_seconds": MAX_S,
    "max_bytes": 1e12,
}
SECONDS = ("ttl", "empty_ttl", "lock_seconds", "wait_seconds", "load_seconds")


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
        for name in SECONDS:
            value = getattr(self, name)
            if value is None and name == "empty_ttl":
                continue
            if not _is_number(value) or not 0.001 <= value <= MAX_S:
                raise ValueError(
                    f"{name} is {value!r}; it must be a number of seconds, at least 0.001 and at "
                    f"most {MAX_S:g}"
                )
        for name, most in LIMITS.items():
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= most:
                raise ValueError(f"{name} is {value!r}; it must be a number from 0 to {most:g}")
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


class ManyStorage(Protocol):
    """What storage has to do besides for `Mechanism.load_many`. All may raise RedisError."""

    def acquire_many(self, tokens: Mapping[str, str], lock_ms: int) -> list[tuple[bool, Found]]:
        """As `acquire`, for many entries in one round trip: keys with a token each."""

    def complete_many(self, writes: Iterable[tuple[str, str, Any, int]]) -> list[bool]:
        """As `complete`, for many entries in one round trip; with no token as `put`."""


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
        found = self._look_up(key, tags)
        entry = found.fresh
        if entry is not None:
            entry = self._refresh_if_due(key, entry, load, tags)
            self.counters.add(hits=1, bytes_read=found.size)
            return Fetched(entry, "cache", time.perf_counter() - started)
        if found.entry is not None:  # read, but too old
            self.counters.add(bytes_read=found.size)
            load = partial(renew, found.entry) if renew else load
        fill = self._load_shared if self.policy.single_flight else self._load_plainly
        try:
            entry = fill(key, load, tags)
        except self.policy.stale_on:
            if found.entry is None or not self.may_be_served(found.entry):
                raise
            self.counters.add(stale=1)
            return Fetched(found.entry, "stale", time.perf_counter() - started)
        self.counters.add(misses=1)
        return Fetched(entry, "database", time.perf_counter() - started)

    def load_many(
        self,
        storage: ManyStorage,
        places: Mapping[K, str],
        load: Callable[[Sequence[K]], Mapping[K, Entry]],
    ) -> dict[K, Entry]:
        """Load many entries at once, and store them; without those that another request is loading.

        Args:
            storage: this mechanism's storage.
            places: the keys under which they are kept.
            load: asks the source for some of them, and has to bring an entry for each.

        """
        tokens = {key: secrets.token_hex(8) for key in places.values()}
        chosen, locked, available = list(places), set[str](), True
        if self.policy.single_flight:
            none: list[tuple[bool, Found]] = []
            acquired = self.attempt(lambda: storage.acquire_many(tokens, self.policy.lock_ms), none)
            available = bool(acquired)
            for key, (got, found) in zip(tokens, acquired, strict=False):
                if got and found.fresh is not None:  # another request was quicker
                    self._release(key, tokens[key])
                elif got:
                    locked.add(key)
            if available:
                chosen = [one for one in places if places[one] in locked]
        if not chosen:
            return {}
        try:
            with ExitStack() as held:
                for key in locked:
                    held.enter_context(self._renewals.held(key, tokens[key]))
                loaded = {one: self._dated(entry) for one, entry in load(chosen).items()}
        except BaseException:
            for key in locked:
                self._release(key, tokens[key])
            raise
        self.counters.add(misses=len(loaded))
        if available:
            self._store_many(
                storage,
                [
                    (places[one], tokens[places[one]] if locked else "", entry, ttl_ms)
                    for one, (entry, ttl_ms) in loaded.items()
                ],
            )
        return {one: entry for one, (entry, _) in loaded.items()}

    def _store_many(
        self, storage: ManyStorage, entries: Sequence[tuple[str, str, Entry, int]]
    ) -> None:
        writes, sizes, refused = [], [], []
        for key, token, entry, ttl_ms in entries:
            packed, size, storable = self._packed(entry, {})
            if storable:
                writes.append((key, token, packed, ttl_ms))
                sizes.append(size)
            else:
                refused.append(key)
        none: list[bool] = []
        stored = self.attempt(lambda: storage.complete_many(writes), none) if writes else none
        written = sum(size for size, done in zip(sizes, stored, strict=False) if done)
        self.counters.add(bytes_written=written, discarded=stored.count(False))
        if refused:  # an older entry is no answer any more, and the lock is not needed
            self.attempt(lambda: self.storage.delete(refused), 0)

    def may_be_served(self, entry: Entry) -> bool:
        """Whether an entry beyond its TTL is still good enough if loading fails."""
        return time.time() <= self._stale_until(entry)

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
        if not self._store(key, entry, self._stamps(tags), forget):
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

    def validated(self, found: dict[K, Found]) -> dict[K, Found]:
        """What many keys hold, without what was invalidated by a tag, or may have been."""
        none: list[Found] = []
        checked = self.attempt(lambda: self.storage.validated(list(found.values())), none)
        return dict(zip(found, checked, strict=False))

    def count_hits(self, found: Collection[Found]) -> None:
        """Count answers that a cache read by itself."""
        self.counters.add(hits=len(found), bytes_read=sum(known.size for known in found))

    def stats(self) -> CacheStats:
        """The counters so far."""
        return self.counters.snapshot()

    def _stale_until(self, entry: Entry) -> float:
        return entry.fresh_until + self.policy.stale_if_error

    # --- looking up

    def _look_up(self, key: str, tags: Collection[str]) -> Found:
        if not self._breaker.allows():
            self.counters.add(errors=1)
            return NOTHING
        found = self._ask(lambda: self.storage.get(key, tags), NOTHING)
        if found.corrupt:
            self.counters.add(corrupt=1)
        return _filed_under(tags, found)

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
            return entry  # another request is at it
        if found.entry is not None and found.entry.created_at != entry.created_at:
            self._release(key, token)
            return found.entry  # another request was quicker
        try:
            newer = self._load_locked(key, token, Flight(), load, tags)
        except Exception:  # noqa: BLE001 -- whatever it was: the entry at hand is still in force
            return entry
        self.counters.add(early=1)
        return newer

    # --- loading

    def _load_plainly(self, key: str, load: Callable[[], Entry], tags: Collection[str]) -> Entry:
        """Load and store with no lock: the plain pattern, with its stampedes and its race."""
        stamps = self._stamps(tags)
        entry = load()
        self._store(key, entry, stamps)
        return entry

    def _load_shared(self, key: str, load: Callable[[], Entry], tags: Collection[str]) -> Entry:
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
            if found.fresh is not None:
                self.counters.add(coalesced=1, bytes_read=found.size)
                return found.fresh
        return load()

    def _lead(
        self, key: str, flight: Flight, load: Callable[[], Entry], tags: Collection[str]
    ) -> Entry:
        """Load for all threads that join the flight."""
        try:
            if flight.previous is not None:
                flight.previous.done.wait(self.policy.wait_seconds)
            return self._load_once(key, flight, load, tags)
        except Exception as error:
            flight.error = error
            raise
        finally:  # an Interrupt meant this thread alone: the others find nothing, and try again
            self._flights.land(key, flight)

    def _load_once(
        self, key: str, flight: Flight, load: Callable[[], Entry], tags: Collection[str]
    ) -> Entry:
        """Load with the lock, or wait for the process that has it."""
        token, pause = secrets.token_hex(8), POLL_S
        deadline = time.monotonic() + self.policy.wait_seconds
        while True:
            answer = self.attempt(lambda: self._acquire(key, token), None)
            if answer is None:  # the cache is down
                return self._load_unlocked(flight, load)
            locked, found = answer
            entry = _filed_under(tags, found).fresh
            if entry is not None:
                if locked:
                    self._release(key, token)
                self.counters.add(coalesced=1, bytes_read=found.size)
                return entry
            if locked:
                return self._load_locked(key, token, flight, load, tags)
            if time.monotonic() > deadline:
                return self._load_unlocked(flight, load)
            time.sleep(pause)
            pause = min(pause * 1.2, POLL_MAX_S)

    def _load_unlocked(self, flight: Flight, load: Callable[[], Entry]) -> Entry:
        """Load, and store nothing: without the lock an invalidation meanwhile goes unnoticed.

        So the threads that come from now on do not share it, either.
        """
        self._flights.close(flight)
        entry = load()
        if flight.joined:
            try:
                flight.packed, _ = self.storage.pack(entry, {})
            except Uncacheable:
                flight.unshareable = True
        return entry

    def _load_locked(
        self,
        key: str,
        token: str,
        flight: Flight,
        load: Callable[[], Entry],
        tags: Collection[str],
    ) -> Entry:
        """Load while holding the lock, and store if it is still held afterwards."""
        try:
            self._flights.begin(flight)
            stamps = self._stamps(tags)
            with self._renewals.held(key, token):
                entry, ttl_ms = self._dated(load())
            packed, size, storable = self._packed(entry, stamps)
        except BaseException:
            self._release(key, token)
            raise
        # Who comes later has to see what is stored, or that it was invalidated.
        self._flights.close(flight)
        stored = None
        if storable and stamps is not None:
            stored = self.attempt(lambda: self.storage.complete(key, token, packed, ttl_ms), None)
        if stored:
            self.counters.add(bytes_written=size)
        elif stored is False:
            self.counters.add(discarded=1)
        ours = self._release(key, token) if stored is None else stored
        if not storable:  # an older entry, kept in case of need, is no answer any more
            self.attempt(lambda: self.storage.delete([key]), 0)
        flight.packed, flight.unshareable = packed, packed is None
        # If the lock was ours to the end, nothing was invalidated; of tags it knows nothing.
        flight.for_late = bool(ours) and not tags
        return entry

    # --- storing

    def _store(
        self, key: str, entry: Entry, stamps: Stamps | None, forget: Collection[str] = ()
    ) -> bool:
        """Store, whoever holds the lock. Returns whether that worked."""
        entry, ttl_ms = self._dated(entry)
        packed, size, storable = self._packed(entry, stamps)

        def work() -> bool:
            self.storage.put(key, packed, ttl_ms, forget)
            return True

        stored = storable and stamps is not None and self.attempt(work, otherwise=False)
        self.counters.add(bytes_written=size if stored else 0)
        return stored

    def _dated(self, entry: Entry) -> tuple[Entry, int]:
        """The entry with its times, and the milliseconds for which the server should keep it.

        Where nothing depends on when its TTL ends, the entry does not say so, and the server's
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

    def _packed(self, entry: Entry, stamps: Stamps | None) -> tuple[Any, int, bool]:
        """The stored form of an entry, None if it has none; its size; whether it may be stored."""
        try:
            packed, size = self.storage.pack(entry, stamps or {})
        except Uncacheable:
            self.counters.add(uncacheable=1)
            return None, 0, False
        storable = size <= self.policy.max_bytes
        self.counters.add(too_large=not storable)
        return packed, size, storable

    def _stamps(self, tags: Collection[str]) -> Stamps | None:
        """The versions of tags, to be asked for before a load; None if the cache is down."""
        if not tags:
            return {}
        return self.attempt(lambda: self.storage.stamp(tags, self.policy.max_ttl_ms), None)

    def _acquire(self, key: str, token: str) -> tuple[bool, Found]:
        return self.storage.acquire(key, token, self.policy.lock_ms)

    def _renew(self, key: str, token: str) -> bool:
        """Prolong a lock. Returns whether to go on: also after a failure, which may be brief."""
        renewed = self.attempt(lambda: self.storage.renew(key, token, self.policy.lock_ms), None)
        return renewed is not False

    def _release(self, key: str, token: str) -> bool | None:
        """Give the lock back. Returns whether it was still ours, None if the cache is down."""
        return self.attempt(lambda: self.storage.release(key, token), None)

    # --- going on without the cache

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


def _filed_under(tags: Collection[str], found: Found) -> Found:
    """The same, without an entry that `invalidate_tag` of one of these would not have found."""
    return found if found.stamps.keys() >= set(tags) else replace(found, entry=None)


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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
