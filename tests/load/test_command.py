"""`workshop load` from a shell: reports, exit codes, Ctrl-C, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from workshop_lib.cli import main


def run(*words, out, what="inserts"):
    return CliRunner().invoke(main, ["load", what, *map(str, words), "--out", str(out)])


@pytest.fixture
def rows(ws):
    """How many rows of load tests there are in the table that the command writes to."""

    def count():
        found = ws.database.query("SELECT to_regclass('workshop.business_events') IS NOT NULL")
        if not found[0][0]:
            return 0
        return ws.database.query("SELECT count(*) FROM workshop.business_events")[0][0]

    return count


def test_both_scenarios_are_run_compared_saved_and_cleaned_up(rows, tmp_path):
    done = run("--workers", 3, "--iterations", 4, "--warm-up", 2, "--at-once", 2, out=tmp_path)
    assert done.exit_code == 0, done.output
    assert "12 of 12 rows" in done.output
    assert "1,200 of 1,200 rows" in done.output
    assert "14 rows in the table, 14 deleted" in done.output
    assert "1,400 rows in the table, 1,400 deleted" in done.output
    (path,) = tmp_path.glob("results_*.json")
    found = json.loads(path.read_text())["scenarios"]
    assert {name: report["total_inserts"] for name, report in found.items()} == {
        "individual inserts": 12,
        "multi-row inserts": 1_200,
    }
    assert rows() == 0


def test_rows_can_be_kept(ws, rows, tmp_path):
    before = rows()
    done = run(
        "--scenario", 2, "--workers", 1, "--iterations", 2, "--count", 7, "--no-warm-up", "--keep",
        "--at-once", 1, out=tmp_path,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert rows() == before + 14
    ws.database.query("DELETE FROM workshop.business_events")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--count", 5_000], "<= 3000"),
        (["--event-type", "Bike"], "Bike"),
        (["--config", "nowhere.json"], "cannot be read"),
        (["--workers", 0], ">= 1"),
        (["--scenario", 3], "'3' is not one of"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(words, says, tmp_path):
    done = run(*words, out=tmp_path)
    assert done.exit_code in {1, 2}
    assert says in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_ends_it_with_a_report(rows, tmp_path, signals):
    words = ["--scenario", "1", "--workers", "4", "--iterations", "500000", "--at-once", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "workshop_lib", "load", "inserts", *words, "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 60
        while rows() < 50:
            assert time.monotonic() < end
            time.sleep(0.05)
        for _ in range(signals):
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert "It was interrupted." in said
    (path,) = tmp_path.glob("results_*.json")
    report = json.loads(path.read_text())["scenarios"]["individual inserts"]
    assert report["interrupted"]
    assert report["reconciles"]
    assert report["rows"]["succeeded"] >= 46
    assert rows() == 0


def test_a_mixed_load_goes_through_the_queue_and_leaves_nothing(ws, tmp_path):
    done = run(
        "--duration", 0.4, "--wait", 0.2, "--messages", 2, "--statements", 3, "--at-once", 2,
        out=tmp_path, what="mixed",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "emulation" in done.output
    assert "12 of 12 messages" in done.output
    assert "12 rows in the table, 12 deleted" in done.output
    (path,) = tmp_path.glob("results_*.json")
    found = json.loads(path.read_text())
    assert found["messages"]["succeeded"] == 12
    assert found["duration_ms"]["INSERT"]["n"] == 12
    assert ws.sqs.list_queues(QueueNamePrefix="workshop-").get("QueueUrls", []) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--duration", 0], "--duration must be a number > 0"),
        (["--messages", 0], "--messages must be a whole number >= 1"),
    ],
)
def test_a_mixed_load_that_cannot_be_is_refused(words, says, tmp_path):
    done = run(*words, out=tmp_path, what="mixed")
    assert done.exit_code == 1
    assert says in done.output
    assert list(tmp_path.iterdir()) == []


def test_the_package_is_built_by_one_command(tmp_path, monkeypatch):
    asked = []

    def build(path, *, architecture):
        asked.append((path, architecture))
        return "a package"

    monkeypatch.setattr("workshop_lib.load.package.build_package", build)
    out = tmp_path / "worker.zip"
    words = ["load", "package", "--architecture", "arm64", "--out", str(out)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0
    assert asked == [(out, "arm64")]
    assert "workshop_lib.load.worker.handler" in done.output
