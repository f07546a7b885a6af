"""Notebook 07: threads that ask at the same moment, and a lock that changes hands."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from workshop_lib.exercises.check import Check, Wrong, say_error
from workshop_lib.exercises.round_trips import Trips, watched
from workshop_lib.exercises.trial import Trial, attempt

KEY, OTHER_KEY = "mars", "venus"
CALLERS = 20
PATIENCE_S = 2.0
HELD_S = 4.0
SETTLE_S = (0.05, 0.25, 1.5)
STEP_S = 0.4
FAULT = ConnectionError("the database is down")
ANSWERS: dict[str, tuple[Any, Any]] = {
    "a value": ("load 1", "load 2"),
    "nothing": (None, "load 2"),
    "a fault": (FAULT, "load 2"),
}
"""What the database says to the first load, and to those after it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What one call of `fetch` returned, and how it went."""

    value: object
    trial: Trial


class Bench:
    """A `fetch` of the learner's over a slow database, and threads that call it.

    Attributes:
        answers: what the database says to the first load and to those after it; errors are raised.
        loads: the key of each load, in their order.
        begun: set when the first load has begun.
        crowded: set when two loads have been under way at one moment.
        go: lets the loads end.

    """

    def __init__(self, check: Check, answers: tuple[Any, Any] = ("load 1", "load 2")) -> None:
        self.check, self.answers = check, answers
        self.loads: list[object] = []
        self.begun, self.crowded, self.go = (threading.Event() for _ in range(3))
        self._under_way = 0
        self._lock = threading.Lock()
        self.fetch = check.call(self.load, shown="`single_flight(load)`")
        check.judge("function", got=self.fetch)

    def load(self, key: str) -> Any:
        """The database's answer, once the loads may end: what the learner's function is handed."""
        with self._lock:
            self.loads.append(key)
            answer = self.answers[len(self.loads) > 1]
            self._under_way += 1
            if self._under_way > 1:
                self.crowded.set()
        self.begun.set()
        self.go.wait(HELD_S)
        with self._lock:
            self._under_way -= 1
        if isinstance(answer, Exception):
            raise type(answer)(*answer.args)
        return answer

    def ask(self, key: str, arrived: threading.Semaphore | None = None) -> Reply:
        """Call `fetch(key)` and wait for it, but not for ever."""
        values: list[object] = []

        def work() -> None:
            # The thread may never end: its name tells it apart from the check's own.
            threading.current_thread().name = f"fetch {key}"
            if arrived:
                arrived.release()
            values.append(self.fetch(key))

        trial = attempt(work, PATIENCE_S + SETTLE_S[-1], self.check.answer)
        return Reply(values[0] if values else None, trial)

    def ask_at_once(self, keys: Sequence[str], settle_s: float) -> list[Reply]:
        """Let threads ask while the load for the first of them is under way."""
        arrived = threading.Semaphore(0)
        with ThreadPoolExecutor(len(keys)) as pool:
            replies = [pool.submit(self.ask, keys[0])]
            self.begun.wait(PATIENCE_S)
            replies += [pool.submit(self.ask, key, arrived) for key in keys[1:]]
            for _ in keys[1:]:
                arrived.acquire(timeout=PATIENCE_S)
            self.crowded.wait(settle_s)  # what is left to them is a step into `fetch`
            self.go.set()
        return [reply.result() for reply in replies]

    def expect(self, reply: Reply, expected: object, who: str) -> None:
        """End the check unless `fetch` came to this value, or to the database's error."""
        check, error = self.check, reply.trial.error
        check.facts["call"] = who
        if reply.trial.too_late:
            raise Wrong(f"{check.say('lost')}\n{reply.trial.your_line}")
        if error is not None and expected is not FAULT:
            check.stop(error)
        check.facts |= {"got": reply.value, "expected": expected, "came": say_error(error)}
        check.judge("fault" if expected is FAULT else "value", error)


def single_flight(check: Check) -> None:
    """One load for all who ask at once, for its errors too; then anew; and each key for itself."""
    check.facts |= {"key": KEY, "other": OTHER_KEY, "callers": CALLERS, "fault": say_error(FAULT)}
    for name in ANSWERS:
        _try_callers(check, name, 1)
        _try_callers(check, name, CALLERS)
    _try_two_keys(check)
    _try_side_by_side(check)


def _try_callers(check: Check, name: str, callers: int) -> None:
    """All are answered by one load; after it has ended, a call loads again."""
    first, later = ANSWERS[name]
    for settle_s in SETTLE_S:
        bench = Bench(check, (first, later))
        replies = bench.ask_at_once([KEY] * callers, settle_s if callers > 1 else 0)
        if len(bench.loads) == 1 or callers == 1 or bench.crowded.is_set():
            break
        # On a busy machine some may have come too late for the first load: give them more time.
    who = check.say("one" if callers == 1 else "together")
    late = any(reply.trial.too_late for reply in replies)
    check.facts |= {"loads": bench.loads, "crowded": bench.crowded.is_set(), "answer": name}
    check.judge("loads", late=late)
    for reply in replies:
        bench.expect(reply, first, who)
    who = check.say("after_fault" if first is FAULT else "after_load")
    again = bench.ask(KEY)
    check.facts |= {"call": who, "error": again.trial.error, "late": again.trial.too_late}
    check.judge("again", again.trial.error, got=again.value)
    bench.expect(again, later, who)


def _try_two_keys(check: Check) -> None:
    bench = Bench(check)
    one, other = bench.ask_at_once([KEY, OTHER_KEY], PATIENCE_S)
    bench.expect(one, "load 1", f"`fetch({KEY!r})`")
    check.facts |= {"loads": bench.loads, "crowded": bench.crowded.is_set()}
    check.judge("two_keys", one=one.value, got=other.value)
    bench.expect(other, "load 2", f"`fetch({OTHER_KEY!r})`")


class SideBySide(str):
    """A key that lets two threads go on only together, whenever one looks it up in a dict.

    Both are then past their look before either has entered anything, unless a lock keeps them
    apart: in that case one waits here in vain, and from then on each goes its way.
    """

    __slots__ = ("step",)
    step: threading.Barrier

    def __hash__(self) -> int:
        with suppress(threading.BrokenBarrierError):
            self.step.wait()
        return super().__hash__()


def _try_side_by_side(check: Check) -> None:
    bench = Bench(check)
    key = SideBySide(KEY)
    key.step = threading.Barrier(2, timeout=STEP_S)
    with ThreadPoolExecutor(2) as pool:
        replies = [pool.submit(bench.ask, key) for _ in range(2)]
        bench.begun.wait(PATIENCE_S)
        bench.crowded.wait(SETTLE_S[1])
        bench.go.set()
    check.judge("side_by_side", crowded=bench.crowded.is_set())
    for reply in replies:
        bench.expect(reply.result(), "load 1", f"One of two threads that called `fetch({KEY!r})`")


LOCK_MS = 60_000
TOKENS = ("worker-1", 'Zoë\'s "2nd" try')
REFUSED = {"KEYS", "FLUSHALL", "FLUSHDB"}


def release(check: Check) -> None:
    """One's own lock goes; another's stays, also when it changes hands between two commands."""
    try:
        for token in TOKENS:
            check.facts |= {"token": token, "other": f"{token}0"}
            commands = _try_release(check, "own", token)
            _try_release(check, "nobodys", None)
            _try_release(check, "anothers", f"{token}0")
            for gap in range(1, commands):
                _try_release(check, "taken_over", token, gap)
    finally:
        check.ws.valkey.delete(_lock(check))


def _lock(check: Check) -> str:
    return f"{check.ws.namespace}:exercise-07-2:lock"


def _hold(check: Check, token: str | None) -> None:
    check.ws.valkey.delete(_lock(check))
    if token is not None:
        check.ws.valkey.set(_lock(check), token, px=LOCK_MS)


def _holder(check: Check) -> str | None:
    token = check.ws.valkey.get(_lock(check))
    return None if token is None else token.decode()


def _try_release(check: Check, when: str, held: str | None, gap: int = 0) -> int:
    """Somebody holds the lock, or nobody; after `gap` commands, another takes it.

    Returns:
        How many round trips it took.

    """
    token, other = check.facts["token"], check.facts["other"]
    trips: Trips = []
    seen: list[str | None] = []

    def look(names: list[str]) -> None:
        check.judge("before", refused=sorted(REFUSED.intersection(names)))
        seen.append(_holder(check))
        if gap and len(trips) == gap:
            _hold(check, other)

    _hold(check, held)
    shown = f"{check.say(when)}, `release(valkey, lock, {token!r})`"
    with watched(check.ws, trips, before=look) as valkey:
        got = check.call(valkey, _lock(check), token, shown=shown)
    if gap >= len(trips) > 0:  # this time it sent fewer commands
        return len(trips)
    names = ["", *(" ".join(f"`{name}`" for name in trip) for trip in trips), ""]
    moved = next((number for number, one in enumerate(seen) if one != held), 0)
    check.facts |= {"when": when, "got": got, "holder": _holder(check), "trips": trips}
    check.facts |= {"moved": moved, "taken_with": names[moved], "gap": gap}
    check.facts |= {"before": names[gap], "after": names[gap + 1]}
    expected = seen[gap] is None if gap else held == token
    check.judge("released", expected=expected, ttl=check.ws.valkey.pttl(_lock(check)))
    return len(trips)


JUDGES = {"07.1": single_flight, "07.2": release}
