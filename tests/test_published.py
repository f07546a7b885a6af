"""Published figures: read from data, with their source, and drawn apart from one's own."""

import tomllib

import pytest

from workshop_lib import published_figures
from workshop_lib.errors import DataError
from workshop_lib.published import BESIDE, beside_published

LOCAL = {"embedded": True, "emulated": False, "aws": False}
AWS = {"embedded": False, "emulated": False, "aws": True}
OWN = {"embedded": False, "emulated": False, "aws": False}


def results(database=LOCAL, cache=LOCAL, store=LOCAL, n=200, **more):
    """A run whose every duration is a millisecond, and that of a hit half of it."""

    def figure(value):
        return {"value": value, "unit": "µs", "n": n, "low": value * 0.9, "high": value * 1.1}

    services = {"database": database, "cache": cache, "store": store}
    wanted = tomllib.loads(BESIDE.read_text(encoding="utf-8"))["beside"]
    found = {}
    for one in wanted:
        result = found.setdefault(
            one["notebook"], {"ok": True, "services": services, "measurements": {}, **more}
        )
        for name in one["figures"]:
            result["measurements"][name] = figure(500.0 if name == "hit_p50" else 1_000.0)
    return found


def beside(subject, **how):
    (row,) = [row for row in beside_published(results(**how)) if row.subject == subject]
    return row


@pytest.mark.parametrize("study", ["cold-warm-pooled", "store-and-cache"])
def test_each_figure_names_its_source_one_a_study(study):
    found = published_figures(study)
    assert len({one.source for one in found}) == 1
    assert all(0 < one.low_s <= one.high_s for one in found)


def test_a_source_says_whose_figures_they_are():
    (store,) = {one.source for one in published_figures("store-and-cache")}
    (demonstration,) = {one.source for one in published_figures("cold-warm-pooled")}
    assert "not AWS" in store
    assert "measured by its author" in store
    assert "AWS sample" in demonstration
    assert "expected" in demonstration


def test_an_unknown_study_is_an_error_that_names_the_known_ones():
    with pytest.raises(DataError, match="only: cold-warm-pooled, store-and-cache"):
        published_figures("warm-cold")


@pytest.mark.parametrize(
    ("subject", "published", "difference"),
    [
        ("cold, database", "200 to 300 ms", "200 to 300 times less"),
        ("pooled, database", "5 to 10 ms", "5.0 to 10 times less"),
        ("any, cache", "2 ms", "4.0 times less"),
        ("cache, average", "683 µs", "1.5 times more"),
        ("pooled query / hit", "2.5 to 5 times", "1.2 to 2.5 times less"),
        ("S3 / cache, average", "33.1 times", "33 times less"),
    ],
)
def test_a_figure_beside_a_published_one_says_how_many_times_more_or_less(
    subject, published, difference
):
    row = beside(subject)
    assert (row.published, row.difference) == (published, difference)


def test_a_figure_within_what_was_published_is_as_much():
    found = results()
    found["08_compare_cold_warm_pooled"]["measurements"]["warm_p50"]["value"] = 9_000.0
    rows = {row.subject: row.difference for row in beside_published(found)}
    assert rows["warm, database"] == "as much"


RESTARTED = "a restarted server; Aurora DSQL had scaled to zero"
IDLE = "idle for a time of our choice; theirs had scaled to zero"


@pytest.mark.parametrize(
    ("how", "short"),
    [
        ({}, [RESTARTED, "no network, local PostgreSQL"]),
        ({"database": OWN}, ["another database"]),
        ({"database": AWS}, [IDLE, "another cluster and client"]),
        (
            {"database": OWN, "n": 9, "workers": 2},
            ["another database", "few samples", "not alone on the machine"],
        ),
        ({"database": OWN, "n": 1}, ["another database", "one sample"]),
        ({"database": OWN, "n": 10, "workers": 1}, ["another database"]),
    ],
)  # fmt: skip
def test_the_reasons_are_those_of_the_services_and_of_the_measurement(how, short):
    assert [reason for reason, _ in beside("cold, database", **how).reasons] == short


def test_an_emulated_store_is_called_so():
    row = beside("S3, min", store={**LOCAL, "emulated": True})
    assert [reason for reason, _ in row.reasons] == ["an emulated store"]


def test_there_are_words_for_every_service_wherever_it_may_be():
    for where in (LOCAL, AWS, OWN):
        rows = beside_published(results(database=where, cache=where, store=where))
        assert all(row.reasons for row in rows)


def test_every_published_figure_has_one_of_a_run_beside_it():
    rows = {(row.study, row.subject) for row in beside_published({})}
    for study in ("cold-warm-pooled", "store-and-cache"):
        assert {(study, one.subject) for one in published_figures(study)} <= rows


def test_without_the_notebook_or_its_success_nothing_stands_beside():
    failed = {name: {**result, "ok": False} for name, result in results().items()}
    for found in ({}, failed):
        assert [row for row in beside_published(found) if row.figure or row.reasons] == []
