"""The exercises of notebook 06: one load for all who ask at once, and a lock given back safely."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis.exceptions import WatchError

from workshop_lib.exercises.engine import Exercise, Wrong, call, function_of, show
from workshop_lib.exercises.nb03 import Trips, watched
from workshop_lib.exercises.trial import attempt

KEY, OTHER_KEY = "mars", "venus"
CALLERS = 20
PATIENCE_S = 2.0
HELD_S = 4.0
SETTLE_S = (0.05, 0.25, 0.5)
STEP_S = 0.4
DOWN = "the database is down"
FAULT = f"ConnectionError: {DOWN}"


class SlowDatabase:
    """A database whose loads wait until they are let go, and give another answer each time.

    Attributes:
        loads: the key of each load, in their order.
        begun: set when the first load has begun.
        crowded: set when two loads have been under way at one moment.
        go: lets the loads end.

    """

    def __init__(self, replies: Callable[[str, int], object], *, held: bool = True) -> None:
        self.replies = replies
        self.loads: list[object] = []
        self.begun, self.crowded, self.go = (threading.Event() for _ in range(3))
        self._under_way = 0
        self._lock = threading.Lock()
        if not held:
            self.go.set()

    def load(self, key: str) -> object:
        """The answer for this key: what the learner's function is handed."""
        with self._lock:
            self.loads.append(key)
            number = len(self.loads)
            self._under_way += 1
            if self._under_way > 1:
                self.crowded.set()
        self.begun.set()
        self.go.wait(HELD_S)
        with self._lock:
            self._under_way -= 1
        return self.replies(key, number)


def planet(key: str, number: int) -> object:
    """An answer that says for which key it is, and from which load."""
    return f"{key}, load {number}"


def nothing(_key: str, _number: int) -> object:
    """The answer for a row that does not exist."""
    return None


def fault_at_first(key: str, number: int) -> object:
    """A database that is down when it is asked for the first time."""
    if number == 1:
        raise ConnectionError(DOWN)
    return planet(key, number)


@dataclass(frozen=True, slots=True)
class Reply:
    """What one call of `fetch` came to.

    Attributes:
        value: what it returned.
        error: what it raised, if anything.
        lost: it has not come back.
        line: the learner's line where it raised or is waiting, in words.

    """

    value: object
    error: BaseException | None
    lost: bool
    line: str


class Bench:
    """A `fetch` of the learner's over a slow database, and threads that call it."""

    def __init__(self, single_flight: Callable[..., Any], database: SlowDatabase) -> None:
        self.answer = single_flight
        self.database = database
        self.fetch = call("`single_flight(load)`", single_flight, database.load)
        if not callable(self.fetch):
            raise Wrong(
                f"`single_flight(load)` returned `{show(self.fetch)}`. Expected: a function, to be "
                "called as `fetch(key)`. Define it inside of yours, and `return fetch`."
            )

    def ask(self, key: str, arrived: threading.Semaphore | None = None) -> Reply:
        """Call `fetch(key)` and wait for it, but not for ever."""
        values: list[object] = []

        def work() -> None:
            # The thread may never end: its name tells it apart from the check's own.
            threading.current_thread().name = f"fetch {key}"
            if arrived:
                arrived.release()
            values.append(self.fetch(key))

        trial = attempt(work, PATIENCE_S + SETTLE_S[-1], self.answer)
        return Reply(values[0] if values else None, trial.error, trial.too_late, trial.your_line)

    def ask_at_once(self, settle_s: float) -> list[Reply]:
        """Let many threads ask for one key while the load for the first of them is under way."""
        database, arrived = self.database, threading.Semaphore(0)
        with ThreadPoolExecutor(CALLERS) as pool:
            replies = [pool.submit(self.ask, KEY)]
            database.begun.wait(PATIENCE_S)
            replies += [pool.submit(self.ask, KEY, arrived) for _ in range(CALLERS - 1)]
            for _ in replies[1:]:
                arrived.acquire(timeout=PATIENCE_S)
            database.crowded.wait(settle_s)  # what is left to them is a step into `fetch`
            database.go.set()
        return [reply.result() for reply in replies]


def check_single_flight(answer: object, _: object) -> None:
    """One load for all who ask at once, for its errors too; then anew; and each key for itself."""
    function = function_of(answer, "single_flight", "load")
    _check_one_after_another(function, planet)
    _check_together(function, planet)
    _check_together(function, nothing)
    _check_one_after_another(function, fault_at_first)
    _check_together(function, fault_at_first)
    _check_keys_apart(function)
    _check_side_by_side(function)


def _check_one_after_another(
    function: Callable[..., Any], replies: Callable[[str, int], object]
) -> None:
    database = SlowDatabase(replies, held=False)
    bench = Bench(function, database)
    first = bench.ask(KEY)
    if database.loads and database.loads != [KEY]:
        raise Wrong(
            f"One call of `fetch({KEY!r})` called `load` with `{show(database.loads)}`. Expected: "
            f"one call, `load({KEY!r})`."
        )
    _check_reply(first, replies, f"`fetch({KEY!r})`")
    _check_anew(bench)


def _check_anew(bench: Bench) -> None:
    """After the load has ended, a call loads again, whatever became of the first."""
    failed = bench.database.replies is fault_at_first
    before = f"After `load` had raised `{FAULT}`" if failed else "After the load had ended"
    again = bench.ask(KEY)
    if failed and _same_fault(again):
        raise Wrong(
            f"{before}, the next call of `fetch({KEY!r})` raised the same error once more, and "
            "`load` was not asked. Expected: another load. The database may be up again."
        )
    _check_lost(again, f"{before}, the next call of `fetch({KEY!r})`")
    if len(bench.database.loads) < 2:
        raise Wrong(
            f"{before}, the next call of `fetch({KEY!r})` returned `{show(again.value)}`, and "
            "`load` was not called again. Expected: another load. This is no cache: only those "
            "who ask while a load is under way share it. Forget it when it ends."
        )
    _check_value(again, bench.database.replies(KEY, 2), f"{before}, the next call of `fetch`")


def _check_together(function: Callable[..., Any], replies: Callable[[str, int], object]) -> None:
    for settle_s in SETTLE_S:
        database = SlowDatabase(replies)
        bench = Bench(function, database)
        came = bench.ask_at_once(settle_s)
        if len(database.loads) == 1 or database.crowded.is_set():
            break
        # On a busy machine some may have come too late for the first load: give them more time.
    asked = f"{CALLERS} threads called `fetch({KEY!r})` while a load for it was under way, and"
    for reply in came:
        _check_lost(reply, f"{asked} one of them")
    if len(database.loads) > 1:
        raise Wrong(f"{asked} {_say_loads(database)}")
    for reply in came:
        _check_reply(reply, replies, f"{asked} one of them")
    _check_anew(bench)


def _say_loads(database: SlowDatabase) -> str:
    many = f"`load` was called {len(database.loads)} times. Expected: once."
    if database.crowded.is_set():
        return f"{many} A thread that finds a load for the key under way waits for it to end."
    if database.replies is fault_at_first:
        return (
            f"{many} The first load failed, and those who had waited tried again, one after "
            "another: a database that is down is asked by all. They get the error instead."
        )
    why = "Hand what the first one loaded to all who waited."
    if database.replies is nothing:
        why = "What it returned was None, the answer for a row that does not exist: it counts."
    return f"{many} Those who had waited loaded as well, one after another. {why}"


def _check_reply(reply: Reply, replies: Callable[[str, int], object], who: str) -> None:
    """The first load's answer, or its error."""
    if replies is not fault_at_first:
        _check_value(reply, replies(KEY, 1), who)
        return
    _check_lost(reply, f"`load` raised `{FAULT}`. {who}")
    if _same_fault(reply):
        return
    if reply.error is None:
        raise Wrong(
            f"`load` raised `{FAULT}`, and `{show(reply.value)}` came out of `fetch`. {who} "
            "got that; expected: the error, for all of them. A fault must not look like an answer."
        )
    raise Wrong(
        f"`load` raised `{FAULT}`, and `{_words(reply.error)}` came out of `fetch`. "
        f"Expected: the error of `load` itself, for all who share it."
    ) from reply.error


def _check_value(reply: Reply, expected: object, who: str) -> None:
    _check_lost(reply, who)
    if reply.error is not None:
        raise Wrong(f"{who} stopped with `{_words(reply.error)}`.") from reply.error
    if reply.value != expected:
        hint = " Is there a `return` on this way?" if reply.value is None else ""
        raise Wrong(f"{who} returned `{show(reply.value)}`; expected: `{show(expected)}`.{hint}")


def _check_lost(reply: Reply, who: str) -> None:
    if reply.lost:
        raise Wrong(
            f"{who} has not come back. It waits for something that does not happen: however a load "
            "ends, also with an error, wake those who wait for it, and forget it.\n"
            f"{reply.line}"
        )


def _same_fault(reply: Reply) -> bool:
    return reply.error is not None and _words(reply.error) == FAULT


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _check_keys_apart(function: Callable[..., Any]) -> None:
    database = SlowDatabase(planet)
    bench = Bench(function, database)
    with ThreadPoolExecutor(2) as pool:
        replies: list[Future[Reply]] = [pool.submit(bench.ask, KEY)]
        database.begun.wait(PATIENCE_S)
        replies.append(pool.submit(bench.ask, OTHER_KEY))
        apart = database.crowded.wait(PATIENCE_S)
        database.go.set()
    one, other = (reply.result() for reply in replies)
    _check_value(one, planet(KEY, 1), f"`fetch({KEY!r})`")
    if database.loads == [KEY] and other.value == one.value:
        raise Wrong(
            f"While a load for `{KEY!r}` was under way, `fetch({OTHER_KEY!r})` was answered with "
            f"`{show(other.value)}`. Only those who ask for the same key share a load."
        )
    if not apart:
        raise Wrong(
            f"`fetch({OTHER_KEY!r})` waited for the load of `{KEY!r}`. Expected: each key for "
            "itself. Do you hold a lock while you load? Hold it only to look and to enter."
        )
    _check_value(other, planet(OTHER_KEY, 2), f"`fetch({OTHER_KEY!r})`")


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


def _check_side_by_side(function: Callable[..., Any]) -> None:
    database = SlowDatabase(planet)
    bench = Bench(function, database)
    key = SideBySide(KEY)
    key.step = threading.Barrier(2, timeout=STEP_S)
    with ThreadPoolExecutor(2) as pool:
        replies = [pool.submit(bench.ask, key) for _ in range(2)]
        database.begun.wait(PATIENCE_S)
        database.crowded.wait(SETTLE_S[1])
        database.go.set()
    if database.crowded.is_set():
        raise Wrong(
            f"Two threads called `fetch({KEY!r})` at the very same moment. Both found no load "
            "under way, and both called `load`. Between your look and your note that a load is "
            "under way, another thread can look, too: make it one step, with a `threading.Lock` "
            "around both."
        )
    for reply in replies:
        _check_lost(reply.result(), f"One of two threads that called `fetch({KEY!r})` at once")


LOCK_MS = 60_000
TOKENS = ("worker-1", 'Zoë\'s "2nd" try')
REFUSED = {"KEYS", "FLUSHALL", "FLUSHDB"}


class Meanwhile(Trips):
    """Round trips as `watched` notes them, and what is to happen just before each but the first."""

    def __init__(self, happen: Callable[[int], None]) -> None:
        super().__init__()
        self._happen = happen

    def append(self, trip: list[str]) -> None:
        """Note the commands that are about to be sent."""
        for name in REFUSED.intersection(trip):
            raise PermissionError(f"{name} touches all keys, not this one: it was not sent")
        if self:
            self._happen(len(self))
        super().append(trip)


class LockBench:
    """The learner's `release`, and a lock on the real server to try it on."""

    def __init__(self, function: Callable[..., Any], ws: Any, token: str) -> None:
        self.function = function
        self.ws = ws
        self.token = token
        self.other = f"{token}0"
        self.lock = f"{ws.namespace}:exercise-06-2:lock"
        self.shown = f"`release(valkey, lock, {token!r})`"

    def hold(self, token: str) -> None:
        """Somebody has taken the lock."""
        self.ws.valkey.set(self.lock, token, px=LOCK_MS)

    def holder(self) -> str | None:
        """Whose it is."""
        token = self.ws.valkey.get(self.lock)
        return None if token is None else token.decode()

    def release(self, when: str, happen: Callable[[int], None]) -> tuple[Any, Trips]:
        """Call the learner's function: what it returned, and the commands that it sent."""
        trips = Meanwhile(happen)
        try:
            with watched(self.ws, trips) as valkey:
                got = call(f"{when}, {self.shown}", self.function, valkey, self.lock, self.token)
        except Wrong as wrong:
            raise Wrong(f"{wrong}{_advice(wrong.__cause__)}") from wrong.__cause__
        return got, trips


def check_release(answer: object, ws: Any) -> None:
    """One's own lock goes; another's stays, also when it changes hands between two commands."""
    function = function_of(answer, "release", "valkey", "lock", "token")
    try:
        for token in TOKENS:
            bench = LockBench(function, ws, token)
            trips = _check_own(bench)
            _check_nobody(bench)
            _check_other(bench)
            for gap in range(1, len(trips)):
                _check_taken_over(bench, gap)
    finally:
        ws.valkey.delete(f"{ws.namespace}:exercise-06-2:lock")


def _check_own(bench: LockBench) -> Trips:
    bench.hold(bench.token)
    when = "With your own token in the lock"
    got, trips = bench.release(when, _nothing_happens)
    if bench.holder() is not None:
        advice = "It cannot be taken before it expires."
        if any("GET" in trip for trip in trips):
            advice += " `valkey.get` gives back bytes, and `b'1' == '1'` is False."
        raise Wrong(f"{when}, {bench.shown} left the lock where it was. {advice}")
    _check_truth(bench, when, got, expected=True)
    return trips


def _check_nobody(bench: LockBench) -> None:
    bench.ws.valkey.delete(bench.lock)
    when = "When the lock has expired and nobody holds it"
    got, _ = bench.release(when, _nothing_happens)
    if bench.holder() is not None:
        raise Wrong(f"{when}, {bench.shown} has made one, with `{bench.holder()!r}` in it.")
    _check_truth(bench, when, got, expected=False)


def _check_other(bench: LockBench) -> None:
    bench.hold(bench.other)
    when = f"With another's token in the lock, `{bench.other!r}`"
    free_after: list[int] = []

    def look(sent: int) -> None:
        if bench.holder() != bench.other:
            free_after.append(sent)

    got, trips = bench.release(when, look)
    if bench.holder() != bench.other:
        raise Wrong(
            f"{when}, {bench.shown} took the lock away. Your own had expired, and somebody else "
            "works under this one: now a third can come in. Delete it only if its value is "
            "exactly your token."
        )
    if free_after:
        raise Wrong(
            f"{when}, {bench.shown} took the lock away with {_names(trips, free_after[0])} and "
            "put it back later: in between, anybody could take it. Look first, and touch nothing "
            "that is not yours."
        )
    if bench.ws.valkey.pttl(bench.lock) < 0:
        raise Wrong(
            f"{when}, {bench.shown} took the lock's time to live away. If its owner dies, nobody "
            "ever gets it again. Touch nothing that is not yours."
        )
    _check_truth(bench, when, got, expected=False)


def _check_taken_over(bench: LockBench, gap: int) -> None:
    """Between two round trips the lock expires, and somebody else takes it."""
    bench.hold(bench.token)
    gone_before: list[bool] = []

    def take_over(sent: int) -> None:
        if sent == gap:
            gone_before.append(bench.holder() is None)
            bench.hold(bench.other)

    when = "When your lock expires, and another takes it, between two of your commands"
    got, trips = bench.release(when, take_over)
    if not gone_before:  # this time it sent fewer
        return
    if bench.holder() != bench.other:
        raise Wrong(
            f"Between {_names(trips, gap)} and {_names(trips, gap + 1)} of {bench.shown} your "
            "lock expired, and another took it: yours was true when you looked, and what you "
            "deleted was the other's. Look and delete in one step on the server, with a script: "
            "`valkey.eval`."
        )
    _check_truth(bench, when, got, expected=gone_before[0])


def _nothing_happens(_sent: int) -> None:
    """Nobody else touches the lock."""


def _names(trips: Trips, number: int) -> str:
    """The commands of a round trip, by its number from 1."""
    return " ".join(f"`{name}`" for name in trips[number - 1])


def _check_truth(bench: LockBench, when: str, got: object, *, expected: bool) -> None:
    if isinstance(got, int) and got == expected:  # 1 and 0, as a script gives them, will do
        return
    advice = {
        "NoneType": "Is there a `return` on this way?",
        "bytes": "This is what lies in the lock; say whether you gave it back.",
    }.get(type(got).__name__, "Say whether it was your lock that was deleted.")
    raise Wrong(f"{when}, {bench.shown} returned `{show(got)}`; expected: {expected}. {advice}")


def _advice(error: BaseException | None) -> str:
    if isinstance(error, WatchError):
        return (
            "\nThat error is the answer: the lock was touched after your look, so it is no longer "
            "yours. Catch it, and return False."
        )
    if "compiling script" in str(error):
        return (
            "\nIs the token part of the script's text? This one has quotes in it. Hand over the "
            "lock and the token beside the script: `valkey.eval(script, 1, lock, token)` gives "
            "them to it as `KEYS[1]` and `ARGV[1]`."
        )
    return ""


EXERCISES = (
    Exercise(
        id="06.1",
        title="One load for all",
        answer_name="single_flight",
        judge=check_single_flight,
        hints=(
            (
                "Keep a dict of the loads that are under way, by key. Who comes first enters a "
                "load and does it; who finds one there waits. What do they wait for, and how do "
                "they get the answer, or the error? Who takes the load out again?"
            ),
            (
                "`concurrent.futures.Future` is a promise: the first one calls `set_result(value)` "
                "or `set_exception(error)`, once. For all others, `result()` waits, and then "
                "returns the value or raises the error."
            ),
            (
                "To look and to enter has to be one step: under a `threading.Lock`, which you let "
                "go before you load, or with `flight = under_way.setdefault(key, mine)`, which "
                "gives `mine` back only to the first. The first one loads with `try … except`, "
                "then `del under_way[key]`, then tells the others."
            ),
        ),
        solution_source="""\
from concurrent.futures import Future


def single_flight(load):
    under_way = {}

    def fetch(key):
        mine = Future()
        flight = under_way.setdefault(key, mine)  # one step: looks, and enters if none is there
        if flight is mine:
            try:
                end, outcome = flight.set_result, load(key)
            except BaseException as error:
                end, outcome = flight.set_exception, error
            del under_way[key]  # whoever comes from now on loads again
            end(outcome)
        return flight.result()

    return fetch
""",
        praise=(
            "However many ask at once, the database is asked once; they share the answer or the "
            "error, and then the next one loads. That holds within one process: between processes "
            "it takes a lock in the cache, and that is the next exercise."
        ),
        limit_s=20.0,
    ),
    Exercise(
        id="06.2",
        title="Give back your own lock only",
        answer_name="release",
        judge=check_release,
        hints=(
            (
                "Between any two of your commands, your lock may expire and another take it. How "
                "many commands may it then be? And who compares the tokens, you or the server?"
            ),
            (
                "A Lua script runs on the server as one step, and nobody comes in between. "
                "`valkey.eval(script, 1, lock, token)` sends one: there `lock` is `KEYS[1]`, "
                "`token` is `ARGV[1]`, and a command is `redis.call('GET', KEYS[1])`. The tokens "
                "are compared on the server, so bytes do not matter."
            ),
            (
                "The script: `if redis.call('GET', KEYS[1]) == ARGV[1] then return "
                "redis.call('DEL', KEYS[1]) end return 0`. `DEL` returns how many keys it "
                "deleted: turn that into True or False with `bool`."
            ),
        ),
        solution_source='''\
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
    return redis.call('DEL', KEYS[1])
end
return 0
"""


def release(valkey, lock, token):
    return bool(valkey.eval(RELEASE, 1, lock, token))
''',
        praise=(
            "Look and delete are one step, so a lock that expired is never taken from its next "
            "owner. The workshop's caches give their locks back in this way. Valkey 9 has the "
            "command `DELIFEQ` for it, which ElastiCache may not have yet."
        ),
        needs_workshop=True,
    ),
)
