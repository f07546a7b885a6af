"""A scenario comes from a file, options win over it, and what is not known is refused."""

import json

import pytest

from workshop_lib.errors import DataError
from workshop_lib.load.scenario import InsertLoad, InsertScenario, read_scenario
from workshop_lib.paths import CHECKOUT

FULL = CHECKOUT / "data" / "scenarios" / "inserts_full.json"


def write(tmp_path, content, name="scenario.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_full_size_is_the_one_of_the_original_and_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = read_scenario("inserts_full")
    assert found == read_scenario(FULL, workers=None, warm_up=None) == InsertScenario()
    one, two = found.loads().values()
    assert (one.workers, one.rows, one.planned) == (1_000, 1, 10_000)
    assert (two.workers, two.rows, two.planned) == (1_000, 100, 1_000_000)
    assert one.warm_up == two.warm_up == 20
    assert list(found.loads("1")) == ["individual inserts"]
    write(tmp_path, {"warm_up_invocations": 3}, "inserts_full.json")
    assert read_scenario("inserts_full.json").warm_up_invocations == 3  # one that is here wins


def test_only_what_the_file_has_is_run_and_toml_will_do_as_well(tmp_path):
    path = write(tmp_path, 'event_type = "Mixed"\n[scenario_1]\nnum_lambdas = 2\n', "s.toml")
    found = read_scenario(path, iterations=7)
    assert found.scenario_2 is None
    assert {name: load.planned for name, load in found.loads().items()} == {
        "individual inserts": 14
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"num_lambda": 5}, "num_lambda.*It may hold: lambda_function_name, "),
        ({"scenario_1": {"workers": 5}}, "scenario_1.*workers.*It may hold: num_lambdas, "),
        ({"event_type": "CarStolen"}, "CarStolen.*There are: CarCreated, .*Mixed"),
        ({"scenario_2": {"rows_per_batch": 3_001}}, "<= 3000"),
        ({"scenario_1": {"iterations": "10"}}, "scenario_1.iterations"),
        ([1], "object"),
        ("{", "cannot be read"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path, content, says):
    with pytest.raises(DataError, match=says) as raised:
        read_scenario(write(tmp_path, content))
    assert "scenario.json" in str(raised.value)


def test_a_load_made_by_hand_is_checked():
    with pytest.raises(DataError, match="<= 3000"):
        InsertLoad(rows=3_001).check()
    assert InsertLoad(workers=2, iterations=3, statements=4, rows=5).planned == 120
