"""A request for a run is understood or refused at once; a run leaves results and nothing else."""

import json
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from workshop_lib import namespaces, runner, services
from workshop_lib.dataset import list_objects
from workshop_lib.errors import RunError, WorkshopError
from workshop_lib.paths import RESULTS
from workshop_lib.results import CellError, Result
from workshop_lib.runner import Notebook


def notebook(name: str, **parameters: Any) -> Notebook:
    return Notebook(Path(f"{name}.ipynb"), name, name, parameters, ranges=RANGES)


RANGES = {
    "rows": {"min": 1, "max": 1_000_000},
    "seed": {"min": 0},
    "sizes": {"min": 1, "max": 50},
    "distances": {"min": 0, "max": 0.4, "different": 2},
}
FOUND = [
    notebook("00_check"),
    notebook("01_seed", rows=10, seed=42),
    notebook(
        "02_cache",
        rows=5, ttl=30.0, query="SELECT 1", warm=True, sizes=[1, 2], distances=[0, 0.1],
    ),
]  # fmt: skip


# --- which notebooks ---


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([], ["00_check", "01_seed", "02_cache", "02_again"]),
        (["1"], ["01_seed"]),
        (["02_cache"], ["02_cache"]),
        (["notebooks/02_cache.ipynb"], ["02_cache"]),
        (["02", "00", "02_cache", "2"], ["00_check", "02_cache"]),
        (["02_cache-Copy1"], ["02_cache-Copy1"]),
        (["more/2"], ["02_again"]),
        (["notebooks/more/02_again.ipynb", "02"], ["02_cache", "02_again"]),
    ],
)
def test_a_notebook_is_meant_by_number_name_or_path_and_a_copy_by_its_whole_name(names, chosen):
    beyond = replace(notebook("02_again"), path=Path("notebooks/more/02_again.ipynb"))
    found = [*FOUND, notebook("02_cache-Copy1"), notebook("02_cache (1)"), beyond]
    assert [n.name for n in runner.choose(names, found)] == chosen


@pytest.mark.parametrize("name", ["03", "02_cach", ""])
def test_an_unknown_notebook_is_refused_with_the_known_ones_as_they_are_asked_for(name):
    beyond = replace(notebook("02_again"), path=Path("notebooks/more/02_again.ipynb"))
    with pytest.raises(RunError) as refused:
        runner.choose(["00", name], [*FOUND, beyond])
    listed = "\n  00_check\n  01_seed\n  02_cache\n  more/02_again"
    assert str(refused.value) == f"There is no notebook {name!r}. There are:{listed}"


ODD = [
    nbformat.writes(new_notebook(metadata={"workshop": told})).encode()
    for told in ({"quick": [1]}, {"ranges": {"rows": 5}}, {"minutes": "many"}, [7])
]


@pytest.mark.parametrize("content", [b"", b"<<<<<<< HEAD\n{}", b"null", b"\xff\xfe{", None, *ODD])
def test_a_file_that_is_no_notebook_is_named_and_keeps_no_other_from_being_found(tmp_path, content):
    whole = new_notebook(cells=[new_markdown_cell("# Whole")])
    nbformat.write(whole, tmp_path / "01_whole.ipynb")
    file = tmp_path / "00_broken.ipynb"
    file.mkdir() if content is None else file.write_bytes(content)
    broken, other = runner.find_notebooks(tmp_path)
    assert str(file) in broken.broken
    assert (other.title, other.broken) == ("Whole", "")


def test_the_notebooks_beyond_the_course_are_found_after_those_of_the_course(tmp_path):
    for name in ("more/01_again", "02_last", "01_first", "more/notes"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nbformat.write(new_notebook(), tmp_path / f"{name}.ipynb")
    assert [n.number for n in runner.find_notebooks(tmp_path)] == ["01", "02", "more/01"]


# --- which parameters ---


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("ttl=2.5", 2.5),
        ("ttl=2", 2.0),
        ("warm=true", True),
        ("warm=False", False),
        ("query=SELECT 1 WHERE 'a' = 'b'", "SELECT 1 WHERE 'a' = 'b'"),
        ("query=42", "42"),
        ("rows=1000000", 1_000_000),
        ("sizes=[50]", [50]),
        ("distances=[0,0.4]", [0, 0.4]),
    ],
)
def test_a_value_gets_its_default_s_type(word, value):
    found = runner.parse_parameters([word], FOUND)["02_cache"]
    assert list(found.values()) == [value]
    assert [type(one) for one in found.values()] == [type(value)]


def test_a_value_goes_to_every_notebook_with_that_parameter():
    given = {"00_check": {}, "01_seed": {"rows": 7, "seed": 1}, "02_cache": {"rows": 7}}
    assert runner.parse_parameters(["rows=7", "seed=1"], FOUND) == given


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("rows=many", "rows=many is not possible: Expected `int`, got `str`. Its default is 10."),
        ("rows=[1", "rows=[1 is not possible"),
        ("rows=2026-99-99", "rows=2026-99-99 is not possible"),
        ("warm=often", "Expected `bool`"),
        ("sizes=3", "Expected `array`"),
        ("rows", "'rows' is not of the form NAME=VALUE"),
        ("=5", "'=5' is not of the form NAME=VALUE"),
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
        runner.parse_parameters([word], FOUND)
    assert said in str(refused.value)


def test_a_parameters_cell_that_is_not_all_literals_keeps_what_is(tmp_path):
    mixed = "rows = 10 * 2\nttl = 5\nnothing = None\npair = (1, 2)\nz = 1j\nnested = [[1]]"
    for number, source in enumerate([mixed, "rows = (", "%matplotlib inline"]):
        cell = new_code_cell(source, metadata={"tags": ["parameters"]})
        nbformat.write(new_notebook(cells=[cell]), tmp_path / f"0{number}_x.ipynb")
    found = runner.find_notebooks(tmp_path)
    assert [(n.parameters, n.broken) for n in found] == [({"ttl": 5}, ""), ({}, ""), ({}, "")]


# --- the run as a whole, before it begins ---


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"names": ["99"]}, "no notebook '99'"),
        ({"names": ["00"], "parameters": ["no_such=1"]}, "no_such"),
        ({"out": Path("a file") / "out"}, r"cannot be written.*Choose another with --out"),
        ({"out": runner.NOTEBOOKS}, "the notebooks themselves"),
    ],
)
def test_a_bad_request_is_refused_before_anything_begins(tmp_path, monkeypatch, request_, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    lines: list[str] = []
    with pytest.raises(WorkshopError, match=said):
        runner.run(**{"out": Path("out"), **request_}, say=lines.append, prepare=lines.clear)
    assert lines == []
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


# --- what is said about an outcome ---


def test_a_failure_shows_its_cell_code_and_error_and_what_was_left_behind():
    error = CellError(7, "a = 1\nb = a / 0", "ZeroDivisionError: division by zero")
    left = ["not cleared up after it: no"]
    failed = Result("02_cache", ok=False, seconds=12.34, error=error, left_undone=left)
    assert runner.describe(failed) == (
        f"✗ {'02_cache':<28}   12.3 s\n"
        "  cell 7: ZeroDivisionError: division by zero\n"
        "    | a = 1\n"
        "    | b = a / 0\n"
        "  not cleared up after it: no"
    )
    assert runner.describe(Result("02_cache", seconds=1)) == f"✓ {'02_cache':<28}    1.0 s"


# --- a real run ---


OPEN = (
    "from workshop_lib import QueryCache, open_workshop\n"
    "ws = open_workshop({!r}, needs=['planet'])\n"
    "ws.s3.put_object(Bucket=ws.bucket, Key=f'{{ws.namespace}}/mine', Body=b'x')\n"
    "answers = [QueryCache(ws).fetch('SELECT * FROM planet') for _ in range(2)]\n"
    "ws.record('planets', len(answers[-1]), 'rows', n=2)\n"
)
CELLS = {
    "00_passes": [
        new_markdown_cell("# A notebook that passes"),
        new_code_cell("rows = 3\nwords = 'as given'", metadata={"tags": ["parameters"]}),
        new_code_cell(OPEN.format("00_passes") + "print(words, answers[-1].source, ws.namespace)"),
    ],
    "01_fails": [
        new_code_cell("before = 1"),
        new_markdown_cell("# A notebook that fails"),
        new_code_cell("# the culprit\nbefore / 0"),
        new_code_cell("raise RuntimeError('never reached')"),
    ],
    "02_dies": [
        new_code_cell(OPEN.format("another name")),
        new_code_cell(f"import os\nos.kill(os.getpid(), {signal.SIGKILL:d})"),
    ],
    "04_loads": [new_code_cell("1 + 1")],
}
TOLD = {
    "00_passes": {"quick": {"rows": 2, "words": "quick"}, "minutes": 3},
    "04_loads": {"measures_load": True},
}


KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


@pytest.fixture(scope="module")
def done(shared, tmp_path_factory):
    """Notebooks of which one passes, one fails, and one's kernel is killed, two at a time."""
    folder = tmp_path_factory.mktemp("my notebooks")
    for name, cells in CELLS.items():
        about = {"workshop": TOLD.get(name, {}), "kernelspec": KERNEL}
        nbformat.write(new_notebook(cells=cells, metadata=about), folder / f"{name}.ipynb")
    (folder / "03_broken.ipynb").write_text("this is no notebook at all")
    (folder / "not_numbered.ipynb").write_text("this is no notebook at all")
    outcomes, page = runner.run(
        parameters=["words=a=b"], workers=2, out=folder / "out", notebooks=folder
    )
    results = {f.stem: json.loads(f.read_text("utf-8")) for f in page.parent.glob("*.json")}
    return outcomes, results, page.parent


def test_every_notebook_has_a_result_though_others_failed(done):
    found, results, folder = done
    assert [(one.notebook, one.ok, one.left_undone) for one in found] == [
        ("00_passes", True, []),
        ("01_fails", False, []),
        ("02_dies", False, []),
        ("03_broken", False, []),
        ("04_loads", True, []),
    ]
    assert {one.notebook: one.to_json() for one in found} == results
    _, fails, dies, broken, _ = (one.error for one in found)
    assert (dies.cell, dies.source.splitlines()[0]) == (2, "import os")
    assert "ended from outside" in dies.error
    assert "03_broken.ipynb is not a notebook that can be read" in broken.error
    assert (fails.cell, fails.source) == (3, "# the culprit\nbefore / 0")
    assert fails.error == "ZeroDivisionError: division by zero"
    pages = {page.stem for page in folder.glob("*.html")}
    assert pages == {"00_passes", "01_fails", "04_loads", "index"}


def test_a_result_holds_what_was_recorded_and_how_it_came_about(done):
    _, results, folder = done
    passed = results["00_passes"]
    assert passed["parameters"] == {"rows": 2, "words": "a=b"}
    assert passed["measurements"]["planets"]["value"] == 8
    assert (passed["title"], passed["size"]) == ("A notebook that passes", "quick")
    assert (passed["workers"], passed["error"]) == (2, None)
    assert results["04_loads"]["workers"] == 1  # alone, as it measures under load
    assert passed["services"]["cache"]["version"].startswith("Valkey ")
    executed = nbformat.read(folder / "00_passes.ipynb", as_version=4)
    streams = [o.text for c in executed.cells for o in c.get("outputs", ()) if "text" in o]
    assert streams == [f"a=b cache {passed['namespace']}\n"]


def test_each_has_a_namespace_of_its_own_and_nothing_is_left_there(done, shared):
    namespaces = {done[1][name]["namespace"] for name in ("00_passes", "02_dies")}
    assert len(namespaces) == 2
    for namespace in namespaces:
        assert namespace.startswith("run_")
        named = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
        assert shared.database.query(named, (namespace,)).rows == []
        assert list(shared.valkey.scan_iter(f"{namespace}:*")) == []
        assert list(list_objects(shared.s3, shared.bucket, f"{namespace}/")) == []


def test_a_run_into_a_folder_of_one_s_own_does_not_become_the_latest(done):
    latest = RESULTS / "latest"
    assert not latest.exists() or latest.resolve() != done[2]


def test_what_killed_runs_left_is_deleted_by_the_next_and_nothing_else(ws):
    left = ("run_0123abcd_02", "run_0123abcd_03")
    for name in left:
        ws.database.query(f"CREATE SCHEMA {name}")
        ws.database.query(f"CREATE TABLE {name}.made_by_a_changed_cell (n int)")
    ws.database.query("CREATE SCHEMA runner_of_mine")
    ws.valkey.set("run_0123abcd_02:v3:x", "left", ex=60)
    try:
        assert runner.sweep() == 2
        found = ws.database.query("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'run%%'", ())
        assert found.rows == [("runner_of_mine",)]
        assert ws.valkey.get("run_0123abcd_02:v3:x") is None
    finally:
        ws.database.query("DROP SCHEMA IF EXISTS runner_of_mine")
    assert runner.sweep() == 0


def test_on_servers_of_one_s_own_only_runs_older_than_a_day_are_swept(ws, monkeypatch):
    def on_own_servers(settings):
        found = services.resolve(settings)
        return replace(found, database=replace(found.database, embedded=False))

    monkeypatch.setattr(namespaces, "resolve", on_own_servers)
    old, new = (datetime.now(UTC) - timedelta(hours=hours) for hours in (25, 23))
    old, new = (f"run_{began:%Y%m%d%H%M}_0123abcd_02_0" for began in (old, new))
    left = f"{old}b"  # whose tables are gone already
    for schema in (old, new, "run_of_mine", "run_0123abcd_02"):
        ws.database.query(f"CREATE SCHEMA {schema}")
    for name in (left, new):
        ws.s3.put_object(Bucket=ws.bucket, Key=f"{name}/x", Body=b"")
    try:
        assert namespaces.abandoned_namespaces() == [old, left]
    finally:
        ws.database.query("DROP SCHEMA run_of_mine")
        namespaces.wipe_namespace(old, new, left, "run_0123abcd_02")
