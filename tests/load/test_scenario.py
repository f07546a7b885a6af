"""Scenarios from files, with options that win over them; and what they send, on paper."""

import json
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, strategies as st

from workshop_lib.errors import DataError
from workshop_lib.load import (
    InsertLoad,
    InsertScenario,
    MixedScenario,
    events,
    monthly_payment,
    read_scenario,
)
from workshop_lib.load.scenario import insert_jobs, mixed_jobs
from workshop_lib.load.traffic import (
    ACTIONS,
    EVENT_TYPES,
    FIRST_ID,
    STATEMENTS,
    TERMS_MONTHS,
    row_id,
    values_of,
)

SAVED = datetime(2026, 6, 30, 12, tzinfo=UTC)
THEIRS = {
    "lambda_function_name": "dsql-load-test-lambda",
    "region": "us-east-1",
    "scenario_1": {"num_lambdas": 1000, "iterations": 10, "inserts_per_iteration": 1},
    "scenario_2": {"num_lambdas": 1000, "iterations": 10, "rows_per_batch": 100},
    "warm_up_invocations": 20,
    "event_type": "CarCreated",
}
"""The published load test's own config.json."""


def write(tmp_path, content, name="scenario.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_published_config_is_read_unchanged_and_the_full_size_is_its(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    marked = "\ufeff" + json.dumps(THEIRS)  # as some editors begin a file
    found = read_scenario(write(tmp_path, marked, "config.json"), InsertScenario)
    assert (found.lambda_function_name, found.region) == ("dsql-load-test-lambda", "us-east-1")
    assert found.loads() == read_scenario("inserts_full", InsertScenario).loads()
    one, two = found.loads().values()
    assert (one.workers, one.rows, one.planned) == (1_000, 1, 10_000)
    assert (two.workers, two.rows, two.planned) == (1_000, 100, 1_000_000)
    assert one.warm_up == two.warm_up == 20
    own = write(tmp_path, {"scenario_1": {}}, "inserts_full.json")  # one that is here wins
    assert list(read_scenario(own.name, InsertScenario).loads()) == ["individual inserts"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"scenario1": {}}, "unknown field `scenario1`"),
        ({"event_type": "CarStolen"}, "'CarStolen' - at `\\$.event_type`"),
        ({"scenario_2": {"rows_per_batch": 3_001}}, "<= 3000 - at `\\$.scenario_2.rows_per_batch`"),
        ({"scenario_1": {"iterations": "10"}}, "Expected `int`, got `str`"),
        ("{", "truncated"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path, content, says):
    with pytest.raises(DataError, match=f"scenario.json is not usable: .*{says}"):
        read_scenario(write(tmp_path, content), InsertScenario)


def test_where_there_is_no_file_it_is_said_which_scenarios_there_are():
    with pytest.raises(DataError, match=r"no scenario nope: .*own are .*, mixed_laptop"):
        read_scenario("nope", InsertScenario)


def test_a_load_becomes_jobs_with_its_rows_and_a_warm_up_of_a_statement_each():
    with pytest.raises(DataError, match=r"This load is not usable: .*rows_per_batch"):
        InsertLoad(rows=3_001).check()
    load = InsertLoad(workers=2, iterations=3, statements=4, rows=5, warm_up=3)
    assert sum(job.planned for job in insert_jobs(load, "run")) == load.planned == 120
    assert [job.statements for job in insert_jobs(load, "run", warm_up=True)] == [1, 1, 1]


def test_a_mixed_load_has_rounds_of_all_actions_whose_reads_may_go_elsewhere():
    scenario = MixedScenario(duration_s=1, wait_s=0.25, messages_per_batch=3, reads_elsewhere=True)
    rounds = mixed_jobs(scenario, "run")
    assert [len(jobs) for jobs in rounds] == [9] * 4
    jobs = [job for jobs in rounds for job in jobs]
    assert [job.number for job in jobs] == list(range(36))
    assert {job.target for job in jobs if job.action == "INSERT"} == {"writer"}
    assert {job.target for job in jobs if job.action != "INSERT"} == {"reader"}


def test_a_mixed_load_has_no_more_messages_than_its_rows_have_ids():
    laptop = read_scenario("mixed_laptop", MixedScenario)
    with pytest.raises(DataError, match="5,400,000 messages; 1,048,576 is the most"):
        mixed_jobs(laptop.changed({"duration_s": 3_600.0, "wait_s": 0.01}), "run")


# --- events


def make(kind, count=50, seed="a"):
    return list(events(kind, (f"id-{n}" for n in range(count)), random.Random(seed), SAVED))


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_a_seed_makes_complete_rows_of_its_kind_and_the_same_ones_again(kind):
    found = make(kind, 400)
    assert found == make(kind, 400) != make(kind, 400, seed="b")
    for number, (key, name, entity, created, saved, data) in enumerate(found):
        assert key == f"id-{number}"
        assert entity == ("Car" if name.startswith("Car") else "Loan")
        assert SAVED - timedelta(hours=1) <= created <= saved == SAVED
        assert isinstance(json.loads(data), dict)
    names = [row[1] for row in found]
    if kind == "Mixed":
        assert set(names) == set(EVENT_TYPES) - {"Mixed"}
        assert all(60 <= names.count(name) <= 140 for name in set(names))
    else:
        assert set(names) == {kind}


@given(st.integers(5_000, 60_000), st.integers(1, 1_200), st.sampled_from(TERMS_MONTHS))
def test_the_payments_pay_the_loan_off(principal, basis_points, months):
    rate = Decimal(basis_points) / 100
    payment, left = monthly_payment(Decimal(principal), rate, months), Decimal(principal)
    for _ in range(months):
        left += left * rate / 1_200 - payment
    # Half a cent of rounding a month, with interest on it.
    assert abs(left) <= Decimal("0.01") * months


# --- mixed traffic


def test_inserts_are_seeded_rows_within_the_ranges_and_runs_differ_in_their_ids_only():
    def inserts(seed=1, run="a"):
        rng = random.Random(seed)
        return [values_of("INSERT", rng, run, number) for number in range(1_000)]

    assert inserts() == inserts() != inserts(seed=2)
    assert [row[1:] for row in inserts(run="b")] == [row[1:] for row in inserts(run="c")]
    assert not {row[0] for row in inserts(run="b")} & {row[0] for row in inserts(run="c")}
    for _, kind, _, quantity, price in inserts():
        assert 1 <= kind <= 10
        assert 1 <= quantity <= 1_000
        assert Decimal(0) <= price <= 500
        assert -price.as_tuple().exponent == 2
    for action in ACTIONS:
        values = values_of(action, random.Random(1), "a", 0)
        assert STATEMENTS[action].count("%s") == len(values)


@given(st.text(), st.integers(0, 2**30 - 1))
def test_ids_fit_the_column_and_their_run(run, number):
    assert FIRST_ID <= row_id(run, 0) <= row_id(run, number) < row_id(run, 2**30) <= 2**63
