"""Two runs side by side: what can be compared, what cannot, and why."""

import json
import math
import signal
from copy import deepcopy

import pytest
from click.testing import CliRunner

from workshop_lib.cli import main
from workshop_lib.compare import Pair, Refusal, compare_runs
from workshop_lib.errors import ResultError
from workshop_lib.report import write_report
from workshop_lib.results import Measurement, Result, write_json

SERVICES = {
    "database": {
        "label": "local PostgreSQL 16", "version": "PostgreSQL 16.14", "embedded": True,
        "emulated": False, "region": None,
    },
    "store": {
        "label": "S3 (moto)", "version": "", "embedded": True, "emulated": True, "region": None,
    },
}  # fmt: skip


def result(**measurements):
    found = Result("02_x", "ns", deepcopy(SERVICES), parameters={"repeats": 40}, size="quick")
    for name, measurement in measurements.items():
        found.record(name, measurement)
    return {**found.to_json(), "ok": True}


@pytest.fixture
def kept(tmp_path):
    """Writes a run of one notebook; returns its folder."""

    def keep(run, content, notebook="02_x"):
        write_json(tmp_path / run / f"{notebook}.json", {**content, "notebook": notebook})
        return tmp_path / run

    return keep


FAST = Measurement(20.0, "µs", 900, 18.0, 25.0)
SLOW = Measurement(50.0, "µs", 900, 40.0, 60.0)


def test_a_ratio_is_second_by_first_and_its_interval_by_the_ends(kept):
    a, b = kept("a", result(hit_p50=FAST)), kept("b", result(hit_p50=SLOW))
    (pair,) = compare_runs(a, b).pairs
    # 50 / 20; at least 40 / 25, at most 60 / 18.
    assert (pair.ratio, pair.low, pair.high) == (2.5, 1.6, pytest.approx(3.3333, abs=1e-4))
    assert pair.apart
    (back,) = compare_runs(b, a).pairs
    assert (back.ratio, back.low, back.high) == (0.4, pytest.approx(0.3), 0.625)
    assert back.apart


def test_overlapping_intervals_are_no_difference(kept):
    wide = Measurement(24.0, "µs", 9, 10.0, 90.0)
    (pair,) = compare_runs(kept("a", result(p=FAST)), kept("b", result(p=wide))).pairs
    assert not pair.apart


def test_figures_without_intervals_texts_and_zeros_are_shown_without_claims(kept):
    one = result(n=Measurement(4, "rows"), t=Measurement("lru"), b=Measurement(value=True),
                 z=Measurement(0, "errors"))  # fmt: skip
    other = result(n=Measurement(8, "rows"), t=Measurement("lfu"), b=Measurement(value=True),
                   z=Measurement(3, "errors"))  # fmt: skip
    found = {pair.name: pair for pair in compare_runs(kept("a", one), kept("b", other)).pairs}
    assert found["n"] == Pair("02_x", "n", "rows", 4, 8, 2.0)
    assert [found[name].ratio for name in "tbz"] == [None] * 3
    assert not any(pair.apart for pair in found.values())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"parameters": {"repeats": 50}}, "with other parameters: repeats 40 and 50"),
        ({"parameters": {}}, "with other parameters: repeats 40 and None"),
        ({"size": "full"}, "of size quick in the first and full in the second"),
        ({"ok": False}, "failed in the second run"),
        (
            {"latencies": [{"database_ms": 5.0}]},
            "with other emulated latencies: none in the first, database 5 ms in the second",
        ),
    ],
)
def test_a_notebook_that_ran_otherwise_is_not_compared_and_the_reason_is_told(kept, change, why):
    a, b = kept("a", result(p=FAST)), kept("b", {**result(p=SLOW), **change})
    found = compare_runs(a, b)
    assert found.pairs == []
    assert found.refused == [Refusal("02_x", "", why)]


def test_what_is_in_one_run_only_or_in_another_unit_is_not_compared(kept):
    a = kept("a", result(p=FAST, only=FAST, unit=FAST))
    b = kept("b", result(p=SLOW, unit=Measurement(0.05, "ms")))
    kept("b", result(p=SLOW), "03_y")
    found = compare_runs(a, b)
    assert [pair.name for pair in found.pairs] == ["p"]
    assert found.refused == [
        Refusal("02_x", "only", "only in the first run"),
        Refusal("02_x", "unit", "in other units: 'µs' and 'ms'"),
        Refusal("03_y", "", "only in the second run"),
    ]


def test_other_services_machines_and_versions_are_said_and_no_obstacle(kept):
    other = result(p=SLOW)
    other["services"]["database"] |= {"label": "Aurora DSQL in eu-west-1", "version": "16"}
    other["services"]["store"] |= {"label": "S3", "emulated": False}
    other["machine"]["cpus"] = 99
    other["versions"]["redis"] = "0.1"
    found = compare_runs(kept("a", result(p=FAST)), kept("b", other))
    assert len(found.pairs) == 1
    notes = "\n".join(found.notes)
    assert "database: local PostgreSQL 16 PostgreSQL 16.14 in the first run, Aurora DSQL" in notes
    assert "store: S3 (moto), emulated in the first run, S3 in the second" in notes
    assert "99 in the second" in notes
    assert "redis: " in notes
    assert found.labels == ("a (local PostgreSQL 16)", "b (Aurora DSQL in eu-west-1)")


def test_runs_of_different_numbers_at_a_time_are_compared_with_a_note(kept):
    alone, beside = ({**result(hit_p50=FAST), "workers": n} for n in (1, 2))
    note = "notebooks at a time: 1 in the first run, 2 in the second"
    assert note in compare_runs(kept("a", alone), kept("b", beside)).notes
    # By hand, and before this was kept: one.
    assert note not in compare_runs(kept("a", alone), kept("c", result(hit_p50=FAST))).notes


def test_one_file_can_be_compared_with_a_run(kept):
    a, b = kept("a", result(p=FAST)), kept("b", result(p=SLOW))
    assert compare_runs(a / "02_x.json", b).pairs == compare_runs(a, b).pairs


def test_the_same_run_twice_no_run_and_no_results_are_clear_errors(kept, tmp_path):
    a = kept("a", result(p=FAST))
    (tmp_path / "empty").mkdir()
    damaged = kept("damaged", result(p=FAST))
    (damaged / "02_x.json").write_text("{")
    for other, says in (
        (a, "are the same run"),
        (tmp_path / "none", "There is no run"),
        (tmp_path / "empty", "holds no results"),
        (damaged, "is not a result"),
    ):
        with pytest.raises(ResultError, match=says):
            compare_runs(a, other)


def test_the_table_marks_what_differs(kept):
    frame = compare_runs(kept("a", result(p=FAST)), kept("b", result(p=SLOW))).to_frame()
    assert list(frame.iloc[0]) == ["02", "p", "20", "50", "µs", "2.5", "1.6 – 3.33", "differs"]


def test_a_notebook_that_failed_early_is_refused_and_the_others_are_compared(kept):
    a, b = kept("a", result(p=FAST)), kept("b", result(p=SLOW))
    kept("a", result(p=FAST), "03_y")
    early = {"format": 1, "notebook": "03_y", "measurements": {}, "services": {}, "ok": False}
    write_json(b / "03_y.json", early)
    found = compare_runs(a, b)
    assert [pair.notebook for pair in found.pairs] == ["02_x"]
    assert found.refused == [Refusal("03_y", "", "failed in the second run")]


def test_a_damaged_file_is_refused_and_the_others_are_compared(kept):
    a, b = kept("a", result(p=FAST)), kept("b", result(p=SLOW))
    (b / "03_y.json").write_text("<<<<<<< HEAD")
    found = compare_runs(a, b)
    assert [pair.notebook for pair in found.pairs] == ["02_x"]
    assert found.refused == [Refusal("03_y", "", "only in the second run")]


def test_whatever_a_result_holds_stays_text_on_a_page(kept):
    bad = "<script>alert(1)</script>"
    other = result(**{bad: SLOW, f"{bad}only": SLOW})
    other["services"]["database"] |= {"label": bad, "version": bad}
    other["versions"][bad] = bad
    one = result(**{bad: Measurement(bad, bad)})
    page = compare_runs(kept("a", one), kept("b", other))._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_two_runs_of_the_same_name_keep_a_column_each(kept):
    a, b = kept("x/run", result(p=FAST)), kept("y/run", result(p=SLOW))
    frame = compare_runs(a, b).to_frame()
    assert list(frame.iloc[0])[2:4] == ["20", "50"]


def damaged(content):
    """A result with each of its fields, at any depth, missing or of another type."""
    for key in content:
        yield {k: v for k, v in content.items() if k != key}
        for value in (None, "text", math.nan, 10**400, [{}], {"a": []}):
            yield {**content, key: value}
        if isinstance(content[key], dict):
            yield from ({**content, key: inner} for inner in damaged(content[key]))


def test_any_result_is_compared_or_refused_and_reported(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    write_json(a / "02_x.json", result(p=FAST, q=SLOW))
    error = {"cell": 3, "source": "x", "error": "E", "traceback": "t"}
    whole = {**result(p=SLOW, q=FAST), "title": "T", "seconds": 1.0, "workers": 1, "error": error}
    b.mkdir()
    tried = 0
    for content in damaged(whole):
        (b / "02_x.json").write_text(json.dumps(content))
        tried += 1
        if content.get("format") != 1:
            continue
        found = compare_runs(a, b)
        json.dumps(found.to_json(), allow_nan=False)
        assert len(found.to_frame()) == len(found.pairs)
        found._repr_html_()
        if tried % 5 == 0:
            assert "02_x" in write_report(b).read_text()
    assert tried > 300


@pytest.fixture
def _signals():
    """A command handles SIGTERM in a way of its own: put back how it was."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_signals")
def test_the_command_shows_writes_and_ends_with_1_if_nothing_can_be_compared(kept, tmp_path):
    a, b = str(kept("a", result(p=FAST))), str(kept("b", result(p=SLOW)))
    other = str(kept("c", {**result(p=SLOW), "size": "full"}))
    picture = tmp_path / "two.png"
    done = CliRunner().invoke(main, ["compare", a, b, "--plot", str(picture)])
    assert done.exit_code == 0
    assert "differs" in done.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    done = CliRunner().invoke(main, ["compare", a, b, "--json"])
    assert json.loads(done.output)["figures"][0]["ratio"] == 2.5
    done = CliRunner().invoke(main, ["compare", a, other])
    assert done.exit_code == 1
    assert "not compared: 02_x: of size quick in the first" in done.output
    done = CliRunner().invoke(main, ["compare", a, "no such run"])
    assert done.exit_code == 1
    assert "There is no run 'no such run'" in done.output
