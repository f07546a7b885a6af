"""A run is summed up in sentences made from its figures, by snippets that hold none."""

import re
from html import unescape

import pytest

from workshop_lib.findings import Statement, find, share, statements
from workshop_lib.notebooks import find_notebooks
from workshop_lib.results import Measurement, Result


def found_in(text, figure="gain", services=None, on=(), **measured):
    statement = Statement("02_cache", "How much?", figure, text, on=tuple(on))
    return find(statement, Result("02_cache", services=services or {}, measurements=measured))


def test_a_figure_takes_its_place_with_its_unit_and_is_marked():
    found = found_in(
        "{{ a }} of {{ a.n }}, {{ figures['b-c'] }}, {{ share(d) }} & {{ e }}.", "a",
        a=Measurement(3, "reads", 1_200), d=Measurement(0.744), e=Measurement("<i>"),
        **{"b-c": Measurement(4854.6, "µs")},
    )  # fmt: skip
    words = unescape(re.sub("<.*?>", "", found.sentence))
    assert words == "3 reads of 1,200, 4.85 ms, 74.4 % & <i>."
    marked = re.findall("<strong>(.*?)</strong>", found.sentence)
    assert marked == ["3 reads", "4.85 ms", "74.4 %", "&lt;i&gt;"]


@pytest.mark.parametrize(
    ("ends", "sentence"),
    [((1.5, 2.5), "faster"), ((0.5, 0.9), "slower"), ((0.9, 2.5), "no telling"), ((), "faster")],
)
def test_the_interval_decides_what_is_said_or_else_the_value(ends, sentence):
    text = (
        "{% if figure is above 1 %}faster{% elif figure is below 1 %}slower"
        "{% else %}no telling{% endif %}"
    )
    assert found_in(text, gain=Measurement(2.0, "times", 9, *ends)).sentence == sentence


@pytest.mark.parametrize(("count", "n", "low", "high"), [(0, 10, 0, 27.8), (10, 10, 72.2, 100)])
def test_a_share_has_an_interval_also_at_its_ends(count, n, low, high):
    found = share(Measurement(count, "reads", n))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05)


@pytest.mark.parametrize(
    ("figure", "measured"),
    [
        ("gain", {}),
        ("slow / fast", {"slow": Measurement(3, "ms"), "fast": Measurement(1, "rows")}),
        ("slow / fast", {"slow": Measurement(3, "ms"), "fast": Measurement(0, "ms")}),
        ("share(gain)", {"gain": Measurement(value=True)}),
        ("share(gain)", {"gain": Measurement(3, "reads", 2)}),
    ],
)
def test_what_cannot_be_said_is_missing_and_says_why(figure, measured):
    found = found_in("It is so.", figure, **measured)
    assert found.missing.startswith("Notebook 02 did not record what it takes: ")
    assert found.sentence == ""


def test_where_it_was_measured_is_said_where_the_statement_wants_it():
    services = {"cache": {"label": "ElastiCache"}, "sandbox cache": {"label": "local Valkey"}}
    measured = {"gain": Measurement(2.0)}
    assert found_in("", services=services, on=["sandbox cache"], **measured).where == "local Valkey"
    assert found_in("", services=services, **measured).where == ""


def test_every_notebook_has_a_sentence_without_a_figure_of_its_own():
    names = {notebook.name for notebook in find_notebooks()}
    told = statements()
    assert {one.notebook for one in told} == names
    for one in told:
        words = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\bS3\b|\bp9[59]\b", "", one.text, flags=re.DOTALL)
        assert not re.search(r"\d", words), one.notebook
