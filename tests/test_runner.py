"""A run leaves a result of each notebook, whatever happens to others, and nothing else."""

import json
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from workshop_lib import namespaces, runner, services
from workshop_lib.dataset import list_objects
from workshop_lib.errors import WorkshopError
from workshop_lib.paths import RESULTS


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"names": ["99"]}, "no notebook '99'"),
        ({"names": ["00"], "parameters": ["no_such=1"]}, "no_such"),
        ({"out": Path("a file") / "out"}, r"cannot be written.*Choose another with --out"),
        ({"out": runner.NOTEBOOKS}, "has the notebooks in it"),
    ],
)
def test_a_bad_request_is_refused_before_anything_begins(tmp_path, monkeypatch, request_, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(tmp_path / "engines"))
    with pytest.raises(WorkshopError, match=said):
        runner.run(**{"out": Path("out"), **request_}, say=pytest.fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


OPEN = (
    "from workshop_lib import QueryCache, open_workshop\n"
    "ws = open_workshop({!r}, needs=['planet'])\n"
    "ws.s3.put_object(Bucket=ws.bucket, Key=f'{{ws.namespace}}/mine', Body=b'x')\n"
    "answers = [QueryCache(ws).fetch('SELECT * FROM planet') for _ in range(2)]\n"
    "ws.record('planets', len(answers[-1]), 'rows', n=2)\n"
)
START_CHILD = """
import os, subprocess, sys
wait = "import time; print(flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", wait], stdout=subprocess.PIPE)
child.stdout.readline()
os.write(2, f"child {child.pid}".encode())
"""
CELLS = {
    "00_passes": [
        new_markdown_cell("# A notebook that passes"),
        new_code_cell("rows = 3\nwords = 'as given'", metadata={"tags": ["parameters"]}),
        new_code_cell(OPEN.format("00_passes") + "print(words, answers[-1].source, ws.namespace)"),
        new_code_cell(START_CHILD),
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
    said = "  cell 3: ZeroDivisionError: division by zero\n    | # the culprit\n    | before / 0"
    assert said in runner.describe(found[1])
    pages = {page.stem for page in folder.glob("*.html")}
    assert pages == {"00_passes", "01_fails", "04_loads", "index"}
    assert (RESULTS / "latest").resolve() != folder  # which is not below results/


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


def test_the_kernels_log_has_what_they_wrote_and_no_word_of_their_end(done):
    written = (done[2] / "kernels.log").read_text()
    name, pid = written.split()
    assert (name, psutil.pid_exists(int(pid))) == ("child", False)


def test_what_killed_runs_left_is_deleted_by_the_next_and_nothing_else(ws):
    left = [f"{namespaces.new_run()}_{n}" for n in range(2)]
    for name in left:
        ws.database.query(f"CREATE SCHEMA {name}")
        ws.database.query(f"CREATE TABLE {name}.made_by_a_changed_cell (n int)")
    ws.database.query("CREATE SCHEMA runner_of_mine")
    ws.valkey.set(f"{left[0]}:v3:x", "left", ex=60)
    try:
        assert runner.sweep() == 2
        found = ws.database.query("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'run%%'", ())
        assert found.rows == [("runner_of_mine",)]
        assert ws.valkey.get(f"{left[0]}:v3:x") is None
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
    for schema in (old, new, "run_of_mine"):
        ws.database.query(f"CREATE SCHEMA {schema}")
    for name in (left, new):
        ws.s3.put_object(Bucket=ws.bucket, Key=f"{name}/x", Body=b"")
    try:
        assert namespaces.abandoned_namespaces() == [old, left]
    finally:
        ws.database.query("DROP SCHEMA run_of_mine")
        namespaces.wipe_namespace(old, new, left)
