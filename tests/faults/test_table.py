"""The table of faults names tests that exist, and all drills that were made for it."""

import re
from pathlib import Path

HERE = Path(__file__).parent
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", (HERE / "README.md").read_text(encoding="utf-8"))
WHOLE = {"test_load.py", "test_runs.py", "test_services.py"}
"""Files in which every test is a drill of the table."""


def drills_of(path):
    return set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))


def test_each_drill_in_the_table_exists():
    assert len(NAMED) > 50
    missing = [
        f"{file}::{name}" for file, name in NAMED if name not in drills_of(HERE.parent / file)
    ]
    assert missing == []


def test_each_drill_that_was_made_for_it_is_in_the_table():
    for file in WHOLE:
        named = {name for place, name in NAMED if place == f"faults/{file}"}
        assert named == drills_of(HERE / file)
