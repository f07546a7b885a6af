"""`workshop load`: every option has its effect or is refused; reports, exit codes, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from click.testing import CliRunner
from helpers import SOON_S, Here, fail

from workshop_lib import load as load_module
from workshop_lib.cli import main
from workshop_lib.database import Database
from workshop_lib.dataset import create_schema, create_table
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.load import FUNCTION_MB, InsertScenario, MixedScenario, cli, worker
from workshop_lib.load.report import make_report
from workshop_lib.load.scenario import IN_FILES
from workshop_lib.load.traffic import FIRST_ID, row_id
from workshop_lib.paths import CHECKOUT
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
    names = re.findall(r"`workshop load clean (\S+)` deletes them", done.output)
    for name, number in zip(names, (10, 1_000), strict=True):
        done = load("clean", name)
        assert done.exit_code == 0
        said = f"business_events: {number:,} rows before, {number:,} deleted, 0 left"
        assert said in done.output
    assert rows() == before


def test_rows_that_cannot_be_deleted_are_named_with_what_deletes_them(rows, tmp_path, monkeypatch):
    words = ["--scenario", 1, "--workers", 1, "--iterations", 3, "--warm-up", 1]
    with monkeypatch.context() as patched:
        away = ServiceUnreachableError("No answer.")
        patched.setattr(load_module, "delete_rows", lambda *_: fail(away), raising=False)
        done = load("inserts", *words, "--out", tmp_path)
    assert done.exit_code == 1
    (name,) = re.findall(r"The rows of run (\S+) could not be deleted: No answer", done.output)
    assert f"`workshop load clean {name}`" in done.output
    assert list(tmp_path.glob("results_*.json"))
    assert load("clean", name).exit_code == 0
    assert rows() == 0


def test_a_mixed_load_goes_through_the_queue_and_leaves_nothing(ws, rows, tmp_path):
    done = load(
        "mixed", "--duration", 0.2, "--wait", 0.1, "--messages", 2, "--statements", 3,
        "--at-once", 1, "--out", tmp_path,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for says in ("emulation", "12 of 12 messages", "\n12 rows of run", "would cost about"):
        assert says in done.output
    (path,) = tmp_path.glob("results_*.json")
    found = json.loads(path.read_text())["scenarios"]["mixed"]
    assert found["messages"]["succeeded"] == 12
    assert set(found["by_action_ms"]) == {"SELECT", "INSERT", "SELECT2"}
    assert found["cost_usd"] > 0
    assert ws.sqs.list_queues(QueueNamePrefix="workshop-").get("QueueUrls", []) == []
    assert rows("transactions", FIRST_ID) == 0


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
    assert "transactions: 1 rows before, 1 deleted, 0 left" in load("clean", "7").output
    done = load("clean")
    assert done.exit_code == 0
    assert "business_events: 20 rows before, 20 deleted, 0 left" in done.output
    assert "transactions: 1 rows before, 1 deleted, 0 left" in done.output
    assert rows() == 0
    assert list(own.query("SELECT id FROM transactions WHERE id < 0")) == [(-5,)]
    own.query("DELETE FROM transactions WHERE id < 0")
    own.close()
    assert "not the name of a run" in load("clean", "a/b").output
    gone = load("clean", "r")
    assert (gone.exit_code, "There is no run 'r'" in gone.output) == (1, True)


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


INSERTS = ("inserts", "--scenario", 1, "--workers", 4, "--iterations", 500_000, "--at-once", 2)
MIXED_MINUTE = ("mixed", "--duration", 60, "--at-once", 1)


@pytest.mark.parametrize(
    ("words", "counted", "name", "unit"),
    [
        (INSERTS, ("business_events",), "individual inserts", "rows"),
        (MIXED_MINUTE, ("transactions", FIRST_ID), "mixed", "messages"),
    ],
    ids=["inserts", "mixed"],
)
def test_ctrl_c_ends_a_load_with_a_report(rows, tmp_path, words, counted, name, unit):
    with started(*words, "--out", tmp_path) as process:
        assert wait_until(lambda: rows(*counted) >= 30, SOON_S)
        said, errors = press_ctrl_c(process, 100)
    assert process.returncode == 130, errors
    assert "It was interrupted." in said
    (path,) = tmp_path.glob("results_*.json")
    report = json.loads(path.read_text())["scenarios"][name]
    assert report["interrupted"]
    assert report["reconciles"]
    assert report[unit]["failed"] == 0
    assert rows(*counted) == 0


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
        (["inserts", "--count", 5_000], "rows is 5000; it must be a whole number from 1 to 3,000"),
        (["inserts", "--config", "nowhere.json"], "There is no scenario nowhere.json"),
        (["inserts", "--workers", 0], "workers is 0; it must be a whole number from 1 to"),
        (["inserts", "--warm-up", -1], "warm_up is -1; it must be a whole number from 0 to 1,000"),
        (["inserts", "--scenario", 3], "'3' is not one of"),
        (["inserts", "--function-name", "foo"], "no function can reach a database on this machine"),
        (["mixed", "--duration", 0], "duration_s is 0.0; it must be a number above 0"),
        (["mixed", "--messages", 0], "messages_per_batch is 0; it must be a whole number"),
        (["mixed", "--function-name", "foo"], "DSQL_ENDPOINT is needed"),
        (["mixed", "--reads-elsewhere"], "DSQL_READ_ENDPOINT is not set"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(words, says, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_workshop", None)
    done = load(*words, "--out", tmp_path / "out")
    assert done.exit_code in {1, 2}
    assert says in done.output
    (tmp_path / "file").write_text("")
    for name in (words[0], "package"):
        assert "cannot be written" in load(name, "--out", tmp_path / "file" / "out").output


def test_the_package_is_built_by_one_command(tmp_path, monkeypatch):
    asked = []

    def build(path, *, architecture, python):
        asked.append((path, architecture, python))

    monkeypatch.setattr("workshop_lib.lambda_package.build_package", build)
    out = tmp_path / "worker.zip"
    done = load("package", "--architecture", "x86_64", "--python", "3.13", "--out", out)
    load("package", "--out", out)
    assert asked == [(out, "x86_64", "3.13"), (out, "arm64", "3.12")]  # as the template has it
    assert "workshop_lib.load.worker.handler" in done.output


# --- the effect of each option and each key of a file


class Function(Here):
    """A Lambda function that says what it is, and does nothing."""

    memory_mb, reader = 1_024, "elsewhere"

    def __init__(self, name, at_once, *, region=None, namespace=""):
        super().__init__(None)
        self.name, self.region, self.namespace = name, region, namespace
        self.at_once, self.here = at_once, False


@pytest.fixture
def inserts(monkeypatch, tmp_path):
    """Runs `load inserts` with a database on AWS; nothing is started."""
    seen = SimpleNamespace()
    for name in ("AWS_REGION", "DSQL_ENDPOINT"):
        monkeypatch.setenv(name, ON_AWS[name])

    def function(*how, **more):
        seen.functions.append(Function(*how, **more))
        return seen.functions[-1]

    def processes(at_once):
        seen.processes = at_once
        return Function("processes", at_once)

    def run(_, load, driver, *, run):
        seen.loads.append(load)
        rows = load.planned
        done = worker.Done(number=0, planned=rows, success_count=rows, duration_ms=60_000.0)
        return make_report(driver, load, [done], rows, run=run, seconds=1.0)

    def end(test, _):
        seen.kept, seen.folder, seen.costs = test.keep, test.folder, test.costs

    place = SimpleNamespace(database=SimpleNamespace(label="none"))
    ws = SimpleNamespace(database=None, endpoints=place, load_workers=processes)
    monkeypatch.setattr(cli, "_workshop", lambda _: nullcontext(ws))
    monkeypatch.setattr(load_module, "LambdaWorkers", function, raising=False)
    monkeypatch.setattr(load_module, "run_inserts", run, raising=False)
    monkeypatch.setattr(cli._Test, "_end", end)
    monkeypatch.chdir(tmp_path)

    def invoke(*words, config=None, name="own.json"):
        if config is not None:
            Path(name).write_text(json.dumps(config))
            words += ("--config", name) if name == "own.json" else ()
        seen.loads, seen.functions, seen.processes, seen.costs = [], [], None, {}
        seen.said = load("inserts", *words)
        return seen

    return invoke


OWN = {
    "lambda_function_name": "of-the-file",
    "region": "us-west-2",
    "scenario_1": {"num_lambdas": 3, "iterations": 4, "inserts_per_iteration": 5},
    "scenario_2": {
        "num_lambdas": 6, "iterations": 7, "inserts_per_iteration": 1, "rows_per_batch": 8,
    },
    "warm_up_invocations": 9,
    "event_type": "LoanCreated",
}  # fmt: skip
NO_FUNCTION = {k: v for k, v in OWN.items() if k not in {"lambda_function_name", "region"}}
EFFECTS = {
    "config": ([], lambda f: f.loads[0].workers == 3),
    "which": (["--scenario", 2], lambda f: [s.rows for s in f.loads] == [8]),
    "workers": (["--num-lambdas", 2], lambda f: {s.workers for s in f.loads} == {2}),
    "iterations": (["--iterations", 2], lambda f: {s.iterations for s in f.loads} == {2}),
    "count": (["--count", 2], lambda f: [s.statements * s.rows for s in f.loads] == [2, 2]),
    "event_type": (["--event-type", "Mixed"], lambda f: f.loads[0].event_type == "Mixed"),
    "warm_up": (["--warm-up", 2], lambda f: {s.warm_up for s in f.loads} == {2}),
    "no_warm_up": (["--no-warm-up"], lambda f: {s.warm_up for s in f.loads} == {0}),
    "function_name": (["--function-name", "mine"], lambda f: f.functions[0].name == "mine"),
    "region": (["--region", "eu-north-1"], lambda f: f.functions[0].region == "eu-north-1"),
    "at_once": (["--at-once", 2], lambda f: f.functions[0].at_once == 2),
    "keep": (["--keep"], lambda f: f.kept is True),
    "out": (["--out", "there"], lambda f: f.folder.name == "there"),
}  # fmt: skip


def test_every_key_of_the_file_has_its_effect_and_every_option_wins_over_it(inserts):
    # As config.json where the command is run, it is found by itself, and that is said.
    other = inserts(config={"foo": 1}, name="config.json").said.output
    assert re.search(r"config\.json in this folder(.|\n)*'foo'", other)
    found = inserts(config=OWN, name="config.json")
    assert found.said.exit_code == 0, found.said.output
    (function,) = found.functions
    assert (function.name, function.region) == ("of-the-file", "us-west-2")
    assert function.namespace == "workshop"
    one, two = found.loads
    assert (one.workers, one.iterations, one.statements, one.rows) == (3, 4, 5, 1)
    assert (two.workers, two.iterations, two.statements, two.rows) == (6, 7, 1, 8)
    assert {one.warm_up, two.warm_up} == {9}
    assert {one.event_type, two.event_type} == {"LoanCreated"}
    # The file above leaves none out, and the options below neither.
    assert set(OWN) == set(InsertScenario.__struct_fields__)
    assert set(OWN["scenario_2"]) == {"iterations", *IN_FILES.values()}
    options = {p.name for p in main.commands["load"].commands["inserts"].params}
    assert options == set(EFFECTS) - {"no_warm_up"}
    for name, (words, effect) in EFFECTS.items():
        found = inserts(*words, config=OWN)
        assert found.said.exit_code == 0, (name, found.said.output)
        assert effect(found), name
    (function,) = inserts("--function-name", "mine", config=NO_FUNCTION).functions
    assert (function.name, function.region) == ("mine", "us-east-1")
    found = inserts("--function-name", "", config=OWN)
    assert (found.functions, found.processes) == ([], 4)


@pytest.mark.parametrize(
    ("words", "config", "says"),
    [
        (["--region", "eu-west-1"], NO_FUNCTION, "no Lambda function that would be there"),
        ([], {**NO_FUNCTION, "region": "eu-west-1"}, "no Lambda function that would be there"),
        (["--function-name", "", "--region", "eu-west-1"], OWN, "no Lambda function"),
        ([], {**OWN, "region": "mars"}, "must be an AWS Region"),
        ([], {**OWN, "lambda_function_name": 7}, "lambda_function_name"),
        ([], {**OWN, "functon": "f"}, "it has no 'functon'; there are lambda_function_name"),
        ([], {}, "no scenario_1 or scenario_2"),
        (["--scenario", 2], {"scenario_1": {"num_lambdas": 1}}, "no scenario_2"),
    ],
)
def test_what_would_have_no_effect_is_refused(inserts, words, config, says):
    found = inserts(*words, config=config)
    assert found.said.exit_code == 1
    assert says in found.said.output
    assert found.loads == []


def test_the_memory_that_is_paid_for_is_the_function_s(inserts):
    found = inserts("--scenario", 1, config=OWN)
    assert "It cost about" in found.said.output
    assert "with 1,024 MB" in found.said.output
    # 60 s × 1 GB, at the price of a GB-second.
    cost = found.costs["individual inserts"].items
    assert cost["functions", "time"] == pytest.approx(60 * 0.0000133334)
    # Processes that write to AWS pay for no function.
    said = inserts("--scenario", 1, config=NO_FUNCTION).said.output
    assert "functions" not in said.split("It cost about")[1]
    template = (CHECKOUT / "cloudformation" / "workshop.yaml").read_text()
    (default,) = re.findall(
        r"^  FunctionMemory:\n(?:    .*\n)*?    Default: (\d+)$", template, re.MULTILINE
    )
    assert int(default) == FUNCTION_MB


@pytest.fixture
def as_on_aws(shared, monkeypatch):
    """The settings of a stack, whose queue and database are the local ones."""
    for name, value in ON_AWS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "_workshop", lambda _: nullcontext(shared))
    monkeypatch.setattr(load_module, "LambdaWorkers", Function, raising=False)
    monkeypatch.setattr("workshop_lib.queues.describe_queue", lambda *_: "about 0 messages")
    return monkeypatch


def test_a_queue_that_a_function_processes_is_left_to_it_unless_told_otherwise(as_on_aws, tmp_path):
    path = tmp_path / "short.json"
    short = {"duration_s": 0.2, "wait_s": 0.1, "messages_per_batch": 1}
    words = ("mixed", "--config", path, "--out", tmp_path / "out")
    path.write_text(json.dumps(short | {"drain_s": 1}))
    done = load(*words)  # the emulated queue is mapped to nothing
    assert done.exit_code == 1
    for says in ("by the function our-load", "Nothing processed a message", "about 0 messages",
                 "CloudWatch, too: CacheAsideWorkshop/", "with 1,024 MB"):  # fmt: skip
        assert says in done.output
    assert "--at-once is for processes" in load(*words, "--at-once", 2).output
    path.write_text(json.dumps(short | {"drain_s": 60}))
    done = load(*words, "--function-name", "", "--at-once", 1)
    assert done.exit_code == 0, done.output
    assert "6 of 6 messages" in done.output
    as_on_aws.setattr(Function, "reader", "")
    done = load(*words, "--reads-elsewhere")
    assert (done.exit_code, "our-load knows no other endpoint" in done.output) == (1, True)
    as_on_aws.delenv("QUEUE_URL")
    assert "set QUEUE_URL" in load(*words, "--function-name", "our-load").output


def test_the_options_and_keys_of_a_mixed_load_have_their_effect(as_on_aws, tmp_path):
    """The load itself is not run."""
    asked = []

    def run_mixed(_database, _queue, scenario, _driver, *, run):
        asked.append(scenario)
        raise KeyboardInterrupt

    as_on_aws.setattr(load_module, "run_mixed", run_mixed, raising=False)
    own = {
        "duration_s": 3.0, "wait_s": 1.5, "messages_per_batch": 4, "statements_per_message": 6,
        "think_ms": 7.0, "reads_elsewhere": False, "drain_s": 8.0,
    }  # fmt: skip
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own))
    two = ["--duration", 2, "--wait", 2, "--messages", 2, "--statements", 2, "--think", 2]
    for words in ([], two, ["--reads-elsewhere"]):
        load("mixed", *words, "--config", path, "--out", tmp_path)
    found, changed, elsewhere = map(msgspec.to_builtins, asked)
    assert set(own) == set(MixedScenario.__struct_fields__)
    assert found == own
    assert changed == {**dict.fromkeys(own, 2), "reads_elsewhere": False, "drain_s": 8.0}
    assert elsewhere == own | {"reads_elsewhere": True}
