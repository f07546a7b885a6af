"""The exercises of the notebooks: a check that says what is wrong, staged hints, a solution."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec

import msgspec

from workshop_lib.course import note_solved
from workshop_lib.errors import WorkshopError
from workshop_lib.exercises.check import Check, Table
from workshop_lib.exercises.engine import Exercise
from workshop_lib.paths import FILES

FOLDER = FILES / "data" / "exercises"


@cache
def all_exercises() -> tuple[Exercise, ...]:
    """All exercises, in the order of the notebooks."""
    found: dict[str, Table] = {}
    for file in sorted(FOLDER.glob("*.toml")):
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        found |= msgspec.convert(content, dict[str, Table])
    return tuple(
        Exercise(known, table, partial(_judge, known), note_solved)
        for known, table in found.items()
    )


def judges(notebook: str) -> Mapping[str, Callable[[Check], None]]:
    """A notebook's checks that need more than their table, by exercise.

    On first use: some need a database driver, and a lesson on paper has none.
    """
    name = f"{__name__}.nb{notebook}"
    if find_spec(name) is None:
        return {}
    found: Mapping[str, Callable[[Check], None]] = import_module(name).JUDGES
    return found


def _judge(exercise_id: str, check: Check) -> None:
    judges(exercise_id[:2]).get(exercise_id, Check.try_cases)(check)


def exercise(exercise_id: str) -> Exercise:
    """The exercise with this id: `.check(your_answer)`, `.hint()` or `.solution()`.

    Raises:
        WorkshopError: there is none; the text lists those that exist.

    """
    for known in all_exercises():
        if known.id == exercise_id:
            judges(known.id[:2])  # imported now, not within the time limit of a check
            return known
    listed = "".join(f"\n  {known.id}  {known.table.title}" for known in all_exercises())
    raise WorkshopError(f"There is no exercise {exercise_id!r}. There are:{listed}")
