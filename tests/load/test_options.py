"""Every option and every key of a scenario file has its effect, or is refused with a sentence."""

import json
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import click
import msgspec
import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from workshop_lib.cli import main
from workshop_lib.load import command
from workshop_lib.load.inserts import InsertReport
from workshop_lib.load.jobs import Ready
from workshop_lib.load.mixed import MixedScenario
from workshop_lib.load.scenario import Individual, InsertScenario, MultiRow
from workshop_lib.measure import Samples
from workshop_lib.paths import CHECKOUT
from workshop_lib.services.functions import MEMORY_MB
from workshop_lib.settings import load_settings

ENDPOINT = "abcdefghij.dsql.eu-west-1.on.aws"


class Done:
    """What a command did, on services that are not there."""

    def __init__(self):
        self.storms, self.kept, self.folder, self.functions = [], None, None, []
        self.processes = self.at_once = None
        self.memory_mb = 1_024

    def driver(self, kind):
        done = self

        class Driver:
            label, here = kind, kind == "processes"

            def __init__(self, first, second, third=None, namespace=""):
                if kind == "processes":
                    self.at_once = done.processes = second
                else:
                    self.at_once = done.at_once = third
                    done.functions.append((second, first.region, namespace))

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def ask(self):
                return Ready(ready=True, memory_mb=done.memory_mb)

        return Driver

    def run(self, database, storm, driver, *, run):  # noqa: ARG002 -- as it is called
        self.storms.append(storm)
        return InsertReport(
            run=run, storm=storm, driver=driver.label, at_once=1, planned=storm.planned,
            succeeded=storm.planned, failed=0, dropped=0, unknown=0, unreported=0,
            in_table=storm.planned, workers_succeeded=1, workers_failed=0, seconds=1.0,
            statements=Samples("s", ()), invocations=Samples("i", ()), worker_durations_s=(60.0,),
            worker_throughputs=(), conflicts=0, reconnects=0, cpu_seconds=0.0, cpu_share=0.0,
            limited_by="database", errors=(),
        )  # fmt: skip


@pytest.fixture
def done(monkeypatch, tmp_path):
    """A database on AWS in eu-west-1; nothing is started."""
    found = Done()
    loaded = load_settings()
    update = {"dsql_endpoint": ENDPOINT, "aws_region": "eu-west-1"}
    settings = replace(loaded, values=loaded.values.model_copy(update=update))

    @contextmanager
    def session(_):
        yield SimpleNamespace(database=SimpleNamespace(label="none"))

    def clear(database, run, keep, say):
        found.kept = keep
        return True

    def save(reports, folder, costs):
        found.folder, found.costs = folder, costs
        assert set(reports) == set(costs)
        return folder / "results.json"

    monkeypatch.setattr(command, "load_settings", lambda: settings)
    monkeypatch.setattr(command.services, "session", session)
    monkeypatch.setattr(command, "Database", lambda *_, **__: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(command, "LocalWorkers", found.driver("processes"))
    monkeypatch.setattr(command, "LambdaWorkers", found.driver("functions"))
    monkeypatch.setattr(command, "LambdaClients", lambda region, _: SimpleNamespace(region=region))
    monkeypatch.setattr(command, "run_inserts", found.run)
    monkeypatch.setattr(command, "_clear", clear)
    monkeypatch.setattr(command, "save_reports", save)
    monkeypatch.chdir(tmp_path)

    def inserts(*words, config=None):
        words = [str(word) for word in words]
        if config is not None:
            Path("own.json").write_text(json.dumps(config))
            words += ["--config", "own.json"]
        found.__init__()
        found.said = CliRunner().invoke(main, ["load", "inserts", *words])
        return found

    return inserts


OWN = {
    "lambda_function_name": "of-the-file",
    "region": "us-west-2",
    "scenario_1": {"num_lambdas": 3, "iterations": 4, "inserts_per_iteration": 5},
    "scenario_2": {"num_lambdas": 6, "iterations": 7, "rows_per_batch": 8},
    "warm_up_invocations": 9,
    "event_type": "LoanCreated",
}
NO_FUNCTION = {k: v for k, v in OWN.items() if k not in {"lambda_function_name", "region"}}


def test_every_key_of_the_file_has_its_effect(done):
    found = done(config=OWN)
    assert found.said.exit_code == 0, found.said.output
    assert found.functions == [("of-the-file", "us-west-2", "workshop")]
    one, two = found.storms
    assert (one.workers, one.iterations, one.statements, one.rows) == (3, 4, 5, 1)
    assert (two.workers, two.iterations, two.statements, two.rows) == (6, 7, 1, 8)
    assert {one.warm_up, two.warm_up} == {9}
    assert {one.event_type, two.event_type} == {"LoanCreated"}
    # The file above leaves none out.
    assert set(OWN) == set(InsertScenario.__struct_fields__)
    assert set(OWN["scenario_1"]) == set(Individual.__struct_fields__)
    assert set(OWN["scenario_2"]) == set(MultiRow.__struct_fields__)


EFFECTS = {
    "config": ([], lambda f: f.storms[0].workers == 3),
    "which": (["--scenario", 2], lambda f: [s.rows for s in f.storms] == [8]),
    "workers": (["--num-lambdas", 2], lambda f: {s.workers for s in f.storms} == {2}),
    "iterations": (["--iterations", 2], lambda f: {s.iterations for s in f.storms} == {2}),
    "count": (["--count", 2], lambda f: [s.statements * s.rows for s in f.storms] == [2, 2]),
    "event_type": (["--event-type", "Mixed"], lambda f: f.storms[0].event_type == "Mixed"),
    "warm_up": (["--warm-up", 2], lambda f: {s.warm_up for s in f.storms} == {2}),
    "no_warm_up": (["--no-warm-up"], lambda f: {s.warm_up for s in f.storms} == {0}),
    "function_name": (["--function-name", "mine"], lambda f: f.functions[0][0] == "mine"),
    "region": (["--region", "eu-north-1"], lambda f: f.functions[0][1] == "eu-north-1"),
    "at_once": (["--at-once", 2], lambda f: f.at_once == 2),
    "keep": (["--keep"], lambda f: f.kept is True),
    "out": (["--out", "there"], lambda f: f.folder.name == "there"),
}  # fmt: skip


@pytest.mark.parametrize("name", EFFECTS)
def test_every_option_wins_over_the_file(done, name):
    words, effect = EFFECTS[name]
    found = done(*words, config=OWN)
    assert found.said.exit_code == 0, found.said.output
    assert effect(found)


def test_no_option_is_left_out_above():
    options = {p.name for p in main.commands["load"].commands["inserts"].params}
    assert options - {"help"} == set(EFFECTS)


def test_without_a_region_the_settings_region_is_the_function_s(done):
    assert done("--function-name", "mine").functions == [("mine", "eu-west-1", "workshop")]


def test_an_empty_function_name_has_processes_do_it(done):
    found = done("--function-name", "", config=OWN)
    assert (found.functions, found.processes) == ([], 4)


@pytest.mark.parametrize(
    ("words", "config", "says"),
    [
        (["--region", "eu-west-1"], None, "--region is where a Lambda function is"),
        (["--region", "eu-west-1"], NO_FUNCTION, "none is named"),
        ([], {**NO_FUNCTION, "region": "eu-west-1"}, "names a region, and no lambda_function_name"),
        (["--function-name", "f", "--region", "mars"], None, "--region"),
        ([], {**OWN, "region": "Frankfurt"}, "region"),
        ([], {**OWN, "lambda_function_name": 7}, "lambda_function_name"),
        ([], {**OWN, "warm_up_invocations": True}, "warm_up_invocations"),
        ([], {**OWN, "functon": "f"}, "functon.*It may hold: lambda_function_name"),
    ],
)
def test_what_would_have_no_effect_is_refused(done, words, config, says):
    found = done(*words, config=config)
    assert found.said.exit_code == 1
    assert " ".join(says.split(".*")[0].split()) in found.said.output
    assert found.storms == []


# --- cost


def test_the_memory_that_is_paid_for_is_the_function_s(done):
    found = done("--scenario", 1, config=OWN)
    assert "It cost about" in found.said.output
    assert "Lambda (1,024 MB)" in found.said.output
    # 60 s × 1 GB, at the price of a GB-second.
    assert found.costs["individual inserts"].items["functions", "time"] == pytest.approx(
        60 * 0.0000133334
    )
    assert "It ran in us-west-2, where prices may differ" in found.said.output


def test_processes_that_write_to_aws_pay_for_no_function(done):
    found = done("--scenario", 1)
    assert "It cost about" in found.said.output
    assert "Lambda" not in found.said.output.split("It cost about")[1]


def test_the_template_s_memory_is_the_one_that_is_assumed():
    template = (CHECKOUT / "cloudformation" / "workshop.yaml").read_text()
    (default,) = re.findall(
        r"^  FunctionMemory:\n(?:    .*\n)*?    Default: (\d+)$", template, re.MULTILINE
    )
    assert int(default) == MEMORY_MB


# --- a mixed load


@pytest.fixture
def mixed(monkeypatch, tmp_path, shared):
    """The scenario with which a mixed load was run; local services, a given queue."""
    found = SimpleNamespace(scenario=None, driver=None, ready=Ready(ready=True))
    monkeypatch.chdir(tmp_path)

    def run(*words, config=None, given=True, own=(720, 3)):
        loaded = load_settings()
        update = {"load_function": "our-load", "aws_region": "us-east-1"}
        if given:
            update["queue_url"] = SecretStr("https://sqs.us-east-1.amazonaws.com/123456789012/load")
        values = loaded.values.model_copy(update=update)
        monkeypatch.setattr(command, "load_settings", lambda: replace(loaded, values=values))

        def run_mixed(database, queue, scenario, driver, *, run):
            found.scenario, found.driver = scenario, driver
            raise KeyboardInterrupt

        monkeypatch.setattr(command, "run_mixed", run_mixed)
        monkeypatch.setattr(command.Queue, "manners", lambda _: own)
        monkeypatch.setattr(command, "named_reader", lambda _: object())
        monkeypatch.setattr(command.LambdaWorkers, "ask", lambda _: found.ready)
        words = [str(word) for word in words]
        if config is not None:
            Path("own.json").write_text(json.dumps(config))
            words += ["--config", "own.json"]
        found.scenario = found.driver = None
        found.said = CliRunner().invoke(main, ["load", "mixed", *words, "--out", str(tmp_path)])
        return found

    return run


MIXED = {
    "duration_s": 3.0, "wait_s": 1.5, "messages_per_batch": 4, "statements_per_message": 6,
    "think_ms": 7.0, "reads_elsewhere": False, "visibility_timeout_s": 720, "max_receives": 3,
    "drain_s": 8.0,
}  # fmt: skip


def test_every_key_of_a_mixed_load_s_file_is_used(mixed):
    assert msgspec.to_builtins(mixed(config=MIXED).scenario) == MIXED
    assert set(MIXED) == set(MixedScenario.__struct_fields__)


@pytest.mark.parametrize("name", ["visibility_timeout_s", "max_receives"])
def test_a_given_queue_s_own_values_hold_and_others_are_refused(mixed, name):
    assert getattr(mixed().scenario, name) == {"visibility_timeout_s": 720, "max_receives": 3}[name]
    found = mixed(config={name: 5})
    assert found.said.exit_code == 1
    assert f"{name} is 5 in the scenario, and" in found.said.output
    assert found.scenario is None


def test_reads_elsewhere_by_a_function_that_knows_no_other_endpoint_are_refused(mixed):
    found = mixed("--reads-elsewhere")
    assert found.said.exit_code == 1
    assert "does not say that it knows another endpoint" in found.said.output
    assert found.scenario is None


def test_reads_elsewhere_by_a_function_that_knows_where_are_asked_for(mixed):
    found = mixed()
    found.ready = Ready(ready=True, reader="reader.example")
    assert mixed("--reads-elsewhere").scenario.reads_elsewhere


def test_the_number_of_processes_is_refused_where_a_function_does_the_work(mixed):
    found = mixed("--at-once", 2)
    assert found.said.exit_code == 1
    assert "--at-once is the number of processes here" in found.said.output


def test_the_options_of_a_mixed_load_are_those_that_are_tested():
    command_line = main.commands["load"].commands["mixed"]
    assert isinstance(command_line, click.Command)
    assert {p.name for p in command_line.params} - {"help"} == {
        "config", "duration_s", "wait_s", "messages_per_batch", "statements_per_message",
        "think_ms", "reads_elsewhere", "by_function", "at_once", "keep", "out",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--duration", 2], "duration_s", 2.0),
        (["--wait", 2], "wait_s", 2.0),
        (["--messages", 2], "messages_per_batch", 2),
        (["--statements", 2], "statements_per_message", 2),
        (["--think", 2], "think_ms", 2.0),
    ],
)
def test_options_of_a_mixed_load_win_over_the_file(mixed, words, name, value):
    assert getattr(mixed(*words, config=MIXED).scenario, name) == value
