"""`workshop load`: every option has its effect or is refused; reports, exit codes, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import SOON_S, Here, worker_processes

from workshop_lib import load as load_module
from workshop_lib.cli import main
from workshop_lib.database import Database
from workshop_lib.dataset import create_table
from workshop_lib.load import InsertScenario, cli
from workshop_lib.load.traffic import FIRST_ID, row_id
from workshop_lib.services.processes import wait_until

ON_AWS = {
    "AWS_REGION": "us-east-1",
    "DSQL_ENDPOINT": "abcdefghij.dsql.us-east-1.on.aws",
    "DSQL_READ_ENDPOINT": "klmnopqrst.dsql.us-east-1.on.aws",
    "LOAD_FUNCTION": "our-load",
    "QUEUE_URL": "https://sqs.us-east-1.amazonaws.com/123456789012/load",
}


def load(*words):
    return CliRunner().invoke(main, ["load", *map(str, words)])


@pytest.fixture
def rows(ws):
    """How many rows of load tests there are in the tables that the command writes to."""

    def count(table="business_events", low=""):
        where = f" WHERE id >= {low}" if low else ""
        found = ws.database.query(f"SELECT to_regclass('workshop.{table}') IS NOT NULL")
        if not found[0][0]:
            return 0
        return ws.database.query(f"SELECT count(*) FROM workshop.{table}{where}")[0][0]

    return count


# --- whole commands


def test_both_scenarios_are_run_compared_saved_kept_if_asked_and_cleaned_up(rows, tmp_path):
    before = rows()
    words = ("inserts", "--workers", 2, "--iterations", 4, "--warm-up", 2, "--out", tmp_path)
    done = load(*words, "--keep")
    assert done.exit_code == 0, done.output
    for says in ("8 of 8 rows", "800 of 800 rows", "by 2 processes on this machine.",
                 "statement, p95 (ms)", "The same work on AWS would cost about"):  # fmt: skip
        assert says in done.output
    (path,) = tmp_path.glob("results_*.json")
    found = json.loads(path.read_text())["scenarios"]
    totals = {name: report["total_inserts"] for name, report in found.items()}
    assert totals == {"individual inserts": 8, "multi-row inserts": 800}
    assert all(report["cost_usd"] > 0 for report in found.values())
    assert rows() == before + 1_010
    names = re.findall(r"`workshop load clean (\S+)`", done.output)
    for name, number in zip(names, (10, 1_000), strict=True):
        done = load("clean", name)
        assert done.exit_code == 0
        said = f"business_events: {number:,} rows before, {number:,} deleted, 0 left"
        assert said in done.output
    assert rows() == before


def test_a_mixed_load_goes_through_the_queue_and_leaves_nothing(ws, rows, tmp_path):
    done = load(
        "mixed", "--duration", 0.2, "--wait", 0.1, "--messages", 2, "--statements", 3,
        "--think", 1, "--at-once", 1, "--out", tmp_path,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for says in ("emulation", "12 of 12 messages", "\n12 deleted", "would cost about"):
        assert says in done.output
    (path,) = tmp_path.glob("results_*.json")
    found = json.loads(path.read_text())["scenarios"]["mixed"]
    assert found["messages"]["succeeded"] == 12
    assert found["load"] == {
        "duration_s": 0.2, "wait_s": 0.1, "messages_per_batch": 2, "statements_per_message": 3,
        "think_ms": 1.0, "reads_elsewhere": False, "drain_s": 30.0,
    }  # fmt: skip
    assert set(found["by_action_ms"]) == {"SELECT", "INSERT", "SELECT2"}
    assert found["cost_usd"] > 0
    assert ws.sqs.list_queues(QueueNamePrefix="workshop-").get("QueueUrls", []) == []
    assert rows("transactions", FIRST_ID) == 0


def test_all_that_load_tests_left_is_cleaned_up_and_nothing_else(ws, rows):
    own = Database(ws.database.endpoint, "workshop", pool_min=1)
    own.create_schema()
    for table in ("type", "transactions", "business_events"):
        create_table(own, table)
    own.query(
        "INSERT INTO transactions (id, type, date, quantity, price) VALUES "
        "(-5, 1, now(), 1, 1), (%s, 1, now(), 1, 1), (%s, 1, now(), 1, 1)",
        (row_id("a", 0), row_id("b", 3)),
    )
    own.query(
        "INSERT INTO business_events SELECT 'r/00000/' || n, 'e', 'e', now(), now(), '{}' "
        "FROM generate_series(1, 20) n"
    )
    assert "transactions: 1 rows before, 1 deleted, 0 left" in load("clean", "b").output
    done = load("clean")
    assert done.exit_code == 0
    assert "business_events: 20 rows before, 20 deleted, 0 left" in done.output
    assert "transactions: 1 rows before, 1 deleted, 0 left" in done.output
    assert rows() == 0
    assert list(own.query("SELECT id FROM transactions WHERE id < 0")) == [(-5,)]
    own.query("DELETE FROM transactions WHERE id < 0")
    own.close()
    assert "not the name of a run" in load("clean", "a/b").output


# --- Ctrl-C


@contextmanager
def started(*words):
    """A load test in a process group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "workshop_lib", "load", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def press_ctrl_c(process, times):
    for _ in range(times):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
    return process.communicate(timeout=SOON_S)


def test_ctrl_c_ends_a_load_with_a_report(rows, tmp_path):
    endless = ("--scenario", 1, "--workers", 4, "--iterations", 500_000, "--at-once", 2)
    with started("inserts", *endless, "--out", tmp_path) as process:
        assert wait_until(lambda: rows() >= 30, SOON_S)
        said, errors = press_ctrl_c(process, 100)
    assert process.returncode == 130, errors
    assert "It was interrupted." in said
    (path,) = tmp_path.glob("results_*.json")
    report = json.loads(path.read_text())["scenarios"]["individual inserts"]
    assert (report["interrupted"], report["reconciles"]) == (True, True)
    assert report["rows"]["failed"] == 0
    assert rows() == 0


@pytest.mark.parametrize("after", ["Database: ", "By "])
def test_ctrl_c_while_workers_start_is_a_line(rows, tmp_path, after):
    with started("inserts", "--out", tmp_path) as process:
        while not process.stdout.readline().startswith(after):
            assert process.poll() is None
        _, errors = press_ctrl_c(process, 3)
    assert process.returncode == 130, errors
    first, *others = errors.splitlines()
    assert first.startswith("Interrupted. Clearing up")
    assert others == ["Interrupted."]
    assert rows() == 0


# --- refused before anything starts


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["inserts", "--count", 5_000], "<= 3000 - at `$.rows_per_batch`"),
        (["inserts", "--function-name", "foo"], "no function can reach a database on this machine"),
        (["mixed", "--duration", 0], "> 0.0 - at `$.duration_s`"),
        (["mixed", "--function-name", "foo"], "DSQL_ENDPOINT is needed"),
        (["mixed", "--reads-elsewhere"], "knows no other endpoint"),
        (["mixed", "--out", __file__], "is a file"),
        (["inserts", "--out", f"{__file__}/out"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(words, says, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_workshop", None)
    done = load(words[0], "--out", tmp_path / "out", *words[1:])
    assert done.exit_code in {1, 2}
    assert says in done.output


def test_the_package_is_built_by_one_command(tmp_path, monkeypatch):
    monkeypatch.setattr("workshop_lib.aws.lambda_package._install", lambda *_: None)
    done = load("package", "--python", "3.13", "--out", tmp_path / "worker.zip")
    assert "for Python 3.13 on arm64\nHandler: workshop_lib.load.worker.handler" in done.output


# --- on AWS


class Function(Here):
    """A Lambda function whose one worker is in this process."""

    memory_mb, reader = 1_024, "elsewhere"

    def __init__(self, worker, name, at_once, *, region):
        super().__init__(worker)
        self.asked = (name, region, at_once)


@pytest.fixture
def functions(shared, alone, monkeypatch, tmp_path):
    """The settings of a stack, whose database and queue are the local ones; its functions."""
    made, before = [], worker_processes()

    def function(*how, **more):
        made.append(Function(alone, *how, **more))
        return made[-1]

    for name, value in ON_AWS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "_workshop", lambda _: nullcontext(shared))
    monkeypatch.setattr(load_module, "LambdaWorkers", function, raising=False)
    monkeypatch.chdir(tmp_path)
    yield made
    for process in worker_processes():  # which the open workshop would keep
        if process not in before:
            process.kill()


OWN = {
    "lambda_function_name": "of-the-file",
    "region": "us-west-2",
    "scenario_1": {"num_lambdas": 3, "iterations": 4, "inserts_per_iteration": 5},
    "scenario_2": {
        "num_lambdas": 6, "iterations": 7, "inserts_per_iteration": 1, "rows_per_batch": 8,
    },
    "warm_up_invocations": 2,
    "event_type": "LoanCreated",
}  # fmt: skip


def run_inserts(*words):
    """What a load test says, and the loads that its results file has."""
    out = Path(tempfile.mkdtemp(dir="."))
    done = load("inserts", *words, "--out", out)
    assert done.exit_code == 0, done.output
    (path,) = out.glob("*.json")
    scenarios = json.loads(path.read_text())["scenarios"].values()
    return done.output, [one["load"] for one in scenarios]


def test_every_key_of_the_file_has_its_effect_and_every_option_wins_over_it(functions):
    # As config.json where the command is run, it is found by itself, and that is said.
    Path("config.json").write_text(json.dumps(OWN))
    said, (one, two) = run_inserts()
    assert "config.json in this folder" in said
    # The memory that is paid for is the function's.
    assert "It cost about" in said
    assert "with 1,024 MB" in said
    assert functions[0].asked == ("of-the-file", "us-west-2", 6)
    common = {"event_type": "LoanCreated", "warm_up": 2, "time_limit_s": 60.0}
    assert one == {**OWN["scenario_1"], "rows_per_batch": 1, **common}
    assert two == {**OWN["scenario_2"], **common}
    # The file above leaves none out.
    assert set(OWN) == set(InsertScenario.__struct_fields__)
    numbers = ("--num-lambdas", 2, "--iterations", 2, "--count", 2, "--warm-up", 1)
    place = ("--function-name", "mine", "--region", "eu-north-1", "--at-once", 1)
    _, (one, two) = run_inserts(*numbers, *place, "--event-type", "Mixed")
    assert functions[1].asked == ("mine", "eu-north-1", 1)
    changed = {"num_lambdas": 2, "iterations": 2, "event_type": "Mixed", "warm_up": 1}
    assert one == {**changed, "inserts_per_iteration": 2, "rows_per_batch": 1, "time_limit_s": 60.0}
    assert two == {**changed, "inserts_per_iteration": 1, "rows_per_batch": 2, "time_limit_s": 60.0}
    # By processes, which pay for no function.
    said, (one,) = run_inserts("--function-name", "", "--scenario", 2, "--no-warm-up")
    assert (len(functions), one["warm_up"], one["rows_per_batch"]) == (2, 0, 8)
    assert "functions" not in said.split("It cost about")[1]


def test_a_queue_that_a_function_processes_is_left_to_it_unless_told_otherwise(
    functions, monkeypatch
):
    short = {"duration_s": 0.2, "wait_s": 0.1, "messages_per_batch": 1, "drain_s": 1}
    Path("short.json").write_text(json.dumps(short))
    words = ("mixed", "--config", "short.json", "--out", "out")
    done = load(*words, "--reads-elsewhere")  # the emulated queue is mapped to nothing
    assert done.exit_code == 1
    for says in ("by the function our-load", "Nothing processed a message",
                 "with 1,024 MB"):  # fmt: skip
        assert says in done.output
    Path("short.json").write_text(json.dumps(short | {"drain_s": 60}))
    done = load(*words, "--function-name", "", "--at-once", 1)
    assert done.exit_code == 0, done.output
    assert "6 of 6 messages" in done.output
    monkeypatch.setattr(Function, "reader", "")
    done = load(*words, "--reads-elsewhere")
    assert (done.exit_code, "knows no other endpoint" in done.output) == (1, True)
    monkeypatch.delenv("QUEUE_URL")
    assert "set QUEUE_URL" in load(*words, "--function-name", "our-load").output
