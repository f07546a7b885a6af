"""Where a learner is in the course: which notebooks were run and which exercises solved."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from workshop_lib.paths import RESULTS, replace_file

FILE = RESULTS / "interactive" / "exercises.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one notebook is.

    Attributes:
        run: whether it has figures of an interactive run.
        solved: exercises that were right once.
        exercises: how many it has.

    """

    run: bool
    solved: int
    exercises: int


def note_solved(exercise_id: str) -> None:
    """Remember that an exercise was right, in a notebook that a person runs; elsewhere do nothing.

    A disk that refuses ends no lesson.
    """
    if "ipykernel" not in sys.modules or "WORKSHOP_RESULT_FILE" in os.environ:
        return
    with contextlib.suppress(OSError):
        FILE.parent.mkdir(parents=True, exist_ok=True)
        replace_file(FILE, json.dumps(sorted({*solved(), exercise_id})))


def solved() -> set[str]:
    """The exercises that were right once; none where the file is missing or damaged."""
    try:
        found = json.loads(FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    return {one for one in found if isinstance(one, str)} if isinstance(found, list) else set()


def progress(notebooks: Iterable[Path]) -> list[Progress]:
    """How far each notebook is, by what its runs and exercises have left."""
    from workshop_lib.exercises import all_exercises  # noqa: PLC0415 -- a notebook's own half second

    done = solved()
    found = []
    for notebook in notebooks:
        number = "" if notebook.parent.name == "more" else notebook.stem[:2]  # more/ has none
        ids = {one.id for one in all_exercises() if one.id.startswith(f"{number}.")}
        run = (FILE.parent / f"{notebook.stem}.json").exists()
        found.append(Progress(run, len(ids & done), len(ids)))
    return found
