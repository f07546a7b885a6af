"""`workshop load` from a shell: reports, exit codes, Ctrl-C, and nothing left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from workshop_lib.cli import main
from workshop_lib.database import Database
from workshop_lib.dataset import create_schema, create_table
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.load import command
from workshop_lib.load.events import EVENT_TYPES
from workshop_lib.load.rows import LoadRows
from workshop_lib.load.traffic import FIRST_ID, row_id
from workshop_lib.settings import load_settings

PLACE = "is in CloudWatch, namespace CacheAsideWorkshop/workshop."


def run(*words, out, what="inserts"):
    return CliRunner().invoke(main, ["load", what, *map(str, words), "--out", str(out)])


def clean(*words):
    return CliRunner().invoke(main, ["load", "clean", *words])


@pytest.fixture
def nothing_starts(monkeypatch):
    """Whoever starts the services fails."""
    monkeypatch.setattr("workshop_lib.load.command.services.session", None)


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
    assert "individual inserts: 14 rows deleted, 2 of them of the warm-up" in done.output
    assert "multi-row inserts: 1,400 rows deleted, 200 of them of the warm-up" in done.output
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
    assert "14 rows are kept" in done.output
    (name,) = re.findall(r"`workshop load clean (\S+)` deletes them", done.output)
    done = clean(name)
    assert done.exit_code == 0
    assert "business_events: 14 rows before, 14 deleted, 0 left" in done.output
    assert rows() == before


def test_one_scenario_alone_has_its_table_and_no_more_processes_than_workers(tmp_path):
    done = run("--scenario", 1, "--workers", 1, "--iterations", 2, "--no-warm-up", out=tmp_path)
    assert done.exit_code == 0, done.output
    assert "rows/s by 1 process on this machine." in done.output
    assert "statement, p95 (ms)" in done.output
    assert "individual inserts: 2 rows deleted\n" in done.output


def test_rows_that_cannot_be_deleted_are_named_with_what_deletes_them(rows, tmp_path, monkeypatch):
    def refuse(*_):
        raise ServiceUnreachableError("No answer.")

    words = ["--scenario", 1, "--workers", 1, "--iterations", 3, "--no-warm-up"]
    with monkeypatch.context() as patched:
        patched.setattr(LoadRows, "delete", refuse)
        done = run(*words, out=tmp_path)
    assert done.exit_code == 1
    (name,) = re.findall(r"The rows of run (\S+) could not be deleted: No answer", done.output)
    assert f"`workshop load clean {name}`" in done.output
    assert list(tmp_path.glob("results_*.json"))
    assert clean(name).exit_code == 0
    assert rows() == 0


def test_all_that_load_tests_left_is_cleaned_up_and_nothing_else(ws, rows):
    own = Database(ws.database.endpoint, "workshop", pool_min=1)
    create_schema(own)
    for table in ("type", "transactions", "business_events"):
        create_table(own, table)
    own.query(
        "INSERT INTO transactions (id, type, date, quantity, price) VALUES "
        "(-5, 1, now(), 1, 1), (%s, 1, now(), 1, 1), (%s, 1, now(), 1, 1)",
        (row_id(0, 0), row_id(7, 3)),
    )
    own.query(
        "INSERT INTO business_events SELECT 'r/00000/' || n, 'e', 'e', now(), now(), '{}' "
        "FROM generate_series(1, 20) n"
    )
    one = clean("7")
    assert "transactions: 1 rows before, 1 deleted, 0 left" in one.output
    done = clean()
    assert done.exit_code == 0
    assert "business_events: 20 rows before, 20 deleted, 0 left" in done.output
    assert "transactions: 1 rows before, 1 deleted, 0 left" in done.output
    assert rows() == 0
    assert list(own.query("SELECT id FROM transactions WHERE id < 0")) == [(-5,)]
    own.query("DELETE FROM transactions WHERE id < 0")
    own.close()


def test_a_run_s_name_that_cannot_be_is_refused():
    done = clean("a/b")
    assert done.exit_code == 1
    assert "not the name of a run" in done.output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--count", 5_000], "<= 3000"),
        (["--event-type", "Bike"], "Bike"),
        (["--config", "nowhere.json"], "cannot be read"),
        (["--workers", 0], "--workers must be a whole number >= 1"),
        (["--scenario", 3], "'3' is not one of"),
        (["--warm-up", 3, "--no-warm-up"], "exclude each other"),
        (["--function-name", "foo"], "no Lambda function can reach it"),
    ],
)
@pytest.mark.usefixtures("nothing_starts")
def test_what_cannot_be_is_refused_before_anything_starts(words, says, tmp_path):
    done = run(*words, out=tmp_path)
    assert done.exit_code in {1, 2}
    assert says in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words", "says"),
    [
        ({}, [], "neither scenario_1 nor scenario_2"),
        ({"scenario_1": {"num_lambdas": 1}}, ["--scenario", 2], "no scenario_2"),
    ],
)
@pytest.mark.usefixtures("nothing_starts")
def test_a_scenario_that_is_not_in_the_file_is_refused(content, words, says, tmp_path):
    path = tmp_path / "scenario.json"
    path.write_text(json.dumps(content))
    done = run("--config", path, *words, out=tmp_path / "out")
    assert done.exit_code == 1
    assert says in done.output


@pytest.mark.parametrize("what", ["inserts", "mixed"])
@pytest.mark.usefixtures("nothing_starts")
def test_a_folder_that_cannot_be_written_is_refused_before_anything_starts(what, tmp_path):
    (tmp_path / "file").write_text("")
    done = run(out=tmp_path / "file" / "out", what=what)
    assert done.exit_code == 1
    assert "cannot be written" in done.output


def started(*words, out):
    """A load test in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "workshop_lib", "load", *words, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def press_ctrl_c(process, times=1):
    for _ in range(times):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
            time.sleep(0.05)


@pytest.mark.parametrize("times", [1, 2, 100])
def test_ctrl_c_ends_it_with_a_report(rows, tmp_path, times):
    words = ["--scenario", "1", "--workers", "4", "--iterations", "500000", "--at-once", "2"]
    process = started("inserts", *words, out=tmp_path)
    try:
        end = time.monotonic() + 60
        while rows() < 50:
            assert time.monotonic() < end
            time.sleep(0.05)
        press_ctrl_c(process, times)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert "It was interrupted: " in said
    assert "rows were not finished or not begun." in said
    assert "failed" not in said
    assert "Empty" not in said  # nobody's figures make no table
    assert "error" not in said
    (path,) = tmp_path.glob("results_*.json")
    report = json.loads(path.read_text())["scenarios"]["individual inserts"]
    assert report["interrupted"]
    assert report["reconciles"]
    assert report["rows"]["succeeded"] >= 46
    assert report["rows"]["failed"] == 0
    assert rows() == 0


@pytest.mark.parametrize("what", ["inserts", "mixed"])
def test_ctrl_c_before_anything_is_measured_is_one_line(rows, tmp_path, what):
    process = started(what, out=tmp_path)
    try:
        assert process.stdout.readline().startswith("Database: ")  # now the workers are started
        press_ctrl_c(process, 3)
        said, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, errors
    assert errors == "Interrupted.\n"
    assert "individual inserts" not in said
    assert rows() == 0


def test_ctrl_c_ends_a_mixed_load_with_a_report(ws, tmp_path):
    process = started("mixed", "--duration", "60", "--at-once", "2", out=tmp_path)
    try:
        assert process.stdout.readline().startswith("Database: ")
        counted = "SELECT count(*) FROM workshop.transactions WHERE id >= %s"
        end = time.monotonic() + 60
        while ws.database.query(counted, (FIRST_ID,))[0][0] < 10:
            assert time.monotonic() < end
            time.sleep(0.05)
        press_ctrl_c(process, 100)
        said, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, errors
    assert "It was interrupted." in said
    assert "were not sent." in said
    assert ws.database.query(counted, (FIRST_ID,))[0][0] == 0
    (path,) = tmp_path.glob("results_*.json")
    assert json.loads(path.read_text())["interrupted"]


def test_a_mixed_load_goes_through_the_queue_and_leaves_nothing(ws, tmp_path):
    done = run(
        "--duration", 0.4, "--wait", 0.2, "--messages", 2, "--statements", 3, "--at-once", 2,
        out=tmp_path, what="mixed",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "emulation" in done.output
    assert "12 of 12 messages" in done.output
    assert "12 rows deleted\n" in done.output
    table = [line.split() for line in done.output.splitlines()]
    assert ["statements", "p50", "(ms)", "p95", "(ms)", "p99", "(ms)"] in table
    assert {"SELECT", "INSERT", "SELECT2"} <= {line[0] for line in table if len(line) == 5}
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
        (["--by-function"], "set QUEUE_URL"),
        (["--reads-elsewhere"], "DSQL_READ_ENDPOINT is not set"),
    ],
)
@pytest.mark.usefixtures("nothing_starts")
def test_a_mixed_load_that_cannot_be_is_refused(words, says, tmp_path):
    done = run(*words, out=tmp_path, what="mixed")
    assert done.exit_code == 1
    assert says in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_function_is_refused_a_database_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:secret@localhost:5432/mine")
    done = run("--function-name", "foo", out=tmp_path)
    assert done.exit_code == 1
    assert "no Lambda function can reach it" in done.output


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("inserts", ["A round is", *EVENT_TYPES]),
        ("mixed", ["A round is", "mixed_laptop"]),
        ("clean", ["business_events and transactions"]),
    ],
)
def test_the_help_says_what_can_be_asked_for(what, says):
    shown = " ".join(CliRunner().invoke(main, ["load", what, "--help"]).output.split())
    for words in says:
        assert words in shown


def test_the_package_is_built_by_one_command(tmp_path, monkeypatch):
    asked = []

    def build(path, *, architecture, python):
        asked.append((path, architecture, python))
        return "a package"

    monkeypatch.setattr("workshop_lib.load.package.build_package", build)
    out = tmp_path / "worker.zip"
    words = ["load", "package", "--architecture", "x86_64", "--python", "3.13", "--out", str(out)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0
    CliRunner().invoke(main, ["load", "package", "--out", str(out)])
    assert asked == [(out, "x86_64", "3.13"), (out, "arm64", "3.12")]  # as the template has it
    assert "workshop_lib.load.worker.handler" in done.output


@pytest.fixture
def with_function(monkeypatch):
    """The settings as on AWS, with a function; the services are the local ones all the same."""
    loaded = load_settings()
    update = {
        "load_function": "our-load",
        "queue_url": SecretStr("https://sqs.us-east-1.amazonaws.com/123456789012/load"),
        "aws_region": "us-east-1",
    }
    changed = replace(loaded, values=loaded.values.model_copy(update=update))
    monkeypatch.setattr(command, "load_settings", lambda: changed)


@pytest.mark.usefixtures("with_function")
def test_who_inserts_by_processes_is_told_of_the_function(tmp_path):
    done = run("--scenario", 1, "--workers", 1, "--iterations", 2, "--no-warm-up", out=tmp_path)
    assert done.exit_code == 0, done.output
    assert "--function-name our-load." in done.output
    assert "by 1 process on this machine" in done.output


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        # The emulated queue is mapped to nothing.
        ([], ["by: the AWS Lambda function our-load (--no-by", "Nobody worked off", PLACE], 1),
        (["--no-by-function", "--at-once", 1], ["compete", "6 of 6 messages"], 0),
    ],
)
@pytest.mark.usefixtures("with_function")
def test_a_queue_that_the_function_works_off_is_left_to_it_unless_told_otherwise(
    words, says, code, ws, tmp_path
):
    path = tmp_path / "short.json"
    path.write_text(json.dumps({"duration_s": 0.2, "wait_s": 0.1, "drain_s": 2}))
    words = ["--config", path, "--messages", 1, *words]
    done = run(*words, out=tmp_path / "out", what="mixed")
    assert done.exit_code == code, done.output
    assert [part for part in says if part not in done.output] == []
    queues = ws.sqs.list_queues(QueueNamePrefix="workshop-").get("QueueUrls", [])
    assert queues == []
