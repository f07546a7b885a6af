"""Notebook 07: threads that ask at the same moment, and a lock that changes hands."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from workshop_lib.exercises.check import Check, Wrong, say_error
from workshop_lib.exercises.round_trips import Trips, watched
from workshop_lib.exercises.trial import Trial, attempt

KEY, OTHER_KEY = "mars", "venus"
CALLERS = 20
PATIENCE_S = 2.0
HELD_S = 4.0
SETTLE_S = (0.05, 0.25, 1.5)
"""On a busy machine some callers may come too late for the first load: then more time is given."""
FIRST_ANSWERS = (
    ("a value", "load 1"),
    ("nothing", None),
    ("a fault", ConnectionError("the database is down")),
    ("a fault", KeyError("no such planet")),
)
"""What the first load comes to; the errors have no class but `Exception` in common."""


class SlowDatabase:
    """What the learner's function loads from. Its loads end together, when they may.

    Attributes:
        first: the answer to the first load; an error is raised.
        loads: the key of each load, in their order.
        crowded: set when two loads have been under way at one moment.
        go: lets the loads end.

    """

    def __init__(self, first: object = "load 1") -> None:
        self.first = first
        self.loads: list[str] = []
        self.begun, self.crowded, self.go = (threading.Event() for _ in range(3))
        self._lock = threading.Lock()

    def load(self, key: str) -> object:
        """The answer, once the loads may end."""
        with self._lock:
            self.loads.append(key)
            answer = self.first if len(self.loads) == 1 else "load 2"
            if len(self.loads) > 1 and not self.go.is_set():
                self.crowded.set()
        self.begun.set()
        self.go.wait(HELD_S)
        if isinstance(answer, Exception):
            raise type(answer)(*answer.args)
        return answer


class Caller:
    """One call of the learner's `fetch`: its value, and how it went."""

    def __init__(self, check: Check, fetch: Any, key: str) -> None:
        self.check, self.fetch, self.key = check, fetch, key
        self.value: object = None
        self.trial = Trial()
        self.arrived = threading.Event()

    def call(self) -> Caller:
        """Make the call and wait for it, within a limit."""
        self.trial = attempt(self._call, PATIENCE_S + SETTLE_S[-1], self.check.answer)
        return self

    def _call(self) -> None:
        threading.current_thread().name = f"fetch {self.key}"  # it may never end
        self.arrived.set()
        self.value = self.fetch(self.key)

    def expect(self, expected: object, who: str) -> None:
        """End the check unless the call came to this value, or to the database's error."""
        check, error = self.check, self.trial.error
        check.facts |= {"call": who, "expected": expected, "came": say_error(error)}
        if self.trial.too_late:
            raise Wrong(f"{check.say('lost')}\n{self.trial.your_line}")
        failed = isinstance(expected, Exception)
        if error is not None and not failed:
            check.stop(error)
        check.judge("fault" if failed else "value", error, got=self.value)


class Round:
    """A new `fetch` of the learner's, and calls of it at the same time."""

    def __init__(self, check: Check, first: object = "load 1") -> None:
        self.check, self.database = check, SlowDatabase(first)
        self.fetch = check.call(self.database.load, shown="`single_flight(load)`")
        check.judge("function", got=self.fetch)

    def call(self, keys: Sequence[str], settle_s: float, *, at_once: bool = False) -> list[Caller]:
        """One call a key, all while the first load is under way, or all at the very same moment."""
        database = self.database
        callers = [Caller(self.check, self.fetch, key) for key in keys]
        with ThreadPoolExecutor(len(callers)) as pool:
            for caller in callers:
                pool.submit(caller.call)
                if not at_once:
                    database.begun.wait(PATIENCE_S)
            for caller in callers:
                caller.arrived.wait(PATIENCE_S)
            database.begun.wait(PATIENCE_S)
            database.crowded.wait(settle_s)  # what is left to them is a step into `fetch`
            database.go.set()
        self.check.facts |= {"loads": database.loads, "crowded": database.crowded.is_set()}
        return callers


def single_flight(check: Check) -> None:
    """One load for all who ask at once, for its errors too; then anew; and each key for itself."""
    check.facts |= {"key": KEY, "other": OTHER_KEY, "callers": CALLERS}
    for answer, first in FIRST_ANSWERS:
        fault = say_error(first) if isinstance(first, Exception) else ""
        check.facts |= {"answer": answer, "fault": fault}
        _try_callers(check, first, 1, "one")
        _try_callers(check, first, CALLERS, "together")
    check.facts["fault"] = ""
    two_keys = Round(check)
    one, other = two_keys.call([KEY, OTHER_KEY], PATIENCE_S)
    one.expect("load 1", f"`fetch({KEY!r})`")
    check.judge("two_keys", one=one.value, got=other.value)
    other.expect("load 2", f"`fetch({OTHER_KEY!r})`")
    callers = Round(check).call([SideBySide(KEY)] * 2, SETTLE_S[1], at_once=True)
    check.judge("side_by_side")
    for caller in callers:
        caller.expect("load 1", f"One of two threads that called `fetch({KEY!r})`")


def _try_callers(check: Check, first: object, count: int, who: str) -> None:
    """All are answered by one load; after it has ended, a call loads again."""
    for settle_s in SETTLE_S:
        tried = Round(check, first)
        callers = tried.call([KEY] * count, settle_s if count > 1 else 0)
        if len(tried.database.loads) == 1 or count == 1 or tried.database.crowded.is_set():
            break
    check.judge("loads", late=any(caller.trial.too_late for caller in callers))
    for caller in callers:
        caller.expect(first, check.say(who))
    again = Caller(check, tried.fetch, KEY).call()
    check.facts["call"] = who = check.say("after_fault" if check.facts["fault"] else "after_load")
    error, late = again.trial.error, again.trial.too_late
    check.judge("again", error, error=error, late=late, got=again.value)
    again.expect("load 2", who)


class SideBySide(str):
    """A key that lets two threads go on only together, whenever one looks it up in a dict.

    Both are then past their look before either has entered anything, unless a lock keeps them
    apart: then one waits here until its time is up, and from then on each goes its way.
    """

    __slots__ = ("step",)
    step: threading.Barrier

    def __new__(cls, text: str) -> SideBySide:
        """Make a key for two threads."""
        key = super().__new__(cls, text)
        key.step = threading.Barrier(2, timeout=0.4)
        return key

    def __hash__(self) -> int:
        with suppress(threading.BrokenBarrierError):
            self.step.wait()
        return super().__hash__()


LOCK_MS = 60_000
TOKENS = ("worker-1", 'Zoë\'s "2nd" try')


def release(check: Check) -> None:
    """Your lock goes; another's stays, even if it changes hands between two commands."""
    lock = f"{check.ws.namespace}:exercise-07-2:lock"
    try:
        for token in TOKENS:
            check.facts |= {"lock": lock, "token": token, "other": f"{token}0"}
            trips = _try_release(check, "own", token)
            _try_release(check, "free", None)
            _try_release(check, "anothers", f"{token}0")
            for gap in range(1, trips):
                _try_release(check, "taken_over", token, gap)
    finally:
        check.ws.valkey.delete(lock)


def _try_release(check: Check, when: str, held: str | None, gap: int = 0) -> int:
    """Let this token hold the lock, or none; after `gap` round trips, another takes it.

    Returns:
        How many round trips it took.

    """
    valkey, (lock, token, other) = check.ws.valkey, map(check.facts.get, ("lock", "token", "other"))
    trips: Trips = []
    seen: list[str | None] = []

    def hold(token: str | None) -> None:
        valkey.delete(lock)
        if token is not None:
            valkey.set(lock, token, px=LOCK_MS)

    def holder() -> str | None:
        found = valkey.get(lock)
        return None if found is None else found.decode()

    def look() -> None:
        seen.append(holder())
        if gap and len(trips) == gap:
            hold(other)

    hold(held)
    with watched(check.ws, trips, before=look) as client:
        shown = f"{check.say(when)}, `release(valkey, lock, {token!r})`"
        got = check.call(client, lock, token, shown=shown)
    if gap >= len(trips) > 0:  # this time it sent fewer commands
        return len(trips)
    names = ["", *(" ".join(f"`{name}`" for name in trip) for trip in trips), ""]
    moved = next((number for number, one in enumerate(seen) if one != held), 0)
    check.facts |= {"when": when, "gap": gap, "trips": trips, "holder": holder()}
    check.facts |= {"moved": moved, "taken_with": names[moved]}
    check.facts |= {"before": names[gap], "after": names[gap + 1]}
    expected = seen[gap] is None if gap else held == token
    check.judge("released", got=got, expected=expected, ttl=valkey.pttl(lock))
    return len(trips)


JUDGES = {"07.1": single_flight, "07.2": release}
