"""A run is summed up in sentences made from its figures, by templates that hold none."""

import re

import pytest

from workshop_lib import findings, runner
from workshop_lib.errors import DataError
from workshop_lib.findings import Statement, find, main_figures, statements

TEMPLATES = [(one.notebook, text) for one in statements() for text in one.texts.values()]


def figure(value, unit="", n=1, low=None, high=None):
    return {"value": value, "unit": unit, "n": n, "low": low, "high": high}


def statement(texts, shown="gain", against=1, ratios=None, notebook="02_cache"):
    return Statement(notebook, "How much?", shown, texts, against, ratios or {}, True)


def said_of(one, **measured):
    found = find(one, {"ok": True, "measurements": measured, "services": {}})
    assert not found.missing, found.missing
    return found


def test_a_figure_takes_its_place_with_unit_count_share_or_size():
    text = "{a} of {a.n}, {b}, {c:%}, {d:size} lost, {e}."
    found = said_of(
        statement({"text": text}, "a"),
        a=figure(3, "reads", 1_200), b=figure(4854.6, "µs"), c=figure(0.744),
        d=figure(-12.5, "USD"), e=figure(True),
    )  # fmt: skip
    assert found.sentence == "3 of 1,200, 4.85 ms, 74 %, 12.5 lost, yes."
    assert [text for text, is_figure in found.parts if is_figure] == [
        "3", "1,200", "4.85 ms", "74 %", "12.5", "yes",
    ]  # fmt: skip
    assert (found.interval, found.samples) == ("", 1_200)


SIDES = {"more": "faster: {gain}", "less": "slower: {gain}", "same": "no telling"}


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (1.5, 2.5, "faster: 2 times"),
        (0.5, 0.9, "slower: 2 times"),
        (0.9, 2.5, "no telling"),
        (1.0, 2.5, "no telling"),
        (None, None, "faster: 2 times"),
    ],
)
def test_the_interval_decides_what_is_said_and_without_one_the_value(low, high, sentence):
    found = said_of(statement(SIDES), gain=figure(2.0, "times", 9, low, high))
    assert found.sentence == sentence


def test_another_value_may_be_the_one_that_makes_no_difference():
    about = statement(SIDES, against=0)
    assert said_of(about, gain=figure(-3.0)).sentence.startswith("slower")
    assert said_of(about, gain=figure(0)).sentence == "no telling"


def test_a_ratio_has_the_widest_interval_and_the_smaller_count():
    about = statement({"text": "{gain}"}, ratios={"gain": ("slow", "fast")})
    slow, fast = figure(300, "µs", 10, 280, 320), figure(100, "µs", 8, 80, 140)
    found = said_of(about, slow=slow, fast=fast)
    assert (found.sentence, found.interval, found.samples) == ("3 times", "2 to 4 times", 8)


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (None, "Notebook 02 was not run."),
        ({"ok": False, "measurements": {}}, "Notebook 02 failed."),
        ({"ok": True, "measurements": {"gain": 1}}, "Notebook 02 recorded no fast, slow."),
    ],
)
def test_what_cannot_be_said_is_missing_and_says_why(result, why):
    about = statement({"text": "{ratio} {gain}"}, ratios={"ratio": ("slow", "fast")})
    found = find(about, result)
    assert (found.missing, found.parts) == (why, ())


def test_figures_that_cannot_be_divided_are_missing_as_well():
    about = statement({"text": "{gain}"}, ratios={"gain": ("slow", "fast")})
    result = {"ok": True, "measurements": {"slow": figure(3, "ms"), "fast": figure(1, "rows")}}
    assert find(about, result).missing == "Figures of notebook 02 cannot be divided."


def service(label, *, embedded=True, emulated=False):
    return {"label": label, "embedded": embedded, "emulated": emulated}


LOCAL, AWS = service("local Valkey"), service("ElastiCache", embedded=False)
BOX = service("local Valkey, this notebook's own", embedded=False)
MOTO = service("local S3 emulation", emulated=True)


@pytest.mark.parametrize(
    ("on", "services", "where"),
    [
        ("sandbox cache", {"cache": LOCAL, "sandbox cache": BOX}, ""),
        ("sandbox cache", {"cache": AWS, "sandbox cache": BOX}, BOX["label"]),
        ("store", {"cache": AWS, "store": AWS}, ""),
        ("store", {"cache": LOCAL, "store": MOTO}, MOTO["label"]),
        ("cache", {"cache": LOCAL, "store": MOTO}, ""),
        ("store", {}, ""),
    ],
)
def test_a_sandbox_beside_aws_and_an_emulation_are_called_so(on, services, where):
    about = Statement("02_cache", "How much?", "gain", {"text": "{gain}"}, 1, {}, True, (on,))
    result = {"ok": True, "measurements": {"gain": figure(2.0)}, "services": services}
    assert find(about, result).where == where


def test_a_statement_that_forgets_a_case_is_refused():
    with pytest.raises(DataError, match="it takes either text, or more, less and same"):
        findings._statement({"question": "How much?", "more": "faster", "less": "slower"})


@pytest.mark.parametrize(("notebook", "text"), TEMPLATES)
def test_no_template_holds_a_figure_of_its_own(notebook, text):
    around = re.sub(r"\bS3\b|\bp9[59]\b", "", findings.SLOT.sub("", text))
    assert re.findall(r"\d|[{}]", around) == [], notebook


def test_every_notebook_has_main_figures_a_picture_and_a_statement():
    names = [notebook.name for notebook in runner.find_notebooks()]
    assert list(main_figures()) == names
    assert {one.notebook for one in statements()} == set(names)
    assert 6 <= sum(one.first_screen for one in statements()) <= 9
