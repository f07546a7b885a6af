"""Two runs side by side: what differs by more than chance, what cannot be compared, and why."""

import math
import random

import pytest
from click.testing import CliRunner

from workshop_lib.cli import main
from workshop_lib.compare import compare_runs
from workshop_lib.errors import ResultError
from workshop_lib.results import Measurement, Result, write_json

SERVICES = {
    "database": {"label": "local PostgreSQL 16", "version": "PostgreSQL 16.14"},
    "store": {"label": "S3 (moto)", "version": "", "emulated": True},
}


@pytest.fixture
def keep(tmp_path):
    """Writes a run's result of one notebook; returns the run's folder."""

    def write(run, measurements, notebook="02_x", **about):
        about = {"size": "quick", "services": SERVICES, "parameters": {"repeats": 40}} | about
        content = Result(notebook, measurements=measurements, **about).to_json()
        write_json(tmp_path / run / f"{notebook}.json", content)
        return tmp_path / run

    return write


def figures(factors, error=0.05):
    """Figures of 100 µs times a factor, with their own intervals."""
    ends = math.exp(1.96 * error)
    return {
        f"f{n}": Measurement(100 * f, "µs", 40, 100 * f / ends, 100 * f * ends)
        for n, f in enumerate(factors)
    }


def drawn(rng, drift, spread, number=20):
    return figures([drift * math.exp(rng.gauss(0, spread)) for _ in range(number)])


def names_shown(found):
    return [line.split()[1] for line in str(found).splitlines() if line.startswith("02 ")]


@pytest.mark.parametrize(("drift", "spread"), [(1.0, 0.4), (1.5, 0.1)])
def test_runs_of_the_same_code_are_not_called_different(keep, drift, spread):
    """Whether they scatter, or a slower machine moves all of their figures."""
    rng, same = random.Random(17), 0
    for _ in range(60):
        first = keep("a", drawn(rng, 1.0, spread))
        found = compare_runs(first, keep("b", drawn(rng, drift, spread)))
        same += str(found).startswith("These two runs show no difference in any of 20 figures.")
    assert same >= 59


def test_a_change_of_some_figures_stands_out_of_the_spread_of_all(keep):
    rng = random.Random(17)
    changed = [math.exp(rng.gauss(0, 0.05)) * (3 if n in {4, 9} else 1) for n in range(20)]
    found = compare_runs(keep("a", drawn(rng, 1.0, 0.05)), keep("b", figures(changed)))
    assert [pair.name for pair in found.pairs if pair.apart] == ["f4", "f9"]
    assert str(found).startswith("2 of 20 figures differ by more than chance.")
    assert names_shown(found)[:3] == ["f4", "f9", "f0"]  # those that differ, then the others
    assert found.pairs[4].low < found.pairs[4].ratio < found.pairs[4].high


@pytest.mark.parametrize("error", [0.05, 170.0])
def test_figures_however_far_apart_or_uncertain_are_compared(keep, error):
    found = compare_runs(
        keep("a", figures([1e-150] * 6, error)), keep("b", figures([1e150] * 6, error))
    )
    assert len(found.pairs) == 6
    assert str(found)


def test_between_services_all_figures_may_differ(keep):
    aws = {"database": {"label": "Aurora DSQL", "version": ""}}
    first, other = keep("a", figures([1.0] * 20)), figures([8.0] * 20)
    there = compare_runs(first, keep("b", other, services=aws))
    assert all(pair.apart for pair in there.pairs)
    assert not any(pair.apart for pair in compare_runs(first, keep("c", other)).pairs)
    assert there.notes == [
        "database: first local PostgreSQL 16 PostgreSQL 16.14, second Aurora DSQL",
        "store: first S3 (moto), second none",
    ]


def test_figures_without_intervals_texts_and_other_units_are_shown_without_claims(keep):
    one = {"n": Measurement(4), "t": Measurement("lru"), "b": Measurement(value=True),
           "z": Measurement(0), "u": Measurement(1.0, "s"), "same": Measurement(1)}  # fmt: skip
    other = {"n": Measurement(8), "t": Measurement("lfu"), "b": Measurement(value=False),
             "z": Measurement(3), "u": Measurement(1.0, "ms"), "same": Measurement(1)}  # fmt: skip
    found = compare_runs(keep("a", one), keep("b", other))
    assert [(pair.ratio, pair.apart) for pair in found.pairs[:5]] == [
        (2.0, False), *[(None, False)] * 4
    ]  # fmt: skip
    assert names_shown(found) == ["n", "t", "b", "z"]
    assert "Not shown: 2 figures" in str(found)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"parameters": {}}, "repeats: first 40, second none"),
        ({"size": "full"}, "size: first quick, second full"),
        ({"ok": False}, "failed in the second run"),
        ({"latencies": [{"database_ms": 5.0}]}, "latencies: first none, second database 5 ms"),
    ],
)
def test_a_notebook_that_ran_otherwise_is_not_compared_and_the_reason_is_told(keep, change, why):
    found = compare_runs(keep("a", figures([1])), keep("b", figures([2]), **change))
    assert (found.pairs, found.refused) == ([], {why: ["02_x"]})
    lines = str(found).splitlines()
    assert (lines[0], lines[-1]) == ("Nothing can be compared.", f"not compared, {why}: 02_x")


def test_what_only_one_run_has_is_not_compared_and_other_machines_are_noted(keep):
    a = keep("a", figures([1, 1]), workers=1, versions={"redis": "8"})
    b = keep("b", figures([1]), workers=2, versions={"redis": "9"})
    keep("b", figures([1]), "03_y")
    (b / "05_damaged.json").write_text("<<<<<<< HEAD")
    found = compare_runs(a, b)
    assert [(pair.notebook, pair.name) for pair in found.pairs] == [("02_x", "f0")]
    assert found.refused == {
        "only in the first run": ["02 f1"],
        "only in the second run": ["03_y", "05_damaged"],
    }
    assert found.notes == ["notebooks at a time: first 1, second 2", "redis: first 8, second 9"]
    assert compare_runs(a / "02_x.json", b).pairs == found.pairs


def test_no_run_and_no_results_are_clear_errors(keep, tmp_path):
    a = keep("a", figures([1]))
    (tmp_path / "empty").mkdir()
    for other, says in (("none", "There is no run"), ("empty", "holds no results")):
        with pytest.raises(ResultError, match=says):
            compare_runs(a, tmp_path / other)


def test_it_fits_into_100_columns(keep):
    bad = "<script>alert(1)</script>" * 4
    long = {bad: Measurement(1.0, bad, 1, 0.9, 1.1), "t": Measurement(bad)}
    services = {bad: {"label": bad, "version": bad}}
    a, b = keep("a", long), keep("b", long | {"t": Measurement("x")}, services=services)
    keep("b", long, f"03_{'y' * 90}")
    assert max(map(len, str(compare_runs(a, b)).splitlines())) <= 100


def test_the_command_shows_and_ends_with_1_if_nothing_can_be_compared(keep):
    first = str(keep("a", figures([1.0] * 20)))
    second = str(keep("b", figures([1.0] * 19 + [9.0]), workers=2))
    done = CliRunner().invoke(main, ["compare", first, second])
    assert (done.exit_code, done.output.count(" differs\n")) == (0, 1)
    assert done.output.startswith("1 of 20 figures differs by more than chance.")
    said = " ".join(done.output.split())
    assert "The runs differ in notebooks at a time: first 1, second 2." in said
    other = str(keep("c", {}, size="full"))
    assert CliRunner().invoke(main, ["compare", first, other]).exit_code == 1
