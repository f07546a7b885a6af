"""The minutes that a notebook names are those that its words, code, pictures and exercises take.

They are worked out, not timed with people: nobody has been watched. The rates are assumptions,
and the same for all notebooks; what a run takes is measured (`run_seconds` in its metadata).
"""

from __future__ import annotations

import ast
import re

import nbformat
import pytest

from tests.notebooks.sections import sections
from workshop_lib.runner import NOTEBOOKS

WORDS_A_MINUTE = 200  # Brysbaert 2019 finds 238 for English non-fiction; this is technical
LINES_A_MINUTE = 20  # read, not reviewed: most lines are calls with names that say what they do
MINUTES_A_PICTURE = 0.5
MINUTES_A_GUESS = 0.25
MINUTES_AN_EXERCISE = 5
MOST_MINUTES = 240
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
BOOKS = {path.stem: nbformat.read(path, as_version=4) for path in PATHS}


def minutes(section):
    prose, code = "\n".join(section.prose), "\n".join(section.shown)
    words = len(re.findall(r"[A-Za-z0-9']+", prose))
    return (
        words / WORDS_A_MINUTE
        + lines_to_read(code) / LINES_A_MINUTE
        + len(re.findall(r"\*\*[^*]+\?[^*]*\*\*", prose)) * MINUTES_A_GUESS
        + code.count("plots.show(") * MINUTES_A_PICTURE
        + code.count(").check(") * MINUTES_AN_EXERCISE
    )


def lines_to_read(code):
    body = [s for s in ast.parse(code).body if not isinstance(s, ast.Import | ast.ImportFrom)]
    return sum(s.end_lineno - s.lineno + 1 for s in body)


def worked_out(notebook):
    read = {True: 0.0, False: 0.0}
    for section in sections(notebook):
        read[section.optional] += minutes(section)
    return read[False] + notebook.metadata.workshop.run_seconds / 60, read[True]


@pytest.fixture(params=BOOKS.values(), ids=BOOKS)
def notebook(request):
    return request.param


def test_the_minutes_are_near_what_its_parts_take(notebook):
    needed, optional = worked_out(notebook)
    told = notebook.metadata.workshop
    assert told.minutes == pytest.approx(needed, abs=max(1.5, 0.1 * needed))
    assert told.optional_minutes == pytest.approx(optional, abs=max(1.5, 0.15 * optional))


def test_what_is_not_optional_takes_four_hours_at_most():
    assert sum(notebook.metadata.workshop.minutes for notebook in BOOKS.values()) <= MOST_MINUTES


def test_of_two_exercises_one_is_for_everybody(notebook):
    checks = dict.fromkeys((True, False), 0)
    for section in sections(notebook):
        checks[section.optional] += "\n".join(section.code).count(").check(")
    assert checks[False] == (sum(checks.values()) == 2)
