"""A request for a run is understood or refused at once; a run leaves results and nothing else."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from workshop_lib import runner
from workshop_lib.dataset import list_objects
from workshop_lib.errors import RunError
from workshop_lib.runner import CellError, Notebook, Outcome, Range


def notebook(name: str, **parameters: Any) -> Notebook:
    return Notebook(Path(f"{name}.ipynb"), name, name, parameters)


FOUND = [
    notebook("00_check"),
    notebook("01_seed", rows=10, seed=42),
    notebook("02_cache", rows=5, ttl=30.0, query="SELECT 1", warm=True, sizes=[1, 2]),
]


# --- which notebooks ---


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([], ["00_check", "01_seed", "02_cache"]),
        (["1"], ["01_seed"]),
        (["01"], ["01_seed"]),
        (["02_cache"], ["02_cache"]),
        (["02_cache.ipynb"], ["02_cache"]),
        (["notebooks/02_cache.ipynb"], ["02_cache"]),
        (["02", "00"], ["00_check", "02_cache"]),
        (["02", "02_cache", "2"], ["02_cache"]),
    ],
)
def test_a_notebook_is_meant_by_number_name_or_path_and_runs_once_in_order(names, chosen):
    assert [n.name for n in runner.choose(names, FOUND)] == chosen


@pytest.mark.parametrize("name", ["03", "seed", "0_check", "01_seed.py", ""])
def test_an_unknown_notebook_is_refused_with_the_known_ones(name):
    with pytest.raises(RunError) as refused:
        runner.choose(["00", name], FOUND)
    assert str(refused.value) == (
        f"There is no notebook {name!r}. There are:\n  00_check\n  01_seed\n  02_cache"
    )


# --- which parameters ---


def parsed(*words: str) -> dict[str, dict[str, Any]]:
    return runner.parse_parameters(words, FOUND)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("ttl=2.5", 2.5),
        ("ttl=2", 2.0),
        ("warm=true", True),
        ("warm=False", False),
        ("query=SELECT 1 WHERE 'a' = 'b'", "SELECT 1 WHERE 'a' = 'b'"),
        ("query=42", "42"),
        ("query=", ""),
        ("sizes=[3, 4]", [3, 4]),
    ],
)
def test_a_value_gets_its_default_s_type(word, value):
    found = parsed(word)["02_cache"]
    name = word.partition("=")[0]
    assert found == {name: value}
    assert type(found[name]) is type(value)


def test_a_value_goes_to_every_notebook_with_that_parameter():
    assert parsed("rows=7", "seed=1") == {
        "00_check": {},
        "01_seed": {"rows": 7, "seed": 1},
        "02_cache": {"rows": 7},
    }


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("rows=many", "rows takes a whole number, like its default 10; 'many' is not one"),
        ("rows=2.5", "rows takes a whole number"),
        ("rows=True", "rows takes a whole number"),
        ("rows=", "rows takes a whole number"),
        ("rows={[]: 1}", "rows takes a whole number"),
        ("rows=__import__('os')", "rows takes a whole number"),
        ("ttl=soon", "ttl takes a number, like its default 30.0"),
        ("ttl=true", "ttl takes a number"),
        ("warm=1", "warm takes true or false"),
        ("sizes=3", "sizes takes a list"),
        ("rows", "'rows' is not of the form NAME=VALUE"),
        ("=5", "'=5' is not of the form NAME=VALUE"),
    ],
)
def test_a_value_of_another_type_is_refused(word, said):
    with pytest.raises(RunError) as refused:
        parsed(word)
    assert said in str(refused.value)


def test_an_unknown_parameter_is_refused_with_the_known_ones():
    with pytest.raises(RunError) as refused:
        parsed("row=5")
    assert str(refused.value) == (
        "No chosen notebook has a parameter 'row'. They have:\n"
        "  00_check: (none)\n"
        "  01_seed: rows, seed\n"
        "  02_cache: rows, ttl, query, warm, sizes"
    )


def test_a_parameter_of_a_notebook_that_was_not_chosen_is_unknown():
    with pytest.raises(RunError, match="No chosen notebook has a parameter 'ttl'"):
        runner.parse_parameters(["ttl=1"], FOUND[:2])


RANGES = {
    "rows": Range(1, 1_000_000),
    "seed": Range(0),
    "sizes": Range(1, 50),
    "distances": Range(0, 0.4, different=2),
}
RANGED = [
    Notebook(
        Path(),
        "00_ranged",
        "",
        {"rows": 10, "seed": 42, "sizes": [1, 2], "distances": [0, 0.1]},
        ranges=RANGES,
    )
]


@pytest.mark.parametrize(
    "word", ["rows=1000000", "seed=10000000", "sizes=[50]", "distances=[0,0.4]"]
)
def test_a_value_within_its_range_is_taken(word):
    name = word.partition("=")[0]
    assert name in runner.parse_parameters([word], RANGED)["00_ranged"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("rows=0", "rows must be 1 to 1,000,000; 0 is not"),
        ("rows=1000001", "rows must be 1 to 1,000,000"),
        ("seed=-1", "seed must be 0 or more; -1 is not"),
        ("sizes=[1,10,0]", "each value of sizes must be 1 to 50; 0 is not"),
        ("sizes=[1,'2']", "each value of sizes must be 1 to 50; '2' is not"),
        ("sizes=[True]", "each value of sizes must be 1 to 50; True is not"),
        ("sizes=[]", "sizes takes a value or more; [] is too few"),
        ("distances=[0,0.5]", "each value of distances must be 0 to 0.4; 0.5 is not"),
        ("distances=[0.001,0.001]", "distances takes two different values or more"),
    ],
)
def test_a_value_outside_its_range_is_refused(word, said):
    with pytest.raises(RunError) as refused:
        runner.parse_parameters([word], RANGED)
    assert said in str(refused.value)


@pytest.mark.parametrize("notebook", runner.find_notebooks(), ids=lambda found: found.name)
def test_what_a_notebook_runs_with_by_itself_lies_in_its_own_ranges(notebook):
    for name, allowed in notebook.ranges.items():
        allowed.check(name, notebook.parameters[name])
        allowed.check(name, notebook.quick.get(name, notebook.parameters[name]))


# --- requests that cannot be carried out ---


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"size": "huge"}, "The size is 'huge'; it must be one of quick, full"),
        ({"workers": 0}, "workers is 0; it must be at least 1"),
        ({"names": ["99"]}, "There is no notebook '99'"),
        ({"parameters": ["no_such=1"]}, "No chosen notebook has a parameter 'no_such'"),
    ],
)
def test_a_bad_request_is_refused_before_anything_is_made(tmp_path, request_, said):
    lines: list[str] = []
    with pytest.raises(RunError) as refused:
        runner.run(**{"names": ["00"], "out": tmp_path / "out", "say": lines.append, **request_})
    assert said in str(refused.value)
    assert lines == []
    assert not (tmp_path / "out").exists()


def test_a_results_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written.*Choose another with --out"):
        runner.run(["00"], out=tmp_path / "file" / "out", say=lambda _: None)


# --- which begins first ---


class StoppedError(Exception):
    """Raised once it has been said what is going to run."""


@pytest.mark.parametrize(
    ("request_", "processors", "plan"),
    [
        ({}, 2, "6 notebooks, quick size, 2 at a time, then 01, 04 alone"),
        ({}, 64, "6 notebooks, quick size, 2 at a time, then 01, 04 alone"),
        ({}, 1, "6 notebooks, quick size"),
        ({}, None, "6 notebooks, quick size"),
        ({"size": "full"}, 64, "6 notebooks, full size"),
        (
            {"size": "full", "workers": 9},
            1,
            "6 notebooks, full size, 4 at a time, then 01, 04 alone",
        ),
        ({"names": ["00"]}, 2, "1 notebook, quick size"),
        ({"names": ["01", "04"]}, 2, "2 notebooks, quick size"),
    ],
)
def test_two_run_at_a_time_at_quick_size_where_there_are_two_processors(
    monkeypatch, tmp_path, request_, processors, plan
):
    for number in range(6):
        told = {"measures_load": number in {1, 4}}
        content = new_notebook(metadata={"workshop": told})
        nbformat.write(content, tmp_path / f"0{number}_x.ipynb")
    said = []

    def stop(line):
        said.append(line.rpartition(", into ")[0])
        raise StoppedError

    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    with pytest.raises(StoppedError):
        runner.run(out=tmp_path / "out", notebooks=tmp_path, say=stop, **request_)
    assert said == [plan]


# --- what is said about an outcome ---


def test_a_success_is_one_line():
    assert runner.describe(Outcome("02_cache", "Cache", True, 12.34)) == (
        f"✓ {'02_cache':<28}   12.3 s"
    )


def test_a_failure_shows_its_cell_code_and_error():
    error = CellError(7, "a = 1\nb = a / 0", "ZeroDivisionError: division by zero", "…")
    assert runner.describe(Outcome("02_cache", "Cache", False, 1.0, error)) == (
        f"✗ {'02_cache':<28}    1.0 s\n"
        "  cell 7: ZeroDivisionError: division by zero\n"
        "    | a = 1\n"
        "    | b = a / 0"
    )


def test_what_was_left_behind_is_said_even_of_a_success():
    said = runner.describe(Outcome("02_cache", "Cache", True, 1.0, left_behind="no answer"))
    assert said.splitlines()[1] == "  not cleared up after it: no answer"


# --- a real run ---


KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
PASSING = [
    new_markdown_cell("# A notebook that passes"),
    new_code_cell("rows = 3\nwords = 'as given'", metadata={"tags": ["parameters"]}),
    new_code_cell(
        "from workshop_lib import QueryCache, open_workshop\n"
        "ws = open_workshop('00_passes', needs=['planet'])\n"
        "ws.s3.put_object(Bucket=ws.bucket, Key=f'{ws.namespace}/mine', Body=b'x')\n"
        "cache = QueryCache(ws)\n"
        "answers = [cache.fetch('SELECT * FROM planet') for _ in range(rows)]\n"
        "ws.record('planets', len(answers[-1]), 'rows', n=rows)\n"
        "print(words, answers[-1].source)"
    ),
]
FAILING = [
    new_code_cell("before = 1"),
    new_markdown_cell("# A notebook that fails"),
    new_code_cell("# the culprit\nbefore / 0"),
    new_code_cell("raise RuntimeError('never reached')"),
]


@dataclass(frozen=True)
class Run:
    """What came of one run."""

    outcomes: list[Outcome]
    folder: Path
    said: list[str]

    def data(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def done(shared, tmp_path_factory) -> Run:
    """Two notebooks, one of which fails, run with two workers."""
    folder = tmp_path_factory.mktemp("my notebooks")
    said: list[str] = []
    for name, cells, quick in (
        ("00_passes", PASSING, {"rows": 2, "words": "quick"}),
        ("01_fails", FAILING, {}),
    ):
        metadata = {"workshop": {"quick": quick}, "kernelspec": KERNEL}
        content = new_notebook(cells=cells, metadata=metadata)
        nbformat.write(content, folder / f"{name}.ipynb")
    (folder / "not_numbered.ipynb").write_text("this is no notebook at all")
    outcomes, out = runner.run(
        parameters=["words=a=b"],
        workers=2,
        out=folder / "out",
        notebooks=folder,
        say=said.append,
    )
    return Run(outcomes, out, said)


def test_every_notebook_has_an_outcome_in_order_though_one_failed(done):
    assert [(o.name, o.title, o.ok) for o in done.outcomes] == [
        ("00_passes", "A notebook that passes", True),
        ("01_fails", "A notebook that fails", False),
    ]
    assert [o.left_behind for o in done.outcomes] == ["", ""]


def test_a_failure_is_reported_with_its_cell_s_place_code_and_error(done):
    error = done.outcomes[1].error
    assert (error.cell, error.source) == (3, "# the culprit\nbefore / 0")
    assert error.error == "ZeroDivisionError: division by zero"
    assert "\x1b" not in error.traceback
    assert "before / 0" in error.traceback
    assert any("cell 3: ZeroDivisionError" in line for line in done.said)


def test_the_quick_values_hold_where_the_caller_gave_none(done):
    data = done.data("00_passes")
    assert data["parameters"] == {"rows": 2, "words": "a=b"}
    assert data["measurements"]["planets"] == {
        "value": 8, "unit": "rows", "n": 2, "low": None, "high": None,
    }  # fmt: skip


def test_the_results_say_how_each_notebook_went(done):
    passed, failed = done.data("00_passes"), done.data("01_fails")
    assert (passed["ok"], passed["error"], passed["size"]) == (True, None, "quick")
    assert passed["workers"] == failed["workers"] == 2
    assert passed["services"]["cache"]["version"].startswith("Valkey ")
    assert (failed["ok"], failed["error"]["cell"]) == (False, 3)
    assert failed["measurements"] == {}
    went = {name: found.ok for name, found in runner.load_outcomes(done.folder).items()}
    assert went == {"00_passes": True, "01_fails": False}


def test_the_executed_notebooks_are_kept_beside_the_results(done):
    # Beside them there may be a log of what the kernels had to say.
    assert {path.name for path in done.folder.iterdir()} - {"kernels.log"} == {
        "00_passes.ipynb", "00_passes.json", "01_fails.ipynb", "01_fails.json",
    }  # fmt: skip
    executed = nbformat.read(done.folder / "00_passes.ipynb", as_version=4)
    streams = [o.text for c in executed.cells for o in c.get("outputs", ()) if "text" in o]
    assert streams == ["a=b cache\n"]


def test_tables_keys_and_objects_of_a_run_are_gone_after_it(done, shared):
    namespace = done.data("00_passes")["namespace"]
    assert namespace.startswith("run_")
    assert re.search(r"_00_\d+$", namespace)
    schemas = shared.database.query("SELECT 1 FROM pg_namespace WHERE nspname = %s", (namespace,))
    assert schemas.rows == []
    assert list(shared.valkey.scan_iter(f"{namespace}:*")) == []
    assert list(list_objects(shared.s3, shared.bucket, f"{namespace}/")) == []


def test_a_run_into_a_folder_of_one_s_own_does_not_become_the_latest(done):
    latest = runner.RESULTS / "latest"
    assert not latest.exists() or latest.resolve() != done.folder


def test_what_a_killed_run_left_is_deleted_by_the_next_and_nothing_else(ws):
    ws.database.query("CREATE SCHEMA run_0123abcd_02")
    ws.database.query("CREATE SCHEMA runner_of_mine")
    ws.valkey.set("run_0123abcd_02:v2:x", "left", ex=60)
    try:
        assert runner.sweep() == 1
        left = ws.database.query("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'run%%'", ())
        assert left.rows == [("runner_of_mine",)]
        assert ws.valkey.get("run_0123abcd_02:v2:x") is None
    finally:
        ws.database.query("DROP SCHEMA IF EXISTS runner_of_mine")
    assert runner.sweep() == 0


# --- files that are no workshop notebooks ---


def test_a_copy_is_meant_by_its_whole_name_only():
    found = [*FOUND, notebook("02_cache-Copy1"), notebook("02_cache (1)")]
    assert [n.name for n in runner.choose([], found)] == [n.name for n in FOUND]
    assert [n.name for n in runner.choose(["02"], found)] == ["02_cache"]
    assert [n.name for n in runner.choose(["02_cache-Copy1"], found)] == ["02_cache-Copy1"]


@pytest.mark.parametrize(
    "content",
    [b"", b"<<<<<<< HEAD\n{}", b'{"cells": [', b"{}", b"[]", b"null", b"\xff\xfe{", None, "folder"],
)
def test_a_file_that_is_no_notebook_is_named_and_keeps_no_other_from_being_found(tmp_path, content):
    whole = new_notebook(cells=[new_markdown_cell("# Whole")])
    nbformat.write(whole, tmp_path / "01_whole.ipynb")
    file = tmp_path / "00_broken.ipynb"
    if content is None:
        file.symlink_to(tmp_path / "nowhere")
    elif content == "folder":
        file.mkdir()
    else:
        file.write_bytes(content)
    broken, other = runner.find_notebooks(tmp_path)
    assert str(file) in broken.broken
    assert (other.title, other.broken) == ("Whole", "")


def test_a_parameters_cell_that_is_not_all_literals_keeps_what_is(tmp_path):
    for number, source in enumerate(["rows = 10 * 2\nttl = 5", "rows = (", "%matplotlib inline"]):
        cell = new_code_cell(source, metadata={"tags": ["parameters"]})
        nbformat.write(new_notebook(cells=[cell]), tmp_path / f"0{number}_x.ipynb")
    found = runner.find_notebooks(tmp_path)
    assert [(n.parameters, n.broken) for n in found] == [({"ttl": 5}, ""), ({}, ""), ({}, "")]
