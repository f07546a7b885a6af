"""Runs of notebooks that are killed, interrupted, or lose their kernel."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from workshop_lib import runner
from workshop_lib.services.processes import wait_until

SOON_S = 60.0
OPEN = """
    from pathlib import Path
    from workshop_lib import QueryCache, open_workshop
    ws = open_workshop(NAME, needs=["planet"])
    QueryCache(ws).fetch("SELECT * FROM planet")
    Path(MARK).write_text(ws.namespace)
"""
RUN = """
    import sys
    from pathlib import Path
    from workshop_lib import runner
    folder = Path(sys.argv[1])
    runner.run(notebooks=folder, out=folder / "out")
"""
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


@pytest.fixture
def write(tmp_path):
    """Writes a notebook that opens the workshop, notes its namespace, and goes on as told."""

    def write(name, then, place=""):
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        code = OPEN.replace("NAME", repr(name)).replace("MARK", repr(str(folder / f"{name}.mark")))
        cells = [new_markdown_cell(f"# {name}"), *map(new_code_cell, (textwrap.dedent(code), then))]
        nbformat.write(
            new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), folder / f"{name}.ipynb"
        )
        return folder

    return write


def there_is(ws, namespace):
    schema = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
    return bool(
        ws.database.query(schema, (namespace,)).rows or list(ws.valkey.scan_iter(f"{namespace}:*"))
    )


def test_a_kernel_that_is_killed_fails_its_notebook_and_no_other(ws, write, tmp_path):
    write("00_dies", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    write("01_lives", "1 + 1")
    outcomes, out = runner.run(notebooks=tmp_path, out=tmp_path / "out", say=lambda _: None)
    assert [(outcome.name, outcome.ok) for outcome in outcomes] == [
        ("00_dies", False),
        ("01_lives", True),
    ]
    assert "ernel died" in outcomes[0].error.error
    assert (out / "00_dies.json").exists()
    for name in ("00_dies", "01_lives"):
        assert not there_is(ws, (tmp_path / f"{name}.mark").read_text())


def test_of_two_runs_at_once_one_is_interrupted_and_one_killed(ws, write, tmp_path):
    places = [write("00_waits", "import time\ntime.sleep(600)", place) for place in ("a", "b")]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RUN), str(place)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for place in places
    ]
    marks = [place / "00_waits.mark" for place in places]
    below = []
    try:
        assert wait_until(lambda: all(m.exists() and m.read_text() for m in marks), SOON_S)
        below = [p for run in runs for p in psutil.Process(run.pid).children(recursive=True)]
        interrupted, killed = runs
        os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does: the whole group
        killed.kill()
        assert interrupted.wait(SOON_S) != 0
        assert killed.wait(SOON_S) == -signal.SIGKILL
        # Also those below the one that was killed, whom nobody could tell.
        assert wait_until(lambda: not any(p.is_running() for p in below), SOON_S)
    finally:
        for process in [*runs, *below]:
            if (
                process.poll() is None
                if isinstance(process, subprocess.Popen)
                else (process.is_running())
            ):
                process.kill()
    one, other = (mark.read_text() for mark in marks)
    assert one != other
    assert not there_is(ws, one)
    assert there_is(ws, other)
    assert runner.sweep() == 1  # as the next run does
    assert not there_is(ws, other)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("cell", ["while True: pass", "import time\ntime.sleep(600)"])
def test_a_signal_to_the_command_alone_ends_its_run(ws, write, temporary, number, cell):
    place = write("00_endless", cell)
    # As the command does.
    hear = "import signal\nsignal.signal(signal.SIGTERM, signal.default_int_handler)\n"
    run = subprocess.Popen(
        [sys.executable, "-c", hear + textwrap.dedent(RUN), str(place)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    below = []
    try:
        mark = place / "00_endless.mark"
        assert wait_until(lambda: mark.exists() and mark.read_text(), SOON_S)
        below = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(number)
        assert run.wait(SOON_S) != 0
        assert wait_until(lambda: not any(p.is_running() for p in below), SOON_S)
        assert not there_is(ws, mark.read_text())
        assert not list(temporary.glob("workshop-*"))
    finally:
        for process in below:
            if process.is_running():
                process.kill()
        run.kill()
        run.wait()


def test_ctrl_c_while_a_run_starts_ends_it_without_a_traceback(tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-m", "workshop_lib", "run", "12", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert run.stdout.readline().startswith("1 notebook")
    time.sleep(0.7)  # its processes import what they need
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=SOON_S)
    assert (run.returncode, said.startswith("Interrupted. "), "Traceback" in said) == (
        130,
        True,
        False,
    )
