"""Notebooks are found, chosen and given values; what makes no sense is refused by name."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from workshop_lib.errors import RunError
from workshop_lib.notebooks import Notebook, choose, find_notebooks, parse_parameters

RANGES = {
    "rows": {"min": 1, "max": 1_000_000},
    "sizes": {"min": 1, "max": 50},
    "distances": {"min": 0, "max": 0.4, "different": 2},
}


def notebook(name: str, **parameters: Any) -> Notebook:
    quick = {"rows": 2} if "rows" in parameters else {}
    return Notebook(Path(f"notebooks/{name}.ipynb"), name, parameters, quick=quick, ranges=RANGES)


FOUND = [
    notebook("00_check"),
    notebook("01_seed", rows=10, seed=42),
    notebook(
        "02_cache",
        rows=5, ttl=30.0, query="SELECT 1", warm=True, sizes=[1, 2], distances=[0, 0.1],
    ),
    notebook("more/02_again"),
]  # fmt: skip
COPIES = [notebook("02_cache-Copy1"), notebook("02_cache (1)")]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([], ["00_check", "01_seed", "02_cache", "02_again"]),
        (["1"], ["01_seed"]),
        (["02", "00", "02_cache", "2"], ["00_check", "02_cache"]),
        (["02_cache-Copy1"], ["02_cache-Copy1"]),
        (["more/2"], ["02_again"]),
        (["notebooks/more/02_again.ipynb", "notebooks/02_cache.ipynb"], ["02_cache", "02_again"]),
    ],
)
def test_a_notebook_is_meant_by_number_name_or_path_and_a_copy_by_its_whole_name(names, chosen):
    assert [one.name for one in choose(names, [*FOUND, *COPIES])] == chosen


@pytest.mark.parametrize("name", ["03", "02_cach", ""])
def test_an_unknown_notebook_is_refused_with_the_known_ones(name):
    with pytest.raises(RunError) as refused:
        choose(["00", name], FOUND)
    listed = "\n  00_check\n  01_seed\n  02_cache\n  more/02_again"
    assert str(refused.value) == f"There is no notebook {name!r}. There are:{listed}"


def test_where_no_notebooks_are_it_is_said_where_they_come_from():
    with pytest.raises(RunError, match="`workshop lab` copies them"):
        choose([], [])


ODD = [
    nbformat.writes(new_notebook(metadata={"workshop": told})).encode()
    for told in ({"quick": [1]}, {"ranges": {"rows": 5}}, [7])
]


@pytest.mark.parametrize("content", [b"", b"<<<<<<< HEAD\n{}", b"null", b"\xff\xfe{", None, *ODD])
def test_a_file_that_is_no_notebook_is_named_and_keeps_no_other_from_being_found(tmp_path, content):
    whole = new_notebook(cells=[new_markdown_cell("# Whole")])
    nbformat.write(whole, tmp_path / "01_whole.ipynb")
    file = tmp_path / "00_broken.ipynb"
    file.mkdir() if content is None else file.write_bytes(content)
    broken, other = find_notebooks(tmp_path)
    assert str(file) in broken.broken
    assert (other.title, other.broken) == ("Whole", "")


def test_the_notebooks_beyond_the_course_are_found_after_those_of_the_course(tmp_path):
    for name in ("more/01_again", "02_last", "01_first", "more/notes"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nbformat.write(new_notebook(), tmp_path / f"{name}.ipynb")
    assert [n.number for n in find_notebooks(tmp_path)] == ["01", "02", "more/01"]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("ttl=2", 2.0),
        ("warm=False", False),
        ("query=SELECT 1 WHERE 'a' = 'b'", "SELECT 1 WHERE 'a' = 'b'"),
        ("query=42", "42"),
        ("rows=1000000", 1_000_000),
        ("sizes=[50]", [50]),
        ("distances=[0,0.4]", [0, 0.4]),
    ],
)
def test_a_value_gets_its_default_s_type(word, value):
    found = parse_parameters([word], FOUND)["02_cache"]
    assert list(found.values()) == [value]
    assert [type(one) for one in found.values()] == [type(value)]


def test_a_value_goes_to_every_notebook_with_that_parameter_and_wins_over_that_of_the_size():
    chosen = FOUND[:3]
    quick = {"00_check": {}, "01_seed": {"rows": 2}, "02_cache": {"rows": 2}}
    assert parse_parameters([], chosen, "quick") == quick
    given = {"00_check": {}, "01_seed": {"rows": 7, "seed": 1}, "02_cache": {"rows": 7}}
    assert parse_parameters(["rows=7", "seed=1"], chosen, "quick") == given


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("rows=many", "rows=many is not possible: Expected `int`, got `str`. Its default is 10."),
        ("rows=[1", "rows=[1 is not possible"),
        ("rows=2026-99-99", "rows=2026-99-99 is not possible"),
        ("warm=often", "Expected `bool`"),
        ("sizes=3", "Expected `array`"),
        ("rows", "'rows' is not of the form NAME=VALUE"),
        ("rows=0", "Expected `int` >= 1"),
        ("rows=1000001", "Expected `int` <= 1000000"),
        ("sizes=[1,two]", "Expected `int`, got `str`"),
        ("sizes=[]", "Expected 1 or more different values"),
        ("distances=[0.1,0.1]", "Expected 2 or more different values"),
        ("distances=[0,0.5]", "Expected `float` <= 0.4"),
        ("distances=[0,.nan]", "Expected `float`"),
        ("no_such=1", "parameter 'no_such'. They have:\n  00_check: \n  01_seed: rows, seed\n"),
    ],
)
def test_a_value_of_another_type_or_outside_its_range_is_refused(word, said):
    with pytest.raises(RunError) as refused:
        parse_parameters([word], FOUND)
    assert said in str(refused.value)


def test_a_parameters_cell_that_is_not_all_literals_keeps_what_is(tmp_path):
    mixed = "rows = 10 * 2\nttl = 5\nnothing = None\npair = (1, 2)\nz = 1j\nnested = [[1]]"
    for number, source in enumerate([mixed, "rows = (", "%matplotlib inline"]):
        cell = new_code_cell(source, metadata={"tags": ["parameters"]})
        nbformat.write(new_notebook(cells=[cell]), tmp_path / f"0{number}_x.ipynb")
    found = find_notebooks(tmp_path)
    assert [(n.parameters, n.broken) for n in found] == [({"ttl": 5}, ""), ({}, ""), ({}, "")]
