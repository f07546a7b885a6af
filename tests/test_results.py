import doctest
import json
import os
import re
import time

import pytest

from workshop_lib import Samples, published, report, results
from workshop_lib.errors import DataError, ResultError
from workshop_lib.load.inserts import write_report
from workshop_lib.results import (
    Measurement,
    Result,
    described,
    latest_figure,
    read_result,
    write_json,
)


def result():
    return Result("02_cache_a_query", "workshop", {"database": {"label": "x"}})


def test_a_recorded_figure_comes_back_with_unit_and_sample_count(tmp_path):
    kept = result()
    kept.record("hit_p50", Measurement(31.2, "µs", 900, 30.0, 32.0))
    write_json(tmp_path / "a.json", kept.to_json())
    back = read_result(tmp_path / "a.json")
    assert back["measurements"]["hit_p50"] == {
        "value": 31.2, "unit": "µs", "n": 900, "low": 30.0, "high": 32.0,
    }  # fmt: skip
    assert back["notebook"] == "02_cache_a_query"
    assert back["distances"] == []
    assert back["versions"]["redis"]
    assert back["machine"]["cpus"] >= 1


def test_each_distance_that_was_in_force_is_kept_once_in_order_and_none_is_no_distance():
    kept = result()
    for seconds in (0.0, 0.005, 0.0, 0.0005, 0.005):
        kept.note_distance({"database": seconds, "cache": 0.0})
    both = [{"database_ms": 5.0, "cache_ms": 0.0}, {"database_ms": 0.5, "cache_ms": 0.0}]
    assert kept.to_json()["distances"] == both
    assert [described(one) for one in both] == ["database 5 ms", "database 0.5 ms"]
    assert not described({"database_ms": 0.0})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_is_refused(value):
    with pytest.raises(ResultError, match="finite"):
        result().record("x", Measurement(value))


def test_a_figure_of_another_type_is_refused_with_a_hint():
    with pytest.raises(ResultError, match=r"float\(x\) helps"):
        result().record("x", Measurement([1, 2]))


def test_a_damaged_result_is_refused_by_name(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ResultError, match=r"a\.json is not a result"):
        read_result(tmp_path / "a.json")


def test_a_result_of_another_format_is_refused(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ResultError, match="format 1"):
        read_result(tmp_path / "a.json")


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="cannot be written"):
        write_json(tmp_path / "file" / "a.json", {})


def test_writing_leaves_no_draft_behind(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    write_json(tmp_path / "a.json", {"x": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 2}


def test_the_workshop_writes_each_figure_at_once_and_can_read_it_back(ws):
    ws.record("answer", 42, "rows", 3)
    kept = json.loads(ws.settings.workshop_result_file.read_text())
    assert kept["measurements"]["answer"]["value"] == 42
    assert kept["services"]["cache"]["version"].startswith("Valkey")
    assert ws.summary("^answer$").to_dict("index") == {
        "answer": {"value": "42", "unit": "rows", "95 % interval": "", "samples": "3"}
    }


def test_no_password_stands_in_a_result(ws, state):
    ws.record("x", 1)
    text = ws.settings.workshop_result_file.read_text()
    assert [name for name, secret in state.secrets().items() if secret in text] == []


# --- what was measured before


def test_the_newest_figure_of_a_notebook_is_found_whatever_else_lies_there(tmp_path):
    for number, run in enumerate(("first", "second")):
        result = Result("09_x", "ns", {})
        result.record("hits", Measurement(number, "hits", 1))
        file = tmp_path / run / "09_x.json"
        write_json(file, result.to_json())
        os.utime(file, (1_000 + number, 1_000 + number))
    for name, text in (("damaged", "{"), ("other", '{"format": 99}'), ("list", "[]")):
        file = tmp_path / name / "09_x.json"
        file.parent.mkdir()
        file.write_text(text)
    found = latest_figure(tmp_path, "09_x", "hits")
    assert found is not None
    assert found[0].value == 1
    of_this_run = latest_figure(tmp_path, "09_x", "hits", first=tmp_path / "first")
    assert of_this_run is not None
    assert of_this_run[0].value == 0
    assert latest_figure(tmp_path, "09_x", "hits", first=tmp_path / "gone") == found
    assert latest_figure(tmp_path, "09_x", "misses") is None
    assert latest_figure(tmp_path, "08_x", "hits") is None
    assert latest_figure(tmp_path / "none", "09_x", "hits") is None


@pytest.mark.parametrize("room", [results, published, report])
def test_the_examples_of_what_is_read_by_people_are_true(room):
    found = doctest.testmod(room)
    assert found.attempted
    assert found.failed == 0


def figure(value, unit="µs", low=None, high=None):
    return {"value": value, "unit": unit, "n": 5, "low": low, "high": high}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (figure(1.0), figure(1.0, "ms")),
        (figure(1.0), figure(0)),
        (figure("none"), figure(2.0)),
        (figure(True), figure(2.0)),
    ],
)
def test_what_cannot_be_divided_gives_no_ratio(first, second):
    assert results.ratio(first, second) is None


def test_a_ratio_without_both_intervals_has_none():
    found = results.ratio(figure(6.0, low=5.0, high=7.0), figure(2.0))
    assert found == {"value": 3.0, "unit": "times", "n": 5, "low": None, "high": None}


@pytest.mark.parametrize(("n", "interval"), [(5, (None, None)), (6, (1e6, 6e6))])
def test_a_median_of_fewer_than_six_samples_has_no_interval(shared, n, interval):
    shared.record_samples(f"of_{n}", Samples("a call", tuple(float(i + 1) for i in range(n))))
    kept = shared.result.measurements[f"of_{n}_p50"]
    assert (kept.low, kept.high) == interval


def test_load_tests_of_one_second_keep_a_file_each(tmp_path):
    places = [write_report({"number": n}, tmp_path) for n in range(5)]
    assert [json.loads(place.read_text())["number"] for place in places] == [0, 1, 2, 3, 4]
    assert all(re.fullmatch(r"results_\d{8}_\d{6}(_\d)?\.json", place.name) for place in places)


def test_an_object_above_or_below_another_one_is_refused_in_a_sentence(ws):
    for first, second in (("up", "up/down"), ("x/y/z", "x/y"), ("a", "a/b/c")):
        ws.objects.put(first, b"1")
        with pytest.raises(DataError, match="keeps objects as files") as refused:
            ws.objects.put(second, b"2")
        assert repr(first) in str(refused.value)
        assert ws.objects.get(first).body == b"1"
        ws.objects.delete(first)


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the system's time zone cannot be set")
def test_a_result_is_written_in_whatever_time_zone_the_shell_names(tmp_path, monkeypatch):
    with monkeypatch.context() as shell:
        shell.setenv("TZ", "XXX-99:99")
        time.tzset()
        place = write_report({}, tmp_path)
    time.tzset()
    assert json.loads(place.read_text())["timestamp"].startswith("20")
