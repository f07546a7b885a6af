"""The exercises of notebook 05: an LRU cache on paper, and the key that each policy evicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from workshop_lib.exercises.engine import Exercise, Wrong, call, function_of, show
from workshop_lib.simulate import replay, shifting_stream, steps, zipf_stream

MOST_TOLD = 12
ROUNDED = 0.005


@dataclass(frozen=True, slots=True)
class Case:
    """A stream of requests, the cache that it is sent to, and the stream in words."""

    stream: list[int]
    capacity: int
    words: str = ""

    @property
    def shown(self) -> str:
        """The call in words."""
        return f"`lru_hit_ratio({self.words or self.stream}, {self.capacity})`"

    @property
    def hits(self) -> int:
        """How many requests find their key."""
        return replay(self.stream, self.capacity, "lru").hits

    def ratio(self, policy: str = "lru", more: int = 0) -> float:
        """The hit ratio; also with another policy, or with room for more keys."""
        capacity = self.capacity + more
        return replay(self.stream, capacity, policy).hit_ratio if capacity else 0.0

    @property
    def story(self) -> str:
        """What an LRU cache does at each request of a short stream."""
        if len(self.stream) > MOST_TOLD:
            return ""
        told = []
        for key, (hit, evicted) in zip(
            self.stream, steps(self.stream, self.capacity, "lru"), strict=True
        ):
            goes = "" if evicted is None else f", {evicted} goes"
            told.append(f"{key} {'hit' if hit else 'miss'}{goes}")
        return f"\nRequest by request: {'; '.join(told)}."


def cases() -> Iterator[Case]:
    """Streams with requests, from the easy to the long."""
    yield Case([1, 2, 1, 3, 1], 2)
    yield Case([0, 0, 1, 2, 1], 2)
    yield Case([1, 2, 2, 1], 2)
    yield Case([4, 4, 7, 7, 7, 4], 1)
    yield Case([3, 1, 2, 3, 4, 1, 3, 2], 3)
    yield Case([5, 6, 5, 7, 6, 5], 10)
    words = "simulate.zipf_stream(3000, 200, 1.0, seed=5)"
    yield Case(zipf_stream(3000, 200, 1.0, seed=5), 20, words)
    words = "simulate.shifting_stream(3000, 200, 1.0, period=500, seed=5)"
    yield Case(shifting_stream(3000, 200, 1.0, period=500, seed=5), 50, words)


NO_REQUESTS = Case([], 3)
NO_HITS = "Without requests there are no hits."


def _ratio_of_mru(case: Case) -> float:
    held: dict[int, None] = {}
    hits = 0
    for key in case.stream:
        if key in held:
            hits += 1
            del held[key]
        elif len(held) == case.capacity:
            held.popitem()
        held[key] = None
    return hits / len(case.stream)


SUSPECTS: dict[str, Callable[[Case], float]] = {
    "This is the number of hits. A ratio is hits by requests.": lambda case: case.hits,
    "This is the share of the misses; the hits are the others.": lambda case: 1 - case.ratio(),
    "This is per cent. A ratio lies between 0 and 1.": lambda case: 100 * case.ratio(),
    (
        "This is FIFO: the key goes that was filled first, however often it was asked for since. "
        "What does your cache do on a hit? It has to make the key the youngest again."
    ): lambda case: case.ratio("fifo"),
    (
        "This is LFU: the key goes that was asked for least often. LRU does not count; it asks "
        "how long ago."
    ): lambda case: case.ratio("lfu"),
    (
        "This is MRU: the key goes that was used last. Look at the other end; an `OrderedDict` "
        "parts with its oldest key by `popitem(last=False)`."
    ): _ratio_of_mru,
    (
        "This is a cache with room for one key more. How many does yours hold after a fill?"
    ): lambda case: case.ratio(more=1),
    (
        "This is a cache with room for one key less. How many does yours hold when it evicts?"
    ): lambda case: case.ratio(more=-1),
    (
        "This is a cache that never evicts. How many keys does yours hold when the stream ends?"
    ): lambda case: case.ratio(more=len(case.stream)),
}
"""What another cache, or another figure of the same cache, would give, and how to tell."""


def check_lru_hit_ratio(answer: object, _: object) -> None:
    """The ratio of an exact LRU cache that begins empty, also without requests."""
    function = function_of(answer, "lru_hit_ratio", "stream", "capacity")
    tried = [(case, _ratio(function, case)) for case in cases()]
    for case, got in tried:
        if not _same(got, case.ratio()):
            raise Wrong(
                f"{case.shown} returned `{show(got)}`; expected: {case.ratio():.4g}, which is "
                f"{case.hits} hits by {len(case.stream)} requests. {_suspicion(tried)}{case.story}"
            )
    got = _ratio(function, NO_REQUESTS)
    if got != 0:
        raise Wrong(f"{NO_REQUESTS.shown} returned `{show(got)}`; expected: 0.0. {NO_HITS}")


def _ratio(function: Callable[..., Any], case: Case) -> float:
    """The answer, which is the same when asked again."""
    got, again = _ask(function, case), _ask(function, case)
    if not _same(got, again):
        raise Wrong(
            f"{case.shown} was called twice and returned `{show(got)}`, then `{show(again)}`. "
            "Expected: the same. The cache begins empty at each call: make it inside of the "
            "function, and not as a default of a parameter."
        )
    return got


def _ask(function: Callable[..., Any], case: Case) -> float:
    given = list(case.stream)
    try:
        got = call(case.shown, function, given, case.capacity)
    except Wrong as wrong:
        if isinstance(wrong.__cause__, ZeroDivisionError) and not case.stream:
            raise Wrong(f"{wrong}. Expected: 0.0. {NO_HITS}") from wrong.__cause__
        raise
    finally:
        if given != case.stream:
            raise Wrong(  # whatever came of it
                f"{case.shown} changed the stream: there were {len(case.stream)} requests, and "
                f"now it is `{show(given)}`. It is the caller's, who may want to replay it with "
                "another capacity: only read it."
            )
    if isinstance(got, bool) or not isinstance(got, int | float) or not math.isfinite(got):
        hint = " Is there a `return`?" if got is None else ""
        raise Wrong(f"{case.shown} returned `{show(got)}`. Expected: a number.{hint}")
    return got


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)


def _suspicion(tried: list[tuple[Case, float]]) -> str:
    """What the answer computes instead, if it does so every time."""
    for advice, value in SUSPECTS.items():
        if all(_same(got, value(case)) for case, got in tried):
            return advice
    if all(abs(got - case.ratio()) <= ROUNDED for case, got in tried):
        return "Do you round? A ratio may have any number of digits."
    return (
        "Go through a short stream by hand. On a hit, the key becomes the one used last; on a "
        "miss in a full cache, the one whose last use is longest ago goes first."
    )


Entry: TypeAlias = dict[str, Any]

WHO_GOES: dict[str, Callable[[Entry], float]] = {
    "lru": lambda entry: -entry["idle"],
    "lfu": lambda entry: entry["uses"],
    "ttl": lambda entry: entry["ttl"],
}
"""Of the candidates, the one with the least of this."""
WORDS = {
    "lru": ("been idle for the longest", "the largest `idle`"),
    "lfu": ("been used least often", "the smallest `uses`"),
    "ttl": ("the least time left", "the smallest `ttl`"),
}
POLICIES = (
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "volatile-lru",
    "volatile-lfu",
    "volatile-ttl",
    "volatile-random",
    "noeviction",
)
DRAWS = 30


class Cache(NamedTuple):
    """What lies in a cache, and in words why that is a case of its own."""

    entries: list[Entry]
    case: str


def _entry(key: str, ttl: float | None, idle: float, uses: int) -> Entry:
    return {"key": key, "ttl": ttl, "idle": idle, "uses": uses}


CACHES = (
    Cache(
        [
            _entry("session", None, 900, 12),
            _entry("report", 5, 60, 9),
            _entry("planet", 900, 2, 80),
            _entry("flag", None, 30, 1),
            _entry("user", 90, 500, 20),
            _entry("search", 300, 40, 3),
        ],
        "",
    ),
    Cache(
        [_entry("session", None, 30, 9), _entry("flag", None, 5, 40), _entry("job", None, 8, 2)],
        "no key has a TTL",
    ),
    Cache(
        [
            _entry("news", 20, 7, 60),
            _entry("stale", 0, 15, 80),
            _entry("user", 10, 9, 5),
            _entry("page", 30, 3, 70),
        ],
        "one key has 0 seconds left",
    ),
    Cache([_entry("planet", 30, 4, 2)], "there is one key"),
    Cache([], "the cache is empty"),
)


def check_key_to_evict(answer: object, _: object) -> None:
    """For each policy and each cache, a key that it evicts, or None."""
    function = function_of(answer, "key_to_evict", "entries", "policy")
    for cache in CACHES:
        for policy in POLICIES:
            for _draw in range(DRAWS if policy.endswith("random") else 1):
                _check_key(policy, cache, _choose(function, policy, cache))


def _candidates(policy: str, entries: list[Entry]) -> list[Entry]:
    if policy == "noeviction":
        return []
    return [e for e in entries if e["ttl"] is not None or policy.startswith("allkeys")]


def _right(policy: str, entries: list[Entry]) -> list[str]:
    """The keys of which the policy evicts any."""
    candidates = _candidates(policy, entries)
    rank = WHO_GOES.get(policy.partition("-")[2])
    if rank and candidates:
        candidates = [min(candidates, key=rank)]
    return [entry["key"] for entry in candidates]


def _choose(function: Callable[..., Any], policy: str, cache: Cache) -> Any:
    try:
        return call(_shown(policy), function, deepcopy(cache.entries), policy)
    except Wrong as wrong:
        advice = ""
        if not _candidates(policy, cache.entries):
            advice = ". Nobody is a candidate here: return None before you choose."
        elif isinstance(wrong.__cause__, TypeError):
            advice = ". A key without a TTL has the `ttl` None, which is not a number: leave such "
            advice += "keys out before you compare."
        raise Wrong(f"{wrong}{advice}{_table(cache)}") from wrong.__cause__


def _check_key(policy: str, cache: Cache, got: object) -> None:
    right = _right(policy, cache.entries)
    if got in right if right else got is None:
        return
    wanted = " or ".join(f"`{key!r}`" for key in right) or "`None`"
    raise Wrong(
        f"{_shown(policy)} returned `{show(got)}`; expected: {wanted}. "
        f"{_why(policy, cache, got)}{_table(cache)}"
    )


def _why(policy: str, cache: Cache, got: object) -> str:
    entries = {entry["key"]: entry for entry in cache.entries}
    if isinstance(got, dict) and got in cache.entries:
        return 'That is the entry. What is asked for is its key, `entry["key"]`.'
    if got is not None and not isinstance(got, str):
        return f"A key is a text, and this is of type `{type(got).__name__}`."
    if got is not None and got not in entries:
        return "There is no such key in the cache."
    if policy == "noeviction":
        return "This policy evicts nothing: when the memory is full, it refuses writes instead."
    if got is None:
        return _why_not_none(policy)
    return _why_another(policy, entries[got], cache)


def _why_not_none(policy: str) -> str:
    who = "volatile" if policy.startswith("volatile") else "allkeys"
    candidates = {"volatile": "keys with a TTL, and each of them", "allkeys": "keys, and each"}
    return f"There are {candidates[who]} is a candidate. Is there a `return` on this way?"


def _why_another(policy: str, got: Entry, cache: Cache) -> str:
    candidates = _candidates(policy, cache.entries)
    rule = policy.partition("-")[2]
    if not candidates:
        return (
            "No key has a TTL, so under a volatile policy nobody is a candidate: nothing is "
            "evicted, and writes are refused, as with noeviction."
        )
    if got not in candidates:
        return f"`{got['key']}` has no TTL: a volatile policy looks only at keys that have one."
    if got["key"] in _right(policy, [entry for entry in cache.entries if entry["ttl"] != 0]):
        return "0 seconds left are a TTL, too: ask `is not None`, not whether it is true."
    for other in POLICIES:
        if _right(other, cache.entries) == [got["key"]]:
            return f"Yours is what {other} evicts. {_say_rule(policy)}"
    if got == max(candidates, key=WHO_GOES[rule]):
        return f"Yours is at the other end. {_say_rule(policy)}"
    return _say_rule(policy)


def _say_rule(policy: str) -> str:
    who, _, rule = policy.partition("-")
    candidates = {"volatile": "the keys that have a TTL", "allkeys": "all keys, TTL or not"}
    has, field = WORDS[rule]
    return f"Of {candidates[who]}, the one goes that has {has}: {field}."


def _shown(policy: str) -> str:
    return f"`key_to_evict(entries, {policy!r})`"


def _table(cache: Cache) -> str:
    case = f", where {cache.case}" if cache.case else ""
    lines = "".join(f"\n`{entry}`" for entry in cache.entries)
    return f"\nThe entries{case}:{lines or ' none.'}"


EXERCISES = (
    Exercise(
        id="05.1",
        title="An LRU cache on paper",
        answer_name="lru_hit_ratio",
        judge=check_lru_hit_ratio,
        hints=(
            (
                "Take a sheet of paper and the stream `[1, 2, 1, 3, 1]` with room for 2 keys. "
                "Write the keys in a row, the one used last at the right. What happens to the row "
                "on a hit, and what on a miss when it is full?"
            ),
            (
                "A dict remembers in which order its keys came. `collections.OrderedDict` can do "
                "more: `move_to_end(key)` makes a key the last, and `popitem(last=False)` takes "
                "the first away."
            ),
            (
                "For each key: if it is in the row, count a hit, and move it to the end. If not, "
                "and `len(row) == capacity`, take the first away; then put the key at the end. "
                "The ratio is `hits / len(stream)`, and 0.0 if the stream is empty."
            ),
        ),
        solution_source="""\
from collections import OrderedDict


def lru_hit_ratio(stream, capacity):
    held, hits = OrderedDict(), 0  # the one used last is at the end
    for key in stream:
        if key in held:
            hits += 1
            held.move_to_end(key)
            continue
        if len(held) == capacity:
            held.popitem(last=False)
        held[key] = None
    return hits / len(stream) if stream else 0.0
""",
        praise=(
            "Hits and fills both make a key the youngest, and the oldest goes. Valkey saves itself "
            "the row: it draws five keys and evicts the most idle, which comes close. Replay a "
            "stream of your own with several capacities: where does the curve level off?"
        ),
    ),
    Exercise(
        id="05.2",
        title="Which key goes?",
        answer_name="key_to_evict",
        judge=check_key_to_evict,
        hints=(
            (
                "Take the name of a policy apart. What does the part before the dash say about a "
                "key, and what the part behind it? Which name has no dash?"
            ),
            (
                "Choose in two steps. First the candidates: for `volatile-` the entries whose "
                '`entry["ttl"] is not None`, for `allkeys-` all. If there are none, return None. '
                "Then the one of them that goes."
            ),
            (
                '`min(candidates, key=lambda entry: entry["uses"])` is the entry with the fewest '
                'uses. Idle for the longest is `max` by `entry["idle"]`, next to expire is `min` '
                'by `entry["ttl"]`, and any of them is `random.choice(candidates)`. Return its '
                '`["key"]`.'
            ),
        ),
        solution_source="""\
import random


def key_to_evict(entries, policy):
    who, _, rule = policy.partition("-")
    if who == "volatile":
        entries = [entry for entry in entries if entry["ttl"] is not None]
    if who == "noeviction" or not entries:
        return None
    if rule == "random":
        return random.choice(entries)["key"]
    if rule == "lru":
        return max(entries, key=lambda entry: entry["idle"])["key"]
    field = {"lfu": "uses", "ttl": "ttl"}[rule]
    return min(entries, key=lambda entry: entry[field])["key"]
""",
        praise=(
            "First who is a candidate, then who of them goes. Where nobody is, a volatile policy "
            "is noeviction: the `OOM` that you saw. So give every key of a cache a TTL."
        ),
    ),
)
