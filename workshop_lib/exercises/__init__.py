"""The exercises of the notebooks: a check that says what is wrong, staged hints, a solution."""

from __future__ import annotations

import tomllib
from functools import cache

import msgspec

from workshop_lib.course import note_solved
from workshop_lib.errors import WorkshopError
from workshop_lib.exercises import nb02, nb04, nb05, nb06, nb07, nb08, nb09, nb11, nb13
from workshop_lib.exercises.check import Check, Table
from workshop_lib.exercises.engine import Exercise
from workshop_lib.paths import FILES

FOLDER = FILES / "data" / "exercises"
JUDGES = {
    known: judge
    for notebook in (nb02, nb04, nb05, nb06, nb07, nb08, nb09, nb11, nb13)
    for known, judge in notebook.JUDGES.items()
}
"""Checks that need more than their table, by exercise."""


@cache
def all_exercises() -> tuple[Exercise, ...]:
    """All exercises, in the order of the notebooks."""
    found: dict[str, Table] = {}
    for file in sorted(FOLDER.glob("*.toml")):
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        found |= msgspec.convert(content, dict[str, Table])
    return tuple(
        Exercise(known, table, JUDGES.get(known, Check.try_cases), note_solved)
        for known, table in found.items()
    )


def exercise(exercise_id: str) -> Exercise:
    """The exercise with this id: `.check(your_answer)`, `.hint()` or `.solution()`.

    Raises:
        WorkshopError: there is none; the text lists those that exist.

    """
    for known in all_exercises():
        if known.id == exercise_id:
            return known
    listed = "".join(f"\n  {known.id}  {known.table.title}" for known in all_exercises())
    raise WorkshopError(f"There is no exercise {exercise_id!r}. There are:{listed}")
