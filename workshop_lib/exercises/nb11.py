"""Notebook 11: a store that notes what it is asked, and objects to choose from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from workshop_lib.exercises.check import Check
from workshop_lib.simulate import zipf_stream

Objects: TypeAlias = list[tuple[str, int, int]]
"""Name, size in bytes, and requests of each."""


class FakeStore:
    """Objects in a dict, and each call in words."""

    def __init__(self) -> None:
        self.bodies = {"a": b"the first", "b": b"another object", "empty": b""}
        self.asked: list[str] = []

    def get(self, name: str) -> tuple[bytes, str]:
        """The object's body and its ETag."""
        self.asked.append(f"`get({name!r})`")
        return self._found(name)

    def get_if_changed(self, name: str, known: str) -> tuple[bytes, str] | None:
        """As `get`; None if the object still has this ETag."""
        self.asked.append(f"`get_if_changed({name!r}, {known!r})`")
        return None if known == self._found(name)[1] else self._found(name)

    def _found(self, name: str) -> tuple[bytes, str]:
        body = self.bodies[name]
        return body, f'"{len(body)}-{sum(body)}"'


def fetch(check: Check) -> None:
    """Ask nothing while fresh, whether it changed when not, and note the new end either way."""
    kept: dict[str, Any] = {}
    right_kept: dict[str, Any] = {}
    store, right_store = FakeStore(), FakeStore()
    for call, when, *changed in check.table.cases:
        for one in (store, right_store):
            one.bodies |= dict.fromkeys(changed, b"the second one")
            one.asked = []
        right = check.solution(*check.arguments(call, kept=right_kept, store=right_store))
        arguments = check.arguments(call, kept=kept, store=store)
        got = check.call(*arguments, shown=f"{when}: `{call}`")
        asked, wanted = (", ".join(one.asked) or "nothing" for one in (store, right_store))
        check.judge("asked", got=got, expected=right, asked=asked, wanted=wanted)


def shelf(seed: int, count: int) -> Objects:
    """Objects of many sizes, of which some are asked for often, and each at least once."""
    stream = [*range(count), *zipf_stream(2_000, count, 0.8, seed=seed)]
    sizes = [1 + (n * 7_919 + seed * 31) % 400 for n in range(count)]
    return [(f"object-{n}", size, stream.count(n)) for n, size in enumerate(sizes)]


def strangers(objects: Objects, chosen: Iterable[object]) -> list[object]:
    """What was chosen and is no name of an object."""
    names = [name for name, _, _ in objects]
    return [one for one in chosen if one not in names]


def size(objects: Objects, chosen: Iterable[object]) -> int:
    """The bytes of what was chosen."""
    return sum(size for name, size, _ in objects if name in list(chosen))


def requests(objects: Objects, chosen: Iterable[object]) -> int:
    """How often what was chosen is asked for."""
    return sum(requests for name, _, requests in objects if name in list(chosen))


JUDGES = {"11.2": fetch}
