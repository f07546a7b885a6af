"""Runs of notebooks that are interrupted or killed."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from workshop_lib import runner
from workshop_lib.results import read_run
from workshop_lib.services.processes import wait_until

SOON_S = 60.0
OPEN = """
    from pathlib import Path
    from workshop_lib import QueryCache, open_workshop
    ws = open_workshop("00_waits", needs=["planet"])
    QueryCache(ws).fetch("SELECT * FROM planet")
    Path("mark").write_text(ws.namespace)
"""
RUN = """
    import signal, sys
    from pathlib import Path
    from workshop_lib import runner
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command does
    runner.run(notebooks=Path(sys.argv[1]), out=Path(sys.argv[1]) / "out")
"""


def there_is(ws, namespace):
    schema = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
    return bool(
        ws.database.query(schema, (namespace,)).rows or list(ws.valkey.scan_iter(f"{namespace}:*"))
    )


class Waiting:
    """A run of one notebook that has opened the workshop, and goes on for ever."""

    def __init__(self, folder, cell):
        folder.mkdir()
        cells = [new_code_cell(textwrap.dedent(OPEN)), new_code_cell(cell)]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        content = new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(content, folder / "00_waits.ipynb")
        self.mark = folder / "mark"
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RUN), str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.below = []

    def namespace(self):
        """Its name, once it is in use."""
        assert wait_until(lambda: self.mark.exists() and self.mark.read_text(), SOON_S)
        self.below = psutil.Process(self.process.pid).children(recursive=True)
        return self.mark.read_text()

    def has_ended(self):
        """Whether it ends soon, and all of its processes with it."""
        self.process.wait(SOON_S)
        return wait_until(lambda: not any(p.is_running() for p in self.below), SOON_S)


@pytest.fixture
def start():
    """Starts runs, and ends those that a test did not end."""
    runs = []

    def start(folder, cell):
        runs.append(Waiting(folder, cell))
        return runs[-1]

    yield start
    for run in runs:
        for process in (*run.below, run.process):
            if process in run.below and not process.is_running():
                continue
            process.kill()
        run.process.wait()


def test_a_signal_to_the_command_alone_ends_its_run_and_a_kill_leaves_what_the_next_deletes(
    ws, start, temporary, tmp_path
):
    """Three at once: interrupted in a loop, terminated as it sleeps, and killed."""
    sleep = "import time\ntime.sleep(600)"
    cells = {"a": "while True: pass", "b": sleep, "c": sleep}
    runs = {name: start(tmp_path / name, cell) for name, cell in cells.items()}
    names = {name: run.namespace() for name, run in runs.items()}
    assert len(set(names.values())) == 3
    signals = {"a": signal.SIGINT, "b": signal.SIGTERM, "c": signal.SIGKILL}
    for name, number in signals.items():
        runs[name].process.send_signal(number)
    assert all(run.has_ended() for run in runs.values())  # their kernels as well
    for name in "ab":
        (result,) = read_run(tmp_path / name / "out").values()
        assert (result.ok, result.interrupted, result.size) == (False, True, "quick")
        page = (tmp_path / name / "out" / "index.html").read_text()
        assert "interrupted, 0 of 1" in page
        assert "✗ interrupted<" in page
    left = {name: there_is(ws, namespace) for name, namespace in names.items()}
    assert left == {"a": False, "b": False, "c": True}
    assert runner.sweep() == 1  # as the next run does
    assert not there_is(ws, names["c"])
    assert not list(temporary.glob("workshop-*"))


def test_ctrl_c_while_a_run_starts_ends_it_without_a_traceback(tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-m", "workshop_lib", "run", "15", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert run.stdout.readline().startswith("1 notebook")
    time.sleep(0.7)  # engines are being started
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=SOON_S)
    assert (run.returncode, said.startswith("Interrupted. "), "Traceback" in said) == (
        130,
        True,
        False,
    )
