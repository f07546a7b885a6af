import doctest
import json
import re
import time

import pytest

from workshop_lib import Samples, findings, results
from workshop_lib.errors import DataError, ResultError
from workshop_lib.load.report import save_reports
from workshop_lib.results import Measurement, Result, new_result, read_result, write_json


def test_a_result_comes_back_as_it_was_written_and_replaces_the_one_before(tmp_path):
    kept = new_result("02_cache", "ns")
    kept.services["database"] = {"label": "x"}
    kept.measurements["hit_p50"] = Measurement(31.2, "µs", 900, 30.0, 32.0)
    for content in (Result("02_cache"), kept):
        write_json(tmp_path / "a.json", content.to_json())
    assert read_result(tmp_path / "a.json") == kept
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert kept.versions["redis"]
    with pytest.raises(ResultError, match="cannot be written"):
        write_json(tmp_path / "a.json" / "b.json", {})


@pytest.mark.parametrize("value", [float("nan"), 10**400, [1, 2]])
def test_what_is_no_figure_is_refused(value):
    with pytest.raises(ResultError, match=r"finite|float\(x\) helps"):
        Measurement(value)


def test_the_workshop_writes_each_figure_at_once_and_no_password(ws, state):
    ws.record("answer", 42, "rows", 3)
    kept = read_result(ws.settings.workshop_result_file)
    assert kept.measurements["answer"].value == 42
    assert str(kept.services["cache"]["version"]).startswith("Valkey")
    assert ws.summary("^answer$").to_dict("index") == {
        "answer": {"value": "42", "unit": "rows", "95 % interval": "", "samples": "3"}
    }
    text = ws.settings.workshop_result_file.read_text()
    assert [name for name, secret in state.secrets().items() if secret in text] == []


@pytest.mark.parametrize(("n", "interval"), [(5, (None, None)), (6, (1e6, 6e6))])
def test_a_median_of_fewer_than_six_samples_has_no_interval(shared, n, interval):
    shared.record_samples(f"of_{n}", Samples("a call", tuple(float(i + 1) for i in range(n))))
    kept = shared.result.measurements[f"of_{n}_p50"]
    assert (kept.low, kept.high) == interval


WHOLE = Result("09_x", measurements={"p": Measurement(1.0, "s", 1, 0.5, 2.0)}).to_json()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not a result"),
        ({k: v for k, v in WHOLE.items() if k != "notebook"}, "notebook"),
        (WHOLE | {"started": "noon"}, "started"),
        (WHOLE | {"measurements": {"p": {"unit": "s"}}}, "value"),
        (WHOLE | {"measurements": {"p": {"value": 1, "low": 0, "high": 10**400}}}, "finite|range"),
    ],
)
def test_a_damaged_result_is_refused_with_the_place(tmp_path, content, says):
    file = tmp_path / "a.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ResultError, match=rf"a\.json[\s\S]*{says}"):
        read_result(file)


@pytest.mark.parametrize("module", [results, findings])
def test_the_examples_of_what_is_read_by_people_are_true(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert found.failed == 0


def test_a_quotient_sets_the_ends_of_both_intervals_against_each_other():
    slow, fast = Measurement(6.0, "ms", 9, 5.0, 7.0), Measurement(2.0, "ms", 8, 1.0, 4.0)
    assert slow / fast == Measurement(3.0, "times", 8, 1.25, 7.0)
    assert slow / Measurement(2.0, "ms", 8) == Measurement(3.0, "times", 8)
    for other in (Measurement(1, "s"), Measurement(0, "ms"), Measurement("a", "ms")):
        with pytest.raises((TypeError, ArithmeticError)):
            slow / other


def test_load_tests_of_one_second_keep_a_file_each_in_whatever_time_zone(tmp_path, monkeypatch):
    with monkeypatch.context() as shell:
        shell.setenv("TZ", "XXX-99:99")
        time.tzset()
        places = [save_reports({}, tmp_path) for _ in range(5)]
    time.tzset()
    assert len(set(places)) == 5
    assert all(re.fullmatch(r"results_\d{8}_\d{6}(_\d)?\.json", place.name) for place in places)
    assert all(json.loads(one.read_text())["timestamp"].startswith("20") for one in places)


def test_an_object_above_or_below_another_one_is_refused_in_a_sentence(ws):
    for first, second in (("up", "up/down"), ("x/y/z", "x/y"), ("a", "a/b/c")):
        ws.objects.put(first, b"1")
        with pytest.raises(DataError, match="keeps objects as files") as refused:
            ws.objects.put(second, b"2")
        assert repr(first) in str(refused.value)
        assert ws.objects.get(first).body == b"1"
        ws.objects.delete(first)


def test_names_that_are_two_on_amazon_s3_are_never_one_object(ws):
    ws.objects.put("x/y", b"1")
    ws.objects.put("\u00e9", b"2")
    for name in ("x/y/", "x//y", "x/./y", "x/z/../y"):
        with pytest.raises(DataError, match=r"keeps objects as files.* choose another name"):
            ws.objects.put(name, b"3")
        assert ws.objects.get(name) is None
        ws.objects.delete(name)
    assert ws.objects.get("e\u0301") is None
    assert (ws.objects.get("x/y").body, ws.objects.get("\u00e9").body) == (b"1", b"2")
