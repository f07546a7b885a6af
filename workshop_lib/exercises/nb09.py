"""The exercises of notebook 09: renew by ETag, and choose which objects to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from workshop_lib.exercises.engine import Exercise, Wrong, call, function_of, show
from workshop_lib.simulate import zipf_stream

TTL = 10


class ScriptedStore:
    """A store of two calls that notes what it is asked.

    Attributes:
        asked: since `forget`, each call in words.

    """

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.asked: list[str] = []

    def get(self, name: str) -> tuple[bytes, str]:
        """The object's body and its ETag."""
        self.asked.append(f"get({name!r})")
        return self.bodies[name], etag(self.bodies[name])

    def get_if_changed(self, name: str, known: str) -> tuple[bytes, str] | None:
        """As `get`; None if the object still has this ETag."""
        self.asked.append(f"get_if_changed({name!r}, {known!r})")
        body = self.bodies[name]
        return None if known == etag(body) else (body, etag(body))


def etag(body: bytes) -> str:
    """What names this content."""
    return f'"{len(body)}-{sum(body)}"'


class Visit:
    """One `kept` and one store, asked at one time after another."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.store = ScriptedStore()
        self.kept: dict[str, Any] = {}

    def at(self, now: float, name: str, asked: list[str], when: str) -> None:
        """Ask for an object: the body is right, and the store was asked exactly this."""
        self.store.asked.clear()
        shown = f"`fetch(kept, store, {name!r}, now={now}, ttl={TTL})`"
        got = call(f"{when}: {shown}", self.function, self.kept, self.store, name, now, TTL)
        expected = self.store.bodies[name]
        if asked == self.store.asked and got != expected:
            hint = " Is there a `return` on this way?" if got is None else ""
            raise Wrong(
                f"{when}: {shown} returned `{show(got)}`; expected: `{show(expected)}`.{hint}"
            )
        if asked != self.store.asked:
            raise Wrong(
                f"{when}: {shown} asked the store: {_list(self.store.asked)}. Expected: "
                f"{_list(asked)}."
            )
        if got != expected:
            raise Wrong(f"{when}: {shown} returned `{show(got)}`; expected: `{show(expected)}`.")


def _list(calls: Iterable[str]) -> str:
    return ", ".join(f"`{one}`" for one in calls) or "nothing"


def check_fetch(answer: object, _: object) -> None:
    """Ask nothing while fresh, whether it changed when not, and note the new end either way."""
    function = function_of(answer, "fetch", "kept", "store", "name", "now", "ttl")
    visit = Visit(function)
    first, second, other = b"the first", b"the second one", b"another object"
    visit.store.bodies = {"a": first, "b": other, "empty": b""}
    visit.at(100, "a", ["get('a')"], "At first nothing is kept")
    visit.at(100, "a", [], "At once after that")
    visit.at(109.9, "a", [], "Before its TTL ends")
    visit.at(105, "b", ["get('b')"], "Another object is asked for")
    known = f"get_if_changed('a', {etag(first)!r})"
    visit.at(110, "a", [known], "When its TTL has ended (now = the end)")
    visit.at(119, "a", [], "After a renewal the TTL starts anew")
    visit.store.bodies["a"] = second
    visit.at(119.5, "b", [f"get_if_changed('b', {etag(other)!r})"],
             "The other object's TTL has ended")  # fmt: skip
    visit.at(121, "a", [known], "Its TTL has ended again, and the object has changed")
    visit.at(122, "a", [], "The new content is kept")
    visit.at(131, "a", [f"get_if_changed('a', {etag(second)!r})"], "And is renewed by its own ETag")
    visit.at(140, "empty", ["get('empty')"], "An empty object is asked for")
    visit.at(141, "empty", [], "An empty object is an object, and kept")
    visit.at(151, "empty", [f"get_if_changed('empty', {etag(b'')!r})"], "Its TTL has ended")


Thing = tuple[str, int, int]


def shelf(seed: int, count: int) -> list[Thing]:
    """Objects of many sizes, of which some are asked for often."""
    requests = [0] * count
    for number in zipf_stream(2_000, count, 0.8, seed=seed):
        requests[number] += 1
    return [(f"object-{n}", 1 + (n * 7_919 + seed * 31) % 400, requests[n]) for n in range(count)]


TRIES: list[tuple[list[Thing], int]] = [
    ([("a", 12, 5), ("b", 10, 50), ("c", 9, 20)], 22),
    ([("film", 900, 60), ("logo", 10, 50), ("style", 20, 40), ("icon", 5, 10)], 900),
    ([("a", 60, 60), ("b", 50, 40), ("c", 30, 20), ("d", 10, 5)], 100),
    ([("a", 200, 10)], 100),
    ([], 100),
    (shelf(1, 40), 1_000),
    (shelf(2, 200), 5_000),
]


def by_density(things: Iterable[Thing], room: int) -> set[str]:
    """Those with most requests a byte first, each if it still fits."""
    chosen = set()
    for name, size, requests in sorted(things, key=lambda t: t[2] / t[1], reverse=True):
        if size <= room and requests:
            chosen.add(name)
            room -= size
    return chosen


def check_choose(answer: object, _: object) -> None:
    """What is chosen fits, and hits at least as often as the best by requests a byte."""
    function = function_of(answer, "choose", "objects", "room")
    for things, room in TRIES:
        shown = f"{things}" if len(things) <= 4 else f"{len(things)} objects"
        shown = f"`choose({shown}, {room})`"
        got = call(shown, function, list(things), room)
        if isinstance(got, str) or not isinstance(got, set | frozenset | list | tuple):
            raise Wrong(f"{shown} returned `{show(got)}`. Expected: a set of names.")
        _judge(things, room, list(got), shown)


def _judge(things: list[Thing], room: int, got: list[Any], shown: str) -> None:
    known = {name: (size, requests) for name, size, requests in things}
    strange = [name for name in got if name not in known]
    if strange or len(set(got)) < len(got):
        what = f"`{show(strange[0])}`, which is none of the names" if strange else "a name twice"
        raise Wrong(f"{shown} returned {what}. Expected: a set of names, such as `{{'a', 'b'}}`.")
    size = sum(known[name][0] for name in got)
    if size > room:
        raise Wrong(
            f"{shown} chose {size:,} bytes for a room of {room:,}. Take an object only if it fits "
            "into what is left."
        )
    hits = sum(known[name][1] for name in got)
    best = by_density(things, room)
    wanted = sum(known[name][1] for name in best)
    if hits < wanted:
        total = sum(requests for _, _, requests in things)
        raise Wrong(
            f"{shown} chose objects with {hits} of {total} requests. With {wanted} it can be done"
            f"{'' if len(things) > 4 else f': {sorted(best)}'}. {_suspect(things, room, set(got))}"
        )


def _suspect(things: list[Thing], room: int, got: set[Any]) -> str:
    orders: dict[str, Callable[[Thing], float]] = {
        "This takes those with most requests first: one large object may push out many small "
        "ones. Count requests *a byte*.": lambda t: -t[2],
        "This takes the smallest first, whether they are wanted or not.": lambda t: t[1],
        "This takes the largest first.": lambda t: -t[1],
    }
    for words, order in orders.items():
        left, taken = room, set()
        for name, size, _ in sorted(things, key=order):
            if size <= left:
                taken.add(name)
                left -= size
        if taken == got:
            return words
    return (
        "Take those with most requests a byte first; and if one does not fit any more, a smaller "
        "one further on may."
    )


EXERCISES = (
    Exercise(
        id="09.1",
        title="Renew, and do not read again",
        answer_name="fetch",
        judge=check_fetch,
        hints=(
            (
                "Three cases: nothing is kept; something is kept and `now` is before its end; "
                "something is kept and its end has come. What is asked of the store in each?"
            ),
            (
                "`kept.get(name)` is None or what you put there, such as `(body, etag, end)`. In "
                "the third case `store.get_if_changed(name, etag)` is None if the body you have is "
                "still right."
            ),
            (
                "In the second and the third case as well as in the first, what you return has to "
                "be the body; and whenever the store was asked, note `now + ttl` as the new end."
            ),
        ),
        solution_source="""\
def fetch(kept, store, name, now, ttl):
    known = kept.get(name)
    if known is None:
        body, etag = store.get(name)
    else:
        body, etag, end = known
        if now < end:
            return body
        changed = store.get_if_changed(name, etag)
        if changed is not None:
            body, etag = changed
    kept[name] = (body, etag, now + ttl)
    return body
""",
        praise=(
            "While the TTL lasts nobody is asked; after it one short question, and the body "
            "travels only if it is another. HTTP caches and browsers do the same with "
            "`If-None-Match`, and `ObjectCache` does with `keep_seconds`."
        ),
    ),
    Exercise(
        id="09.2",
        title="Which objects to keep?",
        answer_name="choose",
        judge=check_choose,
        hints=(
            (
                "An object of 900 bytes with 60 requests, or three of 10 bytes with 50 each: what "
                "do you get for a byte?"
            ),
            (
                "Sort by requests divided by size, the most first: "
                "`sorted(objects, key=lambda o: o[2] / o[1], reverse=True)`. Then take what fits."
            ),
            "If one does not fit, go on with the next: it may be smaller.",
        ),
        solution_source="""\
def choose(objects, room):
    chosen = set()
    for name, size, requests in sorted(objects, key=lambda o: o[2] / o[1], reverse=True):
        if size <= room and requests:
            chosen.add(name)
            room -= size
    return chosen
""",
        praise=(
            "Requests a byte: that is why small and hot objects belong in a cache, and large "
            "ones rarely. It is the greedy answer to the knapsack problem, and near the best. "
            "`max_bytes` is the same idea, made simple."
        ),
    ),
)
