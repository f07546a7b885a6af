"""A scenario comes from a file, options win over it, and what is not known is refused."""

import json

import pytest

from workshop_lib.errors import DataError
from workshop_lib.load.scenario import InsertScenario, Storm, read_scenario
from workshop_lib.paths import CHECKOUT

FULL = CHECKOUT / "data" / "scenarios" / "inserts_full.json"
LAPTOP = CHECKOUT / "data" / "scenarios" / "inserts_laptop.json"


def write(tmp_path, content, name="scenario.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_full_size_is_the_one_of_the_original():
    one, two = read_scenario(FULL).storms().values()
    assert (one.workers, one.rows, one.planned) == (1_000, 1, 10_000)
    assert (two.workers, two.rows, two.planned) == (1_000, 100, 1_000_000)
    assert one.warm_up == two.warm_up == 20
    assert read_scenario(FULL) == InsertScenario()


def test_a_file_of_the_workshop_s_goes_by_its_name_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_scenario("inserts_full.json") == read_scenario("inserts_full")
    assert read_scenario("inserts_full") == read_scenario(FULL)
    write(tmp_path, {"warm_up_invocations": 3}, "inserts_full.json")
    assert read_scenario("inserts_full.json").warm_up_invocations == 3  # one that is here wins


def test_the_laptop_s_has_the_same_form():
    assert list(read_scenario(LAPTOP).storms()) == ["individual inserts", "multi-row inserts"]


def test_one_scenario_alone():
    assert list(InsertScenario().storms("1")) == ["individual inserts"]
    assert list(InsertScenario().storms("2")) == ["multi-row inserts"]


def test_only_what_the_file_has_is_run(tmp_path):
    found = read_scenario(write(tmp_path, {"scenario_1": {"num_lambdas": 1}}), workers=2)
    assert found.scenario_2 is None
    assert {name: storm.workers for name, storm in found.storms().items()} == {
        "individual inserts": 2
    }


@pytest.mark.parametrize(
    ("content", "which", "says"),
    [
        ({}, "both", "neither scenario_1 nor scenario_2"),
        ({"warm_up_invocations": 3}, "1", "no scenario_1"),
        ({"scenario_1": {}}, "2", "no scenario_2"),
    ],
)
def test_a_scenario_that_the_file_does_not_have_is_refused(tmp_path, content, which, says):
    with pytest.raises(DataError, match=says):
        read_scenario(write(tmp_path, content), workers=3).storms(which)


def test_options_win_over_the_file():
    found = read_scenario(
        FULL, workers=3, iterations=2, count=7, event_type="Mixed", warm_up=0,
        function_name="mine", region="eu-west-1",
    )  # fmt: skip
    assert (found.lambda_function_name, found.region) == ("mine", "eu-west-1")
    one, two = found.storms().values()
    assert (one.workers, one.iterations, one.statements, one.rows) == (3, 2, 7, 1)
    assert (two.workers, two.iterations, two.statements, two.rows) == (3, 2, 1, 7)
    assert one.event_type == two.event_type == "Mixed"
    assert one.warm_up == two.warm_up == 0


def test_an_option_that_is_not_given_leaves_the_file_s_value():
    assert read_scenario(FULL, workers=None, warm_up=None) == InsertScenario()


def test_toml_will_do_as_well(tmp_path):
    path = write(tmp_path, 'event_type = "Mixed"\n[scenario_1]\nnum_lambdas = 2\n', "s.toml")
    assert read_scenario(path).scenario_1.num_lambdas == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"num_lambda": 5}, "num_lambda.*It may hold: lambda_function_name, "),
        ({"scenario_1": {"workers": 5}}, "workers.*scenario_1.*It may hold: num_lambdas, "),
        ({"event_type": "CarStolen"}, "CarStolen.*There are: CarCreated, .*Mixed"),
        ({"scenario_2": {"rows_per_batch": 3_001}}, "<= 3000"),
        ({"scenario_2": {"rows_per_batch": 0}}, ">= 1"),
        ({"scenario_1": {"iterations": "10"}}, "scenario_1.iterations"),
        ([1], "object"),
        ("{", "cannot be read"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path, content, says):
    with pytest.raises(DataError, match=says) as raised:
        read_scenario(write(tmp_path, content))
    assert "scenario.json" in str(raised.value)
    assert ("It may hold" in str(raised.value)) == ("unknown" in str(raised.value))


def test_a_missing_file_is_named():
    with pytest.raises(DataError, match=r"nowhere\.json cannot be read"):
        read_scenario("nowhere.json")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workers": 0}, r"^--workers must be a whole number >= 1\.$"),
        ({"count": 5_000}, r"^--count must be a whole number <= 3000\.$"),
        ({"warm_up": -1}, r"^--warm-up must be a whole number >= 0\.$"),
        ({"event_type": "Bike"}, "^--event-type: .*'Bike'.*There are: CarCreated, "),
        ({"colour": 1}, "no option 'colour'"),
    ],
)
def test_an_option_out_of_range_is_refused(options, says):
    with pytest.raises(DataError, match=says):
        read_scenario(FULL, **options)


def test_a_storm_made_by_hand_is_checked():
    with pytest.raises(DataError, match="<= 3000"):
        Storm(rows=3_001).check()
    assert Storm(workers=2, iterations=3, statements=4, rows=5).planned == 120
