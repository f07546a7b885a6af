"""The exercises of notebook 03: a record with its TTL in one step, planets in one round trip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionLost, DataError, ResponseError
from redis.retry import Retry

from workshop_lib.exercises.engine import Exercise, Wrong, call, function_of, show

Trips: TypeAlias = list[list[str]]
"""For each round trip, the names of the commands that were sent in it."""

GREETINGS = {"HELLO", "AUTH", "CLIENT", "SELECT", "PING"}


@contextmanager
def watched(ws: Any, trips: Trips, most: float = math.inf) -> Iterator[Redis]:
    """A client that notes its round trips, and whose connection breaks after `most` commands.

    The server carries out those commands, even in the middle of a pipeline, and hears no more: as
    when the program is killed at that moment.
    """
    client = Redis(**{**ws.endpoints.cache.arguments, "retry": Retry(NoBackoff(), 0)})
    pool = client.connection_pool
    plain: Any = pool.connection_class
    left = most

    class Watched(plain):  # type: ignore[misc]  # TCP or TLS, as the workshop's own client
        def send_packed_command(self, command: Iterable[bytes], check_health: bool = True) -> None:
            nonlocal left
            commands = _commands_in(b"".join(command))
            if commands[0][0] in GREETINGS:  # the client's own, when it connects
                super().send_packed_command([raw for _, raw in commands], check_health)
                return
            sent = commands[: int(min(left, len(commands)))]
            left -= len(sent)
            if sent:
                trips.append([name for name, _ in sent])
                super().send_packed_command([raw for _, raw in sent], check_health)
            if len(sent) < len(commands):
                for _ in sent:  # an answer to each: the server has done them
                    with suppress(ResponseError):
                        self.read_response()
                self.disconnect()
                raise ConnectionLost("the check has cut the connection here")

    pool.connection_class = Watched
    try:
        yield client
    finally:
        client.close()


def _commands_in(packet: bytes) -> list[tuple[str, bytes]]:
    """The name and the bytes of each command: its number of parts, then each part by its length."""
    commands, start = [], 0
    while start < len(packet):
        many, end = _number_at(packet, start)
        parts = []
        for _ in range(many):
            size, begin = _number_at(packet, end)
            parts.append(packet[begin : begin + size])
            end = begin + size + 2
        commands.append((parts[0].decode().upper(), packet[start:end]))
        start = end
    return commands


def _number_at(packet: bytes, start: int) -> tuple[int, int]:
    """The number in the line that starts there, after its sign, and where the next line starts."""
    end = packet.index(b"\r\n", start)
    return int(packet[start + 1 : end]), end + 2


def _remove(ws: Any, prefix: str) -> None:
    for key in list(ws.valkey.scan_iter(match=f"{prefix}*", count=500)):
        ws.valkey.delete(key)


Record: TypeAlias = dict[str, str | None]

SLACK_S = 30
OLDER: Record = {"name": "Marz", "type": "rocky", "moons": "2", "visited_by": "Mariner 4"}
OLDER_S = 60


@dataclass(frozen=True, slots=True)
class Write:
    """What the learner's function is to write: a record, and for how many seconds."""

    record: Record
    seconds: int

    @property
    def shown(self) -> str:
        """The call in words."""
        return f"write_record(valkey, key, {self.record!r}, {self.seconds})"

    @property
    def expected(self) -> dict[str, str]:
        """What the hash is to hold."""
        return {name: value for name, value in self.record.items() if value is not None}


WRITES = (
    Write({"name": "Mars", "type": "rocky", "moons": "2"}, 600),
    Write({"name": "Pluto", "type": None, "note": ""}, 3600),
    Write({"name": "地球", "note": "None"}, 600),
)


@dataclass(frozen=True, slots=True)
class State:
    """A hash on the server, and its time to live in seconds: -1 for ever, -2 if it is not there."""

    fields: dict[str, str]
    ttl_s: float


class Bench:
    """The learner's function, and a place on the real server to try it."""

    def __init__(self, function: Callable[..., Any], ws: Any) -> None:
        self.function = function
        self.ws = ws
        self.key = f"{ws.namespace}:exercise-03-1:planet:4"

    def run(self, write: Write, before: Record | None, most: float = math.inf) -> list[str]:
        """Write over `before`; with `most`, the connection breaks. Returns the commands' names."""
        self._prepare(before)
        trips: Trips = []
        with watched(self.ws, trips, most) as valkey:
            arguments = valkey, self.key, dict(write.record), write.seconds
            if most == math.inf:
                _call(write, self.function, *arguments)
            else:
                with suppress(Exception):  # that the connection broke; it may say so as it likes
                    self.function(*arguments)
        return [name for trip in trips for name in trip]

    def _prepare(self, before: Record | None) -> None:
        with self.ws.valkey.pipeline() as step:
            step.delete(self.key)
            if before:
                step.hset(self.key, mapping=before)
                step.expire(self.key, OLDER_S)
            step.execute()

    def state(self) -> State:
        """What is there now."""
        try:
            fields = self.ws.valkey.hgetall(self.key)
        except ResponseError:
            kind = self.ws.valkey.type(self.key).decode()
            raise Wrong(
                f"Under the key there is a {kind}. Expected: a hash, with a field for each value, "
                "as `hset` writes it."
            ) from None
        ttl_ms = self.ws.valkey.pttl(self.key)
        return State(
            {name.decode(): value.decode(errors="replace") for name, value in fields.items()},
            ttl_ms / 1000 if ttl_ms > 0 else ttl_ms,
        )


def check_write_record(answer: object, ws: Any) -> None:
    """The fields and the TTL are right, nothing old is left, and no cut leaves half of it."""
    function = function_of(answer, "write_record", "valkey", "key", "record", "seconds")
    bench = Bench(function, ws)
    try:
        for write in WRITES:
            commands = bench.run(write, None)
            _check_fields(write, bench.state())
            _check_ttl(write, bench.state(), commands)
            _check_cuts(bench, write, None, commands)
        for write in WRITES:
            commands = bench.run(write, OLDER)
            _check_nothing_old(write, bench.state())
            _check_fields(write, bench.state())
            _check_ttl(write, bench.state(), commands)
            _check_cuts(bench, write, OLDER, commands)
    finally:
        _remove(ws, bench.key)


def _call(write: Write, function: Callable[..., Any], *arguments: object) -> None:
    try:
        call(f"`{write.shown}`", function, *arguments)
    except Wrong as wrong:
        if isinstance(wrong.__cause__, DataError):
            advice = "A hash keeps texts and numbers, and no None: leave such fields out."
            raise Wrong(f"{wrong} {advice}") from wrong.__cause__
        raise


def _check_fields(write: Write, state: State) -> None:
    if not state.fields:
        raise Wrong(
            f"After `{write.shown}` there is nothing under the key. Was it not written, or is its "
            "time to live over at once?"
        )
    for name, value in write.record.items():
        found = state.fields.get(name)
        if value is None and found is not None:
            raise Wrong(
                f"After `{write.shown}` the hash has a field `{name}`, which holds `{found!r}`. "
                f"Expected: no such field. None is left out; kept as a text, it could be taken "
                "for one."
            )
        if value == "" and found is None:
            raise Wrong(
                f"After `{write.shown}` the hash has no field `{name}`. Expected: an empty text. "
                "Only None is left out: ask `is not None`, not whether the value is true."
            )
    if state.fields != write.expected:
        raise Wrong(
            f"After `{write.shown}` the hash holds `{show(state.fields)}`; expected: "
            f"`{show(write.expected)}`."
        )


def _check_ttl(write: Write, state: State, commands: list[str]) -> None:
    if state.ttl_s == -1:
        why = "It would stay for ever, whatever happens to the row."
        if "HSETEX" in commands:
            why = "`HSETEX` gives one to each field, and none to the key: `expire` does."
        raise Wrong(f"After `{write.shown}` the key has no time to live. {why}")
    if not write.seconds - SLACK_S < state.ttl_s <= write.seconds:
        raise Wrong(
            f"After `{write.shown}` the time to live is {state.ttl_s:g} s; expected: "
            f"{write.seconds} s. `expire` counts in seconds, `pexpire` in milliseconds."
        )


def _check_nothing_old(write: Write, state: State) -> None:
    old = {n: v for n, v in state.fields.items() if n in OLDER and n not in write.record}
    if old:
        raise Wrong(
            f"There was an older record, `{OLDER}`. After `{write.shown}`, `{old}` is still there. "
            "`HSET` changes the fields that it names and keeps all others: delete the key first."
        )


def _check_cuts(bench: Bench, write: Write, before: Record | None, commands: list[str]) -> None:
    """Break the connection after each command in turn: the old record is there, or the new."""
    for most in range(1, len(commands)):
        bench.run(write, before, most)
        state = bench.state()
        _check_nothing_beside(bench)
        if state.ttl_s != -1 and state.fields in ((before or {}), write.expected):
            continue
        left = f"`{show(state.fields)}`" if state.fields else "nothing"
        if state.ttl_s == -1:
            left += ", with no time to live. It would stay for ever, whatever happens to the row"
        elif state.fields:
            left += ". That is neither the old record nor the new one"
        else:
            left += ". The old record is gone, and two who write at once could mix their fields"
        then = "there was an older record" if before else "the key was not there"
        raise Wrong(
            f"`{write.shown}` when {then}: the connection broke after command {most} of "
            f"{len(commands)}, `{commands[most - 1]}`, and left behind {left}. Let the server do "
            "all in one step: a pipeline with `transaction=True`, as it is by default, or one "
            "script. With `transaction=False`, commands only travel together."
        )


def _check_nothing_beside(bench: Bench) -> None:
    for key in list(bench.ws.valkey.scan_iter(match=f"{bench.key}?*", count=500)):
        if bench.ws.valkey.ttl(key) == -1:
            raise Wrong(
                f"When the connection broke, the key `{key.decode()}` was left behind with no time "
                "to live. It would stay for ever."
            )
        bench.ws.valkey.delete(key)


NAMELESS = 5
NAMES = {1: "Mercury", 2: "Venus", 3: "Earth", 4: "Mars", NAMELESS: "", 6: "Saturn"}
"""All that the database knows."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Planets that are asked for by number, in this order, and those that are in the cache."""

    asked: tuple[int, ...]
    cached: tuple[int, ...]

    @property
    def missing(self) -> list[int]:
        """Each that is not in the cache, once."""
        return [number for number in dict.fromkeys(self.asked) if number not in self.cached]

    @property
    def expected(self) -> list[str | None]:
        """The answer."""
        return [NAMES.get(number) for number in self.asked]

    @property
    def shown(self) -> str:
        """The case in words."""
        if not self.asked:
            return "With no keys at all, `get_planets`"
        return (
            f"With the keys of planets {list(self.asked)}, of which {list(self.cached)} are in "
            "the cache, `get_planets`"
        )


BATCHES = (
    Batch((1, 2, 3), (1, 2, 3)),
    Batch((4, 1, 3, 2), (1, 2)),
    Batch((3, 6, 1), ()),
    Batch((NAMELESS, 2, 4, 3), (2, NAMELESS)),
    Batch((2, 3, 2, 4, 3), (2,)),
    Batch((6, 999, 1, 1000), (6,)),
    Batch((), ()),
)


class Loader:
    """What is asked for the missing planets: it notes each call, and keeps what it finds."""

    def __init__(self, ws: Any, keys: dict[int, str]) -> None:
        self.ws = ws
        self.known = {key: NAMES[number] for number, key in keys.items() if number in NAMES}
        self.calls: list[list[Any]] = []

    def load(self, missing: Iterable[str]) -> dict[str, str]:
        """The names of those that exist, by key."""
        asked = [missing] if isinstance(missing, str) else list(missing)
        self.calls.append(asked)
        found = {key: self.known[key] for key in asked if key in self.known}
        for key, name in found.items():
            self.ws.valkey.set(key, name, ex=OLDER_S)
        return found


def check_get_planets(answer: object, ws: Any) -> None:
    """One round trip, one load of what is missing, and the answers in the order of the keys."""
    function = function_of(answer, "get_planets", "valkey", "keys", "load")
    prefix = f"{ws.namespace}:exercise-03-2:planet:"
    try:
        for batch in BATCHES:
            _remove(ws, prefix)
            _check_batch(function, ws, prefix, batch)
    finally:
        _remove(ws, prefix)


def _check_batch(function: Callable[..., Any], ws: Any, prefix: str, batch: Batch) -> None:
    keys = {number: f"{prefix}{number}" for number in batch.asked}
    for number in batch.cached:
        ws.valkey.set(keys[number], NAMES[number], ex=OLDER_S)
    loader = Loader(ws, keys)
    trips: Trips = []
    with watched(ws, trips) as valkey:
        asked = [keys[number] for number in batch.asked]
        got = call(batch.shown, function, valkey, asked, loader.load)
    _check_trips(batch, trips)
    _check_loads(batch, loader, prefix)
    _check_names(batch, got)


def _check_trips(batch: Batch, trips: Trips) -> None:
    if len(trips) > 1:
        names = ", ".join(f"`{'` `'.join(dict.fromkeys(trip))}`" for trip in trips)
        raise Wrong(
            f"{batch.shown} took {len(trips)} round trips ({names}); expected: 1. Each one "
            "costs the way to the server and back. A pipeline asks for all keys at once."
        )


def _check_loads(batch: Batch, loader: Loader, prefix: str) -> None:
    calls = [[str(key).removeprefix(prefix) for key in keys] for keys in loader.calls]
    shown = " and ".join(f"`load` of [{', '.join(keys)}]" for keys in calls) or "no `load`"
    missing = [str(number) for number in batch.missing]
    if missing and len(calls) == 1 and sorted(calls[0]) == sorted(missing):
        return
    if not missing and not calls:
        return
    if not missing:
        raise Wrong(
            f"{batch.shown} called {shown}; expected: no call, since nothing is missing. An empty "
            "question costs a query all the same."
        )
    if len(calls) > 1:
        why = "One call, which is one query, is enough for all that are missing."
    elif set(calls[0] if calls else ()) == set(missing):
        why = "Each that is missing is to be in the list once, however often it was asked for."
    elif calls and set(calls[0]) - set(missing) == {str(NAMELESS)}:
        why = "An empty name, `b''`, is in the cache, too: only None says that nothing is there."
    elif calls:
        why = "What is in the cache need not be asked for, and what is not must be."
    else:
        why = "What is not in the cache may be in the database."
    raise Wrong(
        f"{batch.shown} called {shown}; expected: one `load` of [{', '.join(missing)}]. {why}"
    )


def _check_names(batch: Batch, got: object) -> None:
    if got == batch.expected:
        return
    if got is None:
        advice = "Is there a `return`?"
    elif not isinstance(got, list):
        advice = f"A list is expected, not a {type(got).__name__}."
    elif any(isinstance(name, bytes) for name in got):
        advice = "A caller must not be able to tell a hit from a miss: turn bytes into text."
    elif len(got) != len(batch.expected):
        advice = "There is one answer for each key: also for the second of two equal keys, and "
        advice += "None where there is no such planet."
    else:
        advice = "The answers have the order of the keys, wherever each came from."
    raise Wrong(
        f"{batch.shown} returned `{show(got)}`; expected: `{show(batch.expected)}`. {advice}"
    )


EXERCISES = (
    Exercise(
        id="03.1",
        title="A record and its TTL in one step",
        answer_name="write_record",
        judge=check_write_record,
        hints=(
            (
                "Three things are to happen: the old hash goes, the new one comes, its time to "
                "live is set. What is left behind if the program dies after the first, or after "
                "the second?"
            ),
            (
                "`valkey.pipeline()` collects commands and sends them as MULTI … EXEC: the server "
                "does all of them or none. `HSET` alone would leave older fields where they are."
            ),
            (
                "Inside `with valkey.pipeline() as step:` call `step.delete(key)`, "
                "`step.hset(key, mapping=fields)`, `step.expire(key, seconds)`, and at the end "
                "`step.execute()`. `fields` has all of the record whose value `is not None`."
            ),
        ),
        solution_source="""\
def write_record(valkey, key, record, seconds):
    fields = {name: value for name, value in record.items() if value is not None}
    with valkey.pipeline() as step:  # MULTI … EXEC: all of it or nothing
        step.delete(key)
        step.hset(key, mapping=fields)
        step.expire(key, seconds)
        step.execute()
""",
        praise=(
            "Wherever the connection breaks, there is the old record or the new one, whole, with "
            "a time to live. `RecordCache` does the same with a script, and keeps the types, too."
        ),
        needs_workshop=True,
    ),
    Exercise(
        id="03.2",
        title="Many planets in one round trip",
        answer_name="get_planets",
        judge=check_get_planets,
        hints=(
            (
                "Go through it in three parts: ask the cache for all keys; find out which are "
                "missing, and load these; put the answers into the order of `keys`. A dict from "
                "key to name helps in each."
            ),
            (
                "`pipeline = valkey.pipeline(transaction=False)` collects one `pipeline.get(key)` "
                "for each key; `pipeline.execute()` sends them together and returns a list of "
                "answers in the same order: bytes, or None where nothing is there."
            ),
            (
                "`names = dict(zip(keys, pipeline.execute()))` also takes care of equal keys. "
                "Missing are those that are None. After `load(missing)`, the answer is "
                "`[names.get(key) for key in keys]`."
            ),
        ),
        solution_source="""\
def get_planets(valkey, keys, load):
    pipeline = valkey.pipeline(transaction=False)
    for key in keys:
        pipeline.get(key)
    found = dict(zip(keys, pipeline.execute(), strict=True))
    names = {key: name.decode() for key, name in found.items() if name is not None}
    missing = [key for key in found if key not in names]
    if missing:
        names |= load(missing)
    return [names.get(key) for key in keys]
""",
        praise=(
            "However many keys: one round trip, and at most one query. `RecordCache.get_many` "
            "reads so, too, without a transaction, as the keys of a cluster lie in many slots."
        ),
        needs_workshop=True,
    ),
)
